"""The forward pass of a reduced ViT as a list of pieces, each with a key that says everything that decides its output.

Two settings of one model whose lists begin with the same keys compute the same up to there, to the last bit; `trie.py`
runs such beginnings once. A block is two pieces, its attention half and its MLP half; a reduction is two as
well: choosing what goes together, which one run of the reducer can do for several numbers of tokens, and merging.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from types import FunctionType
from typing import Any, cast

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.reduced_vit import (
    AttentionTap,
    Geometry,
    Pass,
    ReducedViT,
    attention_half,
    embedding,
    merged,
    mlp_half,
    size_bias,
    tokens_at,
)
from tokenmerge_bench.reducers import Need, TokenReducer
from tokenmerge_bench.schedule import Step


@dataclass(frozen=True)
class State:
    """A forward pass between two pieces. Pieces make a new one and leave the old as it was, so that passes can branch.

    `x` is (B, T, C); images before the first piece, logits after the last.
    """

    x: Tensor
    carried: Pass
    seen: Mapping[str, Tensor] = field(default_factory=dict)
    """What the last attention handed over, until the next one."""
    sizes: Tensor | None = None
    """Sizes of the patch tokens, (B, N), between choosing and merging."""
    choices: Mapping[int, Assignment] = field(default_factory=dict)
    """By number of tokens left, between choosing and merging."""


class Halves:
    """How the halves of blocks are run: as they are, or compiled once for all blocks, token counts and settings."""

    def __init__(self, compiled: bool = False) -> None:
        self.mlp: Callable[..., Tensor] = _compiled(mlp_half) if compiled else mlp_half
        self._attention = _compiled(_attention) if compiled else _attention

    def attention(
        self, block: Block, tap: AttentionTap, x: Tensor, bias: Any, prefix: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The attention half of a block, and what was tapped on the way."""
        run = _attention if "received" in tap.wanted else self._attention  # which has kernels of its own
        found: tuple[Tensor, dict[str, Tensor]] = run(block, tap, x, bias, prefix)
        return found


def _attention(block: Block, tap: AttentionTap, x: Tensor, bias: Any, prefix: int) -> tuple[Tensor, dict[str, Tensor]]:
    return attention_half(block, tap.attention, x, bias), tap.collect(prefix)


_numbers = count()


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function, compiled for any number of images and tokens."""
    plain = cast(FunctionType, getattr(function, "__wrapped__", function))
    # The compiler files what it makes under the code object; a copy keeps models of other widths apart.
    code = plain.__code__.replace(co_name=f"{plain.__name__}_{next(_numbers)}")
    copy = FunctionType(code, plain.__globals__, code.co_name, plain.__defaults__)
    return torch.compile(copy, dynamic=True)


class Piece(ABC):
    """One piece of work of a forward pass."""

    key: tuple[Hashable, ...]
    """Pieces of equal keys give equal outputs for equal inputs, however many others they serve as well."""

    @abstractmethod
    def run(self, state: State) -> State:
        """The state after this piece."""

    def join(self, other: Piece) -> None:  # noqa: B027 - most pieces have nothing to do
        """Makes this piece do for those that follow `other`, of the same key, as well."""


class Embed(Piece):
    """Everything before the first block."""

    key = ("embed",)

    def __init__(self, model: nn.Module) -> None:
        self.view = embedding(model)

    def run(self, state: State) -> State:
        return replace(state, x=self.view.forward_features(state.x))


class Attend(Piece):
    """The attention half of a block. Recording keys and outputs changes no bit; what fused attention hides does."""

    def __init__(self, index: int, block: Block, needs: frozenset[Need], prefix: int, halves: Halves) -> None:
        other_kernels = needs & {"attention", "received"} if block.attn.fused_attn else frozenset()
        self.key = ("attention", index, other_kernels)
        self.block, self.prefix, self.halves = block, prefix, halves
        self.tap = AttentionTap(block.attn, needs)

    def run(self, state: State) -> State:
        bias = size_bias(state.carried, state.x, self.tap.attention)
        x, seen = self.halves.attention(self.block, self.tap, state.x, bias, self.prefix)
        return State(x, state.carried, seen)

    def join(self, other: Piece) -> None:
        assert isinstance(other, Attend)
        if not other.tap.wanted <= self.tap.wanted:
            self.tap = AttentionTap(self.block.attn, self.tap.wanted | other.tap.wanted)


class Mlp(Piece):
    """The MLP half of a block."""

    def __init__(self, index: int, block: Block, halves: Halves) -> None:
        self.key = ("mlp", index)
        self.block, self.halves = block, halves

    def run(self, state: State) -> State:
        return replace(state, x=self.halves.mlp(self.block, state.x))


class Choose(Piece):
    """A reducer's choice of what goes together, for every number of tokens that somebody wants left."""

    def __init__(self, step: Step, reducer: TokenReducer, shape: Geometry, seed: int) -> None:
        self.step, self.reducer, self.shape, self.seed = step, reducer, shape, seed
        self.counts = {step.n_out}
        drawn = seed if reducer.stochastic else None
        self.key = ("choose", step.block, step.site, step.n_in, drawn, *_identity(reducer))

    def run(self, state: State) -> State:
        seen = {str(need): state.seen[need] for need in sorted(self.reducer.needs) if need in state.seen}
        tokens = tokens_at(self.step, state.x, state.carried, self.shape, self.seed, seen)
        counts = sorted(self.counts)
        with torch.autocast(state.x.device.type, enabled=False):
            choices = self.reducer.assign_each(tokens, counts)
        return State(state.x, state.carried, {}, tokens.sizes, dict(zip(counts, choices, strict=True)))

    def join(self, other: Piece) -> None:
        assert isinstance(other, Choose)
        self.counts |= other.counts


class Merge(Piece):
    """The merge after a choice."""

    def __init__(self, step: Step, reducer: TokenReducer) -> None:
        self.key = ("merge", step.n_out)
        self.left, self.reducer = step.n_out, reducer

    def run(self, state: State) -> State:
        assert state.sizes is not None
        return State(*merged(state.x, state.carried, state.choices[self.left], self.reducer, state.sizes))


class Classify(Piece):
    """Everything after the last block."""

    key = ("head",)

    def __init__(self, model: VisionTransformer) -> None:
        self.model = model

    def run(self, state: State) -> State:
        return replace(state, x=self.model.forward_head(self.model.norm(state.x)), seen={})


def pieces_of(reduced: ReducedViT, halves: Halves) -> list[Piece]:
    """The pieces of a forward pass, in order; run one after the other they give the logits of `reduced`."""
    model, shape = cast(VisionTransformer, reduced.detach()), reduced.geometry
    at = {
        (step.block, step.site): (step, cast(TokenReducer, reducer))
        for step, reducer in zip(reduced.schedule.steps, reduced.reducers, strict=True)
    }
    needs = {site: reducer.needs for site, (_, reducer) in at.items()}
    reductions: dict[tuple[int, str], list[Piece]] = {
        site: [Choose(step, reducer, shape, reduced.seed), Merge(step, reducer)] for site, (step, reducer) in at.items()
    }
    pieces: list[Piece] = [Embed(model)]
    for index, block in enumerate(model.blocks):
        asked = needs.get((index, "mid"), frozenset()) | needs.get((index + 1, "pre"), frozenset())
        pieces += reductions.get((index, "pre"), [])
        pieces.append(Attend(index, block, asked, shape.prefix, halves))
        pieces += reductions.get((index, "mid"), [])
        pieces.append(Mlp(index, block, halves))
    return [*pieces, Classify(model)]


def _identity(reducer: TokenReducer) -> tuple[Hashable, ...]:
    """What makes two reducers give the same answers: class, options, and what else can be set on an instance."""
    options: Any = reducer.options
    is_record = dataclasses.is_dataclass(options) and not isinstance(options, type)
    values = repr(options) if is_record else options
    weights = tuple(id(tensor) for tensor in (*reducer.parameters(), *reducer.buffers()))
    # `knob` and `layers` have decided the schedule and are not asked again; the rest of nn.Module's own is private.
    known = {"options", "knob", "layers", "training"}
    own = sorted((name, _told(value)) for name, value in vars(reducer).items() if name[0] != "_" and name not in known)
    return (type(reducer), values, *own, weights)


def _told(value: Any) -> str:
    """An attribute as text; a tensor, which would be printed in part, by its identity."""
    return f"tensor {id(value)}" if isinstance(value, Tensor) else repr(value)
