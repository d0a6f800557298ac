"""PatchMerger. Renggli et al. ("Learning to Merge Tokens in Vision Transformers"), 2022.

As a reducer for plain ViTs it is defined by Haurum et al., "Which Tokens to Use?", ICCV-W 2023. M learned queries Q
attend to the N tokens, and what they gather are the output tokens: Y = softmax_N(Q Z^T) Z with Z = LN(X). It must be
trained, for one number of outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment, SoftAssignment
from tokenmerge_bench.knobs import KeepRate
from tokenmerge_bench.precise import layer_norm
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.tokens import Tokens


@dataclass(frozen=True)
class PatchMergerOptions:
    """Options of PatchMerger."""

    scaled: bool = False
    """Divide the logits by sqrt(C), as attention does; plain, they start with variance C and weights almost one-hot."""
    values: Literal["norm", "raw"] = "norm"
    """Gather the LayerNormed tokens, as the codes do, or the tokens themselves, as the paper's formula is written."""


def query_weights(
    queries: Float[Tensor, "M C"], z: Float[Tensor, "B N C"], scaled: bool = False
) -> Float[Tensor, "B M N"]:
    """Softmax over the N tokens of the products of queries and tokens, which are divided by sqrt(C) if `scaled`."""
    logits = queries @ z.transpose(1, 2)
    if scaled:
        logits = logits * z.shape[2] ** -0.5
    return logits.softmax(2)


@reducer("patchmerger")
class PatchMerger(TokenReducer):
    """Gathers tokens by learned queries. Options: `PatchMergerOptions`."""

    options_type = PatchMergerOptions
    site = "pre"
    layers = (3, 6, 9)
    knob = KeepRate()
    learned = True

    def build(self, n_in: int, n_out: int, width: int) -> None:
        """The LayerNorm, and the queries, standard normal."""
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.queries = nn.Parameter(torch.randn(n_out, width))

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """Weights from the LayerNormed block input.

        Raises:
            ValueError: if it was built for another number of output tokens.
        """
        if n_out != len(self.queries):
            raise ValueError(f"patchmerger was built to leave {len(self.queries)} tokens and cannot leave {n_out}")
        z = self._normed(tokens.features)
        return SoftAssignment(query_weights(self.queries.to(z.dtype), z, self.options.scaled))

    def values(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The LayerNormed tokens; the tokens themselves for `values=raw`."""
        return features if self.options.values == "raw" else self._normed(features).to(features.dtype)

    def _normed(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        # In float32 or better, whatever the model's precision.
        return layer_norm(self.norm, features.to(torch.promote_types(features.dtype, torch.float32)))

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """5 N C for the LayerNorm, counted once for scores and values; 2 N M C for the scores and the gathering."""
        return 5 * n_in * width + 2 * n_in * n_out * width
