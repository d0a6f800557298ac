"""Methods at one budget against each other: who is in front, by how much, and whether that can be told from chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd

from tokenmerge_bench.compare import ALPHA, EQUAL_FLOPS, Setting, adjusted, paired_hits, shown_name, spread
from tokenmerge_bench.points import UNREDUCED
from tokenmerge_bench.results import Hits, Results
from tokenmerge_bench.statistics import Interval, images_needed


@dataclass(frozen=True, eq=False)
class Pair:
    """Two settings on the same images, the more accurate one first.

    `difference` is in percentage points with its 95 % interval, `only_ahead` and `only_behind` are the (mean) numbers
    of images that only one of them gets right, and `p_adjusted` is corrected (Holm) over all pairs of the report.
    """

    ahead: Setting
    behind: Setting
    difference: Interval
    only_ahead: float
    only_behind: float
    p: float
    p_adjusted: float
    images_needed: int | None

    @property
    def decided(self) -> bool:
        """Whether the two can be told apart."""
        return self.p_adjusted < ALPHA


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

    @property
    def leaders(self) -> list[Setting]:
        """The best and all that cannot be told from it; of several that are best, from any of them."""
        best = [setting for setting in self.settings if setting["top1"] == self.best["top1"]]
        tied = [pair.behind for pair in self.pairs if pair.ahead in best and not pair.decided]
        return [setting for setting in self.settings if setting in best or setting in tied]

    @property
    def next(self) -> Pair | None:
        """The best and the second best; None where nothing was compared."""
        return self.pairs[0] if self.pairs else None

    @property
    def beyond(self) -> Pair | None:
        """After a tie, the best and the most accurate that is told apart from it; None where there is neither."""
        told = (pair for pair in self.pairs if pair.ahead is self.best and pair.behind not in self.leaders)
        return next(told, None) if len(self.leaders) > 1 else None

    @property
    def saved(self) -> float:
        """The fraction of the unreduced FLOPs that the best saves."""
        return float(self.best["reduction"])


def contests(results: Results) -> list[Contest]:
    """Every model at every budget, off the shelf and then trained, the dearest budget first.

    These are the groups in which the table of all settings names a best, with the same tests: all pairs of a group, and
    Holm's correction over the pairs of all groups.

    Raises:
        InputError: if per-image outcomes are missing or the images differ.
    """
    rows = results.summary
    rows = rows[(rows["status"] == "ok") & (rows["method"] != UNREDUCED) & rows["budget"].notna()]
    found = []
    for (model, trained, budget), group in rows.groupby(["model", "trained", "budget"], sort=False):
        ranking = group.sort_values("top1", ascending=False, kind="stable").to_dict("records")
        contest = Contest(str(model), trained == "yes", str(budget), tuple(ranking), spread(group["gflops"]))
        comparable = len(ranking) > 1 and contest.apart <= EQUAL_FLOPS
        found.append(replace(contest, pairs=_pairs(results, ranking)) if comparable else contest)
    models = list(dict.fromkeys(results.summary["model"]))
    found.sort(key=lambda contest: (models.index(contest.model), contest.trained, -contest.best["gflops"]))
    return _corrected(found)


def _pairs(results: Results, ranking: Sequence[Setting]) -> tuple[Pair, ...]:
    hits = results.hits(*ranking)
    pairs = combinations(range(len(ranking)), 2)
    return tuple(_pair(ranking[i], ranking[j], hits[i], hits[j]) for i, j in pairs)


def _pair(ahead: Setting, behind: Setting, hits_ahead: Hits, hits_behind: Hits) -> Pair:
    found, needed = paired_hits(hits_ahead, hits_behind), images_needed(hits_ahead, hits_behind)
    return Pair(ahead, behind, found.difference, found.only_a, found.only_b, found.p, found.p, needed)


def _corrected(found: Sequence[Contest]) -> list[Contest]:
    """The same contests with the p-values adjusted over all of their pairs."""
    tests = iter(adjusted([pair.p for contest in found for pair in contest.pairs]))
    return [
        replace(contest, pairs=tuple(replace(pair, p_adjusted=float(next(tests))) for pair in contest.pairs))
        for contest in found
    ]


def pairs_table(found: Sequence[Contest]) -> pd.DataFrame:
    """A row per pair of all contests, for a table."""
    return pd.DataFrame(
        {
            "model": contest.model,
            "budget": contest.budget,
            "a": shown_name(pair.ahead),
            "b": shown_name(pair.behind),
            "top1_a": pair.ahead["top1"],
            "top1_b": pair.behind["top1"],
            "difference": pair.difference.value,
            "difference_low": pair.difference.low,
            "difference_high": pair.difference.high,
            "only_a": pair.only_ahead,
            "only_b": pair.only_behind,
            "p": pair.p,
            "p_adjusted": pair.p_adjusted,
            "images_needed": pair.images_needed,
            "verdict": f"{shown_name(pair.ahead)} better" if pair.decided else "undecided",
        }
        for contest in found
        for pair in contest.pairs
    )
