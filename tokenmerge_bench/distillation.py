"""SiT's feature recalibration distillation, which is part of training alone. Zong et al., ECCV 2022.

The teacher is the unreduced network; the student, which starts from its weights, is the reduced one. After every block
the student's patch tokens are mapped back to N0 tokens (reverse token slimming module, RTSM) and compared with the
teacher's. The loss of a batch is

    cross-entropy + lambda_token * mean over blocks of MSE(RTSM(student), teacher)
                  + lambda_logits * tau^2 * KL(teacher || student),

of which `FeatureRecalibration` gives the mean over blocks, and `distillation_loss` everything but the cross-entropy.

Shapes: B batch, M_i patch tokens of the student after block i, N0 of the teacher, C width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureRecalibration(nn.Module):
    """The RTSMs of all blocks, and how far what they recover is from the teacher's tokens. Dropped after training.

    Args:
        counts: patch tokens M_i that leave each block of the student; where nothing has been dropped, M_i = N0, its
            tokens are compared as they are.
        n0: patch tokens N0 of the teacher.
        width: C.
    """

    def __init__(self, counts: Sequence[int], n0: int, width: int) -> None:
        super().__init__()
        self.recover = nn.ModuleList(nn.Identity() if m == n0 else _Rtsm(m, n0, width) for m in counts)

    def forward(
        self, student: Sequence[Float[Tensor, "B _ C"]], teacher: Sequence[Float[Tensor, "B N0 C"]]
    ) -> Float[Tensor, ""]:
        """Mean over the blocks of the mean squared errors.

        Args:
            student: patch tokens, without the prefix tokens, that left each block of the reduced model, as a forward
                hook on every module of `reduced.model.blocks` sees them.
            teacher: those of a frozen copy of the unreduced model, of the same images; no gradient reaches them.

        Raises:
            ValueError: if there are more or fewer of either than blocks.
        """
        errors = []
        for recover, theirs, target in zip(self.recover, student, teacher, strict=True):
            recovered, wanted = recover(theirs), target.detach()
            precise = torch.promote_types(torch.promote_types(recovered.dtype, wanted.dtype), torch.float32)
            errors.append(F.mse_loss(recovered.to(precise), wanted.to(precise)))
        return torch.stack(errors).mean()


class _Rtsm(nn.Module):
    """M tokens to N0: LayerNorm, an MLP over the tokens, then a residual MLP over the channels."""

    def __init__(self, m: int, n0: int, width: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width)
        self.token_mlp = _mlp(m, 4 * n0, n0)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_mlp = _mlp(width, 4 * width, width)

    def forward(self, tokens: Float[Tensor, "B M C"]) -> Float[Tensor, "B N0 C"]:
        z = self.token_mlp(self.token_norm(tokens).transpose(1, 2)).transpose(1, 2)
        out: Tensor = z + self.channel_mlp(self.channel_norm(z))
        return out


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a GELU between them, initialised as the layers of SiT's TSM are."""
    layers = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.GELU(), layers[1])


def distillation_loss(
    student_logits: Float[Tensor, "B K"],
    teacher_logits: Float[Tensor, "B K"],
    token_loss: Float[Tensor, ""],
    *,
    lambda_token: float = 2.0,
    lambda_logits: float = 2.0,
    tau: float = 1.0,
) -> Float[Tensor, ""]:
    """What distillation adds to the cross-entropy; no gradient reaches the teacher.

    Args:
        student_logits: of the reduced model.
        teacher_logits: of the unreduced model, for the same images.
        token_loss: what `FeatureRecalibration` gives for them.
        lambda_token: weight of the token loss.
        lambda_logits: weight of KL(teacher || student), which is averaged over the batch.
        tau: temperature of both softmaxes.
    """
    theirs, wanted = (
        (logits.to(torch.promote_types(logits.dtype, torch.float32)) / tau).log_softmax(1)
        for logits in (student_logits, teacher_logits.detach())
    )
    divergence = F.kl_div(theirs, wanted, reduction="batchmean", log_target=True)
    return lambda_token * token_loss + lambda_logits * tau**2 * divergence
