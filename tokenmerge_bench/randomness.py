"""Random numbers that depend on (seed, image, block, step) alone, so that no result depends on the batch.

A counter-based generator: the four integers are mixed by the finaliser of SplitMix64 (Steele, Lea and Flood,
OOPSLA 2014). It runs on any device without a host synchronisation.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def uniforms(seed: int, image_ids: Int[Tensor, " B"], block: int, count: int) -> Float[Tensor, "B count"]:
    """float64 numbers in [0, 1), one row per image."""
    state = _mix(image_ids.to(torch.int64) + _wrap(seed * _GOLDEN))
    state = _mix(state + _wrap((block + 1) * _GOLDEN))
    steps = torch.arange(1, count + 1, device=image_ids.device, dtype=torch.int64)
    bits = _mix(state[:, None] + steps * _wrap(_GOLDEN))
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


_GOLDEN = 0x9E3779B97F4A7C15


def _wrap(value: int) -> int:
    """The signed 64-bit integer with the same low 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, by: int) -> Tensor:
    """Logical shift; torch's own shift keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _wrap(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _wrap(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)
