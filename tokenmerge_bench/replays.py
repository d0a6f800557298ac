"""CUDA graphs of whole sweeps: everything that a batch goes through, in all settings, launched as one."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tokenmerge_bench.clocks import Laps, NoLaps
from tokenmerge_bench.hardware import Hardware, OnDevice
from tokenmerge_bench.modes import Run, as_mode
from tokenmerge_bench.trie import Tree, Trouble, reason
from tokenmerge_bench.verdicts import verdict


class Replays:
    """A CUDA graph of everything that a full batch goes through, made after a batch was run without."""

    def __init__(self, hardware: Hardware, batch_size: int) -> None:
        self.hardware, self.batch_size = hardware, batch_size
        self.rows: list[list[str]] = []
        """The points of each row of what a replay gives."""
        self.usual: dict[str, float] = {}
        """Seconds by point, from a batch that was run without: within a graph no times can be taken."""
        self._seen: WeakKeyDictionary[Tree, int] = WeakKeyDictionary()
        self._held: tuple[Tree, OnDevice, Run] | None = None

    def run(self, tree: Tree, there: OnDevice, note: Callable[[str], None]) -> Tensor | None:
        """The verdicts of a batch, or None where it has to be run without a graph."""
        if len(there.images) != self.batch_size:
            return None
        if self._held is None or self._held[0] is not tree:
            self._seen[tree] = self._seen.get(tree, 0) + 1
            if self._seen[tree] == 1:
                return None
            self._capture(tree, there, note)
        if self._held is None:
            return None
        _, static, replay = self._held
        for buffer, given in ((static.images, there.images), (static.labels, there.labels), (static.ids, there.ids)):
            buffer.copy_(given)
        return replay()

    def forget(self) -> None:
        """Gives the memory of the graph back, where memory ran out."""
        self._held = None

    def _capture(self, tree: Tree, there: OnDevice, note: Callable[[str], None]) -> None:
        self._held = None
        static = OnDevice(there.batch, there.images.clone(), there.labels.clone(), there.ids.clone())
        torch.cuda.synchronize(self.hardware.device)
        torch.cuda.empty_cache()
        try:
            timed = _WholeTree(tree, static, self.hardware)
            timed(static.images)
            torch.cuda.synchronize(self.hardware.device)
            laps = timed.laps.seconds()
            self.usual = {name: sum(laps[piece] for piece in path) for name, path in tree.paths.items()}
            timed.laps = NoLaps()
            self._held = tree, static, as_mode(timed, static.images, static.ids, "graph")
            self.rows = timed.rows
        except Exception as error:
            note(f"--cuda-graphs: a batch could not be captured ({reason(error)}); going on without")
            self.batch_size = -1  # which no batch has


class _WholeTree(nn.Module):
    """All points on a batch that always lies at the same place; the stacked verdicts."""

    def __init__(self, tree: Tree, static: OnDevice, hardware: Hardware) -> None:
        super().__init__()
        self.tree, self.static, self.hardware = tree, static, hardware
        self.laps = Laps.on(hardware.device)
        self.rows: list[list[str]] = []

    def forward(self, images: Tensor) -> Tensor:
        troubles: list[Trouble] = []
        verdicts: list[Tensor] = []
        self.rows = []
        with self.hardware.forward():
            for ends, state in self.tree.run(images, self.static.ids, self.laps, troubles):
                verdicts.append(verdict(state.x, self.static.labels))
                self.rows.append(ends)
            if troubles:
                raise RuntimeError(troubles[0].reason)
            return torch.stack(verdicts)
