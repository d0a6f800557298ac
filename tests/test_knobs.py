"""Budget parameters: counts from values, text, messages, and the candidates of the solver."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.knobs import KeepRate, Knob, MergesPerLayer, RemovedPerBlock, StagedRemoval, Value, tilted

N0 = 196
Fewest = Callable[[int], int]


def one(n_in: int) -> int:
    return 1


def half(n_in: int) -> int:
    return n_in - n_in // 2


def rows(n_in: int) -> int:
    return min(n_in, 14)


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "counts"),
    [(0.9, (176, 158, 142)), (0.7, (137, 96, 67)), (0.5, (98, 49, 24)), (0.25, (49, 12, 3)), (1.0, (196, 196, 196))],
)
def test_keep_rates_of_the_specification(rate: float, counts: tuple[int, ...]) -> None:
    assert KeepRate().counts(rate, N0, 3, one) == counts


@pytest.mark.parametrize(
    ("rate", "counts"),
    [(0.25, (98, 61, 52)), (0.5, (98, 49, 25)), (0.7, (137, 96, 67)), (0.9, (176, 158, 142)), (1.0, (196, 196, 196))],
)
def test_staged_tome_at_most_halves_each_stage(rate: float, counts: tuple[int, ...]) -> None:
    assert StagedRemoval().counts(rate, N0, 3, half) == counts


def test_keep_rates_that_are_fractions_of_the_grid_are_not_rounded_below() -> None:
    # 0.7 and the like are no binary fractions; 10 * 0.7 must be 7 tokens and 100 * 0.29 must be 29.
    for n0, rate, left in ((10, 0.7, 7), (100, 0.29, 29), (100, 0.57, 57), (1000, 0.001, 1)):
        assert KeepRate().counts(rate, n0, 1, one) == (left,)


@pytest.mark.parametrize(
    ("value", "sites", "counts"),
    [
        ((40,), 3, (156, 116, 76)),
        ((41, 41, 40), 3, (155, 114, 74)),
        ((0,), 3, (196, 196, 196)),
        ((65,), 3, (131, 66, 1)),
        ((9,), 12, tuple(196 - 9 * (i + 1) for i in range(12))),
    ],
)
def test_merges_per_layer(value: tuple[int, ...], sites: int, counts: tuple[int, ...]) -> None:
    assert MergesPerLayer().counts(value, N0, sites, one) == counts


@pytest.mark.parametrize(
    ("value", "sites", "counts"),
    [
        ((13,), 12, (183, 170, 157, 144, 131, 118, 105, 92, 79, 66, 53, 40)),
        ((16, 8, 4), 5, (180, 172, 168, 168, 168)),
        ((90,), 4, (106, 53, 27, 14)),  # capped at floor(N / 2)
        ((500,), 2, (98, 49)),
    ],
)
def test_removed_per_block(value: tuple[int, ...], sites: int, counts: tuple[int, ...]) -> None:
    assert RemovedPerBlock().counts(value, N0, sites, half) == counts


def test_removal_with_inflection() -> None:
    counts = RemovedPerBlock(-1.0).counts((8,), N0, 12, half)
    assert [a - b for a, b in itertools.pairwise((N0, *counts))] == [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]
    assert N0 - counts[-1] == 91


@given(st.integers(0, 30), st.floats(-1, 1), st.integers(2, 24))
@settings(deadline=None)
def test_tilted_schedules_are_straight_lines(r: int, inflection: float, blocks: int) -> None:
    found = tilted(float(r), inflection, blocks)
    assert len(found) == blocks
    assert all(0 <= x <= 2 * r for x in found)
    assert abs(found[0] - r * (1 - inflection)) <= 1
    assert abs(found[-1] - r * (1 + inflection)) <= 2
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) - min(steps) <= 1


# --- messages ---------------------------------------------------------------------------------------------------------


def test_too_many_merges_say_where_and_how_many_are_possible() -> None:
    where, what = "k=70 is too many at reduction 3 of 3: 56 patch tokens are there", "at least 1 must stay, so k can be"
    with pytest.raises(InputError, match=f"^{where} and {what} at most 55 at that layer.$"):
        MergesPerLayer().counts((70,), N0, 3, one)
    with pytest.raises(InputError, match="at least 14 must stay, so k can be at most 182"):
        MergesPerLayer().counts((183,), N0, 1, rows)


def test_lists_of_the_wrong_length_say_what_to_give() -> None:
    with pytest.raises(InputError, match="k lists 2 values for 3 reduction layers; give one, or 3"):
        MergesPerLayer().counts((40, 41), N0, 3, one)
    with pytest.raises(InputError, match="r lists 4 values for 3 blocks; give at most 3"):
        RemovedPerBlock().counts((1, 2, 3, 4), N0, 3, half)


def test_a_keep_rate_that_is_too_small_names_the_stage() -> None:
    with pytest.raises(InputError, match=r"keep_rate=0.1 leaves 0 of 1 patch tokens at stage 3.*at least 1"):
        KeepRate().counts(0.1, N0, 3, one)
    with pytest.raises(InputError, match=r"keep_rate=0.25 leaves 12 of 49 patch tokens at stage 2.*at least 14"):
        KeepRate().counts(0.25, N0, 3, rows)


@pytest.mark.parametrize("text", ["", "x", "-3", "4.5", "40/", "40/x/3", "1e2", "/"])
def test_text_that_is_no_count_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"--k '.*' is no count; give a whole number such as 40, or .* 41/41/40"):
        MergesPerLayer().parse(text)


@pytest.mark.parametrize("text", ["", "x", "0", "-0.5", "1.01", "nan", "inf", "70%"])
def test_text_that_is_no_keep_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"--keep-rate '.*' is no keep rate; give a number above 0 and at most 1"):
        KeepRate().parse(text)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "typed", "value", "printed"),
    [
        (MergesPerLayer(), "40", (40,), "k=40"),
        (MergesPerLayer(), "41/41/40", (41, 41, 40), "k=41/41/40"),
        (MergesPerLayer(), "7/7/7", (7, 7, 7), "k=7"),
        (RemovedPerBlock(), "13", (13,), "r=13"),
        (KeepRate(), "0.7", 0.7, "keep_rate=0.7"),
        (KeepRate(), "1", 1.0, "keep_rate=1"),
        (StagedRemoval(), "0.25", 0.25, "keep_rate=0.25"),
    ],
)
def test_values_are_read_and_printed(knob: Knob, typed: str, value: Value, printed: str) -> None:
    assert knob.parse(typed) == value
    assert knob.text(value) == printed


def cases() -> list[tuple[Knob, int, Fewest]]:
    return [
        (MergesPerLayer(), 3, one),
        (MergesPerLayer(), 3, rows),
        (MergesPerLayer(), 12, one),
        (MergesPerLayer(), 1, one),
        (RemovedPerBlock(), 12, half),
        (RemovedPerBlock(), 1, half),
        (RemovedPerBlock(-1.0), 12, half),
        (RemovedPerBlock(0.5), 12, half),
        (KeepRate(), 3, one),
        (KeepRate(), 1, one),
        (StagedRemoval(), 3, half),
    ]


def case_name(part: object) -> str | None:
    return str(getattr(part, "__name__", part)) if not isinstance(part, Knob) else type(part).__name__


CASES = pytest.mark.parametrize(("knob", "sites", "fewest"), cases(), ids=case_name)


@CASES
@pytest.mark.parametrize("n0", [196, 49])
def test_candidates_go_from_nothing_to_everything_in_small_steps(
    knob: Knob, sites: int, fewest: Fewest, n0: int
) -> None:
    values = list(knob.candidates(n0, sites, fewest))
    counts = [knob.counts(value, n0, sites, fewest) for value in values]  # feasible: none raises
    assert counts[0] == (n0,) * sites
    for left in counts:
        for before, after in itertools.pairwise((n0, *left)):
            assert fewest(before) <= after <= before
    totals = [sum(left) for left in counts]
    assert all(b <= a for a, b in itertools.pairwise(totals))
    # Fine enough for any budget: a step takes away two tokens at the first site at most, which all later ones feel.
    assert max(a - b for a, b in itertools.pairwise(totals)) <= 2 * sites


@CASES
def test_the_last_candidate_is_the_strongest_reduction(knob: Knob, sites: int, fewest: Fewest) -> None:
    last = knob.counts(list(knob.candidates(N0, sites, fewest))[-1], N0, sites, fewest)
    strongest: list[int] = []
    for _ in range(sites):
        strongest.append(fewest(strongest[-1] if strongest else N0))
    if knob.__class__ is MergesPerLayer or (isinstance(knob, RemovedPerBlock) and knob.inflection == 0):
        assert last == tuple(strongest)
    else:
        assert last[-1] < N0 / 3


def test_staged_candidates_end_at_the_strongest_of_all_rates() -> None:
    knob = StagedRemoval()
    *_, last = knob.candidates(N0, 3, half)
    every = [knob.counts(rate / 1000, N0, 3, half) for rate in range(1, 1001)]
    assert knob.counts(last, N0, 3, half) == min(every, key=sum) == (98, 49, 25)


@CASES
def test_printed_candidates_can_be_typed_again(knob: Knob, sites: int, fewest: Fewest) -> None:
    for value in itertools.islice(knob.candidates(N0, sites, fewest), 0, None, 37):
        typed = knob.text(value).partition("=")[2]
        again = knob.counts(knob.parse(typed), N0, sites, fewest)
        assert again == knob.counts(value, N0, sites, fewest)
