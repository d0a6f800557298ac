"""Timing rivals fairly: interleaved in shuffled order, after a warm-up, by the device's own clock, under no tracer."""

from __future__ import annotations

import gc
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenmerge_bench.modes import Run
from tokenmerge_bench.trie import is_out_of_memory, reason

LEAST = 0.02
"""Seconds of work in one sample: shorter passes are repeated until they take so long, and divided."""
MOST_ROUNDS = 500
_TOOLS = {0: "a debugger", 1: "coverage", 2: "a profiler", 5: "an optimizer"}
"""The identifiers of `sys.monitoring` that have a meaning."""


def tracing_reason() -> str | None:
    """What slows this process down so that its times would mean nothing; None if nothing does."""
    if sys.gettrace() is not None:
        return "a tracer (debugger or coverage) is active"
    if sys.getprofile() is not None:
        return "a Python profiler is active"
    monitoring: Any = getattr(sys, "monitoring", None)  # Python 3.12 and newer
    for tool in range(6) if monitoring is not None else ():
        name = monitoring.get_tool(tool)
        if name is not None:
            return f"'{name}' ({_TOOLS.get(tool, 'a tool')}) watches through sys.monitoring"
    if torch._C._autograd._profiler_enabled():
        return "a torch profiler is active"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit is tracing"
    if torch.is_anomaly_enabled():
        return "torch's anomaly detection is on"
    for variable, what in (
        ("CUDA_LAUNCH_BLOCKING", "makes every kernel wait for the one before"),
        ("TRITON_INTERPRET", "interprets kernels"),
    ):
        if os.environ.get(variable, "0") not in ("", "0"):
            return f"{variable} is set, which {what}"
    return None


class Stopwatch:
    """Seconds that a device works: between two events on CUDA, by the performance counter elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, run: Run, times: int = 1) -> float:
        """Seconds of one pass, of `times` passes that follow one another without waiting."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            for _ in range(times):
                run()
            return (time.perf_counter() - started) / times
        with torch.cuda.device(self.device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(times):
                run()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / times

    @property
    def rounds(self) -> int:
        """Samples to take at least: from 9 on, one that something disturbed is no end of a median's 95 % interval."""
        return 10 if self.device.type == "cuda" else 9


@dataclass
class Samples:
    """What timing rivals in rounds gave: `seconds` of each rival, a value per round, and the `order` in each round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    order: list[list[str]] = field(default_factory=list)
    passes: dict[str, int] = field(default_factory=dict)
    """Forward passes in each sample."""
    failures: dict[str, str] = field(default_factory=dict)


def take_samples(
    rivals: Mapping[str, Run],
    device: torch.device,
    *,
    seconds: float,
    seed: int = 0,
    told: Callable[[float], None] = lambda _: None,
) -> Samples:
    """Times rivals against each other: in every round each of them once, in an order drawn anew.

    Each has run once before, so that what happens at the first pass alone is over. A rival that raises is left out from
    then on, with all of its samples.

    Args:
        rivals: forward passes by name.
        device: where they run.
        seconds: rounds follow until they have taken so long; at least `Stopwatch.rounds` in any case.
        seed: of the order.
        told: gets, after each round, the fraction of the work that is done.
    """
    clock, draw, found = Stopwatch(device), random.Random(seed), Samples()
    for name, run in rivals.items():
        _warm_up(found, name, run, clock)
    found.seconds = {name: [] for name in rivals if name not in found.failures}
    started, done = time.perf_counter(), 0.0
    while found.seconds and done < 1 and len(found.order) < MOST_ROUNDS:
        order = list(found.seconds)
        draw.shuffle(order)
        found.order.append(order)
        with _no_collection():
            for name in order:
                _sample(found, name, rivals[name], clock)
        spent = time.perf_counter() - started
        done = min(len(found.order) / clock.rounds, spent / seconds if seconds > 0 else 1.0, 1.0)
        told(done)
    return found


def _sample(found: Samples, name: str, run: Run, clock: Stopwatch) -> None:
    """Adds one sample of a rival, or removes the rival where it fails."""
    _guarded(found, name, lambda: found.seconds[name].append(clock(run, found.passes[name])))
    if name in found.failures:
        del found.seconds[name]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector, which stops everything for a while, waits until the end of a round."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _warm_up(found: Samples, name: str, run: Run, clock: Stopwatch) -> None:
    """Runs a rival untimed until it is warm, and decides how many passes make a sample."""

    def settle() -> None:
        once = clock(run)
        if once < LEAST:  # a short pass is not warm after one, and better estimated from several
            once = clock(run, math.ceil(LEAST / max(once, LEAST / 20)))
        found.passes[name] = max(1, math.ceil(LEAST / max(once, LEAST / 10_000)))

    _guarded(found, name, settle)


def _guarded(found: Samples, name: str, action: Callable[[], object]) -> None:
    """Does something for a rival, and books why it failed; whoever else is timed goes on."""
    try:
        action()
    except Exception as error:  # a method's own, the compiler's, memory
        found.failures[name] = failure(error)


def failure(error: Exception) -> str:
    """An exception in one line, as it stands in a table."""
    text = reason(error)
    return f"out of memory ({text.partition(': ')[2]})" if is_out_of_memory(error) else text.removesuffix(": ")
