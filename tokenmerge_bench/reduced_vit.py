"""Putting reducers into a timm ViT without touching it.

`attach` builds a second module tree around the *same* weights: blocks that reduce, or that follow a reduction
with proportional attention, are wrapped; everything else is the stock object. The given model is never changed, so any
number of attachments can share it, and detaching is dropping the wrapper.

Only the two residual lines of `timm.models.vision_transformer.Block` are restated: in a block that reduces at `mid`,
because a reduction between them cannot be wrapped from outside, and in a sweep, which runs them apart. Everything else
(attention, q/k-norm, LayerScale, drop path, prefix tokens, heads) is timm's own code. Proportional attention uses
the `attn_mask` that timm's attention takes; keys, attention weights and attention
outputs are read by recorders that stand in for its `k_norm`, `attn_drop` and `proj_drop`.

The functions at the end are the steps of a forward pass on their own. `ReducedViT` uses them, and so does the sweep
(`pieces.py`), which takes passes of several settings apart to run once what they share.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.paths import path_for
from tokenmerge_bench.reducers import Need, TokenReducer
from tokenmerge_bench.schedule import Schedule, Step
from tokenmerge_bench.tokens import Lineage, Tokens


@dataclass(frozen=True)
class Geometry:
    """What the rest of the library needs to know about a supported model."""

    grid: tuple[int, int]
    prefix: int
    depth: int
    width: int
    head_width: int

    @property
    def patches(self) -> int:
        """N0, the number of patch tokens at the input."""
        return self.grid[0] * self.grid[1]


def geometry(model: nn.Module) -> Geometry:
    """Checks that a model can be attached to, and describes it.

    Raises:
        InputError: naming the class that is not supported, and what is.
    """
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        raise InputError(
            f"model class {type(model).__name__} is not supported; supported are timm's VisionTransformer and "
            "VisionTransformerDistilled (DeiT, DeiT-III, ViT, DINOv2)."
        )
    vit = cast(VisionTransformer, model)
    for index, block in enumerate(vit.blocks):
        if type(block) is not Block:
            raise InputError(
                f"block {index} is a {type(block).__name__}, which is not supported; supported is timm's pre-norm "
                "Block (vision_transformer.Block)."
            )
        if type(block.attn) is not Attention:
            raise InputError(
                f"the attention of block {index} is a {type(block.attn).__name__}, which is not supported; supported "
                "is timm.layers.Attention."
            )
    if getattr(vit, "attn_pool", None) is not None:
        raise InputError("the model pools its tokens by attention (global_pool='map'), which is not supported.")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise InputError("the model drops patches at random (patch_drop_rate > 0); create it with patch_drop_rate=0.")
    rows, columns = vit.patch_embed.grid_size
    return Geometry((rows, columns), vit.num_prefix_tokens, len(vit.blocks), vit.embed_dim, vit.blocks[0].attn.head_dim)


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that a supported ViT takes."""
    vit = cast(VisionTransformer, model)
    convolution = next(m for m in vit.patch_embed.modules() if isinstance(m, nn.Conv2d))
    height, width = vit.patch_embed.img_size
    return convolution.in_channels, height, width


@dataclass
class Pass:
    """What a forward pass carries from reduction to reduction beside the tokens. A reduction makes a new one."""

    image_ids: Int[Tensor, " B"]
    sizes: Float[Tensor, "B N"] | None = None
    """Of the patch tokens, float32 or better; None while no token stands for more than one patch."""
    proportional: bool = False
    """Whether attention adds the logarithm of the sizes."""
    lineage: Lineage | None = None


class ReducedViT(nn.Module):
    """A timm ViT whose tokens are reduced on the way. Made by `attach`.

    Args:
        model: the stock model; shared, never changed.
        schedule: how many tokens are left where.
        reducers: one per step of the schedule.
        seed: seed of methods that draw random numbers.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, reducers: Sequence[TokenReducer], seed: int = 0) -> None:
        super().__init__()
        self.geometry = geometry(model)
        if len(reducers) != len(schedule.steps):
            raise ValueError(f"{len(schedule.steps)} steps need as many reducers, not {len(reducers)}")
        self.schedule = schedule
        self.seed = seed
        self.reducers = nn.ModuleList(reducers)
        self._stock = (model,)  # in a tuple, so that nn.Module does not list the weights twice
        self.last: Pass | None = None  # the forward pass under way, or the last one
        self.drop = False
        """Whether to drop tokens by position and ask no reducer, for the same shapes at no cost, and no sizes."""
        self.model = _with_children(model, blocks=nn.Sequential(*self._wrap_blocks(cast(VisionTransformer, model))))
        stock = set(model.modules())
        for module in self.modules():  # frozen parts of the stock model keep their own mode
            if module not in stock:
                module.training = model.training

    def forward(self, images: Float[Tensor, "B I height width"], image_ids: Int[Tensor, " B"] | None = None) -> Any:
        """Logits of the model.

        Args:
            images: as the model takes them.
            image_ids: identifiers that seed random methods. Without them every image draws the same numbers.
        """
        if image_ids is None:
            image_ids = torch.zeros(images.shape[0], dtype=torch.int64, device=images.device)
        self.last = Pass(image_ids)
        return self.model(images)

    def train(self, mode: bool = True) -> ReducedViT:
        """Sets the mode of the stock model too: its blocks are shared, and half a model in each mode helps nobody."""
        super().train(mode)
        self._stock[0].train(mode)
        return self

    def detach(self) -> nn.Module:
        """The stock model, as it was given."""
        return self._stock[0]

    @property
    def assignments(self) -> list[Assignment]:
        """The assignments of the last forward pass, one per step of the schedule."""
        lineage = None if self.last is None else self.last.lineage
        return [] if lineage is None else [step.last for step in lineage.steps()]

    @property
    def source(self) -> Assignment:
        """Map from the grid cells to the final tokens of the last forward pass.

        Raises:
            ValueError: before the first forward pass.
        """
        if self.last is None:
            raise ValueError("there is no source map before the first forward pass")
        ids, lineage = self.last.image_ids, self.last.lineage
        return lineage.source if lineage else HardAssignment.identity(len(ids), self.geometry.patches, ids.device)

    def reducer_macs(self) -> int:
        """Multiply-accumulates of the reducers for one image, by their own formulae."""
        width = self.geometry.width
        pairs = zip(self.schedule.steps, self.reducers, strict=True)
        return sum(cast(TokenReducer, reducer).macs(step.n_in, step.n_out, width) for step, reducer in pairs)

    def _wrap_blocks(self, model: VisionTransformer) -> list[nn.Module]:
        """The blocks of the model, wrapped from the first one that has anything to do."""
        steps = {(step.block, step.site): i for i, step in enumerate(self.schedule.steps)}
        first = min((step.block for step in self.schedule.steps), default=len(model.blocks))
        wrapped: list[nn.Module] = []
        tap: AttentionTap | None = None
        for index, block in enumerate(model.blocks):
            pre, mid = steps.get((index, "pre")), steps.get((index, "mid"))
            following = steps.get((index + 1, "pre"))
            wanted = self._needs(mid) | self._needs(following)
            if following is not None and self._needs(following) and mid is not None:
                raise InputError(
                    f"the reduction before block {index + 1} needs the attention of block {index}, whose tokens were "
                    "reduced in between; leave a block between the two reductions."
                )
            before, tap = tap, AttentionTap(block.attn, wanted) if wanted else None
            if index < first and tap is None:
                wrapped.append(block)
                continue
            inner = block if tap is None else _with_children(block, attn=tap.attention)
            wrapped.append(_ReducedBlock(self, inner, pre, mid, before, tap))
        return wrapped

    def _needs(self, step: int | None) -> frozenset[Need]:
        return frozenset() if step is None else cast(TokenReducer, self.reducers[step]).needs

    def _reduce(self, x: Float[Tensor, "B T C"], step_index: int, tap: AttentionTap | None) -> Float[Tensor, "B S C"]:
        """Reduces the patch tokens of a sequence. S = P + M."""
        assert self.last is not None
        step, reducer = self.schedule.steps[step_index], cast(TokenReducer, self.reducers[step_index])
        if self.drop:
            return x[:, : self.geometry.prefix + step.n_out]
        seen = tap.collect(self.geometry.prefix) if tap is not None else {}
        tokens = tokens_at(step, x, self.last, self.geometry, self.seed, seen)
        with torch.autocast(x.device.type, enabled=False):
            assignment = reducer.assign(tokens, step.n_out)
        x, self.last = merged(x, self.last, assignment, reducer, tokens.sizes)
        return x

    def _size_bias(self, x: Tensor, attention: nn.Module) -> Any:
        """See `size_bias`."""
        assert self.last is not None
        return size_bias(self.last, x, attention)


class _ReducedBlock(nn.Module):
    """A stock block with a reduction before it, inside it, or only proportional attention."""

    def __init__(
        self,
        owner: ReducedViT,
        block: nn.Module,
        pre: int | None,
        mid: int | None,
        tap_before: AttentionTap | None,
        tap: AttentionTap | None,
    ) -> None:
        super().__init__()
        self.block = block
        self.pre, self.mid = pre, mid
        self._links = (owner, tap_before, tap)  # in a tuple, so that nn.Module does not recurse into the owner

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B S C"]:
        owner, tap_before, tap = self._links
        if self.pre is not None:
            x = owner._reduce(x, self.pre, tap_before)
        block = cast(Block, self.block)
        bias = owner._size_bias(x, block.attn)
        if self.mid is None:
            return cast(Tensor, block(x) if bias is None else block(x, attn_mask=bias))
        x = attention_half(block, block.attn, x, bias)
        return mlp_half(block, owner._reduce(x, self.mid, tap))


class _Recorder(nn.Module):
    """Stands in for a submodule and remembers what went into it or came out of it."""

    def __init__(self, inner: nn.Module, remember: Literal["input", "output"]) -> None:
        super().__init__()
        self.inner = inner
        self.remember = remember
        self.value: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        self.value = x if self.remember == "input" else out
        return out

    def take(self) -> Tensor:
        """The remembered tensor, which is then forgotten so that it does not outlive its use."""
        value, self.value = self.value, None
        assert value is not None
        return value


class _Receiving(nn.Module):
    """An attention that also tells how much attention every token received, summed over heads and queries.

    Kernels work that out from the queries and keys of fused attention; without them the attention is not fused.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.recorder = _Recorder(cast(nn.Module, inner.attn_drop), "input")
        self.explicit = _with_children(inner, attn_drop=self.recorder)
        self.explicit.fused_attn = False
        self.value: Tensor | None = None

    def forward(self, x: Tensor, attn_mask: Any = None, **given: Any) -> Tensor:
        if attn_mask is None and cast(Any, self.inner).fused_attn and path_for(x.device) == "triton":
            from tokenmerge_bench.kernels.attention import Receiver

            receiver = Receiver()
            out = self.inner(x, attn_mask=receiver, **given)
            self.value = receiver.received
        else:
            out = self.explicit(x, attn_mask=attn_mask, **given)
            weights = self.recorder.take()
            self.value = weights.to(torch.promote_types(weights.dtype, torch.float32)).sum((1, 2))
        return cast(Tensor, out)

    def take(self) -> Tensor:
        """Attention received by every token of the last pass, (B, T), which is then forgotten."""
        value, self.value = self.value, None
        assert value is not None
        return value


class AttentionTap:
    """A view of one block's attention that hands over what reducers need of it."""

    def __init__(self, attention: nn.Module, wanted: frozenset[Need]) -> None:
        self.wanted = wanted
        replaced: dict[str, nn.Module] = {}
        if "keys" in wanted:
            replaced["k_norm"] = _Recorder(cast(nn.Module, attention.k_norm), "output")
        if "attn_out" in wanted:
            replaced["proj_drop"] = _Recorder(cast(nn.Module, attention.proj_drop), "output")
        if "attention" in wanted:
            replaced["attn_drop"] = _Recorder(cast(nn.Module, attention.attn_drop), "input")
        self.attention = _with_children(attention, **replaced)
        if "attention" in wanted:
            cast(Any, self.attention).fused_attn = False  # fused kernels never hold the weights
        if "received" in wanted:
            self.attention = _Receiving(self.attention)

    def collect(self, prefix: int) -> dict[str, Tensor]:
        """What was recorded, as keyword arguments of `Tokens`."""
        found: dict[str, Tensor] = {}
        recorders = cast(Any, self.attention.inner if isinstance(self.attention, _Receiving) else self.attention)
        if "keys" in self.wanted:
            found["keys"] = recorders.k_norm.take()[:, :, prefix:]
        if "attention" in self.wanted:
            found["attention"] = recorders.attn_drop.take()
        if "received" in self.wanted:
            found["received"] = cast(_Receiving, self.attention).take()[:, prefix:]
        if "attn_out" in self.wanted:
            found["attn_out"] = recorders.proj_drop.take()[:, prefix:]
        return found


def embedding(model: nn.Module) -> Any:
    """A view of a model whose `forward_features` ends before its first block."""
    view = _with_children(model, blocks=nn.Sequential(), norm=nn.Identity())
    view.grad_checkpointing = False  # of no blocks
    return view


def attention_half(block: Block, attention: nn.Module, x: Float[Tensor, "B T C"], bias: Any) -> Float[Tensor, "B T C"]:
    """The first line of timm's `Block.forward`, with `attention` in place of the block's own or a view of it."""
    return cast(Tensor, x + block.drop_path1(block.ls1(attention(block.norm1(x), attn_mask=bias))))


def mlp_half(block: Block, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
    """The second line of timm's `Block.forward`."""
    return cast(Tensor, x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))))


def size_bias(carried: Pass, x: Tensor, attention: nn.Module) -> Any:
    """What `attn_mask` gets, so that attention adds ln(size) of every key token; None where attention is plain.

    Fused attention, where kernels are the path, gets an object that does the attention itself; all others a tensor.
    """
    if carried.sizes is None or not carried.proportional:
        return None
    if getattr(attention, "fused_attn", False) and path_for(x.device) == "triton":
        from tokenmerge_bench.kernels.attention import SizeBias

        return SizeBias(carried.sizes)
    return log_sizes(carried, x)


def log_sizes(carried: Pass, x: Tensor) -> Tensor | None:
    """ln(size) of every key token, (B, 1, 1, T), to be added to the attention logits; None where attention is plain."""
    if carried.sizes is None or not carried.proportional:
        return None
    prefix = int(x.shape[1]) - int(carried.sizes.shape[1])  # whose tokens stand for themselves
    return nn.functional.pad(carried.sizes.log().to(x.dtype), (prefix, 0))[:, None, None, :]


def tokens_at(
    step: Step, x: Float[Tensor, "B T C"], carried: Pass, shape: Geometry, seed: int, seen: Mapping[str, Tensor]
) -> Tokens:
    """What the reducer of a step is shown of a sequence; `seen` is what it needs of the attention before it.

    Raises:
        InputError: if there are not as many tokens as planned, as for images of another size.
    """
    prefix, length = shape.prefix, int(x.shape[1])  # plain integers also under a tracer
    if length != prefix + step.n_in:
        raise InputError(
            f"block {step.block} got {length} tokens where {prefix + step.n_in} were planned: give images of the "
            f"size the model was made for ({shape.grid[0]}x{shape.grid[1]} patches)."
        )
    return Tokens(
        features=x[:, prefix:],
        sizes=_sizes(x[:, prefix:], carried),
        lineage=carried.lineage,
        grid=shape.grid,
        prefix=prefix,
        image_ids=carried.image_ids,
        block=step.block,
        seed=seed,
        **seen,
    )


def merged(
    x: Float[Tensor, "B T C"],
    carried: Pass,
    assignment: Assignment,
    reducer: TokenReducer,
    sizes: Float[Tensor, "B N"],
) -> tuple[Float[Tensor, "B S C"], Pass]:
    """A sequence after a reduction of its patch tokens, whose sizes are `sizes`, and what is carried on. S = P + M."""
    patches = x[:, int(x.shape[1]) - int(sizes.shape[1]) :]
    with torch.autocast(x.device.type, enabled=False):
        left = assignment.merge_sequence(x, reducer.values(patches))
        left_sizes = assignment.merge_sizes(sizes)
    proportional = carried.proportional or reducer.proportional_attention
    return left, Pass(carried.image_ids, left_sizes, proportional, Lineage(carried.lineage, assignment))


def _sizes(patches: Float[Tensor, "B N C"], carried: Pass) -> Float[Tensor, "B N"]:
    if carried.sizes is not None:
        return carried.sizes
    # plain integers also under a tracer
    shape = int(patches.shape[0]), int(patches.shape[1])
    return patches.new_ones(shape, dtype=torch.promote_types(patches.dtype, torch.float32))


def _with_children(module: nn.Module, **children: nn.Module) -> Any:
    """A shallow copy of a module that shares all parameters and children but the given ones."""
    clone = copy.copy(module)
    clone._modules = {**module._modules, **children}
    return clone


def build_reducers(
    reducer_type: type[TokenReducer], options: Any, schedule: Schedule, shape: Geometry
) -> list[TokenReducer]:
    """One reducer per step, with its parameters created."""
    reducers = []
    for step in schedule.steps:
        reducer = reducer_type(options)
        reducer.prefix, reducer.head_width = shape.prefix, shape.head_width
        reducer.build(step.n_in, step.n_out, shape.width)
        reducers.append(reducer)
    return reducers
