"""Statistics of accuracies: arrays in, arrays out; fractions, not percent.

`hits` say which images got the right top-1 class: (images,), or (seeds, images) for a method that was run with several
seeds, whose mean over seeds is then what counts for each image. Images are the sample. Everything that compares two
methods or interpolates one compares the same images, because most of the variation lies in how hard an image is, and
that cancels. A method's random choices belong to the image (`randomness.py`), so resampling images covers them as well.

A handful of images that change, or none, tell little about how many would change in the next sample: the plain
bootstrap and Wald's interval then are far too narrow or have no width at all. The intervals here therefore add a few
pseudo-images to the sample, as Agresti and Coull (The American Statistician 52, 1998) do for one proportion and
Bonett and Price (Journal of Educational and Behavioral Statistics 37, 2012) for the difference of two paired ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator
from scipy.signal import upfirdn
from scipy.special import ndtri
from scipy.stats import binom, binomtest
from scipy.stats import t as student_t

Floats = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_] | Floats
Numbers = Sequence[float] | Floats


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Images that only one of two methods gets right, and the two-sided p-value of their difference.

    With several seeds the numbers of images are means over all pairs of a seed of A and a seed of B.
    """

    only_a: float
    only_b: float
    p: float


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds, and the bounds of the mean's confidence interval."""

    mean: float
    sd: float
    low: float
    high: float


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, as fractions in [0, 1].

    An observed proportion takes only `total` + 1 values, so the coverage swings about `level` with the true one. The
    95 % interval covers 94.1 to 95.9 % if at least 50 right and 50 wrong are expected, 93.4 to 96.7 % from 10 of each.
    """
    interval = binomtest(correct, total).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


def paired_test(hits_a: Hits, hits_b: Hits) -> PairedTest:
    """Whether two methods differ on the same images: the exact sign-flip test, McNemar's with one seed each.

    If the methods were equally good, each image's difference could as well have had the other sign. The p-value is the
    share of all ways to choose the signs that give a total at least as far from zero; it is computed, not sampled, but
    for what is below 1e-50. With one seed each only the discordant images count, and this is McNemar's exact (binomial)
    test (Psychometrika 12, 1947). With unequal numbers of seeds a difference and its negative are not equally likely
    even for equal methods, and the test is right only for many images.

    Args:
        hits_a: (images,) or (seeds, images).
        hits_b: the same images in the same order; the number of seeds may differ.

    Raises:
        ValueError: for hits other than 0 and 1, or of different images.
    """
    a, b = _pair(hits_a, hits_b)
    right_a, right_b, pairs = a.sum(axis=0), b.sum(axis=0), len(a) * len(b)
    only_a = float((right_a * (len(b) - right_b)).sum() / pairs)
    only_b = float((right_b * (len(a) - right_a)).sum() / pairs)
    # In units of 1 / pairs of seeds differences are whole numbers, and comparing sums of them is exact.
    difference = right_a * len(b) - right_b * len(a)
    magnitudes, images = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    # Of the images of one magnitude binomially many get a positive sign; `chance`, symmetric, is of their sum.
    chance = np.ones(1)
    for magnitude, count in zip(magnitudes, images, strict=True):
        chance = upfirdn(chance, _heads(int(count)), up=int(magnitude))
    total = 2 * np.arange(len(chance)) - (len(chance) - 1)
    p = float(chance[np.abs(total) >= abs(difference.sum())].sum())
    return PairedTest(only_a, only_b, min(p, 1.0))


def paired_difference(hits_a: Hits, hits_b: Hits, level: float = 0.95) -> Interval:
    """Difference of two accuracies on the same images, A - B, with Bonett and Price's interval.

    That is Wald's interval after adding two pseudo-images, one that only A gets right and one that only B does; it has
    a width even if no image is discordant. Fagerland, Lydersen and Laake (Statistics in Medicine 33, 2014) recommend
    it among the closed forms. With several seeds the variance is that of the images' differences of seed means.

    Exact coverage of the 95 % interval for single seeds and 80 to 10,000 images: 95.0 to 96.3 % if at least 20
    discordant images are expected, up to 99.1 % from 5, nearly 100 % below 2. Where more than nine in ten of them speak
    for one method it can fall to 93.3 %.

    Args:
        hits_a: (images,) or (seeds, images).
        hits_b: the same images in the same order; the number of seeds may differ.
        level: confidence level.

    Raises:
        ValueError: for hits other than 0 and 1, or of different images.
    """
    difference = _difference(hits_a, hits_b)
    widened = np.append(difference, _ONE_EACH)
    margin = ndtri((1 + level) / 2) * widened.std() / math.sqrt(len(widened))
    centre = widened.mean()
    value = _mean_difference(hits_a, hits_b)
    return Interval(value, float(max(centre - margin, -1)), float(min(centre + margin, 1)))


def paired_bootstrap(hits_a: Hits, hits_b: Hits, level: float = 0.95, resamples: int = 9999, seed: int = 0) -> Interval:
    """Difference of two accuracies on the same images, A - B, with the interval of a paired bootstrap over images.

    Percentiles of the mean over resampled images, among them the two pseudo-images of `paired_difference`. It agrees
    with that interval, and is there for those who are asked for a bootstrap. Without the pseudo-images its coverage on
    200 images falls to 52 % when one discordant image is expected and 88 % when four are; BCa's to 50 and 90 %.

    Args:
        hits_a: (images,) or (seeds, images).
        hits_b: the same images in the same order; the number of seeds may differ.
        level: confidence level.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: for hits other than 0 and 1, or of different images.
    """
    difference = _difference(hits_a, hits_b)
    means = _resampled_means(np.append(difference, _ONE_EACH)[None], resamples, seed)
    return _percentiles(_mean_difference(hits_a, hits_b), means[0], level)


def images_needed(hits_a: Hits, hits_b: Hits, power: float = 0.8, level: float = 0.95) -> int | None:
    """Number of images on which McNemar's test would find a difference as large as the one observed.

    Connor's formula (Biometrics 43, 1987), after Miettinen's unconditional power (Biometrics 24, 1968), from the
    observed difference and share of discordant images; with several seeds, from the images' mean squared difference.

    Args:
        hits_a: (images,) or (seeds, images).
        hits_b: the same images in the same order; the number of seeds may differ.
        power: chance to find the difference.
        level: 1 - the significance level of the two-sided test.

    Returns:
        The number, or None if there is no difference to find.

    Raises:
        ValueError: for hits other than 0 and 1, or of different images.
    """
    difference = _difference(hits_a, hits_b)
    effect, discordant = float(difference.mean()), float((difference**2).mean())
    if math.isclose(effect, 0, abs_tol=1e-12):
        return None
    null, alternative = math.sqrt(discordant), math.sqrt(max(discordant - effect**2, 0))
    quantiles = float(ndtri((1 + level) / 2)), float(ndtri(power))
    return math.ceil(((quantiles[0] * null + quantiles[1] * alternative) / effect) ** 2)


def interpolate(
    gflops: Numbers,
    hits: Sequence[Hits] | Hits,
    at: float,
    level: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> Interval:
    """Accuracy at an exact budget between measured ones.

    A monotone cubic (PCHIP) through accuracy over cost; points of equal cost are averaged. The interval is a
    percentile bootstrap that draws the same images for all points, among them four pseudo-images, of which two are
    right at every cost and two wrong (Agresti and Coull). The 95 % interval held the truth in 93.5 to 95.2 % of
    simulated sweeps of 80 to 2000 images, the truth being the same cubic through the true accuracies: how the method
    would really behave between its points is not in it.

    Args:
        gflops: (P,) costs, in any order.
        hits: (P, images), or P arrays of (images,) or (seeds, images); the same images in the same order for all.
        at: the cost asked for.
        level: confidence level.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: if `at` lies outside the measured costs (there is no extrapolation), for fewer than two distinct
            costs, or for hits other than 0 and 1 or of different images.
    """
    costs, outcomes = _curve(gflops, hits)
    _check_covered(costs, at)
    value = float(PchipInterpolator(costs, outcomes.mean(axis=1))(at))
    resampled = _resampled_means(_with_pseudo_images(outcomes, [[1.0, 1.0, 0.0, 0.0]] * len(costs)), resamples, seed)
    at_cost = np.clip(PchipInterpolator(costs, resampled)(at), 0, 1)  # rounding can take the cubic beyond
    return _percentiles(value, at_cost, level)


def area_between(
    gflops_a: Numbers,
    hits_a: Sequence[Hits] | Hits,
    gflops_b: Numbers,
    hits_b: Sequence[Hits] | Hits,
    level: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> Interval:
    """Mean vertical distance, A - B, between two curves of accuracy over cost where both were measured.

    That is the area between the two monotone cubics (`interpolate`) over the costs they share, divided by the range
    of these costs. The interval is a paired percentile bootstrap that draws the same images for all points of both,
    among them two pseudo-images, one that speaks for A and one for B (Bonett and Price), but by half an image at each
    cost, because images that only one method gets right at every cost are rare. The 95 % interval held the truth in
    94.2 to 96.8 % of simulated sweeps of 80 to 2000 images; for two methods that hardly differ on any image it is
    wider than it need be, 98 % on 300 images and 99 % on 80.

    Args:
        gflops_a: (P,) costs of A, in any order.
        hits_a: (P, images), or P arrays of (images,) or (seeds, images).
        gflops_b: (Q,) costs of B.
        hits_b: as for A; the same images in the same order.
        level: confidence level.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: if the curves share no range of costs, for fewer than two distinct costs, or for hits other than 0
            and 1 or of different images.
    """
    curve_a, curve_b = _curve(gflops_a, hits_a), _curve(gflops_b, hits_b)
    costs_a, costs_b = curve_a[0], curve_b[0]
    low, high = max(costs_a[0], costs_b[0]), min(costs_a[-1], costs_b[-1])
    if not low < high:
        raise ValueError(f"costs {costs_a[0]} to {costs_a[-1]} and {costs_b[0]} to {costs_b[-1]} share no range")

    def mean(curve: PchipInterpolator) -> Floats:
        return np.asarray(curve.integrate(low, high) / (high - low))

    return _curves_apart(curve_a, curve_b, mean, 0.5, level, resamples, seed)


def interpolated_difference(
    gflops_a: Numbers,
    hits_a: Sequence[Hits] | Hits,
    gflops_b: Numbers,
    hits_b: Sequence[Hits] | Hits,
    at: float,
    level: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> Interval:
    """Difference of two interpolated accuracies, A - B, at an exact budget (`interpolate`).

    The interval is a paired percentile bootstrap that draws the same images for all points of both, among them the
    two pseudo-images of `paired_bootstrap`. At a budget at which both were measured it is that function's interval.

    Args:
        gflops_a: (P,) costs of A, in any order.
        hits_a: (P, images), or P arrays of (images,) or (seeds, images).
        gflops_b: (Q,) costs of B.
        hits_b: as for A; the same images in the same order.
        at: the cost asked for.
        level: confidence level.
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: if `at` lies outside the costs of either, for fewer than two distinct costs, or for hits other than
            0 and 1 or of different images.
    """
    curve_a, curve_b = _curve(gflops_a, hits_a), _curve(gflops_b, hits_b)
    for costs, _ in (curve_a, curve_b):
        _check_covered(costs, at)

    def there(curve: PchipInterpolator) -> Floats:
        return np.asarray(curve(at))

    return _curves_apart(curve_a, curve_b, there, 1.0, level, resamples, seed)


def pareto_front(cost: Numbers, value: Numbers, equal: float = 0.0) -> npt.NDArray[np.bool_]:
    """Which of the points (P,) no other one beats: none is worth more at the same cost or less, or as much at less.

    Costs are the same that differ by at most the fraction `equal` of the lower one. Points of equal worth and cost stay
    or go together. Points with nan are never on the front.
    """
    c, v = np.asarray(cost, dtype=float), np.asarray(value, dtype=float)
    no_dearer, cheaper = c <= c[:, None] * (1 + equal), c * (1 + equal) < c[:, None]
    better = (no_dearer & (v > v[:, None])) | (cheaper & (v >= v[:, None]))
    front: npt.NDArray[np.bool_] = ~better.any(axis=1) & ~np.isnan(c) & ~np.isnan(v)
    return front


def holm(p: Numbers) -> Floats:
    """Holm's step-down adjustment of p-values (P,) (Scandinavian Journal of Statistics 6, 1979).

    It bounds the chance of any false discovery, whatever the tests have to do with each other. nan stays nan and does
    not count as a test.
    """
    values = np.asarray(p, dtype=float)
    adjusted = np.full_like(values, np.nan)
    tests = int((~np.isnan(values)).sum())
    order = np.argsort(values)[:tests]  # nan comes last
    stepped = np.maximum.accumulate(values[order] * np.arange(tests, 0, -1))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def seed_spread(values: Numbers, level: float = 0.95) -> Spread:
    """Mean over seeds (S,) with its Student t interval; of a single seed, standard deviation 0 and nan bounds.

    Raises:
        ValueError: without values.
    """
    runs = np.asarray(values, dtype=float)
    if runs.ndim != 1 or not len(runs):
        raise ValueError(f"one value per seed is needed, not an array of shape {runs.shape}")
    mean = float(runs.mean())
    if len(runs) == 1:
        return Spread(mean, 0.0, math.nan, math.nan)
    sd = float(runs.std(ddof=1))
    margin = float(student_t.ppf((1 + level) / 2, len(runs) - 1)) * sd / math.sqrt(len(runs))
    return Spread(mean, sd, mean - margin, mean + margin)


# Differences of the two pseudo-images of Bonett and Price: one that only A gets right, one that only B does.
_ONE_EACH = (1, -1)


def _by_seed(hits: Hits) -> npt.NDArray[np.int64]:
    """Hits as (seeds, images) of 0 and 1."""
    array = np.atleast_2d(np.asarray(hits))
    if array.ndim != 2 or not array.size:
        raise ValueError(f"hits must be (images,) or (seeds, images) and not empty, but have shape {np.shape(hits)}")
    if not ((array == 0) | (array == 1)).all():
        raise ValueError("hits must be 0 or 1")
    return array.astype(np.int64)


def _pair(hits_a: Hits, hits_b: Hits) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    a, b = _by_seed(hits_a), _by_seed(hits_b)
    _check_images(a, b)
    return a, b


def _check_images(*outcomes: npt.NDArray[np.int64] | Floats) -> None:
    numbers = sorted({array.shape[-1] for array in outcomes})
    if len(numbers) > 1:
        raise ValueError(f"hits must be of the same images, but there are {' and '.join(map(str, numbers))}")


@lru_cache(maxsize=256)
def _heads(tosses: int) -> Floats:
    """Chances of the numbers of heads of a fair coin, from 0 on; weightless ones are cut off at both ends alike, which
    makes tens of thousands of images with several seeds fast."""
    cut = binom.ppf(1e-60, tosses, 0.5)
    chances: Floats = binom.pmf(np.arange(cut, tosses - cut + 1), tosses, 0.5)
    chances.flags.writeable = False  # the cache hands out the same array again
    return chances


def _difference(hits_a: Hits, hits_b: Hits) -> Floats:
    """Difference (images,) of the means over seeds."""
    a, b = _pair(hits_a, hits_b)
    difference: Floats = a.mean(axis=0) - b.mean(axis=0)
    return difference


def _mean_difference(hits_a: Hits, hits_b: Hits) -> float:
    """Its mean over the images, from whole numbers, so that as many hits differ by exactly 0."""
    a, b = _pair(hits_a, hits_b)
    return float((a.sum() * len(b) - b.sum() * len(a)) / (len(a) * len(b) * a.shape[1]))


def _curve(gflops: Numbers, hits: Sequence[Hits] | Hits) -> tuple[Floats, Floats]:
    """Distinct costs (C,), ascending, and the outcomes (C, images) there, averaged over points and seeds."""
    points = [_by_seed(point) for point in hits]
    costs, place = np.unique(np.asarray(gflops, dtype=float), return_inverse=True)
    if len(points) != len(place):
        raise ValueError(f"there are {len(place)} costs and hits of {len(points)} points")
    if len(costs) < 2:
        raise ValueError("a curve needs points at two distinct costs or more")
    _check_images(*points)
    means = np.stack([point.mean(axis=0) for point in points])
    return costs, np.stack([means[place == index].mean(axis=0) for index in range(len(costs))])


def _check_covered(costs: Floats, at: float) -> None:
    if not costs[0] <= at <= costs[-1]:
        raise ValueError(f"{at} lies outside the measured costs, {costs[0]} to {costs[-1]}")


def _curves_apart(
    curve_a: tuple[Floats, Floats],
    curve_b: tuple[Floats, Floats],
    measure: Callable[[PchipInterpolator], Floats],
    weight: float,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """`measure` of the monotone cubic through A less that of B, with its paired bootstrap.

    A curve is what `_curve` returns. Of the two pseudo-images one is right by `weight` for A alone, one for B alone.
    """
    (costs_a, outcomes_a), (costs_b, outcomes_b) = curve_a, curve_b
    _check_images(outcomes_a, outcomes_b)

    def apart(accuracies: Floats) -> Floats:
        a, b = np.split(accuracies, [len(costs_a)])
        return measure(PchipInterpolator(costs_a, a)) - measure(PchipInterpolator(costs_b, b))

    outcomes = np.concatenate([outcomes_a, outcomes_b])
    pseudo = [[weight, 0.0]] * len(costs_a) + [[0.0, weight]] * len(costs_b)
    resampled = _resampled_means(_with_pseudo_images(outcomes, pseudo), resamples, seed)
    differences = apart(np.column_stack([outcomes.mean(axis=1), resampled]))
    return _percentiles(float(differences[0]), differences[1:], level)


def _with_pseudo_images(outcomes: Floats, pseudo: Sequence[Sequence[float]]) -> Floats:
    """Outcomes (rows, images) with those of pseudo-images (rows, few) behind them."""
    return np.concatenate([outcomes, np.array(pseudo, dtype=float)], axis=1)


def _resampled_means(outcomes: Floats, resamples: int, seed: int) -> Floats:
    """Means (rows, resamples) of outcomes (rows, images) over images drawn with replacement, the same for all rows.

    Images with the same outcome in every row are drawn together, as a number of images, which is what makes tens of
    thousands of images fast.
    """
    patterns, images = np.unique(outcomes, axis=1, return_counts=True)
    total, share = images.sum(), images / images.sum()
    random = np.random.default_rng(seed)
    # In blocks, because all resamples at once can take gigabytes.
    block = max(1, 2**17 // len(share))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    sums = [patterns @ random.multinomial(total, share, size=size).T for size in sizes]
    means: Floats = np.concatenate(sums, axis=1) / total
    return means


def _percentiles(value: float, resampled: Floats, level: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
