"""All settings of one model as a tree: what two of them have in common from the images on is one path, and runs once.

A batch goes through the tree depth first. A state of the forward pass lives until the last of its branches has begun,
and the branch with the most settings below it comes last: as every earlier one has at most half of the settings of its
parent, no more than log2(settings) states wait at any time, beside the one that is worked on. The memory
of a sweep is therefore that of one forward pass and a few sequences of tokens, however many settings there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenmerge_bench.clocks import Laps
from tokenmerge_bench.pieces import Piece, State
from tokenmerge_bench.reduced_vit import Pass


@dataclass
class Node:
    """A piece of work, what follows it, and the settings whose forward pass ends with it."""

    number: int
    piece: Piece
    children: list[Node] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def settings(self) -> list[str]:
        """All settings that need this piece."""
        return [*self.ends, *(name for child in self.children for name in child.settings())]


@dataclass(frozen=True)
class Trouble:
    """A piece that raised, and the settings that were not evaluated therefore."""

    settings: list[str]
    reason: str


class Tree:
    """The settings of one model.

    Args:
        programs: the pieces of each setting's forward pass, by name; all begin with the same piece.
    """

    def __init__(self, programs: Mapping[str, Sequence[Piece]]) -> None:
        self.paths: dict[str, list[int]] = {}
        """Numbers of the pieces of every setting."""
        self.size = 0
        tops: list[Node] = []
        for name, program in programs.items():
            path: list[Node] = []
            for piece in program:
                path.append(self._node(path[-1].children if path else tops, piece))
            path[-1].ends.append(name)
            self.paths[name] = [node.number for node in path]
        (self.root,) = tops
        _heaviest_last(self.root)

    def _node(self, level: list[Node], piece: Piece) -> Node:
        """The node among `level` that does the work of a piece; made if there is none."""
        for node in level:
            if node.piece.key == piece.key:
                node.piece.join(piece)
                return node
        level.append(Node(self.size, piece))
        self.size += 1
        return level[-1]

    def run(
        self,
        images: Float[Tensor, "B I height width"],
        ids: Int[Tensor, " B"],
        laps: Laps,
        troubles: list[Trouble],
        passed_on: Callable[[Exception], bool] = lambda error: False,
    ) -> Iterator[tuple[list[str], State]]:
        """Takes a batch through all settings, and yields those that end in a state, whose `x` are their logits.

        Args:
            images: as the model takes them.
            ids: identifiers that seed random methods.
            laps: clock of the pieces.
            troubles: gets what raised, and which settings it ended; the others go on.
            passed_on: which errors are raised instead.
        """
        yield from self._follow(self.root, State(images, Pass(ids)), laps, troubles, passed_on)

    def _follow(
        self,
        node: Node,
        state: State,
        laps: Laps,
        troubles: list[Trouble],
        passed_on: Callable[[Exception], bool],
    ) -> Iterator[tuple[list[str], State]]:
        while True:
            laps.start()
            try:
                state = node.piece.run(state)
            except Exception as error:
                if passed_on(error):
                    raise
                troubles.append(Trouble(node.settings(), reason(error)))
                return
            laps.stop(node.number)
            if node.ends:
                yield node.ends, state
            if not node.children:
                return
            for child in node.children[:-1]:
                yield from self._follow(child, state, laps, troubles, passed_on)
            node = node.children[-1]  # which gets the state for itself, and frees it when it has made the next one


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the host, had no memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _heaviest_last(node: Node) -> int:
    """Orders the children of every node below by how many settings they serve; returns that of this one."""
    weights = {child.number: _heaviest_last(child) for child in node.children}
    node.children.sort(key=lambda child: weights[child.number])
    return len(node.ends) + sum(weights.values())
