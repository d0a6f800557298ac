"""What a reducer sees: the patch tokens of one layer, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenmerge_bench.assignment import Assignment, HardAssignment, SoftAssignment


@dataclass(frozen=True, eq=False)
class Lineage:
    """The reductions that led to the tokens of a layer. They are composed when somebody asks, and then once."""

    before: Lineage | None
    last: Assignment

    @cached_property
    def source(self) -> Assignment:
        """Map from the grid cells to the tokens after the last of the reductions."""
        return self.last if self.before is None else self.before.source.compose(self.last)

    def steps(self) -> list[Lineage]:
        """The lineages after each of the reductions, first to last."""
        return [*([] if self.before is None else self.before.steps()), self]


@dataclass(frozen=True)
class Tokens:
    """The patch tokens at one reduction site. Prefix tokens (CLS, distillation, registers) are not among them.

    Shapes: B batch, N patch tokens, P prefix tokens, T = P + N, C width, H heads, D head width, N0 grid cells.
    What attention hands over is None unless the reducer lists it in `needs`.
    """

    features: Float[Tensor, "B N C"]
    """What is merged, in the model's precision."""
    sizes: Float[Tensor, "B N"]
    """Number of original patches that each token stands for."""
    lineage: Lineage | None
    """The reductions before this one; None where there was none."""
    grid: tuple[int, int]
    """Rows and columns of the patch grid."""
    prefix: int
    """P, the number of prefix tokens that stand before these in the sequence."""
    image_ids: Int[Tensor, " B"]
    """Identifiers that seed randomness, so that it does not depend on the batch."""
    block: int
    """Index of the block (from 0) at which the reduction happens."""
    seed: int
    keys: Float[Tensor, "B H N D"] | None = None
    """Keys of the attention just before this site, after k-norm and before scaling."""
    attention: Float[Tensor, "B H T T"] | None = None
    """Softmax weights of that attention, prefix rows and columns included."""
    received: Float[Tensor, "B N"] | None = None
    """Attention that each patch token received there from all T queries, summed over heads, float32 or better."""
    attn_out: Float[Tensor, "B N C"] | None = None
    """Output of that attention after the projection, before the residual is added."""

    @cached_property
    def source(self) -> Assignment:
        """Map from the N0 grid cells (row-major) to the N tokens."""
        if self.lineage is None:
            return HardAssignment.identity(len(self.features), self.features.shape[1], self.features.device)
        return self.lineage.source

    @property
    def cells(self) -> Int[Tensor, "B N0"]:
        """Token that covers each grid cell. Needs hard assignments all the way from the input."""
        if isinstance(self.source, SoftAssignment):
            raise ValueError("tokens made by a soft assignment cover no definite grid cells")
        assert isinstance(self.source, HardAssignment)
        return self.source.labels

    @classmethod
    def of(
        cls,
        features: Float[Tensor, "B N C"],
        grid: tuple[int, int],
        *,
        cells: Int[Tensor, "B N0"] | None = None,
        prefix: int = 1,
        image_ids: Int[Tensor, " B"] | None = None,
        block: int = 0,
        seed: int = 0,
        keys: Float[Tensor, "B H N D"] | None = None,
        attention: Float[Tensor, "B H T T"] | None = None,
        received: Float[Tensor, "B N"] | None = None,
        attn_out: Float[Tensor, "B N C"] | None = None,
    ) -> Tokens:
        """Tokens without a model, for tests and notebooks: sizes follow from `cells` (default: one cell each)."""
        batch, n, _ = features.shape
        if cells is None:
            cells = torch.arange(n, device=features.device).expand(batch, n)
        source = HardAssignment(cells, n)
        precise = torch.promote_types(features.dtype, torch.float32)
        sizes = source.merge_sizes(torch.ones(cells.shape, dtype=precise, device=features.device))
        if image_ids is None:
            image_ids = torch.zeros(batch, dtype=torch.int64, device=features.device)
        return cls(
            features,
            sizes,
            Lineage(None, source),
            grid,
            prefix,
            image_ids,
            block,
            seed,
            keys,
            attention,
            received,
            attn_out,
        )
