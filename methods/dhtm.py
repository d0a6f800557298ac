"""DHTM: Dynamic Hierarchical Token Merging. Haroun et al., VISAPP 2025, Algorithm 1.

In each selected layer, k times: among all pairs of spatially adjacent tokens take the most similar one and replace
it by its mean. It is agglomerative clustering constrained to the grid graph. Training-free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.contraction import Averaging, Merges, Similarity, contract_most_similar
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.grid import OFFSETS, all_pairs, cell_edges, token_edges
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.tokens import Tokens


@dataclass(frozen=True)
class DhtmOptions:
    """Options of DHTM; the defaults reproduce the published column of DeiT-Tiny within its noise."""

    connectivity: Literal[8, 4, "any"] = 8
    """Neighbours of a grid cell: with or without the diagonal ones; `any`: all tokens are, wherever they lie."""
    similarity: Similarity = "cosine"
    """cosine, or the negative euclidean / manhattan distance, or the (symmetric / forward) KL divergence."""
    averaging: Averaging = "size"
    """Mean over the patches of a merged token, or the paper's literal mean of the two tokens (`plain`)."""
    feature: Literal["mid", "attn_out", "keys"] = "mid"
    """What is compared: the tokens themselves, the attention's output before the residual, or its mean keys."""
    position: Literal["mid", "pre", "post"] = "mid"
    """Between attention and MLP, before the block, or after it."""
    prop_attn: bool = True
    """Proportional attention in all blocks after a merge."""


def compared(tokens: Tokens, feature: Literal["mid", "attn_out", "keys"]) -> Float[Tensor, "B N F"]:
    """The features among which similarity is measured: C wide, or D for the keys averaged over heads."""
    if feature == "keys":
        assert tokens.keys is not None
        return tokens.keys.mean(1)
    if feature == "attn_out":
        assert tokens.attn_out is not None
        return tokens.attn_out
    return tokens.features


@reducer("dhtm")
class Dhtm(TokenReducer):
    """Merges the most similar neighbours on the grid, one pair at a time. Options: `DhtmOptions`."""

    options_type = DhtmOptions

    def __init__(self, options: DhtmOptions | None = None) -> None:
        super().__init__(options)
        o: DhtmOptions = self.options
        self.site = o.position
        self.proportional_attention = o.prop_attn
        if o.feature != "mid":
            if o.position == "pre":
                raise InputError(
                    f"dhtm compares feature={o.feature}, which a block has only after its attention; use position=mid "
                    "or position=post."
                )
            self.needs = frozenset({o.feature})

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """Adjacency follows from the grid cells that the tokens cover, so merges of earlier layers persist."""
        return self._merges(tokens, n_out).assignment(n_out)

    def assign_each(self, tokens: Tokens, n_outs: Sequence[int]) -> list[Assignment]:
        """One run for all: the merges that leave more tokens are the first of those that leave fewer."""
        merges = self._merges(tokens, min(n_outs))
        return [merges.assignment(n_out) for n_out in n_outs]

    def _merges(self, tokens: Tokens, n_out: int) -> Merges:
        o: DhtmOptions = self.options
        if o.connectivity == "any":
            edges = all_pairs(tokens.features.shape[1], tokens.features.device).expand(len(tokens.features), -1, -1)
        else:
            edges = token_edges(tokens.cells, cell_edges(tokens.grid, OFFSETS[o.connectivity], tokens.features.device))
        return contract_most_similar(
            compared(tokens, o.feature),
            tokens.sizes,
            edges,
            steps=tokens.features.shape[1] - n_out,
            similarity=o.similarity,
            averaging=o.averaging,
        )

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """(N + E) F for norms and first scores; for each merge C for its mean, (D + 1) F for its norm and new scores.

        F is the width of the compared feature, C unless keys are compared; a feature of its own costs a mean of F too.

        That is what the algorithm needs and the compiled path does; plain torch scores each new token against all N.
        E is the number of edges of a square grid of N tokens (702 or 364 for 196), D the number of neighbours of a
        pair; without spatial constraint E is N (N - 1) / 2 and D the mean number of other tokens.
        """
        edges: float
        neighbours: float
        if self.options.connectivity == 8:
            edges, neighbours = 4 * n_in - 6 * math.sqrt(n_in) + 2, 10
        elif self.options.connectivity == 4:
            edges, neighbours = 2 * n_in - 2 * math.sqrt(n_in), 6
        else:
            edges, neighbours = n_in * (n_in - 1) / 2, (n_in + n_out - 3) / 2
        compared_width = self.head_width if self.options.feature == "keys" else width
        means = width + (0 if self.options.feature == "mid" else compared_width)
        per_merge = means + (neighbours + 1) * compared_width
        return round((n_in + edges) * compared_width + (n_in - n_out) * per_merge)
