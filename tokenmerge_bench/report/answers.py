"""The verdict in plain words: which method wins, by how much, whether that is significant, and whether it is faster.

"In front" is the word for the highest accuracy at a budget and for all that a paired test cannot tell from it, which
are not told apart: that is less than to be equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tokenmerge_bench.compare import Setting, shown_name
from tokenmerge_bench.contests import Contest, Pair
from tokenmerge_bench.report.timings import Timing, Timings
from tokenmerge_bench.results import Results
from tokenmerge_bench.statistics import Interval

WAYS = 3
"""At most so many times of one setting stand in the table of verdicts."""
FEW = 3
"""At most so many budgets are named one by one."""
QUESTIONS = ("Which method wins?", "By how much?", "Is that significant?", "Is it faster?")


@dataclass(frozen=True)
class Answer:
    """One finding: where it holds (a model, trained methods; empty where there is no choice), in a few words, and in
    a sentence or two."""

    where: str
    short: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """One line of the table of verdicts, in words: a model at a budget."""

    where: str
    budget: str
    winner: str
    outcome: str
    top1: str
    loss: str
    leads: list[str]
    p: str
    speeds: list[str]


class Track:
    """The contests of one model, off the shelf or trained, at budgets that save anything; there is at least one."""

    def __init__(self, where: str, held: Sequence[Contest], unreduced: Setting | None) -> None:
        self.where, self.contests, self.unreduced = where, held, unreduced
        self.decidable = [contest for contest in held if contest.pairs]
        self.in_front = Counter(shown_name(leader) for contest in self.decidable for leader in contest.leaders)
        self.alone = Counter(shown_name(c.best) for c in self.decidable if len(c.leaders) == 1)
        self.strongest = (self.decidable or held)[-1]

    @property
    def behind(self) -> list[str]:
        """The methods that are not in front somewhere."""
        names = dict.fromkeys(shown_name(row) for contest in self.decidable for row in contest.settings)
        return [name for name in names if self.in_front[name] < len(self.decidable)]

    @property
    def champion(self) -> str:
        """The method that is in front most often; of several, the one that is most often alone there."""
        ranked = sorted(self.in_front, key=lambda name: (-self.in_front[name], -self.alone[name]))
        return ranked[0] if ranked else shown_name(self.strongest.best)

    def won_by_champion(self, contest: Contest) -> bool:
        """Whether the champion is alone in front."""
        return [shown_name(leader) for leader in contest.leaders] == [self.champion]

    @property
    def front(self) -> list[str]:
        """The methods that are in front at every budget, or the champion where none is."""
        total = len(self.decidable)
        return [name for name, count in self.in_front.items() if count == total] or [self.champion]

    def settings_of(self, name: str) -> list[Setting]:
        """The settings of a method, the dearest first."""
        rows = [setting for contest in self.contests for setting in contest.settings]
        return [setting for setting in rows if shown_name(setting) == name]


def tracks(results: Results, found: Sequence[Contest]) -> list[Track]:
    """The contests of each model, off the shelf and trained apart."""
    groups: dict[tuple[str, bool], list[Contest]] = {}
    for contest in found:
        if contest.saved > 0:
            groups.setdefault((contest.model, contest.trained), []).append(contest)
    models, trainings = {model for model, _ in groups}, {trained for _, trained in groups}
    held = []
    for (model, trained), contests in groups.items():
        training = ("trained methods" if trained else "off the shelf") if len(trainings) > 1 else ""
        where = ", ".join(part for part in (model if len(models) > 1 else "", training) if part)
        held.append(Track(where, contests, results.unreduced(model)))
    return held


def answers(held: Sequence[Track], timings: Timings) -> dict[str, list[Answer]]:
    """The answers to `QUESTIONS`, one for each track; to the first alone where nothing was compared."""
    if not held:
        nothing = "No method finished with fewer FLOPs than the unreduced model, so there is nothing to compare."
        return {QUESTIONS[0]: [Answer("", "Nothing to rank", nothing)]}
    found = [
        [_winner(track) for track in held],
        [_margin(track) for track in held],
        [_significance(track) for track in held],
        [_speed(track, timings) for track in held],
    ]
    return dict(zip(QUESTIONS, found, strict=True))


def verdicts(held: Sequence[Track], losses: dict[tuple[str, str, str], Interval], timings: Timings) -> list[Verdict]:
    """A line per model and budget.

    Args:
        held: what was compared.
        losses: points lost against the unreduced model, by model, method and budget.
        timings: what was timed.
    """
    return [_verdict(track, contest, losses, timings) for track in held for contest in track.contests]


def budget_words(contest: Contest) -> str:
    """A budget as what it saves: `30 % fewer FLOPs`, with its name where that is no fraction."""
    try:
        return f"{100 * (1 - float(contest.budget)):.3g} % fewer FLOPs"
    except ValueError:  # k=40, 3.26 GFLOPs
        return f"{contest.budget}, {100 * contest.saved:.0f} % fewer FLOPs"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them: `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def p_words(p: float) -> str:
    """A p-value with two significant digits."""
    return "<0.0001" if p < 0.0001 else f"{p:.2g}"


def interval_words(value: Interval, form: str = ".2f") -> str:
    """An estimate with its interval."""
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _at_all(count: int) -> str:
    return {1: "at the only budget", 2: "at both budgets"}.get(count, f"at all {count} budgets")


def _winner(track: Track) -> Answer:
    total = len(track.decidable)
    if not total:
        return Answer(track.where, "Nothing to rank", _why_not(track))
    everywhere = [name for name in track.front if track.in_front[name] == total]
    name, alone = track.champion, track.alone[track.champion]
    if len(everywhere) == 1 and alone:
        short = name
        detail = f"In front {_at_all(total)}"
        detail += "." if total == 1 else f", and alone there at {'all' if alone == total else alone} of them."
    elif everywhere:
        short = "No clear winner"
        detail = f"{listed(everywhere)} cannot be told from the best {_at_all(total)}."
        if track.behind:
            detail += f" Behind{'' if total == 1 else ' at one of them or more'}: {listed(track.behind)}."
    else:
        short = "It depends on the budget"
        detail = f"In front: {_places(track)}."
    return Answer(track.where, short, detail)


def _places(track: Track) -> str:
    """Which methods are in front where; at how many budgets, if there are many."""
    total = len(track.decidable)
    if total > FEW:
        return ", ".join(f"{name} at {count} of {total}" for name, count in track.in_front.most_common(4))
    leaders = (listed([shown_name(leader) for leader in contest.leaders]) for contest in track.decidable)
    return ", ".join(f"{names} at {budget_words(c)}" for names, c in zip(leaders, track.decidable, strict=True))


def _why_not(track: Track) -> str:
    methods = list(dict.fromkeys(shown_name(row) for contest in track.contests for row in contest.settings))
    if len(methods) == 1:
        return f"Only {methods[0]} has results here, so there is nothing to compare it with but the unreduced model."
    return (
        "No two methods were run at the same FLOPs (within 1 %), and at different FLOPs none is called better. Sweep "
        "with --budgets, which gives every method the same FLOPs; the curves below can still be looked at."
    )


def _margin(track: Track) -> Answer:
    """At the strongest budget at which the champion wins, or the strongest at all."""
    contest = next((won for won in reversed(track.decidable) if track.won_by_champion(won)), track.strongest)
    if not track.alone and track.decidable:  # then the widest lead there is
        contest = max(track.decidable, key=lambda tied: 0.0 if tied.next is None else tied.next.difference.value)
    best, pair = contest.best, contest.next
    kept = f"At {budget_words(contest)} {shown_name(best)} gets {best['top1']:.2f} % of the images right"
    kept += "" if track.unreduced is None else f" (the unreduced model {track.unreduced['top1']:.2f} %)"
    name = shown_name(best)
    if pair is None:
        return Answer(track.where, f"{name}: {_change(best, track.unreduced)}", f"{kept}.")
    points = f"{pair.difference.value:.2f} points"
    if pair.difference.value == 0:
        short = f"{name} and {shown_name(pair.behind)} are equal"
    elif pair.decided:
        short = f"{name} by {points}"
    elif track.alone:
        short = f"{name} by {points}, undecided"
    else:
        short = f"Undecided: {'leads up to ' if len(track.decidable) > 1 else ''}{points}"
    beyond = contest.beyond
    leads = [_lead(pair, "the next"), *([_lead(beyond, "the first that is told apart")] if beyond else [])]
    others = " Other budgets: see the table." if len(track.contests) > 1 else ""
    return Answer(track.where, short, f"{kept}: {listed(leads)}.{others}")


def _change(setting: Setting, unreduced: Setting | None) -> str:
    """What the reduction costs, or gains."""
    if unreduced is None:
        return "loss unknown"
    lost = unreduced["top1"] - setting["top1"]
    return f"{abs(lost):.2f} points {'gained' if lost < 0 else 'lost'}"


def _lead(pair: Pair, which: str) -> str:
    difference = pair.difference
    more = f"{difference.value:.2f} points more than" if difference.value > 0 else "just as many as"
    return f"{more} {shown_name(pair.behind)}, {which} (95 % interval {difference.low:.2f} to {difference.high:.2f})"


def _significance(track: Track) -> Answer:
    if not track.decidable:
        return Answer(track.where, "Not tested", "There is nothing to test without two methods at the same FLOPs.")
    won = [contest for contest in track.decidable if len(contest.leaders) == 1]
    total = len(track.decidable)
    if won:
        short = "Yes" if len(won) == total else f"At {len(won)} of {total} budgets"
    else:
        short = "No, but some are worse" if _decided(track) else "No"
    pair = track.strongest.next
    assert pair is not None
    images = int(pair.ahead["n_images"])
    detail = ""
    if won:
        detail += f"One method is ahead of all others at {listed([budget_words(contest) for contest in won])}. "
    if len(won) < total:
        where = "at the others" if won else "at any budget" if total > 1 else "here"
        detail += f"{images:,} images cannot tell the best methods apart {where}. "
        detail += _decided(track)
    # A single test may need fewer images than there are, where the correction for many pairs leaves a tie.
    if not pair.decided and pair.found.images_needed is not None and pair.found.images_needed > images:
        detail += (
            f"If the difference seen is the true one, telling {shown_name(pair.ahead)} from {shown_name(pair.behind)} "
            f"at {budget_words(track.strongest)} would take about {_rounded(pair.found.images_needed):,} images. "
        )
    return Answer(track.where, short, detail.strip())


def _decided(track: Track) -> str:
    """Who is significantly behind the best, where the best are not told apart."""
    found = [
        f"{listed([shown_name(row) for row in rows])} at {budget_words(contest)}"
        for contest in track.decidable
        if len(contest.leaders) > 1 and (rows := [row for row in contest.settings if row not in contest.leaders])
    ]
    return f"Significantly behind: {'; '.join(found)}. " if found else ""


def _rounded(count: int) -> int:
    """A number that is an estimate, to two significant digits."""
    return int(float(f"{count:.2g}"))


def _speed(track: Track, timings: Timings) -> Answer:
    """Of the methods in front, each at its fastest budget, in the way of running that suits the fastest of them."""
    settings = [setting for name in track.front for setting in track.settings_of(name)]
    timed = [(setting, timing) for setting in settings for timing in timings.of(setting)]
    if not timed:
        none = "No profile here has timed these settings" if timings else "This report was given no profile"
        rough = "The sweep's own clock tells orders of magnitude only, and cannot decide; `tmbench profile` does."
        return Answer(track.where, "Not measured", f"{none}. {rough}")
    ranked = sorted((timing for _, timing in timed), key=lambda timing: -timing.speedup.value)
    way, slowest = ranked[0].way, ranked[-1]
    fastest: dict[str, tuple[Setting, Timing]] = {}
    for setting, timing in sorted(timed, key=lambda pair: -pair[1].speedup.value):
        if timing.way == way:
            fastest.setdefault(shown_name(setting), (setting, timing))
    found = Counter(timing.verdict for timing in ranked)
    if not found["faster"]:
        short = "No, slower" if not found["not told apart"] else "Cannot be told"
    elif found["faster"] == len(ranked):
        short = "Yes"
    else:
        short = f"Sometimes: {found['faster']} of {len(ranked)} timings"
    times = [f"{name} {interval_words(timing.speedup)} at {held['budget']}" for name, (held, timing) in fastest.items()]
    detail = f"Times as fast as the unreduced model (above 1 is faster) on {ranked[0].place}: {', '.join(times)}."
    if slowest.way != way:
        name = next(shown_name(setting) for setting, timing in timed if timing is slowest)
        detail += f" The slowest is {name}, {interval_words(slowest.speedup)} on {slowest.place}."
    return Answer(track.where, short, detail)


def _verdict(track: Track, contest: Contest, losses: dict[tuple[str, str, str], Interval], timings: Timings) -> Verdict:
    best = contest.best
    loss = losses.get((contest.model, shown_name(best), contest.budget))
    return Verdict(
        where=track.where,
        budget=budget_words(contest),
        winner=listed([shown_name(setting) for setting in contest.equals]),
        outcome=_outcome(contest),
        top1=f"{best['top1']:.2f} %",
        loss="" if loss is None else interval_words(loss),
        leads=_leads(contest),
        p="" if contest.next is None else p_words(contest.next.found.p_adjusted),
        speeds=_speeds(timings.of(best)),
    )


def _speeds(held: Sequence[Timing]) -> list[str]:
    """A line for each way of running, or for the fastest and the slowest of many."""
    if len(held) > WAYS:
        ranked = sorted(held, key=lambda timing: -timing.speedup.value)
        return [*_speeds([ranked[0], ranked[-1]]), f"the fastest and the slowest of {len(held)} ways"]
    return [f"{interval_words(timing.speedup)}: {timing.way}" for timing in held]


def _outcome(contest: Contest) -> str:
    if not contest.pairs:
        return "alone here" if len(contest.settings) == 1 else f"not ranked: FLOPs {100 * contest.apart:.1f} % apart"
    others = [shown_name(leader) for leader in contest.leaders if leader not in contest.equals]
    equal = "equally accurate" if len(contest.equals) > 1 else ""
    if not others:
        return equal or "wins"
    all_others = len(contest.leaders) == len(contest.settings) > 2
    unsure = f"not told apart from {'all others' if all_others else listed(others)}"
    return f"{equal}; {unsure}" if equal else unsure


def _leads(contest: Contest) -> list[str]:
    """The lead over the next, and, after a tie, over the first that is told apart."""
    following = _over(contest.next) if contest.next else ""
    beyond = f"{_over(contest.beyond)}, p {p_words(contest.beyond.found.p_adjusted)}" if contest.beyond else ""
    return [line for line in (following, beyond) if line]


def _over(pair: Pair) -> str:
    return f"{interval_words(pair.difference, '+.2f')} over {shown_name(pair.behind)}"
