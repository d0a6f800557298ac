"""Which implementation of a method's inner loops runs: plain torch anywhere, numba on the CPU, Triton on CUDA.

All paths give the same answers but for ties that rounding decides. The choice is automatic; the environment variable
`TMBENCH_PATH` or `use_path` overrides it, and a machine without numba or Triton falls back to torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import import_module
from typing import Literal, cast, get_args

import torch

from tokenmerge_bench.errors import InputError, nearest

Path = Literal["torch", "numba", "triton"]
VARIABLE = "TMBENCH_PATH"

_forced: ContextVar[str | None] = ContextVar("path", default=None)


def path_for(device: torch.device) -> Path:
    """The path for tensors on a device: the one asked for, or the fastest that is there.

    Raises:
        InputError: if the one asked for is unknown, not installed, or not for this device.
    """
    if torch._C._get_tracing_state() is not None:
        return "torch"  # what is traced must be operators of torch
    wanted = _forced.get() or os.environ.get(VARIABLE) or "auto"
    if wanted == "auto":
        fast: Path = "triton" if device.type == "cuda" else "numba"
        return fast if _obstacle(fast, device.type) is None else "torch"
    if wanted not in get_args(Path):
        raise InputError(
            f"{VARIABLE} is '{wanted}'{nearest(wanted, list(get_args(Path)))}; set it to auto, torch, numba or triton."
        )
    obstacle = _obstacle(cast(Path, wanted), device.type)
    if obstacle is not None:
        raise InputError(f"{VARIABLE}={wanted} cannot be followed: {obstacle}; unset it or write {VARIABLE}=auto.")
    return cast(Path, wanted)


@contextmanager
def use_path(path: Path | Literal["auto"]) -> Iterator[None]:
    """Within it, `path` runs whatever the environment says."""
    token = _forced.set(path)
    try:
        yield
    finally:
        _forced.reset(token)


def _obstacle(path: Path, device: str) -> str | None:
    """Why a path cannot run on a kind of device; None if it can. Interpreted Triton runs anywhere, slowly."""
    if path == "torch":
        return None
    if path == "numba":
        if device != "cpu":
            return f"numba runs on the CPU, not on {device}"
        return None if _installed("numba") else "numba is not installed"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton runs on CUDA, not on {device}"
    return None if _installed("triton") else "Triton is not installed"


@lru_cache
def _installed(module: str) -> bool:
    """Whether it can be imported: one that is there may not fit this Python or NumPy, or lack its library."""
    try:
        import_module(module)
    except (ImportError, OSError):
        return False
    return True
