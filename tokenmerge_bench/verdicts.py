"""What the logits of a batch say, as numbers that need no network any more."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def verdict(logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Int[Tensor, " columns"]:
    """What `judge` finds, in one row of 2 B + 1 columns."""
    prediction, rank, finite = judge(logits, labels)
    return torch.cat([prediction, rank, finite.long()[None]])


def judge(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"], Bool[Tensor, ""]]:
    """Predicted class, rank of the true class (0 is best; the lower class wins a tie), and whether all is finite."""
    true = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > true) | ((logits == true) & (classes < labels[:, None]))
    return logits.argmax(1), ahead.sum(1), logits.isfinite().all()
