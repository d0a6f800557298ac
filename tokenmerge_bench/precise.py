"""Layers of learned reducers in the precision of their input, whatever that of the model and of autocast is."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """`layer(x)` for x (..., C), computed in the dtype of x."""
    return F.layer_norm(x, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` for x (..., C), computed in the dtype of x."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
