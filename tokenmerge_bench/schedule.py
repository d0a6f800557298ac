"""The token schedule of a network: how many patch tokens each half of each block sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Step:
    """One reduction: at `block` (from 0), before it (`pre`) or between its attention and its MLP (`mid`)."""

    block: int
    site: Literal["pre", "mid"]
    n_in: int
    n_out: int


@dataclass(frozen=True)
class Schedule:
    """All reductions of a network with `depth` blocks, `n0` patch tokens and `prefix` prefix tokens."""

    n0: int
    prefix: int
    depth: int
    steps: tuple[Step, ...] = ()

    def attention_tokens(self) -> list[int]:
        """T = P + N seen by the attention of each block."""
        return [self.prefix + patches for patches, _ in self._patches()]

    def mlp_tokens(self) -> list[int]:
        """T = P + N seen by the MLP of each block, which is also what leaves the block."""
        return [self.prefix + patches for _, patches in self._patches()]

    def _patches(self) -> list[tuple[int, int]]:
        """Patch tokens that the attention and the MLP of each block see."""
        left = {(step.block, step.site): step.n_out for step in self.steps}
        seen, n = [], self.n0
        for block in range(self.depth):
            before = left.get((block, "pre"), n)
            n = left.get((block, "mid"), before)
            seen.append((before, n))
        return seen


def make_schedule(
    counts: tuple[int, ...],
    blocks: tuple[int, ...],
    site: Literal["pre", "mid", "post"],
    *,
    n0: int,
    prefix: int,
    depth: int,
) -> Schedule:
    """The schedule that leaves `counts[j]` patch tokens at `blocks[j]`; steps that remove nothing are dropped.

    `post` at a block is the same as `pre` at the next one.
    """
    if site == "post" and blocks and max(blocks) >= depth - 1:
        raise ValueError(f"nothing follows block {max(blocks)}, the last one, so it cannot be reduced after it")
    steps, n = [], n0
    for block, left in zip(blocks, counts, strict=True):
        if left != n:
            steps.append(Step(block + 1 if site == "post" else block, "mid" if site == "mid" else "pre", n, left))
        n = left
    return Schedule(n0, prefix, depth, tuple(steps))
