"""What to keep in mind when reading a report, in plain words and from the data."""

from __future__ import annotations

from collections.abc import Sequence

from tokenmerge_bench.compare import EQUAL_FLOPS, shown_name
from tokenmerge_bench.contests import Contest
from tokenmerge_bench.report.answers import budget_words, listed
from tokenmerge_bench.report.timings import Timings
from tokenmerge_bench.results import Results
from tokenmerge_bench.store import UNREDUCED


def caveats(results: Results, timings: Timings, found: Sequence[Contest]) -> list[str]:
    """Sentences, the weightiest first."""
    return [
        *_images(results, found),
        *_embedded(results),
        *_unequal(found),
        *_times(results, timings),
        *_training(results),
        *_seeds(results),
        *_unreadable(results),
        *_source(results),
        "FLOPs are multiply-accumulates (1 GFLOP = 1e9 of them), the method's own arithmetic included. Fewer FLOPs are "
        "not less time.",
    ]


def _images(results: Results, found: Sequence[Contest]) -> list[str]:
    finished = results.summary[results.summary["status"] == "ok"]
    above, below = finished["top1_high"] - finished["top1"], finished["top1"] - finished["top1_low"]
    sentence = (
        f"With {int(finished['n_images'].max()):,} images the 95 % interval of an accuracy reaches up to "
        f"{max(above.max(), below.max()):.1f} points to a side."
    )
    if any(contest.pairs for contest in found):
        sentence += (
            " Methods are compared on the same images, which resolves smaller differences; how many images a "
            "difference needs stands in the paired comparisons."
        )
    return [sentence]


def _embedded(results: Results) -> list[str]:
    if not (results.summary["weights"] == "embedded").any():
        return []
    return [
        "These are results of the embedded benchmark: Fashion-MNIST, which is easy, and a small model. It is for "
        "trying things; rank methods on your own model and images."
    ]


def _unequal(found: Sequence[Contest]) -> list[str]:
    apart = [c for c in found if len(c.settings) > 1 and not c.pairs]
    if not apart:
        return []
    where = listed([f"{budget_words(contest)} on {contest.model}" for contest in apart])
    return [
        f"At {where} the methods' FLOPs differ by more than {100 * EQUAL_FLOPS:.0f} %, so that none is called the best."
    ]


def _times(results: Results, timings: Timings) -> list[str]:
    if not timings:
        return [
            "Speed was not measured: times in results.csv are added up from pieces that settings share, and tell "
            "orders of magnitude. `tmbench profile` is for timing."
        ]
    sentences = [
        "Speedups hold for the hardware, batch size, precision and mode that they were measured with, which need not "
        "be those of the accuracies."
    ]
    without = list(
        dict.fromkeys(
            f"{shown_name(row)} at {row['budget']} on {row['model']}"
            for row in results.finished
            if row["method"] != UNREDUCED and not timings.of(row)
        )
    )
    if without:
        sentences.append(f"Not timed: {listed(without)}.")
    strangers = timings.strangers(results.finished)
    if strangers:
        sentences.append(f"Timed, but with no accuracy in these results: {listed(strangers)}.")
    return sentences


def _training(results: Results) -> list[str]:
    if not (results.summary["trained"] == "yes").any():
        return []
    return [
        "Trained methods have had training that those off the shelf have not, and are compared among themselves. What "
        "training alone gains is the row of the unreduced model that was trained in the same way."
    ]


def _seeds(results: Results) -> list[str]:
    names = dict.fromkeys(shown_name(row) for row in results.settings if row["seeds"] > 1)
    if not names:
        return []
    return [f"{listed(list(names))}: means over seeds; \u00b1 is the standard deviation over them."]


def _unreadable(results: Results) -> list[str]:
    count = len({name for origin in results.provenance for name in origin.get("unreadable", [])})
    return [f"{count:,} images could not be read and were left out for every method."] if count else []


def _source(results: Results) -> list[str]:
    if not any(str(origin.get("git_revision", "")).endswith("-dirty") for origin in results.provenance):
        return []
    return ["Some of these results were made from source code with uncommitted changes."]
