"""Which of two methods is better: pairs of settings at equal FLOPs, refusals, and numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_results import made, nothing, point, right, unreduced

from tokenmerge_bench.compare import ALPHA, compare, pairwise
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.results import Results


@pytest.fixture
def two(tmp_path: Path) -> Results:
    """dhtm against tome at two budgets: 10 and 2 discordant images at 0.7, 6 and 0 at 0.5."""
    return made(
        tmp_path / "two",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.700, right(80)),
        point("dhtm", "0.5", 0.500, right(66)),
        point(
            "tome", "0.7", 0.702, right(72, start=10)
        ),  # images 10 to 81: 10 that only dhtm has, 2 that only tome has
        point("tome", "0.5", 0.498, right(60)),
    )


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_every_number_of_a_pair(two: Results) -> None:
    found = compare(two, "dhtm", "tome")
    first, second = found.pairs.to_dict("records")
    assert (first["budget"], first["gflops_a"], first["gflops_b"]) == ("0.7", 0.700, 0.702)
    assert (first["top1_a"], first["top1_b"], first["images"]) == (80, 72, 100)
    assert (first["only_a"], first["only_b"]) == (10, 2)
    assert first["difference"] == pytest.approx(8)
    assert first["p"] == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)  # 158 / 4096
    assert (second["only_a"], second["only_b"]) == (6, 0)
    assert second["p"] == pytest.approx(2 / 2**6)
    # Holm: the smaller of the two p-values counts twice, and the other cannot fall below it.
    assert second["p_adjusted"] == pytest.approx(4 / 2**6)
    assert first["p_adjusted"] == pytest.approx(4 / 2**6)
    assert (first["verdict"], second["verdict"]) == ("undecided", "undecided")
    assert found.left_out == []


def test_the_interval_is_that_of_the_paired_difference_in_percentage_points(two: Results) -> None:
    """Bonett and Price: 11 against 3 of 102 images after adding one of each kind."""
    row = compare(two, "dhtm", "tome").pairs.iloc[0]
    margin = 1.959964 * math.sqrt((14 - 8**2 / 102) / 102 / 102)
    assert row["difference_low"] == pytest.approx(100 * (8 / 102 - margin), abs=1e-3)
    assert row["difference_high"] == pytest.approx(100 * (8 / 102 + margin), abs=1e-3)


def test_images_needed_is_miettinens_formula(two: Results) -> None:
    row = compare(two, "dhtm", "tome").pairs.iloc[0]
    discordant, effect = 0.12, 0.08
    exact = ((1.959964 * math.sqrt(discordant) + 0.841621 * math.sqrt(discordant - effect**2)) / effect) ** 2
    assert row["images_needed"] == math.ceil(exact)


def test_the_caption_says_that_images_needed_are_for_an_unadjusted_test(two: Results) -> None:
    assert "unadjusted test at 5 %" in compare(two, "dhtm", "tome").pairs.attrs["caption"]


def test_swapping_the_methods_changes_the_signs_alone(two: Results) -> None:
    ab, ba = compare(two, "dhtm", "tome").pairs, compare(two, "tome", "dhtm").pairs
    assert (ab["difference"] + ba["difference"]).abs().max() < 1e-9
    assert (ab["difference_low"] + ba["difference_high"]).abs().max() < 1e-9
    assert ab["p"].tolist() == ba["p"].tolist()
    assert ab["only_a"].tolist() == ba["only_b"].tolist()
    assert ab["verdict"].tolist() == ba["verdict"].tolist()


def test_a_difference_that_holds_after_correction_is_decided(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.7, right(72)),
        point("tome", "0.7", 0.7, right(60)),
    )
    assert compare(results, "dhtm", "tome").pairs["verdict"].tolist() == ["dhtm better"]
    assert compare(results, "tome", "dhtm").pairs["verdict"].tolist() == ["dhtm better"]


def test_equal_outcomes_need_no_number_of_images(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r", unreduced(right(9)), point("dhtm", "0.7", 0.7, right(8)), point("tome", "0.7", 0.7, right(8))
    )
    (row,) = compare(results, "dhtm", "tome").pairs.to_dict("records")
    assert (row["difference"], row["p"], row["verdict"]) == (0, 1, "undecided")
    assert pd.isna(row["images_needed"])


def test_seeds_are_averaged_for_each_image(tmp_path: Path) -> None:
    """Two seeds of random: one loses images 60 to 79, the other none, so each of them counts half."""
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.7, right(80)),
        point("random", "0.7", 0.7, right(60), seed=0),
        point("random", "0.7", 0.7, right(80), seed=1),
    )
    (row,) = compare(results, "dhtm", "random").pairs.to_dict("records")
    assert (row["top1_b"], row["difference"]) == (70, pytest.approx(10))
    assert (row["only_a"], row["only_b"]) == (10, 0)
    assert row["p"] == pytest.approx(2 / 2**20)  # twenty images of half an image each, all the same way


# --- which settings meet ----------------------------------------------------------------------------------------------


def test_other_words_for_the_same_flops_meet(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dhtm", "k=20", 0.855, right(85)),
        point("dhtm", "k=40", 0.701, right(80)),
        point("tome", "0.7", 0.700, right(75)),
        point("tome", "0.5", 0.500, right(70)),
    )
    found = compare(results, "dhtm", "tome")
    assert found.pairs["budget"].tolist() == ["k=40 / 0.7"]
    assert any("dhtm at k=20" in text and "tome at 0.7" in text and "22.1 % apart" in text for text in found.left_out)
    assert any("tome at 0.5" in text and "no counterpart" in text for text in found.left_out)


@pytest.fixture
def crowded(tmp_path: Path) -> Results:
    """Three settings of dhtm within 1 % of one of tome, and one of tome that is near to none, in no order."""
    return made(
        tmp_path / "crowded",
        unreduced(right(90)),
        point("dhtm", "k=39", 0.706, right(84)),
        point("dhtm", "k=40", 0.700, right(80)),
        point("dhtm", "k=41", 0.702, right(78)),
        point("dhtm", "k=60", 0.501, right(60)),
        point("tome", "r=16", 0.300, right(30)),
        point("tome", "r=12", 0.500, right(52)),
        point("tome", "r=8", 0.7025, right(70)),
    )


def test_a_setting_meets_one_other_and_the_nearest_of_all_meet_first(crowded: Results) -> None:
    found = compare(crowded, "dhtm", "tome")
    assert found.pairs["budget"].tolist() == ["k=41 / r=8", "k=60 / r=12"]
    assert found.pairs["p_adjusted"].tolist() == pytest.approx([2 * 2 / 2**8] * 2)  # two tests, eight images each
    taken = [text for text in found.left_out if "compared with another setting" in text]
    assert [text.split(" on ")[0] for text in taken] == ["dhtm at k=39", "dhtm at k=40"]
    (far_off,) = (text for text in found.left_out if text not in taken)
    assert "tome at r=16" in far_off
    assert "67.0 % apart, more than 1 %" in far_off


@pytest.mark.parametrize("unequal", [False, True])
def test_the_verdict_does_not_hang_on_which_method_is_named_first(crowded: Results, unequal: bool) -> None:
    there, back = compare(crowded, "dhtm", "tome", unequal=unequal), compare(crowded, "tome", "dhtm", unequal=unequal)
    swapped = [" / ".join(reversed(budget.split(" / "))) for budget in back.pairs["budget"]]
    assert there.pairs["budget"].tolist() == swapped
    for column in ("p", "p_adjusted", "verdict", "images_needed"):
        assert there.pairs[column].tolist() == back.pairs[column].tolist()
    assert set(there.left_out) == set(back.left_out)


def test_among_equal_costs_the_partner_does_not_hang_on_the_order_either(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        *(point("dhtm", budget, 0.7, right(80)) for budget in ("k=40", "0.7", "k=41")),
        *(point("tome", budget, 0.7, right(70)) for budget in ("r=9", "r=8")),
    )
    assert compare(results, "dhtm", "tome").pairs["budget"].tolist() == ["0.7 / r=8", "k=40 / r=9"]
    assert compare(results, "tome", "dhtm").pairs["budget"].tolist() == ["r=8 / 0.7", "r=9 / k=40"]


@pytest.fixture
def placed(tmp_path: Path) -> Results:
    """The same k in other places costs something else, and another k the same, as for DeiT-Tiny."""
    return made(
        tmp_path / "placed",
        unreduced(right(90)),
        point("dhtm", "k=40", 0.9427, right(80), options="position=post"),
        point("dhtm", "k=48", 0.8835, right(78), options="position=post"),
        point("dhtm", "k=40", 0.8864, right(75), options="layers=3/6/9"),
        point("dhtm", "k=48", 0.8168, right(70), options="layers=3/6/9"),
    )


def test_the_same_words_for_other_flops_do_not_hide_what_is_comparable(placed: Results) -> None:
    (row,) = compare(placed, "dhtm:position=post", "dhtm:layers=3/6/9").pairs.to_dict("records")
    assert (row["budget"], row["difference"], row["equal_flops"]) == ("k=48 / k=40", pytest.approx(3), True)


def test_unequal_flops_are_compared_at_the_same_words_first(placed: Results) -> None:
    found = compare(placed, "dhtm:position=post", "dhtm:layers=3/6/9", unequal=True)
    assert found.pairs["budget"].tolist() == ["k=40", "k=48"]
    assert not found.pairs["equal_flops"].any()
    assert found.left_out == []


def far(folder: Path) -> Results:
    return made(
        folder,
        unreduced(right(90)),
        point("dhtm", "k=40", 0.7, right(80)),
        point("tome", "r=8", 0.75, right(84)),
    )


def test_budgets_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        compare(far(tmp_path / "r"), "dhtm", "tome")
    for part in ("dhtm at k=40", "0.7 GFLOPs", "tome at r=8", "0.75", "7.1 %", "1 %", "--unequal", "--at"):
        assert part in str(error.value)


def test_budgets_that_differ_are_compared_when_asked_and_the_verdict_says_so(tmp_path: Path) -> None:
    (row,) = compare(far(tmp_path / "r"), "dhtm", "tome", unequal=True).pairs.to_dict("records")
    assert row["equal_flops"] is False
    assert row["difference"] == pytest.approx(-4)
    assert row["verdict"] == "undecided, but tome takes 7.1 % more FLOPs"


@pytest.mark.parametrize(("gflops", "refused"), [(0.7069, False), (0.7071, True)])
def test_one_percent_is_the_limit(tmp_path: Path, gflops: float, refused: bool) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.7, right(80)),
        point("tome", "0.7", gflops, right(80)),
    )
    if refused:
        with pytest.raises(InputError, match="apart"):
            compare(results, "dhtm", "tome")
    else:
        assert len(compare(results, "dhtm", "tome").pairs) == 1


@pytest.mark.parametrize("name", ["none", "unreduced"])
def test_against_the_unreduced_model_any_budget_will_do(two: Results, name: str) -> None:
    found = compare(two, name, "dhtm").pairs
    assert found["difference"].tolist() == pytest.approx([10, 24])
    assert found["budget"].tolist() == ["0.7", "0.5"]
    assert found["verdict"].tolist() == ["unreduced better"] * 2
    back = compare(two, "dhtm", name).pairs
    assert back["difference"].tolist() == pytest.approx([-10, -24])
    assert compare(two, "dhtm", name).curves.empty


def test_every_model_is_compared_where_both_have_run(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        *(unreduced(right(90), model=model) for model in ("small", "large", "huge")),
        *(point("dhtm", "0.7", 0.7, right(80), model=model) for model in ("small", "large", "huge")),
        *(point("tome", "0.7", 0.7, right(70), model=model) for model in ("small", "large")),
    )
    found = compare(results, "dhtm", "tome")
    assert found.pairs["model"].tolist() == ["small", "large"]
    assert found.left_out == ["tome was not run on huge."]


def test_what_gave_no_number_is_named_with_its_reason(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.7, right(80)),
        point("tome", "0.7", 0.7, right(80)),
        nothing("tome", "0.1", "unreachable", "at least 0.3"),
    )
    (sentence,) = compare(results, "dhtm", "tome").left_out
    assert sentence == "tome at 0.1 on deit_tiny_patch16_224 is unreachable: at least 0.3."


# --- names ------------------------------------------------------------------------------------------------------------


def test_options_are_part_of_the_name_in_any_order(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("dhtm", "0.7", 0.7, right(80)),
        point("dhtm", "0.7", 0.7, right(70), options="connectivity=4:averaging=plain"),
    )
    found = compare(results, "dhtm", "dhtm:averaging=plain:connectivity=4")
    assert found.b == "dhtm:connectivity=4:averaging=plain"
    assert found.pairs["difference"].tolist() == pytest.approx([10])


def test_trained_and_off_the_shelf_are_two_methods(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(90)),
        point("tome", "0.7", 0.7, right(80)),
        point("tome", "0.7", 0.7, right(85), trained="yes"),
    )
    assert compare(results, "tome (trained)", "tome").pairs["difference"].tolist() == pytest.approx([5])


def test_an_unknown_method_is_refused_with_the_nearest_and_what_there_is(two: Results) -> None:
    with pytest.raises(InputError, match=r"no method 'dhtn' \(did you mean 'dhtm'\?\).*'unreduced', 'dhtm', 'tome'"):
        compare(two, "dhtn", "tome")


@pytest.mark.parametrize("names", [("dhtm", "dhtm"), ("none", "unreduced")])
def test_a_method_is_not_compared_with_itself(two: Results, names: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="given twice"):
        compare(two, *names)


def test_outcomes_that_were_not_copied_are_asked_for(two: Results) -> None:
    (two.folders[0] / "outcomes" / "point1.csv.gz").unlink()
    with pytest.raises(InputError, match="lacks the per-image outcomes"):
        compare(two, "dhtm", "tome")


# --- every pair -------------------------------------------------------------------------------------------------------


def test_every_pair_of_all_groups_counts_in_the_correction() -> None:
    """Images that only one of a pair gets right: 8, 4 and 12 of the first group, 10 of the second; four tests."""
    some, other = ([np.arange(30) < count for count in counts] for counts in ((12, 20, 24), (10, 20)))
    first, second = pairwise([some, other])
    raw = {images: 2 / 2**images for images in (4, 8, 10, 12)}
    assert {places: pair.p for places, pair in first.items()} == {
        (0, 1): pytest.approx(raw[8]), (0, 2): pytest.approx(raw[12]), (1, 2): pytest.approx(raw[4])
    }  # fmt: skip
    assert {places: pair.p_adjusted for places, pair in first.items()} == {
        (0, 1): pytest.approx(raw[8] * 2), (0, 2): pytest.approx(raw[12] * 4), (1, 2): pytest.approx(raw[4] * 1)
    }  # fmt: skip
    assert second[0, 1].p_adjusted == pytest.approx(raw[10] * 3)


def test_the_best_of_equally_good_methods_is_rarely_called_better() -> None:
    """In at most 5 % of tables is any row called worse than the best, although the best is picked by the same data.

    A correction for the four tests with the best alone would call a row worse in 7.0 % of these tables.
    """
    random = np.random.default_rng(0)
    tables = []
    for _ in range(800):
        chance = random.beta(2, 1, size=300)  # that an image is right, the same for every method
        tables.append(list(random.random((5, 300)) < chance))
    wrong = 0
    for hits in tables:
        best = int(np.argmax([table.mean() for table in hits]))
        wrong += any(pair.p_adjusted < ALPHA for places, pair in pairwise([hits])[0].items() if best in places)
    assert wrong / len(tables) <= 0.05


# --- curves -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def curves(tmp_path: Path) -> Results:
    """dhtm is right on 20 images more than tome all along, at budgets that they do not share."""
    return made(
        tmp_path / "curves",
        unreduced(right(95)),
        *(point("dhtm", f"k={k}", cost, right(70)) for k, cost in ((10, 0.8), (20, 0.6), (30, 0.4))),
        *(point("tome", f"r={r}", cost, right(50)) for r, cost in ((4, 0.9), (8, 0.5))),
    )


def test_the_mean_difference_is_over_the_flops_that_both_cover(two: Results) -> None:
    (row,) = compare(two, "dhtm", "tome").curves.to_dict("records")
    assert (row["gflops_from"], row["gflops_to"]) == (0.500, 0.700)
    # Both curves are straight lines: dhtm from 66 to 80 over 0.5 to 0.7, tome from 60 to 72 over 0.498 to 0.702.
    assert row["difference"] == pytest.approx(73 - (60 + 12 * (0.6 - 0.498) / 0.204), abs=1e-6)
    assert row["difference_low"] < row["difference"] < row["difference_high"]


def test_curves_are_read_off_at_fractions_though_no_two_budgets_agree(curves: Results) -> None:
    found = compare(curves, "dhtm", "tome", at=[0.6, 0.7])
    assert found.pairs.empty
    assert found.at["fraction"].tolist() == [0.6, 0.7]
    assert found.at["top1_a"].tolist() == pytest.approx([70, 70])
    assert found.at["top1_b"].tolist() == pytest.approx([50, 50])
    assert found.at["difference"].tolist() == pytest.approx([20, 20])
    assert found.at["verdict"].tolist() == ["dhtm better"] * 2
    (row,) = found.curves.to_dict("records")
    assert row["difference"] == pytest.approx(20)
    assert 10 < row["difference_low"] < 20 < row["difference_high"] < 30
    assert any("dhtm at k=10" in text for text in found.left_out)


def test_the_difference_at_a_measured_budget_is_the_measured_one(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        unreduced(right(95)),
        *(point("dhtm", b, float(b), right(80 + n)) for n, b in enumerate(("0.5", "0.6", "0.7"))),
        *(point("tome", b, float(b), right(70 + n, start=12)) for n, b in enumerate(("0.5", "0.6", "0.7"))),
    )
    found = compare(results, "dhtm", "tome", at=[0.6])
    (row,), pair = found.at.to_dict("records"), found.pairs.iloc[1]
    for column in ("top1_a", "top1_b", "difference"):
        assert row[column] == pytest.approx(pair[column])
    assert row["difference_low"] == pytest.approx(pair["difference_low"], abs=0.6)  # bootstrap against closed form
    assert row["difference_high"] == pytest.approx(pair["difference_high"], abs=0.6)


def test_fractions_of_a_model_without_two_curves_are_left_out_by_name(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r",
        *(unreduced(right(90), model=model) for model in ("small", "large")),
        *(point("dhtm", b, float(b), right(80), model=model) for model in ("small", "large") for b in ("0.7", "0.5")),
        *(point("tome", b, float(b), right(70), model="small") for b in ("0.7", "0.5")),
        point("tome", "0.7", 0.7, right(70), model="large"),
        point("tome", "k=9", 0.7, right(70), model="large"),
    )
    found = compare(results, "dhtm", "tome", at=[0.6, 0.5])
    assert found.at["model"].tolist() == ["small", "small"]
    (sentence,) = (text for text in found.left_out if "interpolated" in text)
    assert sentence.startswith("large cannot be interpolated at 0.6, 0.5 of its FLOPs: dhtm and tome both need")
    assert not any("interpolated" in text for text in compare(results, "dhtm", "tome").left_out)
    assert any("interpolated" in text for text in compare(results, "unreduced", "tome", at=[0.6]).left_out)


def test_nothing_is_extrapolated(curves: Results) -> None:
    found = compare(curves, "dhtm", "tome", at=[0.6, 0.95])
    assert found.at["fraction"].tolist() == [0.6]
    assert any("0.95 of the FLOPs" in text and "0.5 to 0.8" in text for text in found.left_out)
    with pytest.raises(InputError, match="outside what the curves"):
        compare(curves, "dhtm", "tome", at=[0.95])


def test_a_curve_that_ends_within_the_tolerance_of_the_budget_ends_at_it(two: Results) -> None:
    """tome was solved for 0.5 and got 0.498; dhtm got 0.5: that both were asked for 0.498 is no extrapolation."""
    (row,) = compare(two, "dhtm", "tome", at=[0.498]).at.to_dict("records")
    assert (row["gflops"], row["top1_a"]) == (0.500, pytest.approx(66))


def test_one_budget_is_no_curve(tmp_path: Path) -> None:
    results = made(
        tmp_path / "r", unreduced(right(9)), point("dhtm", "0.7", 0.7, right(8)), point("tome", "0.7", 0.7, right(8))
    )
    assert compare(results, "dhtm", "tome").curves.empty
