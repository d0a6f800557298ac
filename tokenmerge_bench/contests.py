"""Methods at one budget against each other: who is in front, by how much, and whether that can be told from chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from tokenmerge_bench.compare import (
    ALPHA,
    EQUAL_FLOPS,
    ROUNDED,
    Paired,
    Setting,
    equally_accurate,
    interval_columns,
    pairwise,
    shown_name,
    spread,
)
from tokenmerge_bench.results import Results
from tokenmerge_bench.statistics import Interval
from tokenmerge_bench.store import UNREDUCED


@dataclass(frozen=True, eq=False)
class Pair:
    """Two settings on the same images, the more accurate one first; `found` is the one `ahead` less the other."""

    ahead: Setting
    behind: Setting
    found: Paired

    @property
    def difference(self) -> Interval:
        """In percentage points, with its 95 % interval."""
        return self.found.difference

    @property
    def decided(self) -> bool:
        """Whether the two can be told apart, after correction over all pairs of all contests."""
        return self.found.p_adjusted < ALPHA


@dataclass(frozen=True, eq=False)
class Contest:
    """The finished settings of a model at one budget, trained ones apart, the most accurate first.

    Without `pairs` there is nothing to compare: one setting alone, or GFLOPs that are more than 1 % `apart`.
    """

    model: str
    trained: bool
    budget: str
    settings: tuple[Setting, ...]
    apart: float
    pairs: tuple[Pair, ...] = ()

    @property
    def best(self) -> Setting:
        """The setting of the highest accuracy, the first of them in the results."""
        return self.settings[0]

    @cached_property
    def equals(self) -> list[Setting]:
        """The best and all of the same accuracy."""
        return [setting for setting in self.settings if equally_accurate(setting["top1"], self.best["top1"])]

    @cached_property
    def leaders(self) -> list[Setting]:
        """The best and all that cannot be told from it; of several that are best, from any of them."""
        tied = [pair.behind for pair in self.pairs if pair.ahead in self.equals and not pair.decided]
        return [setting for setting in self.settings if setting in self.equals or setting in tied]

    @property
    def next(self) -> Pair | None:
        """The best and the second best; None where nothing was compared."""
        return self.pairs[0] if self.pairs else None

    def p_best(self, setting: Setting) -> float:
        """The adjusted p-value of a setting that is not best against the best; of several, against the one that is
        hardest to tell from it."""
        return max(pair.found.p_adjusted for pair in self.pairs if pair.ahead in self.equals and pair.behind is setting)

    @property
    def beyond(self) -> Pair | None:
        """After a tie, the best and the most accurate that is told apart from it; None where there is neither."""
        told = (pair for pair in self.pairs if pair.ahead is self.best and pair.behind not in self.leaders)
        return next(told, None) if len(self.leaders) > 1 else None

    @property
    def saved(self) -> float:
        """The fraction of the unreduced FLOPs that the best saves."""
        return float(self.best["reduction"])


def contests(results: Results, among: Sequence[Setting] | None = None) -> list[Contest]:
    """Every model at every budget, off the shelf and then trained, the dearest budget first.

    All pairs of a contest are compared, and p-values adjusted (Holm) over the pairs of all contests.

    Args:
        results: opened results folders.
        among: some of `results.settings`; None for all. Those that are unfinished or not reduced compete with none.

    Raises:
        InputError: if per-image outcomes are missing or the images differ.
    """
    groups: dict[tuple[str, bool, str], list[Setting]] = {}
    for setting in results.settings if among is None else among:
        if setting["status"] == "ok" and setting["method"] != UNREDUCED and setting["budget"]:
            key = setting["model"], setting["trained"] == "yes", setting["budget"]
            groups.setdefault(key, []).append(setting)
    found = [_contest(*key, group) for key, group in groups.items()]
    models = list(dict.fromkeys(setting["model"] for setting in results.settings))
    found.sort(key=lambda contest: (models.index(contest.model), contest.trained, -contest.best["gflops"]))
    comparable = [contest for contest in found if len(contest.settings) > 1 and contest.apart <= EQUAL_FLOPS]
    tests = iter(pairwise([results.hits(*contest.settings) for contest in comparable]))
    return [_decided(contest, next(tests)) if contest in comparable else contest for contest in found]


def _contest(model: str, trained: bool, budget: str, group: Sequence[Setting]) -> Contest:
    ranking = sorted(group, key=lambda setting: -round(setting["top1"], ROUNDED))
    return Contest(model, trained, budget, tuple(ranking), spread(setting["gflops"] for setting in group))


def _decided(contest: Contest, tests: Mapping[tuple[int, int], Paired]) -> Contest:
    """The same contest with its pairs, by the places of their settings."""
    pairs = (Pair(contest.settings[i], contest.settings[j], found) for (i, j), found in tests.items())
    return replace(contest, pairs=tuple(pairs))


def pairs_table(found: Sequence[Contest]) -> pd.DataFrame:
    """A row per pair of all contests, for a table."""
    return pd.DataFrame(_pair_row(contest, pair) for contest in found for pair in contest.pairs)


def _pair_row(contest: Contest, pair: Pair) -> dict[str, Any]:
    return {
        "model": contest.model,
        "budget": contest.budget,
        "a": shown_name(pair.ahead),
        "b": shown_name(pair.behind),
        "top1_a": pair.ahead["top1"],
        "top1_b": pair.behind["top1"],
        **interval_columns("difference", pair.difference),
        "only_a": pair.found.only_a,
        "only_b": pair.found.only_b,
        "p": pair.found.p,
        "p_adjusted": pair.found.p_adjusted,
        "images_needed": pair.found.images_needed,
        "verdict": f"{shown_name(pair.ahead)} better" if pair.decided else "undecided",
    }
