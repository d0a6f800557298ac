"""Counting multiply-accumulates (MACs), the "FLOPs" of this literature, in two independent ways.

* `closed_form` adds up the layers of a model for a token schedule. It needs no forward pass; the budget solver uses it.
* `traced` counts the operators of a real forward pass of the attached model with fvcore. It is what gets reported.

The two must agree within 0.1 %, or `count` refuses the result. Both charge 5 MACs per element of an affine
LayerNorm, as fvcore does, and nothing for elementwise operations, softmax and data movement. The reducers' own
arithmetic is counted by their formulae (`TokenReducer.macs`) in both, because selection loops have no meaningful
operator count.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from tokenmerge_bench.errors import CountingError
from tokenmerge_bench.reduced_vit import ReducedViT, geometry, image_shape
from tokenmerge_bench.schedule import Schedule

with warnings.catch_warnings():  # fvcore scripts a function when it is imported, of which torch warns the wrong person
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

AGREEMENT = 1e-3
"""Largest relative difference between the two counts."""


@dataclass(frozen=True)
class Macs:
    """MACs of one image."""

    backbone: int
    """The network itself, including the normalisations."""
    norm: int
    """The share of the normalisations in `backbone`."""
    reducer: int
    """The reducers' own arithmetic."""

    @property
    def total(self) -> int:
        """Network and reducers."""
        return self.backbone + self.reducer


@dataclass(frozen=True)
class _BlockCost:
    """MACs of one block as polynomials in T: attention `a T + b T^2`, MLP `m T`; norms `n T` each."""

    attention: int
    quadratic: int
    attention_norms: int
    mlp: int
    mlp_norms: int


@dataclass(frozen=True)
class BackboneCost:
    """The costs of a model, taken from its layers; gives MACs for any token schedule."""

    blocks: tuple[_BlockCost, ...]
    patch_embed: int
    per_token_before: int
    per_token_after: int
    head: int
    head_norms: int

    @classmethod
    def of(cls, model: nn.Module) -> BackboneCost:
        """Reads the layers of a supported timm ViT."""
        shape = geometry(model)
        vit = cast(VisionTransformer, model)
        head_linears = _linears(vit.head) + (_linears(vit.head_dist) if hasattr(vit, "head_dist") else 0)
        return cls(
            blocks=tuple(_block_cost(cast(Block, block)) for block in vit.blocks),
            patch_embed=shape.patches * (_convolutions(vit.patch_embed) + _norms(vit.patch_embed)),
            per_token_before=_norms(vit.norm_pre),
            per_token_after=_norms(vit.norm),
            head=head_linears,
            head_norms=_norms(vit.fc_norm) if hasattr(vit, "fc_norm") else 0,
        )

    def macs(self, schedule: Schedule, reducer: int = 0) -> Macs:
        """MACs of one image under a token schedule.

        A block costs 12 T C^2 + 2 T^2 C with the usual MLP ratio of 4; a `mid` reduction falls between its attention
        (old T) and its MLP (new T).
        """
        first = schedule.prefix + schedule.n0
        last = schedule.mlp_tokens()[-1]
        products = self.patch_embed + self.head
        norms = self.per_token_before * first + self.per_token_after * last + self.head_norms
        sizes = zip(self.blocks, schedule.attention_tokens(), schedule.mlp_tokens(), strict=True)
        for block, t_attention, t_mlp in sizes:
            products += block.attention * t_attention + block.quadratic * t_attention**2 + block.mlp * t_mlp
            norms += block.attention_norms * t_attention + block.mlp_norms * t_mlp
        return Macs(products + norms, norms, reducer)


def closed_form(model: nn.Module, schedule: Schedule, reducer: int = 0) -> Macs:
    """MACs of one image of a supported ViT under a token schedule, without running it."""
    return BackboneCost.of(model).macs(schedule, reducer)


def traced(reduced: ReducedViT) -> int:
    """MACs of the network for one image, counted by fvcore on the attached model (reducers excluded).

    While tracing, tokens are dropped by position, so that the reducers' operators do not appear; the shapes, on which
    alone the count depends, are those of the schedule.

    Raises:
        CountingError: if an operator is neither counted nor on the written list of free ones.
    """
    stock = reduced.detach()
    parameter = next(stock.parameters())
    image = torch.zeros(1, *image_shape(stock), device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), _evaluating(reduced), _quiet():
        last = reduced.last
        try:
            reduced.drop = True
            analysis = _Analysis(reduced, image)
            total = analysis.total()
            unknown = analysis.unsupported_ops()
        finally:
            reduced.drop, reduced.last = False, last
    if unknown:
        names = ", ".join(sorted(unknown))
        raise CountingError(
            f"the model runs operators of unknown cost ({names}); give them a handle or list them as free in "
            "tokenmerge_bench/counting.py."
        )
    return int(total)


def count(reduced: ReducedViT) -> Macs:
    """MACs of one image as they are reported: traced, plus the reducers' formulae, checked against the closed form."""
    expected = closed_form(reduced.detach(), reduced.schedule, reduced.reducer_macs())
    backbone = traced(reduced)
    if abs(backbone - expected.backbone) > AGREEMENT * expected.backbone:
        raise CountingError(
            f"fvcore counts {backbone / 1e9:.4f} GMACs and the closed form {expected.backbone / 1e9:.4f}; a layer of "
            "this model is not accounted for."
        )
    return Macs(backbone, expected.norm, expected.reducer)


FREE_OPERATORS = frozenset(
    {
        # elementwise arithmetic and activations, which this literature does not count
        "aten::add", "aten::add_", "aten::sub", "aten::rsub", "aten::mul", "aten::div", "aten::neg", "aten::log",
        "aten::exp", "aten::softmax", "aten::gelu", "aten::sigmoid", "aten::tanh", "aten::silu", "aten::dropout",
        "aten::feature_dropout", "aten::clamp_min", "aten::pow", "aten::sqrt",
        # reductions over tokens (average pooling), linear in T C
        "aten::mean", "aten::sum",
        # data movement, indexing, casts and constants
        "aten::expand_as", "aten::clone", "aten::repeat", "aten::index_add", "aten::scatter_add", "aten::new_zeros",
        "aten::new_ones", "aten::ones_like", "aten::zeros_like", "aten::type_as", "aten::gather", "aten::broadcast_to",
        "aten::lift_fresh", "aten::alias", "aten::pad", "aten::unflatten", "aten::movedim", "aten::numel",
    }
)  # fmt: skip
"""Operators that cost nothing by convention. fvcore has a list of its own for pure data movement."""


class _Analysis(FlopCountAnalysis):  # type: ignore[misc]
    """fvcore's counter, with the handles it lacks."""

    def __init__(self, model: nn.Module, inputs: torch.Tensor) -> None:
        super().__init__(model, inputs)
        self.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        self.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        for operator in FREE_OPERATORS:
            self.set_op_handle(operator, _nothing)


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """softmax(Q K^T) V for Q (..., L, d), K (..., S, d), V (..., S, e): L S d + L S e per head."""
    query, key, value = (item.type().sizes() for item in inputs[:3])
    heads = 1
    for extent in query[:-2]:
        heads *= extent
    return int(heads * query[-2] * key[-2] * (query[-1] + value[-1]))


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


def _block_cost(block: Block) -> _BlockCost:
    attention_norms = _norms(block.norm1) + _norms(block.attn)
    heads = block.attn.num_heads
    # q-norm and k-norm act on each head of each token
    per_head = _norms(block.attn.q_norm) + _norms(block.attn.k_norm)
    return _BlockCost(
        attention=_linears(block.attn),
        quadratic=2 * heads * block.attn.head_dim,
        attention_norms=attention_norms + (heads - 1) * per_head,
        mlp=_linears(block.mlp),
        mlp_norms=_norms(block.norm2) + _norms(block.mlp),
    )


def _linears(module: nn.Module) -> int:
    """MACs per token of the linear layers of a module."""
    return sum(m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))


def _convolutions(module: nn.Module) -> int:
    """MACs per output position of the convolutions of a module."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))


def _norms(module: nn.Module) -> int:
    """MACs per token of the LayerNorms of a module: 5 per channel if affine, else 4, as fvcore charges."""
    layers = [m for m in module.modules() if isinstance(m, nn.LayerNorm)]
    return sum(m.normalized_shape[-1] * (5 if m.elementwise_affine else 4) for m in layers)


@contextmanager
def _evaluating(reduced: ReducedViT) -> Iterator[None]:
    """Evaluation mode for the time of the count; every submodule gets its own mode back."""
    modes = [(child, child.training) for root in (reduced, reduced.detach()) for child in root.modules()]
    reduced.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the tracer, which warns of every shape that is read in Python."""
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
