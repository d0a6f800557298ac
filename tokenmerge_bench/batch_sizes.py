"""Batch sizes to time: numbers, and the automatic maximum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.trie import is_out_of_memory

MAXIMUM = "max"
"""The batch size that is found out."""


@dataclass(frozen=True)
class Search:
    """How the largest useful batch size is found: doubled from `start` while throughput gains at least `gain`."""

    start: int
    gain: float
    limit: int

    @classmethod
    def on(cls, device: torch.device) -> Search:
        """The usual one for a device."""
        return cls(256, 0.02, 16384) if device.type == "cuda" else cls(8, 0.05, 256)


def check_batch_sizes(texts: Sequence[str]) -> list[int | None]:
    """Numbers of images, each once, and None for `max`, which comes last; InputError for anything else."""
    sizes: list[int] = []
    for text in texts:
        if text != MAXIMUM and (not text.isdecimal() or int(text) < 1):
            raise InputError(f"batch size '{text}' is none; give numbers of images from 1 on, or max: 1,32,256,max.")
        if text != MAXIMUM and int(text) not in sizes:
            sizes.append(int(text))
    return [*sizes, *([None] if MAXIMUM in texts else [])]


def largest_batch(rate_of: Callable[[int], float], search: Search) -> tuple[int, list[dict[str, Any]]]:
    """The batch size from which doubling gains no throughput worth it, or does not fit.

    Args:
        rate_of: images per second at a batch size; raises what torch raises where it does not fit.
        search: where to start and when to stop. Where the start does not fit, it is halved instead until it does.

    Returns:
        The batch size and what was tried, in order: `batch_size`, `images_per_s` (None where it did not fit).

    Raises:
        Exception: what `rate_of` raises for other reasons, or if not even one image fits.
    """
    tried: list[dict[str, Any]] = []

    def rate(batch: int) -> float | None:
        """None where it does not fit."""
        found = None
        try:
            found = rate_of(batch)
        except Exception as error:
            if batch == 1 or not is_out_of_memory(error):
                raise
        tried.append({"batch_size": batch, "images_per_s": found and round(found, 1)})
        return found

    batch, best = search.start, rate(search.start)
    while best is None:
        batch //= 2
        best = rate(batch)
    while batch >= search.start and 2 * batch <= search.limit:
        doubled = rate(2 * batch)
        if doubled is None or doubled < best * (1 + search.gain):
            break
        batch, best = 2 * batch, doubled
    return batch, tried
