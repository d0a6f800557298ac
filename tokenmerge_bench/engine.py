"""Evaluating the points of one model: images are read once, and every batch goes through all points before the next."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.budgets import reduce_with
from tokenmerge_bench.counting import Macs, count
from tokenmerge_bench.data import Batch, Indices
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.points import Point
from tokenmerge_bench.reduced_vit import ReducedViT
from tokenmerge_bench.store import BatchOutcomes, PointOutcomes


@runtime_checkable
class Reporter(Protocol):
    """Who is told how a sweep goes."""

    def start(self, total: int, done: int) -> None:
        """Called once: number of (image, point) evaluations in all, and those already there."""

    def advance(self, evaluations: int, doing: str) -> None:
        """Called after each point of each batch."""

    def note(self, text: str) -> None:
        """Something the user should know now."""


@dataclass
class Evaluator:
    """One point, ready to be run."""

    point: Point
    network: nn.Module
    macs: Macs


@dataclass(frozen=True)
class Hardware:
    """Where and how precisely networks run. Half precisions run under autocast; scores stay in float32."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    def precision(self) -> torch.autocast | nullcontext[None]:
        """The context of a forward pass."""
        if self.dtype in (torch.float16, torch.bfloat16):
            return torch.autocast(self.device.type, self.dtype)
        return nullcontext()

    def exact(self) -> AbstractContextManager[None]:
        """Within it, float32 means float32: cuDNN would otherwise round convolutions to TF32."""
        flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, allow_tf32=False
        )
        return flags

    def clock(self) -> float:
        """Seconds, after the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def open_device(name: str) -> torch.device:
    """A device by name; InputError if it is none or is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device '{name}' is no device; write cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name} was asked for but this machine has no CUDA device; use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name} does not exist; this machine has {torch.cuda.device_count()} CUDA devices.")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is not supported; write cpu or cuda.")
    return device


def prepare(model: nn.Module, point: Point) -> Evaluator:
    """Attaches a point's schedule to its model and counts its MACs."""
    assert point.solution is not None
    if point.method is None:
        reduced = ReducedViT(model, point.solution.schedule, [])
        return Evaluator(point, model, count(reduced))
    reduced = reduce_with(model, point.method, point.solution, point.seed)
    if next(reduced.reducers.parameters(), None) is not None:
        raise ValueError(
            f"{point.method.label} has weights of its own that must be trained first; there is no checkpoint of it"
        )
    return Evaluator(point, reduced, count(reduced))


@torch.inference_mode()
def evaluate(
    evaluators: Mapping[str, Evaluator],
    batches: Iterable[Batch],
    done: Mapping[int, set[str]],
    hardware: Hardware,
    reporter: Reporter,
    failures: dict[str, str],
    examples: Collection[int] = (),
) -> Iterable[BatchOutcomes]:
    """Runs every point on every batch that it has not seen, and yields the outcomes batch by batch.

    Args:
        evaluators: the points of one model, by identifier.
        batches: from `data.iter_batches`.
        done: points that are in the journal already, by chunk.
        hardware: where to run.
        reporter: told after each point.
        failures: gets the reason of every point that raises; such a point is not run again.
        examples: images, by index, whose merges are kept for pictures.
    """
    for batch in batches:
        images = batch.pixels.to(hardware.device, non_blocking=True)
        if hardware.dtype == torch.float64:
            images = images.double()
        labels = torch.from_numpy(batch.labels).to(hardware.device)
        ids = torch.from_numpy(batch.ids).to(hardware.device)
        outcomes = BatchOutcomes("", batch.chunk, batch.indices.tolist(), batch.unreadable)
        for name, evaluator in evaluators.items():
            if name in failures or name in done.get(batch.chunk, set()):
                continue
            try:
                outcomes.points[name] = _run(evaluator, images, labels, ids, hardware)
                outcomes.points[name].merges = _merges(evaluator.network, batch.indices, examples)
            except Exception as error:
                failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            reporter.advance(len(batch.labels), name)
        yield outcomes


def _run(evaluator: Evaluator, images: Tensor, labels: Tensor, ids: Tensor, hardware: Hardware) -> PointOutcomes:
    if len(images) == 0:
        return PointOutcomes([], [], 0.0)
    on_cuda = hardware.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(hardware.device)
    start = hardware.clock()
    with hardware.precision(), hardware.exact():
        network = evaluator.network
        logits = network(images, ids) if isinstance(network, ReducedViT) else network(images)
    seconds = hardware.clock() - start
    prediction, rank, finite = judge(logits, labels)
    if not finite:
        raise ArithmeticError("the model gave logits that are not finite")
    memory = torch.cuda.max_memory_allocated(hardware.device) / 2**20 if on_cuda else None
    return PointOutcomes(prediction.tolist(), rank.tolist(), seconds, memory)


def _merges(network: nn.Module, indices: Indices, examples: Collection[int]) -> dict[str, list[dict[str, Any]]] | None:
    """The owner of every grid cell after each reduction of the last forward pass, for the images that are examples."""
    rows = {int(index): row for row, index in enumerate(indices) if index in examples}
    if not rows or not isinstance(network, ReducedViT) or not network.assignments:
        return None
    found: dict[str, list[dict[str, Any]]] = {str(index): [] for index in rows}
    source: Assignment | None = None
    for step, assignment in zip(network.schedule.steps, network.assignments, strict=True):
        source = assignment if source is None else source.compose(assignment)
        owner = source.owner()
        for index, row in rows.items():
            found[str(index)].append({"block": step.block, "tokens": step.n_out, "owner": owner[row].tolist()})
    return found


def judge(logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"], bool]:
    """Predicted class, rank of the true class (0 is best; the lower class wins a tie), and whether all is finite."""
    true = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > true) | ((logits == true) & (classes < labels[:, None]))
    return logits.argmax(1), ahead.sum(1), bool(logits.isfinite().all())
