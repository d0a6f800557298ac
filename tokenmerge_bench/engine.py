"""Evaluating points: images are read once, and every batch goes through all points of all models before the next.

The points of one model are a tree (`trie.py`) in which everything that two of them share is one path. On a GPU nothing
in the loop waits for the device: a batch is copied while the one before it is computed, and what its points said comes
back, in one copy, after the next batch has been given to the device.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tokenmerge_bench.budgets import reduce_with
from tokenmerge_bench.clocks import Laps, NoLaps
from tokenmerge_bench.counting import Macs, count
from tokenmerge_bench.data import Batch
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.hardware import Courier, OnDevice
from tokenmerge_bench.hardware import Hardware as Hardware
from tokenmerge_bench.hardware import open_device as open_device
from tokenmerge_bench.models import mismatch
from tokenmerge_bench.modes import compiling
from tokenmerge_bench.pieces import Halves, State, pieces_of
from tokenmerge_bench.points import Point
from tokenmerge_bench.reduced_vit import ReducedViT
from tokenmerge_bench.replays import Replays
from tokenmerge_bench.store import UNREDUCED, BatchOutcomes, PointOutcomes
from tokenmerge_bench.trie import Tree, Trouble, is_out_of_memory, reason
from tokenmerge_bench.verdicts import judge as judge
from tokenmerge_bench.verdicts import verdict


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
    network: ReducedViT
    macs: Macs


def attached(model: nn.Module, point: Point, weights: Mapping[str, Tensor] | None = None) -> ReducedViT:
    """A model with a point's schedule attached.

    Args:
        model: with the point's weights.
        point: within reach.
        weights: state dict of the reducers (`STEP.NAME`), from the point's checkpoint; without, those that learn get
            initial ones, drawn from the point's seed.

    Raises:
        InputError: if the weights are those of other reducers.
    """
    assert point.solution is not None
    if point.method is None:
        reduced = ReducedViT(model, point.solution.schedule, [])
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(point.seed)
            reduced = reduce_with(model, point.method, point.solution, point.seed)
    if weights is not None:
        problem = mismatch(reduced.reducers.state_dict(), weights)
        if problem:
            raise InputError(
                f"checkpoint '{point.weights}' holds weights of other reducers than "
                f"{UNREDUCED if point.method is None else point.method.label} has here: {problem}; train it again."
            )
        reduced.reducers.load_state_dict(weights, strict=True)
    return reduced


def prepare(model: nn.Module, point: Point, weights: Mapping[str, Tensor] | None = None) -> Evaluator:
    """Attaches a point's schedule to its model (see `attached`) and counts its MACs."""
    reduced = attached(model, point, weights)
    return Evaluator(point, reduced, count(reduced))


@dataclass
class Part:
    """What some points said about consecutive images of a batch, as one tensor that may still be on its way."""

    rows: list[list[str]]
    """The points of each row, which are several where they do exactly the same."""
    verdicts: Int[Tensor, "rows columns"]
    """Predicted classes, ranks of the true classes, and whether the logits were finite."""
    paths: Mapping[str, list[int]]
    laps: Laps
    usual: Mapping[str, float] = field(default_factory=dict)
    """Seconds by point where no times could be taken."""
    owners: dict[str, list[tuple[int, list[Tensor]]]] = field(default_factory=dict)
    """Of points and example images, by index: the owner of every grid cell after each reduction."""

    def seconds(self) -> Mapping[str, float]:
        """Seconds that each point would have taken alone; asked for once the device has finished."""
        if self.usual:
            return self.usual
        laps = self.laps.seconds()
        return {name: sum(laps[piece] for piece in self.paths[name]) for row in self.rows for name in row}


@dataclass
class Launched:
    """A batch that has been given to the device."""

    batch: Batch
    names: list[str]
    parts: list[Part] = field(default_factory=list)
    arrived: torch.cuda.Event | None = None


class Engine:
    """Evaluates the points of one model, batch by batch.

    Args:
        model: a name of these weights of a model, for the journal.
        evaluators: the points by identifier.
        hardware: where to run.
        reporter: told after each point of each batch.
        failures: gets the reason of every point that raises; such a point is not run again.
        examples: images, by index, whose merges are kept for pictures.
        view: which of the transforms the model's images come from.
        batch_size: images of a full batch, which is what a CUDA graph is made for.
    """

    def __init__(
        self,
        model: str,
        evaluators: Mapping[str, Evaluator],
        hardware: Hardware,
        reporter: Reporter,
        failures: dict[str, str],
        *,
        examples: Collection[int] = (),
        view: int = 0,
        batch_size: int = 0,
    ) -> None:
        self.model, self.evaluators, self.hardware = model, evaluators, hardware
        self.reporter, self.failures, self.examples = reporter, failures, frozenset(examples)
        self.view = view
        self._halves = Halves(hardware.compiled)
        self._trees: OrderedDict[tuple[str, ...], Tree] = OrderedDict()
        self._most: int | None = None  # images that fit into memory at a time, once that has been found out
        self._told: Counter[str] = Counter()
        self._replays = Replays(hardware, batch_size) if hardware.graphs else None

    def launch(self, there: OnDevice, done: Collection[str] = ()) -> Launched:
        """Gives a batch to the device, for all points but those that failed or are `done`. On the CPU, it is run."""
        names = [name for name in self.evaluators if name not in self.failures and name not in done]
        launched, most = Launched(there.batch, names), self._most
        self._told.clear()
        count = len(there.images)
        if count and not self._replay(there, launched):
            self._run(names, there, 0, count, launched)
        if self._most != most:
            self.reporter.note(
                f"{most or count} images at a time do not fit into the memory of {self.hardware.device}; going on with "
                f"{self._most}"
            )
        for name in names:
            if name not in self._told or self._told[name] < count:  # it failed, or there are no images
                self.reporter.advance(count - self._told[name], name)
        if self.hardware.device.type == "cuda":
            launched.arrived = torch.cuda.Event()
            launched.arrived.record(torch.cuda.current_stream(self.hardware.device))
        return launched

    def finish(self, launched: Launched) -> BatchOutcomes:
        """What the points said about a batch, when the device has finished it."""
        if launched.arrived is not None:
            launched.arrived.synchronize()
        batch = launched.batch
        outcomes = {name: PointOutcomes([], [], 0.0) for name in launched.names}
        for part in launched.parts:
            seconds = part.seconds()
            for names, row in zip(part.rows, part.verdicts.tolist(), strict=True):
                images = len(row) // 2
                for name in names:
                    if not row[-1]:
                        self.failures[name] = "ArithmeticError: the model gave logits that are not finite"
                    outcomes[name].prediction += row[:images]
                    outcomes[name].rank += row[images : 2 * images]
                    outcomes[name].seconds += seconds[name]
            for name, found in part.owners.items():
                merges = outcomes[name].merges = outcomes[name].merges or {}
                merges.update({str(index): self._sites(name, owners) for index, owners in found})
        whole = {name: outcome for name, outcome in outcomes.items() if name not in self.failures}
        return BatchOutcomes(self.model, batch.chunk, batch.indices.tolist(), batch.unreadable, whole)

    def _run(self, names: Sequence[str], there: OnDevice, start: int, stop: int, launched: Launched) -> None:
        """Runs points on images `start` to `stop` of a batch, whatever happens."""
        names = [name for name in names if name not in self.failures]
        if not names:
            return
        step = self._most  # which may become less on the way
        if step is not None and stop - start > step:
            for first in range(start, stop, step):
                self._run(names, there, first, min(first + step, stop), launched)
            return
        troubles: list[Trouble] = []
        left = self._walk(names, there, start, stop, launched, troubles)
        if left:
            self._most = (stop - start + 1) // 2
            if self._replays is not None:
                self._replays.forget()
            if self.hardware.device.type == "cuda":
                torch.cuda.empty_cache()  # what is cached in pieces may be one piece again
            self._run(left, there, start, stop, launched)
        for trouble in troubles:
            if len(trouble.settings) == 1:
                self.failures[trouble.settings[0]] = trouble.reason
            else:  # which of them is it? The others go on.
                for name in trouble.settings:
                    self._run([name], there, start, stop, launched)

    def _walk(
        self, names: list[str], there: OnDevice, start: int, stop: int, launched: Launched, troubles: list[Trouble]
    ) -> list[str]:
        """Takes images through the tree of some points; the points that are left because memory ran out."""
        tree, laps = self._tree(tuple(names)), Laps.on(self.hardware.device)
        part = Part([], torch.empty(0, 1, dtype=torch.int64), tree.paths, laps)
        verdicts: list[Tensor] = []
        starved = False

        def passed_on(error: Exception) -> bool:
            return stop - start > 1 and is_out_of_memory(error)

        try:
            with self.hardware.forward():
                for ends, state in tree.run(there.images[start:stop], there.ids[start:stop], laps, troubles, passed_on):
                    try:
                        verdicts.append(verdict(state.x, there.labels[start:stop]))
                        self._keep_examples(ends, state, there.batch, start, part)
                    except Exception as error:
                        if passed_on(error):
                            raise
                        troubles.append(Trouble(ends, reason(error)))
                        del verdicts[len(part.rows) :]
                        continue
                    part.rows.append(ends)
                    self._tell(ends, stop - start)
        except Exception as error:
            if not passed_on(error):
                raise
            starved = True  # the error holds on to what was in memory: go on when it is gone
        if part.rows:
            part.verdicts = self._fetch(torch.stack(verdicts[: len(part.rows)]))
            launched.parts.append(part)
        over = {name for row in part.rows for name in row}.union(*(trouble.settings for trouble in troubles))
        return [name for name in names if name not in over] if starved else []

    def _replay(self, there: OnDevice, launched: Launched) -> bool:
        """Replays a CUDA graph of the batch if there is one, or makes it; whether that is all that is to be done."""
        if self._replays is None or self._most is not None or not self.examples.isdisjoint(there.batch.indices):
            return False
        tree = self._tree(tuple(launched.names)) if launched.names else None
        verdicts = self._replays.run(tree, there, self.reporter.note) if tree is not None else None
        if tree is None or verdicts is None:
            return False
        rows, usual = self._replays.rows, self._replays.usual
        launched.parts.append(Part(rows, self._fetch(verdicts), tree.paths, NoLaps(), usual))
        for names in rows:
            self._tell(names, len(there.images))
        return True

    def _tree(self, names: tuple[str, ...]) -> Tree:
        """The tree of some points. A few are kept: failures and half-finished chunks change which are needed."""
        if names not in self._trees:
            self._trees[names] = Tree({name: pieces_of(self.evaluators[name].network, self._halves) for name in names})
            if len(self._trees) > _KEPT_TREES:
                self._trees.popitem(last=False)
        self._trees.move_to_end(names)
        return self._trees[names]

    def _fetch(self, verdicts: Tensor) -> Tensor:
        """A copy on the host, which arrives in the order of the stream."""
        if verdicts.device.type == "cpu":
            return verdicts
        host = torch.empty(verdicts.shape, dtype=verdicts.dtype, pin_memory=True)
        return host.copy_(verdicts, non_blocking=True)

    def _tell(self, names: Iterable[str], images: int) -> None:
        for name in names:
            self._told[name] += images
            self.reporter.advance(images, name)

    def _keep_examples(self, names: list[str], state: State, batch: Batch, start: int, part: Part) -> None:
        """Keeps who owns every grid cell after each reduction, for the images that are examples."""
        indices = batch.indices[start : start + len(state.x)].tolist()
        rows = {index: row for row, index in enumerate(indices) if index in self.examples}
        if not rows or state.carried.lineage is None:
            return
        owners = [step.source.owner() for step in state.carried.lineage.steps()]
        for name in names:
            part.owners[name] = [(index, [owner[row] for owner in owners]) for index, row in rows.items()]

    def _sites(self, name: str, owners: list[Tensor]) -> list[dict[str, Any]]:
        steps = self.evaluators[name].network.schedule.steps
        return [
            {"block": step.block, "tokens": step.n_out, "owner": owner.tolist()}
            for step, owner in zip(steps, owners, strict=True)
        ]


_KEPT_TREES = 4


def evaluate(
    engines: Sequence[Engine],
    batches: Iterable[Sequence[Batch]],
    done: Mapping[str, Mapping[int, Collection[str]]],
    hardware: Hardware,
) -> Iterator[BatchOutcomes]:
    """Takes every batch through all points that have not seen it, and yields the outcomes batch by batch, in order.

    Args:
        engines: one for each model.
        batches: from `data.iter_views`: for each chunk, the same images under each of the transforms.
        done: points that are in the journal already, by model and chunk.
        hardware: where the engines run.
    """
    courier = Courier(hardware)
    ahead = 1 if hardware.device.type == "cuda" else 0  # launched batches whose outcomes are not waited for
    waiting: deque[tuple[Engine, Launched]] = deque()
    with ExitStack() as stack:
        if hardware.compiled:
            stack.enter_context(compiling())
        if ahead:
            stack.enter_context(torch.cuda.device(hardware.device))  # whose current stream is meant everywhere
        for views in batches:
            there: dict[int, OnDevice] = {}
            for engine in engines:
                seen = done.get(engine.model, {}).get(views[0].chunk, ())
                if set(engine.evaluators) <= set(seen):
                    continue
                if engine.view not in there:
                    there[engine.view] = courier.bring(views[engine.view])
                waiting.append((engine, engine.launch(there[engine.view], seen)))
                if len(waiting) > ahead:
                    first, launched = waiting.popleft()
                    yield first.finish(launched)
        for engine, launched in waiting:
            yield engine.finish(launched)
