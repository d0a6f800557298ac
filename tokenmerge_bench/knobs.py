"""The parameters by which methods set their budget: `k` merges per layer, `r` tokens per block, a keep rate.

A knob turns a value into the number of patch tokens left after each reduction site, reads and writes the value as
text (`k=40`, `k=41/41/40`, `keep_rate=0.7`), and lists the values that the budget solver may choose from.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from math import floor

from tokenmerge_bench.errors import InputError

Value = float | tuple[int, ...]
"""A keep rate, or one integer per site (for `k` and `r` a single one stands for the same at every site)."""


Fewest = Callable[[int], int]
"""The smallest number of tokens that a method can leave of the number given."""


class Knob(ABC):
    """A budget parameter. `n0` is the number of patch tokens at the input, `sites` the number of reduction sites."""

    name: str
    flag: str

    @abstractmethod
    def parse(self, text: str) -> Value:
        """Reads what the user typed; InputError if it is no such value."""

    @abstractmethod
    def text(self, value: Value) -> str:
        """The value as it is printed and recorded."""

    @abstractmethod
    def counts(self, value: Value, n0: int, sites: int, fewest: Fewest) -> tuple[int, ...]:
        """Patch tokens left after each site. InputError where the value asks for more than the method can do."""

    @abstractmethod
    def candidates(self, n0: int, sites: int, fewest: Fewest) -> Iterator[Value]:
        """Values from no reduction to the strongest, in steps fine enough to hit any budget between them."""

    @abstractmethod
    def near(self, value: Value, n0: int, sites: int) -> Iterator[Value]:
        """Values just beside one of the candidates, for budgets that fall between two of them; not all are feasible."""


class MergesPerLayer(Knob):
    """`k`: tokens merged away at each site (DHTM, LoTM, random)."""

    name = "k"
    flag = "--k"

    def parse(self, text: str) -> tuple[int, ...]:
        return _integers(text, self.flag)

    def text(self, value: Value) -> str:
        assert isinstance(value, tuple)
        return f"{self.name}={'/'.join(map(str, _shortest(value)))}"

    def counts(self, value: Value, n0: int, sites: int, fewest: Fewest) -> tuple[int, ...]:
        counts, n = [], n0
        for site, k in enumerate(self.schedule(value, sites)):
            least = fewest(n)
            if n - k < least:
                raise InputError(
                    f"{self.name}={k} is too many at reduction {site + 1} of {sites}: {n} patch tokens are there and "
                    f"at least {least} must stay, so {self.name} can be at most {n - least} at that layer."
                )
            n -= k
            counts.append(n)
        return tuple(counts)

    def candidates(self, n0: int, sites: int, fewest: Fewest) -> Iterator[Value]:
        """The same k at every site as long as it takes at most half of the tokens of a layer, then the same fraction.

        Up to k = N/2 a layer that has fewer than 2k tokens left gives half of them; beyond, every layer gives the
        same growing fraction of its tokens. The two families meet at one half.
        """
        half = n0 // 2
        for total in range(half * sites + 1):
            k, extra = divmod(total, sites)
            yield _limited(n0, [k + (site < extra) for site in range(sites)], 0.5, fewest)
        for step in range(1, n0 + 1):
            fraction = 0.5 + 0.5 * step / n0
            yield _limited(n0, [n0] * sites, fraction, fewest)

    def near(self, value: Value, n0: int, sites: int) -> Iterator[Value]:
        """One token more or less at a single site, and one moved from a site to another."""
        yield from _beside(self.schedule(value, sites))

    def schedule(self, value: Value, sites: int) -> tuple[int, ...]:
        """The merges of each site."""
        return _per_site(value, sites, self.name)


class RemovedPerBlock(MergesPerLayer):
    """`r`: tokens removed in each block (ToMe). A block never removes more than half of its tokens.

    That limit, min(r, floor(N/2)), is step 1 of the published algorithm, hence not an error here. `inflection` e in
    [-1, 1] tilts a constant r: -1 removes 2r in the first block and nothing in the last (`parse_r` of ToMe).
    """

    name = "r"
    flag = "--r"

    def __init__(self, inflection: float = 0.0) -> None:
        self.inflection = inflection

    def text(self, value: Value) -> str:
        """As it is: the list 5/5 stops after two blocks and a single 5 is tilted by the inflection."""
        assert isinstance(value, tuple)
        return f"{self.name}={'/'.join(map(str, value))}"

    def counts(self, value: Value, n0: int, sites: int, fewest: Fewest) -> tuple[int, ...]:
        counts, n = [], n0
        for r in self.schedule(value, sites):
            n -= min(r, n // 2)
            counts.append(n)
        return tuple(counts)

    def schedule(self, value: Value, sites: int) -> tuple[int, ...]:
        """The r of each site: a single r tilted by the inflection, a list padded with zeros."""
        assert isinstance(value, tuple)
        if len(value) > sites:
            raise InputError(f"r lists {len(value)} values for {sites} blocks; give at most {sites}.")
        if len(value) == 1:
            return tilted(float(value[0]), self.inflection, sites)
        return value + (0,) * (sites - len(value))

    def candidates(self, n0: int, sites: int, fewest: Fewest) -> Iterator[Value]:
        if self.inflection == 0:
            for value in super().candidates(n0, sites, fewest):
                assert isinstance(value, tuple)
                if max(value) <= n0 // 2:
                    yield _shortest(value)
            return
        # Along the tilted line, one token more in all each time: the line truncated block by block would jump by one in
        # many blocks at once.
        tilt = [1 + self.inflection * (2 * block / max(sites - 1, 1) - (sites > 1)) for block in range(sites)]
        for total in range(n0 // 2 * sites + 1):
            so_far = [floor(total * share / sites + 1e-9) for share in accumulate(tilt)]
            yield _limited(n0, [after - before for before, after in pairwise([0, *so_far])], 0.5, fewest)


class KeepRate(Knob):
    """`keep_rate`: stage j leaves floor(N0 * keep_rate^j) patch tokens (TokenReduction's protocol).

    Where no rate gives the budget, the value is the list of the tokens left after each stage, such as 137/96/67.
    """

    name = "keep_rate"
    flag = "--keep-rate"

    def parse(self, text: str) -> Value:
        if "/" in text:
            return _integers(text, self.flag)
        try:
            rate = float(text)
        except ValueError:
            rate = -1.0
        if not 0 < rate <= 1:
            raise InputError(f"{self.flag} '{text}' is no keep rate; give a number above 0 and at most 1, such as 0.7.")
        return rate

    def text(self, value: Value) -> str:
        return f"{self.name}={value:.6g}" if isinstance(value, float) else f"{self.name}={'/'.join(map(str, value))}"

    def counts(self, value: Value, n0: int, sites: int, fewest: Fewest) -> tuple[int, ...]:
        counts = self.targets(value, n0, sites)
        n = n0
        for stage, left in enumerate(counts, start=1):
            if not fewest(n) <= left <= n:
                raise InputError(
                    f"{self.text(value)} leaves {left} of {n} patch tokens at stage {stage}, where this method keeps "
                    f"at least {fewest(n)} and at most {n}; give another."
                )
            n = left
        return counts

    def targets(self, value: Value, n0: int, sites: int) -> tuple[int, ...]:
        """Tokens that a value asks for after each stage."""
        if isinstance(value, float):
            return tuple(floor(n0 * value**stage + 1e-9) for stage in range(1, sites + 1))
        if len(value) != sites:
            raise InputError(
                f"keep_rate lists {len(value)} token counts for {sites} stages; give {sites}, or one rate."
            )
        return value

    def candidates(self, n0: int, sites: int, fewest: Fewest) -> Iterator[Value]:
        for step in range(8 * n0, 0, -1):
            rate = round(step / (8 * n0), 6)  # as it will be printed, so that it can be asked for again
            try:
                self.counts(rate, n0, sites, fewest)
            except InputError:  # smaller rates leave even fewer
                return
            yield rate

    def near(self, value: Value, n0: int, sites: int) -> Iterator[Value]:
        """Sixteen rates to either side, up to the next candidates, then lists with a token more or less somewhere."""
        assert isinstance(value, float)
        rates = [round(value + step / (8 * 16 * n0), 6) for step in range(-15, 16)]
        yield from (rate for rate in rates if 0 < rate <= 1)
        yield from _beside(self.targets(value, n0, sites))


class StagedRemoval(KeepRate):
    """TokenReduction's ToMe: a keep rate per stage, each stage capped at removing half of its tokens."""

    def counts(self, value: Value, n0: int, sites: int, fewest: Fewest) -> tuple[int, ...]:
        targets = (n0, *self.targets(value, n0, sites))
        if any(after > before for before, after in pairwise(targets)):
            raise InputError(f"{self.text(value)} asks for more tokens at a later stage; give counts that do not grow.")
        counts, n = [], n0
        for before, after in pairwise(targets):
            n -= min(before - after, n // 2)
            counts.append(n)
        return tuple(counts)

    def candidates(self, n0: int, sites: int, fewest: Fewest) -> Iterator[Value]:
        """Without the small rates that keep more than a larger one: the cap of one stage is not made up for later."""
        least = n0 * sites
        for rate in super().candidates(n0, sites, fewest):
            left = sum(self.counts(rate, n0, sites, fewest))
            if left <= least:
                least = left
                yield rate


def _beside(even: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Lists with one more or less at a single place, or one moved from a place to another."""
    places = range(len(even))
    changes = [[(place, by)] for place in places for by in (-1, 1)]
    changes += [[(a, 1), (b, -1)] for a in places for b in places if a != b]
    for change in changes:
        uneven = list(even)
        for place, by in change:
            uneven[place] += by
        if min(uneven) >= 0:
            yield tuple(uneven)


def tilted(r: float, inflection: float, blocks: int) -> tuple[int, ...]:
    """ToMe's schedule (r, inflection): a straight line from r(1-e) to r(1+e), truncated at every block."""
    if blocks == 1:
        return (int(r),)
    low = int(r * (1 - inflection))
    step = (2 * r - low - low) / (blocks - 1)
    return tuple(int(low + step * block) for block in range(blocks))


def _limited(n0: int, removals: list[int], fraction: float, fewest: Fewest) -> tuple[int, ...]:
    """The removals, each limited to a fraction of the tokens there and to what the method can do."""
    kept, n = [], n0
    for removal in removals:
        removal = min(removal, int(n * fraction), n - fewest(n))
        n -= removal
        kept.append(removal)
    return tuple(kept)


def _per_site(value: Value, sites: int, name: str) -> tuple[int, ...]:
    assert isinstance(value, tuple)
    if len(value) == 1:
        return value * sites
    if len(value) != sites:
        raise InputError(f"{name} lists {len(value)} values for {sites} reduction layers; give one, or {sites}.")
    return value


def _integers(text: str, flag: str) -> tuple[int, ...]:
    """Reads `40`, `41/41/40` or, with runs abbreviated, `41x2/40`."""
    parts = [part.strip() for part in text.split("/")]
    if not all(re.fullmatch(r"\d+(x[1-9]\d*)?", part) for part in parts):
        raise InputError(f"{flag} '{text}' is no count; give a whole number such as 40, or one per layer as 41/41/40.")
    runs = [part.partition("x") for part in parts]
    return tuple(int(value) for value, _, times in runs for _ in range(int(times or 1)))


def _shortest(values: tuple[int, ...]) -> tuple[int, ...]:
    """One integer where it stands for the same list."""
    return values[:1] if len(set(values)) == 1 else values
