"""How the points of a sweep stand while it runs: counted from outcomes that are on the host already."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from tokenmerge_bench.points import Point
from tokenmerge_bench.store import BatchOutcomes


@dataclass
class Standing:
    """A point with its identifier, the images that it has seen so far, and for how many of them top-1 was right."""

    point: Point
    id: str
    seen: int = 0
    right: int = 0


class Standings:
    """The standings of all points of a sweep.

    Args:
        points: all of them, those that cannot be evaluated too.
        images: how many each will see.
        failures: points that failed; it may grow.
    """

    def __init__(self, points: Iterable[Point], images: int, failures: Mapping[str, str]) -> None:
        self.images, self.failures = images, failures
        self.by_point = {(name := point.id): Standing(point, name) for point in points}

    def count(self, batch: BatchOutcomes, but: Container[str] = ()) -> None:
        """Counts what points said about a batch, but for some of them."""
        for name, outcomes in batch.points.items():
            if name in self.by_point and name not in but:
                self.by_point[name].seen += len(outcomes.rank)
                self.by_point[name].right += outcomes.rank.count(0)

    def count_whole(self, name: str, images: int, top1: float) -> None:
        """Counts a point of an earlier run: it has seen so many images and was right on `top1` percent of them."""
        self.by_point[name].seen, self.by_point[name].right = images, round(top1 / 100 * images)
