"""SiT: the token slimming module (TSM) of Zong et al. ("Self-slimmed Vision Transformer"), ECCV 2022.

As a reducer for plain ViTs it is defined by Haurum et al., "Which Tokens to Use?", ICCV-W 2023. A small MLP says of
each token how much it matters to each of the M output tokens; a softmax over the N tokens makes every output a convex
combination of them: Y = softmax_N(g (W2 GELU(W1 LN(X) + b1) + b2))^T X. It must be trained, for one number of outputs.
The paper's distillation is a matter of training alone: `tokenmerge_bench.distillation`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tokenmerge_bench.assignment import Assignment, SoftAssignment
from tokenmerge_bench.knobs import KeepRate
from tokenmerge_bench.precise import layer_norm, linear
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.tokens import Tokens


def slimming_weights(logits: Float[Tensor, "B N M"], scale: Float[Tensor, ""]) -> Float[Tensor, "B M N"]:
    """Every output token's weights on the N tokens: a softmax over them of the scaled logits."""
    return (scale * logits).softmax(1).transpose(1, 2)


@reducer("sit")
class Sit(TokenReducer):
    """Mixes tokens by the weights that an MLP gives each of them. It has no options."""

    site = "pre"
    layers = (3, 6, 9)
    knob = KeepRate()
    learned = True

    def build(self, n_in: int, n_out: int, width: int) -> None:
        """LayerNorm, C -> C/2 -> M, and the scale g; outputs start as almost equal averages of all tokens."""
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.hidden = nn.Linear(width, width // 2)
        self.logits = nn.Linear(width // 2, n_out)
        self.scale = nn.Parameter(torch.ones(()))
        for layer in (self.hidden, self.logits):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """Weights from the block input; what they mix is the block input itself, not normalised.

        Raises:
            ValueError: if it was built for another number of output tokens.
        """
        if n_out != self.logits.out_features:
            raise ValueError(f"sit was built to leave {self.logits.out_features} tokens and cannot leave {n_out}")
        x = tokens.features.to(torch.promote_types(tokens.features.dtype, torch.float32))
        return SoftAssignment(slimming_weights(self._logits(x), self.scale.to(x.dtype)))

    def _logits(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N M"]:
        return linear(self.logits, F.gelu(linear(self.hidden, layer_norm(self.norm, x))))

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """5 N C for the LayerNorm, N C (C/2) and N (C/2) M for the MLP, N M C for the mixing."""
        hidden = width // 2
        return 5 * n_in * width + n_in * width * hidden + n_in * hidden * n_out + n_in * n_out * width
