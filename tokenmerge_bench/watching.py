"""Looking into a forward pass: what the class token attends to, and one merge after the other.

Neither changes what the network computes, and neither knows a method: both stand where reducers and attentions do.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.reduced_vit import AttentionTap, ReducedViT
from tokenmerge_bench.reducers import TokenReducer
from tokenmerge_bench.results import Site
from tokenmerge_bench.tokens import Tokens


def sources(reduced: ReducedViT) -> list[Assignment]:
    """Maps from the grid cells to the tokens after each step of the schedule, of the last forward pass."""
    lineage = None if reduced.last is None else reduced.last.lineage
    return [] if lineage is None else [step.source for step in lineage.steps()]


def sites(reduced: ReducedViT) -> list[Site]:
    """Who owns every grid cell of the first image after each step of the schedule, in the last forward pass."""
    pairs = zip(reduced.schedule.steps, sources(reduced), strict=True)
    return [_site(step.block, source) for step, source in pairs]


class ClassAttention:
    """Keeps what the last block's attention is given, and says what its class token attends to.

    Use it as a context around a forward pass of the reduced model.
    """

    def __init__(self, reduced: ReducedViT) -> None:
        self._reduced = reduced
        self._attention = cast(nn.Module, cast(VisionTransformer, reduced.detach()).blocks[-1].attn)
        self._given: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

    def __enter__(self) -> ClassAttention:
        # Views of the attention that reducers look into share its hooks.
        self._handle = self._attention.register_forward_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _keep(self, attention: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Tensor) -> None:
        self._given = given, named

    def per_cell(self) -> Float[Tensor, "B N0"]:
        """Attention of the class token to every grid cell, the mean over heads; a token's part is shared by its cells.

        With what the class token and the other prefix tokens receive, it adds up to 1.
        """
        given, named = self._given
        prefix = self._reduced.geometry.prefix
        tap = AttentionTap(self._attention, frozenset({"attention"}))
        tap.attention(*given, **named)
        per_token = tap.collect(prefix)["attention"][:, :, 0, prefix:].mean(1)
        source = self._source(len(per_token))
        sizes = source.merge_sizes(torch.ones(len(per_token), source.n_in, device=per_token.device))
        per_patch = per_token / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
        return source.unmerge(per_patch[..., None]).squeeze(-1)

    def _source(self, batch: int) -> Assignment:
        """The map from the grid cells to the tokens that the last block's attention saw."""
        last = self._reduced.geometry.depth - 1
        before = [s for s in self._reduced.schedule.steps if s.block < last or s.site == "pre"]
        device = next(self._attention.parameters()).device
        identity = HardAssignment.identity(batch, self._reduced.geometry.patches, device)
        return [identity, *sources(self._reduced)][len(before)]


def has_class_token(model: nn.Module) -> bool:
    """Whether a supported ViT has a class token, which is then its first token."""
    return cast(VisionTransformer, model).cls_token is not None


def merge_sequence(
    reduced: ReducedViT, image: Float[Tensor, "1 I height width"], image_id: Int[Tensor, " 1"]
) -> list[Site]:
    """One merge after the other: who owns every grid cell of an image, with one token less each time.

    A reducer whose answers for fewer tokens continue those for more, as merging pair by pair does, is asked for every
    number of tokens on the way. Of any other there is only what it answered.

    Returns:
        From first to last; the last of each block is what the network went on with.
    """
    watched = [_Watched(cast(TokenReducer, reducer)) for reducer in reduced.reducers]
    twin = ReducedViT(reduced.detach(), reduced.schedule, watched, reduced.seed)
    twin(image, image_id)
    found: list[Site] = []
    for step, reducer, end in zip(twin.schedule.steps, watched, sites(twin), strict=True):
        found += [*_on_the_way(reducer, step.n_in, step.n_out, step.block), end]
    return found


class _Watched(TokenReducer):
    """A reducer that answers as another does and remembers what it was shown."""

    def __init__(self, inner: TokenReducer) -> None:
        super().__init__(inner.options)
        self.inner = inner
        self.site, self.needs, self.proportional_attention = inner.site, inner.needs, inner.proportional_attention
        self.shown: Tokens | None = None
        self.answer: Assignment | None = None

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        self.shown, self.answer = tokens, self.inner.assign(tokens, n_out)
        return self.answer

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        return self.inner.macs(n_in, n_out, width)

    def values(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        return self.inner.values(features)


def _on_the_way(reducer: _Watched, n_in: int, n_out: int, block: int) -> list[Site]:
    """What a reducer leaves on its way from `n_in` to `n_out` tokens, both excluded; nothing if it has no such way."""
    tokens, counts = reducer.shown, range(n_in - 1, n_out, -1)
    if tokens is None or reducer.inner.learned or not counts or not isinstance(reducer.answer, HardAssignment):
        return []
    answers = reducer.inner.assign_each(tokens, counts)
    chain = [*answers, reducer.answer]
    if not all(_continues(later, earlier) for earlier, later in pairwise(chain)):
        return []
    return [_site(block, tokens.source.compose(answer)) for answer in answers]


def _continues(later: Assignment, earlier: Assignment) -> bool:
    """Whether tokens that are together stay together, in the first image."""
    before, after = earlier.owner()[0], later.owner()[0]
    heir = after.new_zeros(earlier.n_out).scatter(0, before, after)  # of each token: where one cell of it went
    return bool((heir[before] == after).all())


def _site(block: int, source: Assignment) -> Site:
    return Site(block, source.n_out, source.owner()[0].cpu().numpy())
