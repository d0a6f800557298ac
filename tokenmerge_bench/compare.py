"""Two methods on the same images at the same FLOPs: by how much they differ, and whether that can be told from chance.

A loss against the unreduced model is such a comparison too; the tables make theirs with `paired`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.results import Hits, Results
from tokenmerge_bench.statistics import (
    Interval,
    area_between,
    holm,
    images_needed,
    interpolate,
    interpolated_difference,
    paired_difference,
    paired_test,
)
from tokenmerge_bench.store import UNREDUCED

ALPHA = 0.05
"""What a p-value, adjusted for the number of tests in its table, must stay below to decide."""
ROUNDED = 9
"""Decimals of an accuracy in percent that are not rounding."""
EQUAL_FLOPS = 0.01
"""By how much GFLOPs may differ, as a fraction of the smaller, to be called the same."""
TRAINED = " (trained)"
"""What follows the name of a method that was trained."""
Setting = dict[Any, Any]
"""A row of `Results.summary`."""
PAIRS_CAPTION = (
    "{a} minus {b} on the same {images} images of {dataset}: top-1 in percent, differences in percentage points with "
    "95 % intervals (Bonett and Price). p is that of the exact paired test (McNemar's with one seed), adjusted by Holm "
    "over the table (in a report, over all its pairs); images needed would show a difference of this size with 80 % "
    "power by an unadjusted test at 5 %."
)
CURVES_CAPTION = (
    "{a} minus {b}, mean over the FLOPs that both cover, in percentage points with 95 % intervals (paired bootstrap), "
    "on the same {images} images of {dataset}."
)
AT_CAPTION = (
    "{a} and {b} interpolated (PCHIP) at fractions of the unreduced FLOPs: top-1 in percent on the same {images} "
    "images of {dataset}, with 95 % intervals (paired bootstrap)."
)


@dataclass(frozen=True)
class Paired:
    """Setting A minus setting B on the same images: `difference` with its 95 % interval in percentage points, the
    (mean) number of images that only one of the two gets right, and the p-value of the paired test; `p_adjusted` is
    corrected (Holm) over all comparisons that were made together.

    `images_needed` would show a difference of this size with 80 % power, by an unadjusted test at 5 %; None if there is
    no difference."""

    difference: Interval
    only_a: float
    only_b: float
    p: float
    p_adjusted: float
    images_needed: int | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found.

    Attributes:
        pairs: a row per pair of settings: model, budget, GFLOPs, accuracies, difference and verdict.
        curves: a row per model: the mean difference between the curves over the FLOPs that both cover.
        at: a row per model and fraction asked for: both curves interpolated there.
        left_out: a sentence for everything that could not be compared.
    """

    a: str
    b: str
    pairs: pd.DataFrame
    curves: pd.DataFrame
    at: pd.DataFrame
    left_out: list[str]


def shown_name(setting: Setting) -> str:
    """How the method of a setting is shown and asked for: `unreduced`, `dhtm:connectivity=4`, `tome (trained)`."""
    name = "unreduced" if setting["method"] == UNREDUCED else str(setting["label"])
    return f"{name}{TRAINED}" if setting["trained"] == "yes" else name


def paired(results: Results, a: Setting, b: Setting) -> Paired:
    """Two settings of one model on the images that both have seen; seeds are averaged per image.

    Raises:
        InputError: if per-image outcomes are missing or the images differ.
    """
    return paired_hits(*results.hits(a, b))


def paired_hits(hits_a: Hits, hits_b: Hits) -> Paired:
    """The same from `Results.hits`: each (seeds, images), the images in the same order."""
    test, needed = paired_test(hits_a, hits_b), images_needed(hits_a, hits_b)
    return Paired(_points(paired_difference(hits_a, hits_b)), test.only_a, test.only_b, test.p, test.p, needed)


def _points(interval: Interval) -> Interval:
    """A fraction as percentage points."""
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)


def equally_accurate(a: float, b: float) -> bool:
    """Whether two accuracies in percent are the same but for rounding: means over seeds are sums in some order."""
    return round(a, ROUNDED) == round(b, ROUNDED)


def adjusted(p: Sequence[float]) -> npt.NDArray[np.float64]:
    """Holm's correction over a table; NaN where there was no test."""
    return np.asarray(holm(np.asarray(p, dtype=float)), dtype=float)


def pairwise(groups: Sequence[Sequence[Hits]]) -> list[dict[tuple[int, int], Paired]]:
    """Every pair i < j of the K settings of each group, its p-value adjusted (Holm) over the pairs of all groups.

    For statements about the best of a group all pairs count, not only the K - 1 with the best: which one it is was
    picked by the same data, and the best of equally good settings is best by chance.

    Args:
        groups: settings that are compared with each other, each (images,) or (seeds, images), the same images in the
            same order within a group.
    """
    pairs = [list(combinations(range(len(group)), 2)) for group in groups]
    found = [[paired_hits(group[i], group[j]) for i, j in held] for group, held in zip(groups, pairs, strict=True)]
    tests = iter(adjusted([pair.p for compared in found for pair in compared]))
    return [
        {place: replace(pair, p_adjusted=float(next(tests))) for place, pair in zip(held, compared, strict=True)}
        for held, compared in zip(pairs, found, strict=True)
    ]


def spread(gflops: Iterable[float]) -> float:
    """Difference of the largest and the smallest as a fraction of the smallest."""
    costs = sorted(gflops)
    return float(costs[-1] / costs[0] - 1)


def compare(
    results: Results,
    a: str,
    b: str,
    *,
    unequal: bool = False,
    tolerance: float = EQUAL_FLOPS,
    at: Sequence[float] | None = None,
) -> Comparison:
    """Compares method A with method B on every model, wherever they spend the same FLOPs.

    Settings meet one to one: those of the same budget first, and then those nearest in GFLOPs. Against the unreduced
    model any budget will do. Which method is A and which is B decides the signs and nothing else.

    Args:
        results: opened results folders.
        a: a method as it is asked for (`dhtm`, `dhtm:connectivity=4`, `tome (trained)`), or `none` or `unreduced`.
        b: the same.
        unequal: compare settings whose GFLOPs differ by more than `tolerance` too, and say so in the verdict.
        tolerance: largest difference in GFLOPs, as a fraction of the smaller.
        at: fractions of the unreduced FLOPs at which both curves are interpolated as well.

    Raises:
        InputError: for an unknown method, the same one twice, or if no two settings spend the same FLOPs.
    """
    a, b = _known(results, a), _known(results, b)
    if a == b:
        raise InputError(f"'{a}' was given twice; give two different methods to compare.")
    pairs: list[tuple[Setting, Setting]] = []
    alone: list[str] = []
    farthest = math.inf if unequal else tolerance
    for model in dict.fromkeys(results.summary["model"]):
        ours, theirs = _settings(results, model, a), _settings(results, model, b)
        met = _partners(ours, theirs, farthest)
        pairs += met
        alone += _alone(ours, theirs, met, farthest)
    curves = _all_curves(results, a, b)
    points, outside = _interpolated(results, curves, a, b, at or ())
    left_out = [*_unfinished(results, a, b), *alone, *outside]
    if not pairs and points.empty:
        remedy = " Give --unequal to compare them all the same, or --at to interpolate their curves." if alone else ""
        raise InputError(f"{a} and {b} have no budget in common: {' '.join(left_out)}{remedy}")
    comparison = Comparison(
        a, b, _pairs_table(results, pairs, a, b, tolerance), _mean_differences(curves, a, b), points, left_out
    )
    origin = {"a": a, "b": b, "images": f"{int(results.summary['n_images'].max()):,}", "dataset": results.dataset}
    for frame, caption in (
        (comparison.pairs, PAIRS_CAPTION),
        (comparison.curves, CURVES_CAPTION),
        (comparison.at, AT_CAPTION),
    ):
        frame.attrs |= {"a": a, "b": b, "caption": caption.format(**origin)}
    return comparison


def _known(results: Results, text: str) -> str:
    """The name in the results of a method as typed; the order of options, and defaults spelt out, do not matter."""
    known = list(dict.fromkeys(shown_name(row) for row in results.settings))
    wanted = "unreduced" if text.strip() == UNREDUCED else text.strip()
    wanted = f"unreduced{TRAINED}" if wanted == UNREDUCED + TRAINED else wanted
    same = [name for name in known if _parts(name) == _parts(wanted)]
    if not same:
        kin = [name for name in known if _parts(name)[0] == _parts(wanted)[0]]
        hint = f" (did you mean '{kin[0]}'?)" if kin else nearest(wanted, known)
        raise InputError(f"the results have no method '{text}'{hint}; they have {', '.join(map(repr, known))}.")
    return same[0]


def _parts(name: str) -> tuple[str, frozenset[str], bool]:
    from tokenmerge_bench.options import parse_method

    text, trained = name.removesuffix(TRAINED), name.endswith(TRAINED)
    with contextlib.suppress(InputError):  # a method that is not installed here is taken as it is written
        text = parse_method(text).label
    method, *options = text.split(":")
    return method, frozenset(options), trained


def _settings(results: Results, model: str, name: str, finished: bool = True) -> list[Setting]:
    rows = [row for row in results.settings if row["model"] == model and shown_name(row) == name]
    return [row for row in rows if (row["status"] == "ok") == finished]


def _partners(ours: list[Setting], theirs: list[Setting], farthest: float) -> list[tuple[Setting, Setting]]:
    """Which settings meet, the dearest first: one to one, those of the same budget first and then the nearest.

    `farthest` is the largest difference in GFLOPs, as a fraction of the smaller. Every setting of the one meets the
    unreduced model where that is the other. Nothing here depends on which of the two methods is ours.
    """
    possible = list(product(ours, theirs))
    if any(UNREDUCED in (one["method"], other["method"]) for one, other in possible):
        return sorted(possible, key=_dearest_first)
    pairs: list[tuple[Setting, Setting]] = []
    for pair in sorted(possible, key=_nearest_first):
        free = not any(one is pair[0] or other is pair[1] for one, other in pairs)
        if free and _apart(*pair) <= farthest:
            pairs.append(pair)
    return sorted(pairs, key=_dearest_first)


def _nearest_first(pair: tuple[Setting, Setting]) -> tuple[bool, float, list[str]]:
    one, other = pair
    return one["budget"] != other["budget"], _apart(one, other), _budgets(pair)


def _dearest_first(pair: tuple[Setting, Setting]) -> tuple[float, list[str]]:
    return -sum(row["gflops"] for row in pair), _budgets(pair)


def _budgets(pair: tuple[Setting, Setting]) -> list[str]:
    """What decides between pairs of equal costs, whichever method is named first."""
    return sorted(row["budget"] for row in pair)


def _alone(
    ours: list[Setting], theirs: list[Setting], met: list[tuple[Setting, Setting]], farthest: float
) -> list[str]:
    """A sentence for each setting, of either method, that met none of the other's."""
    busy = [id(row) for pair in met for row in pair]
    sentences = []
    for rows, others in ((ours, theirs), (theirs, ours)):
        for row in rows if others else ():
            if id(row) not in busy:
                closest = sorted(others, key=lambda other: _nearest_first((row, other))[1:])[0]
                sentences.append(_no_counterpart(row, closest, farthest))
    return sentences


def _no_counterpart(row: Setting, other: Setting, farthest: float) -> str:
    apart = _apart(row, other)
    why = f"more than {100 * farthest:g} %" if apart > farthest else "and is compared with another setting"
    return (
        f"{_where(row)} takes {row['gflops']:.4g} GFLOPs and has no counterpart: the nearest, {shown_name(other)} at "
        f"{other['budget']}, takes {other['gflops']:.4g}, {100 * apart:.1f} % apart, {why}."
    )


def _apart(one: Setting, other: Setting) -> float:
    return spread([one["gflops"], other["gflops"]])


def _equal(one: Setting, other: Setting, tolerance: float) -> bool:
    """Whether two settings may be compared: their FLOPs agree, or one is the unreduced model."""
    return UNREDUCED in (one["method"], other["method"]) or _apart(one, other) <= tolerance


def _where(row: Setting) -> str:
    budget = "" if row["method"] == UNREDUCED or pd.isna(row["budget"]) else f" at {row['budget']}"
    return f"{shown_name(row)}{budget} on {row['model']}"


def _unfinished(results: Results, a: str, b: str) -> list[str]:
    """What there is to say of settings that gave no number, and of models that only one of the two has run on."""
    sentences = []
    for model in dict.fromkeys(results.summary["model"]):
        for name in (a, b):
            failed = _settings(results, model, name, finished=False)
            sentences += [f"{_where(row)} is {row['status']}: {str(row['reason']).rstrip('.')}." for row in failed]
            if not failed and not _settings(results, model, name):
                sentences.append(f"{name} was not run on {model}.")
    return sentences


def _pairs_table(
    results: Results, pairs: list[tuple[Setting, Setting]], a: str, b: str, tolerance: float
) -> pd.DataFrame:
    rows = []
    for one, other in pairs:
        found = paired(results, one, other)
        rows.append(
            {
                "model": one["model"],
                "budget": _budget(one, other),
                "gflops_a": one["gflops"],
                "gflops_b": other["gflops"],
                "equal_flops": _equal(one, other, tolerance),
                "top1_a": one["top1"],
                "top1_b": other["top1"],
                **interval_columns("difference", found.difference),
                "only_a": found.only_a,
                "only_b": found.only_b,
                "p": found.p,
                "images": int(one["n_images"]),
                "images_needed": found.images_needed,
            }
        )
    for row, p in zip(rows, adjusted([row["p"] for row in rows]), strict=True):
        row["p_adjusted"] = p
        row["verdict"] = _verdict(row, a, b)
    return pd.DataFrame(rows).astype({"images_needed": "Int64"}) if rows else pd.DataFrame()


def _budget(one: Setting, other: Setting) -> str:
    budgets = dict.fromkeys(row["budget"] for row in (one, other) if row["method"] != UNREDUCED)
    return " / ".join(budgets)


def _verdict(row: dict[str, Any], a: str, b: str) -> str:
    decided = row["p_adjusted"] < ALPHA
    verdict = f"{a if row['difference'] > 0 else b} better" if decided else "undecided"
    if row["equal_flops"]:
        return verdict
    dearer = a if row["gflops_a"] > row["gflops_b"] else b
    extra = 100 * _apart({"gflops": row["gflops_a"]}, {"gflops": row["gflops_b"]})
    return f"{verdict}, but {dearer} takes {extra:.1f} % more FLOPs"


def interval_columns(name: str, interval: Interval) -> dict[str, float]:
    """Columns of a value and its interval: `name`, `name_low`, `name_high`."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _decided(difference: Interval, a: str, b: str) -> str:
    """The verdict of an interval alone, where there is no test."""
    if difference.low <= 0 <= difference.high:
        return "undecided"
    return f"{a if difference.value > 0 else b} better"


@dataclass(frozen=True, eq=False)
class _Curves:
    """Both methods on one model: GFLOPs and per-image outcomes of their settings, cheapest first."""

    model: str
    gflops_a: npt.NDArray[np.float64]
    hits_a: list[Hits]
    gflops_b: npt.NDArray[np.float64]
    hits_b: list[Hits]

    @property
    def common(self) -> tuple[float, float]:
        """The GFLOPs that both curves cover, from and to; nothing if from is not below to."""
        return max(self.gflops_a[0], self.gflops_b[0]), min(self.gflops_a[-1], self.gflops_b[-1])


def _all_curves(results: Results, a: str, b: str) -> list[_Curves]:
    """One entry for each model on which both methods have run at two costs or more."""
    found = []
    for model in dict.fromkeys(results.summary["model"]):
        rows_a, rows_b = (
            sorted(_settings(results, model, name), key=lambda row: float(row["gflops"])) for name in (a, b)
        )
        cost_a, cost_b = (np.array([row["gflops"] for row in rows], dtype=float) for rows in (rows_a, rows_b))
        if len(np.unique(cost_a)) > 1 and len(np.unique(cost_b)) > 1:
            hits = results.hits(*rows_a, *rows_b)
            found.append(_Curves(model, cost_a, hits[: len(rows_a)], cost_b, hits[len(rows_a) :]))
    return found


def _mean_differences(curves: list[_Curves], a: str, b: str) -> pd.DataFrame:
    rows = []
    for both in curves:
        low, high = both.common
        if low < high:
            difference = _points(area_between(both.gflops_a, both.hits_a, both.gflops_b, both.hits_b))
            row = {"model": both.model, "gflops_from": low, "gflops_to": high}
            rows.append({**row, **interval_columns("difference", difference), "verdict": _decided(difference, a, b)})
    return pd.DataFrame(rows)


def _interpolated(
    results: Results, curves: list[_Curves], a: str, b: str, fractions: Sequence[float]
) -> tuple[pd.DataFrame, list[str]]:
    """Both curves at fractions of the unreduced FLOPs, and a sentence for each that they do not reach."""
    from tokenmerge_bench.budgets import TOLERANCE

    rows: list[dict[str, Any]] = []
    drawn = [both.model for both in curves]
    outside = [
        f"{model} cannot be interpolated at {', '.join(f'{fraction:g}' for fraction in fractions)} of its FLOPs: {a} "
        f"and {b} both need settings of two costs or more there."
        for model in dict.fromkeys(results.summary["model"])
        if fractions and model not in drawn
    ]
    for both in curves:
        unreduced = results.unreduced(both.model)
        if unreduced is None:
            outside.append(f"fractions of {both.model} are unknown: the unreduced model has no finished run.")
            continue
        low, high = both.common
        for fraction in fractions:
            asked = fraction * unreduced["gflops"]
            gflops = min(max(asked, low), high)
            # A setting solved for this very fraction may lie a little beside it, and the curve then ends there.
            if low < high and abs(gflops - asked) <= TOLERANCE * asked:
                rows.append({"model": both.model, "fraction": fraction, **_interpolate(both, gflops, a, b)})
            else:
                covered = f"{low:.4g} to {high:.4g}" if low < high else "nothing in common"
                outside.append(
                    f"{fraction:g} of the FLOPs of {both.model}, {asked:.4g} GFLOPs, is outside what the curves of "
                    f"{a} and {b} cover ({covered})."
                )
    return pd.DataFrame(rows), outside


def _interpolate(both: _Curves, gflops: float, a: str, b: str) -> dict[str, Any]:
    difference = _points(interpolated_difference(both.gflops_a, both.hits_a, both.gflops_b, both.hits_b, gflops))
    return {
        "gflops": gflops,
        **interval_columns("top1_a", _points(interpolate(both.gflops_a, both.hits_a, gflops))),
        **interval_columns("top1_b", _points(interpolate(both.gflops_b, both.hits_b, gflops))),
        **interval_columns("difference", difference),
        "verdict": _decided(difference, a, b),
    }
