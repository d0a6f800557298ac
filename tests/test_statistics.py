"""Statistics against independent implementations, enumeration, and the coverage they promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import pchip_interpolate
from scipy.stats import binom, bootstrap, norm, permutation_test, ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from tokenmerge_bench.statistics import (
    area_between,
    holm,
    images_needed,
    interpolate,
    interpolated_difference,
    paired_bootstrap,
    paired_difference,
    paired_test,
    pareto_front,
    seed_spread,
    wilson_interval,
)

Hits = npt.NDArray[np.bool_]
PAIRED: list[Callable[[Hits, Hits], Any]] = [
    paired_test,
    paired_difference,
    images_needed,
    lambda a, b: paired_bootstrap(a, b, resamples=10),
]


def outcomes(both: int = 0, only_a: int = 0, only_b: int = 0, neither: int = 0) -> tuple[Hits, Hits]:
    """Single seeds with so many images of each kind."""
    kinds = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, only_a, only_b, neither], axis=0).astype(bool)
    return kinds[:, 0], kinds[:, 1]


@st.composite
def seeds_of_two(draw: st.DrawFn, most_images: int = 12) -> tuple[Hits, Hits]:
    """Hits (seeds, images) of two methods with one to three seeds each."""
    images = draw(st.integers(1, most_images))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    seeds = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return random.random((seeds[0], images)) < 0.7, random.random((seeds[1], images)) < 0.5


class TestWilson:
    @pytest.mark.parametrize(("correct", "total", "level"), [(0, 5, 0.95), (9236, 10000, 0.95), (71, 80, 0.9)])
    def test_is_that_of_statsmodels(self, correct: int, total: int, level: float) -> None:
        expected = proportion_confint(correct, total, alpha=1 - level, method="wilson")
        assert wilson_interval(correct, total, level) == pytest.approx(expected, abs=1e-12)

    def test_covers_as_promised(self) -> None:
        """Exactly, by enumeration: no simulation is needed for one proportion."""
        total = 400
        low, high = np.array([wilson_interval(correct, total) for correct in range(total + 1)]).T
        for expected, (least, most) in {50: (0.941, 0.959), 10: (0.934, 0.967)}.items():
            truth = np.linspace(expected / total, 0.5, 300)[:, None]
            chance = binom.pmf(np.arange(total + 1), total, truth)
            coverage = (chance * ((low <= truth) & (truth <= high))).sum(axis=1)
            assert coverage.min() >= least
            assert coverage.max() <= most
            assert 0.945 <= coverage.mean() <= 0.955


class TestPairedTest:
    @pytest.mark.parametrize("counts", [(50, 10, 2, 38), (3, 6, 0, 1), (0, 5, 5, 0), (0, 1, 0, 0), (900, 150, 60, 90)])
    def test_with_single_seeds_is_mcnemars(self, counts: tuple[int, int, int, int]) -> None:
        both, only_a, only_b, neither = counts
        result = paired_test(*outcomes(both, only_a, only_b, neither))
        assert (result.only_a, result.only_b) == (only_a, only_b)
        expected = mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
        assert result.p == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("only_a", [3150, 3600])
    def test_cut_tails_do_not_show(self, only_a: int) -> None:
        expected = mcnemar([[40000, only_a], [3000, 4000]], exact=True).pvalue
        assert paired_test(*outcomes(40000, only_a, 3000, 4000)).p == pytest.approx(expected, rel=1e-9)

    @given(seeds_of_two())
    def test_with_several_seeds_enumerates_all_signs(self, hits: tuple[Hits, Hits]) -> None:
        a, b = hits
        units = a.sum(axis=0) * len(b) - b.sum(axis=0) * len(a)
        totals = np.array(list(itertools.product([-1, 1], repeat=len(units)))) @ units
        assert paired_test(a, b).p == pytest.approx((np.abs(totals) >= abs(units.sum())).mean(), rel=1e-9)

    def test_with_several_seeds_is_scipys_permutation_test(self) -> None:
        random = np.random.default_rng(5)
        a, b = random.random((3, 11)) < 0.7, random.random((2, 11)) < 0.5

        def total(x: npt.NDArray[Any], y: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
            return np.asarray((x - y).sum(axis=axis))

        means = a.mean(axis=0), b.mean(axis=0)
        expected = permutation_test(means, total, permutation_type="samples", vectorized=True, n_resamples=np.inf)
        assert paired_test(a, b).p == pytest.approx(expected.pvalue, rel=1e-9)
        assert 0.001 < expected.pvalue < 0.5

    @given(seeds_of_two(), st.randoms(use_true_random=False))
    def test_neither_names_nor_order_matter(self, hits: tuple[Hits, Hits], random: Any) -> None:
        a, b = hits
        order = random.sample(range(a.shape[1]), a.shape[1])
        one, other = paired_test(a, b), paired_test(b[::-1, order], a[:, order])
        assert (one.only_a, one.only_b) == pytest.approx((other.only_b, other.only_a))
        assert one.p == pytest.approx(other.p, rel=1e-9)
        assert 0 < one.p <= 1
        # What only one gets right is what separates the accuracies.
        assert one.only_a - one.only_b == pytest.approx(a.mean(axis=0).sum() - b.mean(axis=0).sum(), abs=1e-9)

    @given(seeds_of_two())
    def test_images_on_which_all_agree_do_not_count(self, hits: tuple[Hits, Hits]) -> None:
        more = [np.pad(x, ((0, 0), (0, 7)), constant_values=True) for x in hits]
        assert paired_test(more[0], more[1]) == paired_test(*hits)

    def test_repeating_the_same_seed_adds_nothing(self) -> None:
        a, b = outcomes(20, 12, 3, 5)
        repeated, once = paired_test(np.stack([a, a, a]), np.stack([b, b])), paired_test(a, b)
        assert (repeated.only_a, repeated.only_b) == (once.only_a, once.only_b)
        assert repeated.p == pytest.approx(once.p, rel=1e-9)

    def test_no_discordant_image_decides_nothing(self) -> None:
        assert paired_test(*outcomes(5, 0, 0, 3)).p == 1

    def test_finds_what_is_not_there_as_seldom_as_promised(self) -> None:
        """At the 5 % level; a little less often, as the test is exact and the number of images whole."""
        random = np.random.default_rng(0)
        chance = norm.cdf(2.5 * (random.normal(size=(600, 500)) + 1))
        for seeds_a, seeds_b in ((1, 1), (1, 3), (3, 3)):
            p = [paired_test(random.random((seeds_a, 500)) < c, random.random((seeds_b, 500)) < c).p for c in chance]
            assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.06


class TestPairedDifference:
    def test_is_bonetts_and_prices(self) -> None:
        """21 images, 1 and 7 discordant: by hand, 2 and 8 of 23 after adding one of each."""
        margin = 1.959964 * math.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
        result = paired_difference(*outcomes(1, 1, 7, 12))
        assert result.value == pytest.approx(-6 / 21)
        assert (result.low, result.high) == pytest.approx((-6 / 23 - margin, -6 / 23 + margin), abs=1e-6)

    @given(seeds_of_two(), st.sampled_from([0.9, 0.95, 0.99]))
    def test_swapping_mirrors_and_bounds_hold(self, hits: tuple[Hits, Hits], level: float) -> None:
        one, other = paired_difference(*hits, level=level), paired_difference(*hits[::-1], level=level)
        assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-12)
        assert -1 <= one.low <= one.value <= one.high <= 1
        assert one.low < one.high

    def test_has_a_width_without_discordant_images(self) -> None:
        """About that of the rule of three: with none of 1000, up to 3 of 1000 are possible."""
        for interval in (paired_difference, paired_bootstrap):
            result = interval(*outcomes(800, 0, 0, 200))
            assert result.value == 0
            assert 0.0025 < result.high < 0.0035
            assert result.low == pytest.approx(-result.high, rel=0.05)

    def test_images_outweigh_the_pseudo_images(self) -> None:
        few, many = (paired_difference(*outcomes(70 * n, 12 * n, 6 * n, 12 * n)) for n in (1, 100))
        assert few.value == many.value == pytest.approx(0.06)
        assert (many.low + many.high) / 2 == pytest.approx(0.06, abs=1e-4)
        assert many.high - many.low == pytest.approx((few.high - few.low) / 10, rel=0.05)

    @pytest.mark.parametrize(
        ("only_a", "only_b", "least", "most"),
        [(0.06, 0.04, 0.95, 0.963), (0.04, 0.01, 0.95, 0.991), (0.01, 0.01, 0.95, 0.991), (0.05, 0.001, 0.933, 0.991)],
    )
    def test_covers_as_promised(self, only_a: float, only_b: float, least: float, most: float) -> None:
        """Exactly, by enumeration of both discordant counts of 300 images."""
        images, coverage = 300, 0.0
        counts = [range(int(binom.isf(1e-6, images, p)) + 1) for p in (only_a, only_b)]
        for x, y in itertools.product(*counts):
            chance = binom.pmf(x, images, only_a) * binom.pmf(y, images - x, only_b / (1 - only_a))
            result = paired_difference(*outcomes(0, x, y, images - x - y))
            coverage += float(chance) * (result.low <= only_a - only_b <= result.high)
        assert least <= coverage <= most


class TestPairedBootstrap:
    def test_is_scipys_with_two_more_images(self) -> None:
        a, b = outcomes(300, 30, 12, 58)
        difference = np.append(a.astype(float) - b, [1, -1])
        expected = bootstrap((difference,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
        result = paired_bootstrap(a, b)
        assert result.value == pytest.approx(18 / 400)
        assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.003)

    def test_agrees_with_the_closed_form(self) -> None:
        random = np.random.default_rng(2)
        a, b = random.random((3, 1500)) < 0.8, random.random((2, 1500)) < 0.75
        closed, resampled = paired_difference(a, b), paired_bootstrap(a, b)
        assert resampled.value == closed.value
        assert (resampled.low, resampled.high) == pytest.approx((closed.low, closed.high), abs=0.002)

    def test_is_the_same_every_time(self) -> None:
        hits = outcomes(300, 31, 12, 57)
        assert paired_bootstrap(*hits) == paired_bootstrap(*hits)
        assert paired_bootstrap(*hits, resamples=99) != paired_bootstrap(*hits, resamples=99, seed=1)

    def test_resampling_is_over_images_not_in_their_order(self) -> None:
        a, b = outcomes(300, 31, 12, 57)
        order = np.random.default_rng(0).permutation(400)
        assert paired_bootstrap(a, b, resamples=99) == paired_bootstrap(a[order], b[order], resamples=99)


class TestImagesNeeded:
    def test_by_hand(self) -> None:
        """12 % discordant, 8 % difference; quantiles of 5 % two-sided and 80 % from a table."""
        exact = ((1.959964 * math.sqrt(0.12) + 0.841621 * math.sqrt(0.12 - 0.08**2)) / 0.08) ** 2
        assert images_needed(*outcomes(60, 10, 2, 28)) == math.ceil(exact) == 145

    def test_gives_the_power_it_promises(self) -> None:
        """The exact test is a little weaker than the normal approximation behind the formula."""
        needed = images_needed(*outcomes(600, 100, 60, 240))
        assert needed is not None
        random = np.random.default_rng(0)
        draws = random.multinomial(needed, [0.1, 0.06, 0.84], size=400)
        found = [paired_test(*outcomes(0, x, y, rest)).p < 0.05 for x, y, rest in draws]
        assert 0.72 <= np.mean(found) <= 0.85

    @given(seeds_of_two())
    def test_none_exactly_without_a_difference(self, hits: tuple[Hits, Hits]) -> None:
        needed = images_needed(*hits)
        assert (needed is None) == (hits[0].sum() * len(hits[1]) == hits[1].sum() * len(hits[0]))
        assert needed == images_needed(*hits[::-1])

    def test_more_power_takes_more_images(self) -> None:
        hits = outcomes(60, 10, 2, 28)
        numbers = [images_needed(*hits, power=power) for power in (0.5, 0.8, 0.95)]
        assert numbers == sorted(numbers, key=lambda number: number or 0)
        assert len(set(numbers)) == 3


@dataclass(frozen=True)
class Truth:
    """True accuracies of two methods at their costs, to simulate sweeps from."""

    gflops_a: tuple[float, ...] = (0.5, 0.6, 0.72, 0.85, 1.0)
    gflops_b: tuple[float, ...] = (0.45, 0.62, 0.7, 0.86, 0.98)
    accuracy_a: tuple[float, ...] = (0.6, 0.7, 0.77, 0.81, 0.83)
    accuracy_b: tuple[float, ...] = (0.55, 0.68, 0.76, 0.8, 0.83)

    def sweep(self, images: int, seed: int) -> tuple[Hits, Hits]:
        """Outcomes (P, images) of both: how hard an image is decides most, each point adds its own noise."""
        random = np.random.default_rng(seed)
        hardness, spread = random.normal(size=images), 0.4
        a, b = (
            hardness + spread * random.normal(size=(len(accuracy), images))
            < math.hypot(1, spread) * norm.ppf(accuracy)[:, None]
            for accuracy in (self.accuracy_a, self.accuracy_b)
        )
        return a, b

    def distance(self) -> float:
        fine = np.linspace(max(self.gflops_a[0], self.gflops_b[0]), min(self.gflops_a[-1], self.gflops_b[-1]), 20001)
        curves = (
            pchip_interpolate(self.gflops_a, self.accuracy_a, fine),
            pchip_interpolate(self.gflops_b, self.accuracy_b, fine),
        )
        return float((curves[0] - curves[1]).mean())


SIMULATIONS = 500


@cache
def times_held() -> dict[str, int]:
    """How many of the 95 % intervals of simulated sweeps of 400 images hold the truth."""
    truth = Truth((0.5, 0.7, 1.0), (0.45, 0.72, 0.98), (0.6, 0.76, 0.83), (0.55, 0.76, 0.83))
    truths = {
        "difference": truth.accuracy_a[1] - truth.accuracy_b[1],
        "interpolation": float(pchip_interpolate(truth.gflops_a, truth.accuracy_a, 0.66)),
        "area": truth.distance(),
    }
    held = dict.fromkeys(truths, 0)
    for seed in range(SIMULATIONS):
        a, b = truth.sweep(400, seed)
        intervals = {
            "difference": paired_difference(a[1], b[1]),
            "interpolation": interpolate(truth.gflops_a, a, 0.66, resamples=399, seed=seed),
            "area": area_between(truth.gflops_a, a, truth.gflops_b, b, resamples=399, seed=seed),
        }
        for name, interval in intervals.items():
            held[name] += interval.low <= truths[name] <= interval.high
    return held


@pytest.mark.parametrize("name", ["difference", "interpolation", "area"])
def test_intervals_of_simulated_sweeps_cover(name: str) -> None:
    """In as many simulations as intervals that hold the truth 95 % of the time do, 19 times of 20."""
    least, most = binom.interval(0.95, SIMULATIONS, 0.95)
    assert least <= times_held()[name] <= most


COSTS = (0.5, 0.7, 1.0)


@st.composite
def curves(draw: st.DrawFn) -> Hits:
    """Outcomes (3, images) of a method that never loses an image when it may cost more."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = draw(st.integers(2, 30))
    return np.asarray(random.normal(size=images) < np.array([-0.3, 0.2, 0.8])[:, None])


class TestInterpolate:
    @settings(max_examples=25)
    @given(curves(), st.permutations(range(3)))
    def test_goes_through_its_points_whatever_their_order(self, hits: Hits, order: list[int]) -> None:
        for cost, right in zip(COSTS, hits, strict=True):
            found = interpolate(np.array(COSTS)[order], hits[order], cost, resamples=20)
            assert found.value == pytest.approx(right.mean(), abs=1e-12)

    @settings(max_examples=25)
    @given(curves())
    def test_is_monotone_between_monotone_points(self, hits: Hits) -> None:
        values = [interpolate(COSTS, hits, float(at), resamples=2).value for at in np.linspace(0.5, 1, 21)]
        assert np.all(np.diff(values) >= -1e-12)
        assert values[0] == pytest.approx(hits[0].mean())
        assert values[-1] == pytest.approx(hits[-1].mean())

    @settings(max_examples=25)
    @given(curves(), st.floats(0.5, 1))
    def test_bounds(self, hits: Hits, at: float) -> None:
        found = interpolate(COSTS, hits, at, resamples=200)
        assert 0 <= found.low <= found.high <= 1
        assert found.low < found.high

    def test_at_a_point_is_agresti_and_coulls(self) -> None:
        a, _ = Truth().sweep(2000, 3)
        found = interpolate(Truth().gflops_a, a, 0.72, resamples=4999)
        expected = proportion_confint(a[2].sum(), 2000, method="agresti_coull")
        assert (found.low, found.high) == pytest.approx(expected, abs=0.002)

    def test_seeds_and_points_of_equal_cost_are_averaged(self) -> None:
        a, _ = Truth().sweep(200, 3)
        four = a[:4]
        as_seeds = interpolate([0.5, 1.0], [four[:2], four[2:]], 0.7, resamples=50)
        as_points = interpolate([0.5, 0.5, 1.0, 1.0], four, 0.7, resamples=50)
        middle = (four[:2].mean() + four[2:].mean()) / 2
        assert as_seeds == as_points
        assert interpolate([0.5, 1.0], [four[:2], four[2:]], 0.75, resamples=2).value == pytest.approx(middle)

    def test_more_seeds_of_a_noisy_method_narrow_the_interval(self) -> None:
        random = np.random.default_rng(0)
        hits = [random.random((8, 500)) < accuracy for accuracy in (0.5, 0.6)]
        one, eight = (interpolate([1.0, 2.0], [h[:n] for h in hits], 1.5) for n in (1, 8))
        assert eight.high - eight.low < (one.high - one.low) / 2

    def test_a_method_that_is_always_right_still_has_an_interval(self) -> None:
        found = interpolate([1.0, 2.0], np.ones((2, 80), dtype=bool), 1.5)
        assert found.value == found.high == 1
        assert 0.9 < found.low < 0.97

    @pytest.mark.parametrize("at", [0.4999, 1.0001, math.nan])
    def test_never_extrapolates(self, at: float) -> None:
        with pytest.raises(ValueError, match="outside the measured costs"):
            interpolate(COSTS, np.ones((3, 4), dtype=bool), at)

    def test_refuses_a_single_cost(self) -> None:
        with pytest.raises(ValueError, match="two distinct costs"):
            interpolate([0.5, 0.5], np.ones((2, 4), dtype=bool), 0.5)

    def test_refuses_costs_without_points(self) -> None:
        with pytest.raises(ValueError, match="3 costs and hits of 2 points"):
            interpolate(COSTS, np.ones((2, 4), dtype=bool), 0.5)


class TestAreaBetween:
    def test_is_the_mean_distance_of_the_curves(self) -> None:
        truth = Truth()
        a, b = truth.sweep(300, 1)
        fine = np.linspace(0.5, 0.98, 20001)
        expected = pchip_interpolate(truth.gflops_a, a.mean(axis=1), fine)
        expected -= pchip_interpolate(truth.gflops_b, b.mean(axis=1), fine)
        found = area_between(truth.gflops_a, a, truth.gflops_b, b, resamples=200)
        assert found.value == pytest.approx(expected.mean(), abs=1e-5)
        assert found.low < found.value < found.high

    def test_of_parallel_curves_is_their_difference(self) -> None:
        """The first two images in ten are lost by B at every cost, and nothing else differs."""
        images = np.arange(500)
        a = images % 10 < np.array([6, 7, 8])[:, None]
        b = a & (images % 10 >= 2)
        found = area_between(COSTS, a, COSTS, b)
        assert found.value == pytest.approx(0.2)
        expected = paired_difference(a[0], b[0])
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)

    @settings(max_examples=25)
    @given(curves(), st.integers(0, 99))
    def test_swapping_mirrors(self, hits: Hits, seed: int) -> None:
        other = np.roll(hits, 1, axis=1) & (np.random.default_rng(seed).random(hits.shape) < 0.9)
        one = area_between(COSTS, hits, (0.6, 0.8, 1.2), other, resamples=20)
        mirrored = area_between((0.6, 0.8, 1.2), other, COSTS, hits, resamples=20)
        assert one.value == pytest.approx(-mirrored.value, abs=1e-12)
        assert -1 <= one.low <= one.high <= 1

    def test_of_a_method_with_itself_is_zero_with_a_width(self) -> None:
        a, _ = Truth().sweep(400, 1)
        found = area_between(Truth().gflops_a, a, Truth().gflops_a, a)
        assert found.value == 0
        assert found.low < 0 < found.high < 0.005

    def test_pairing_narrows_the_interval(self) -> None:
        truth = Truth()
        a, b = truth.sweep(400, 1)
        _, elsewhere = truth.sweep(400, 2)
        paired, unpaired = (area_between(truth.gflops_a, a, truth.gflops_b, x) for x in (b, elsewhere))
        assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)

    @pytest.mark.parametrize("costs", [(1.0, 1.5, 2.0), (0.1, 0.2, 0.5), (2.0, 3.0, 4.0)])
    def test_refuses_curves_without_a_common_range(self, costs: tuple[float, ...]) -> None:
        hits = np.ones((3, 4), dtype=bool)
        with pytest.raises(ValueError, match="share no range"):
            area_between(COSTS, hits, costs, hits)

    def test_refuses_other_images(self) -> None:
        with pytest.raises(ValueError, match="4 and 5"):
            area_between(COSTS, np.ones((3, 4), dtype=bool), COSTS, np.ones((3, 5), dtype=bool))


class TestInterpolatedDifference:
    def test_at_a_common_budget_is_the_paired_bootstrap(self) -> None:
        a, b = Truth().sweep(400, 1)
        found = interpolated_difference(Truth().gflops_a, a, Truth().gflops_a, b, 0.72, resamples=4999)
        expected = paired_bootstrap(a[2], b[2])
        assert found.value == pytest.approx(expected.value)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.003)

    def test_of_a_method_with_itself_has_the_width_of_the_paired_bootstrap(self) -> None:
        a, _ = Truth().sweep(400, 1)
        found = interpolated_difference(Truth().gflops_a, a, Truth().gflops_a, a, 0.66)
        expected = paired_bootstrap(a[1], a[1])
        assert found.value == 0
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.05)

    @settings(max_examples=25)
    @given(curves(), st.floats(0.6, 1))
    def test_is_that_of_the_interpolated_accuracies(self, hits: Hits, at: float) -> None:
        other = np.roll(hits, 1, axis=1)[:, ::-1]
        found = interpolated_difference(COSTS, hits, (0.6, 0.8, 1.2), other, at, resamples=2)
        a, b = interpolate(COSTS, hits, at, resamples=2), interpolate((0.6, 0.8, 1.2), other, at, resamples=2)
        assert found.value == pytest.approx(a.value - b.value, abs=1e-12)

    @pytest.mark.parametrize("at", [0.55, 1.1])
    def test_never_extrapolates_either_curve(self, at: float) -> None:
        hits = np.ones((3, 4), dtype=bool)
        with pytest.raises(ValueError, match="outside the measured costs"):
            interpolated_difference(COSTS, hits, (0.6, 0.8, 1.2), hits, at)


class TestHits:
    @pytest.mark.parametrize("function", PAIRED)
    def test_must_be_of_the_same_images(self, function: Callable[[Hits, Hits], Any]) -> None:
        with pytest.raises(ValueError, match="same images, but there are 4 and 5"):
            function(np.ones(5, dtype=bool), np.ones((2, 4), dtype=bool))

    @pytest.mark.parametrize("function", PAIRED)
    @pytest.mark.parametrize("value", [0.5, 2, math.nan])
    def test_must_be_right_or_wrong(self, function: Callable[[Any, Any], Any], value: float) -> None:
        with pytest.raises(ValueError, match="0 or 1"):
            function(np.array([0.0, value]), np.array([0.0, 1.0]))

    @pytest.mark.parametrize("shape", [(0,), (2, 0), (1, 2, 3)])
    def test_must_have_images_in_one_or_two_dimensions(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="hits must be"):
            paired_test(np.ones(shape), np.ones(shape))

    @pytest.mark.parametrize("function", PAIRED)
    def test_may_be_floats(self, function: Callable[[Any, Any], Any]) -> None:
        a, b = outcomes(20, 12, 3, 5)
        assert function(a.astype(float), b.astype(float)) == function(a, b)

    def test_tens_of_thousands_are_counted_not_drawn_one_by_one(self) -> None:
        """With as many draws as images this would take hundreds of millions of them."""
        a, b = Truth().sweep(50_000, 0)
        found = paired_bootstrap(a[0], b[0], resamples=9999)
        closed = paired_difference(a[0], b[0])
        assert (found.low, found.high) == pytest.approx((closed.low, closed.high), abs=2e-4)


few_values = st.integers(0, 6).map(float)
points = st.lists(st.tuples(few_values, few_values), min_size=1, max_size=25)


class TestParetoFront:
    @given(points)
    def test_keeps_exactly_what_nothing_beats(self, held: list[tuple[float, float]]) -> None:
        cost, value = zip(*held, strict=True)
        expected = [
            not any(c <= cost_i and v >= value_i and (c, v) != (cost_i, value_i) for c, v in held)
            for cost_i, value_i in held
        ]
        assert pareto_front(cost, value).tolist() == expected

    def test_points_with_nan_are_left_out_and_beat_nothing(self) -> None:
        assert pareto_front([1.0, 2.0, 0.0, math.nan], [5.0, 6.0, math.nan, 9.0]).tolist() == [True, True, False, False]

    def test_costs_that_are_nearly_equal_are_equal(self) -> None:
        assert pareto_front([100.0, 100.9, 100.9, 110.0], [5.0, 6.0, 4.0, 6.0], 0.01).tolist() == [
            False, True, False, False,
        ]  # fmt: skip
        assert pareto_front([100.0, 100.9], [5.0, 5.0], 0.01).tolist() == [True, True]

    def test_duplicates_both_stay(self) -> None:
        assert pareto_front([1.0, 1.0, 2.0], [5.0, 5.0, 5.0]).tolist() == [True, True, False]


class TestHolm:
    @pytest.mark.parametrize("p", [[0.04], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.001, 0.9], [0.02, 0.02, 0.0, 1.0]])
    def test_is_that_of_statsmodels(self, p: list[float]) -> None:
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_keeps_the_order_and_lowers_nothing(self, p: list[float]) -> None:
        adjusted = holm(p)
        assert np.all(adjusted >= p)
        assert np.all(adjusted <= 1)
        assert np.all(np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0)

    @given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=12))
    def test_nan_stays_and_does_not_count(self, p: list[float]) -> None:
        adjusted = holm(p)
        missing = np.isnan(p)
        assert np.array_equal(np.isnan(adjusted), missing)
        assert np.array_equal(adjusted[~missing], holm(np.array(p)[~missing]))


class TestSeedSpread:
    def test_is_students(self) -> None:
        values = [90.1, 89.7, 90.6]
        expected = ttest_1samp(values, 0).confidence_interval(0.9)
        spread = seed_spread(values, 0.9)
        assert (spread.low, spread.high) == pytest.approx((expected.low, expected.high))
        assert (spread.mean, spread.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))

    def test_of_one_seed_is_unknown(self) -> None:
        spread = seed_spread([90.0])
        assert (spread.mean, spread.sd) == (90, 0)
        assert math.isnan(spread.low)
        assert math.isnan(spread.high)

    def test_refuses_no_seed(self) -> None:
        with pytest.raises(ValueError, match="one value per seed"):
            seed_spread([])


@given(st.integers(0, 2**32 - 1))
def test_seeds_with_as_many_hits_differ_by_exactly_nothing(seed: int) -> None:
    hits = np.random.default_rng(seed).random((3, 30)) < 0.8
    shuffled = np.random.default_rng(seed + 1).permutation(hits.reshape(-1)).reshape(3, 30)
    assert paired_difference(hits, shuffled).value == 0
