"""Proportional attention at the speed of fused attention: softmax(q k^T / sqrt(D) + ln size) v, with no mask in memory.

torch's fused kernels take the term ln size only as a mask of shape (B, H, T, T), for which they leave the fast path.
Here it is one number per key, read with the keys; everything else, gradients included, is the usual tiling of
FlashAttention (Dao et al., 2022).
"""

from collections.abc import Mapping
from typing import Any, cast, no_type_check

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

HEAD_WIDTHS = (16, 32, 64, 128)
"""Head widths D that the kernel is built for."""


@triton.jit
@no_type_check
def _attention_kernel(
    q, k, v, sizes, out, log_sums, heads, t, prefix, scale,
    q_image, q_head, q_token, k_image, k_head, k_token, v_image, v_head, v_token, o_image, o_head, o_token,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, LOG_SUMS: tl.constexpr,
):  # fmt: skip
    """A block of queries of one head of one image against all keys, in base 2; scale contains log2 e."""
    image = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    queries = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, HEAD)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    out += image * o_image + head * o_head
    real = queries < t
    query = tl.load(q + queries[:, None] * q_token + columns[None, :], mask=real[:, None], other=0.0)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mean = tl.zeros((QUERIES, HEAD), tl.float32)
    for start in range(0, t, KEYS):
        keys = start + tl.arange(0, KEYS)
        inside = keys < t
        key = tl.load(k + keys[None, :] * k_token + columns[:, None], mask=inside[None, :], other=0.0)
        value = tl.load(v + keys[:, None] * v_token + columns[None, :], mask=inside[:, None], other=0.0)
        patches = inside & (keys >= prefix)  # a prefix token stands for itself
        size = tl.load(sizes + image * (t - prefix) + keys - prefix, mask=patches, other=1.0)
        size = tl.where(inside, size, 0.0)  # log2(0) = -inf leaves the padding out
        logits = tl.dot(query, key) * scale + tl.log2(size)[None, :]
        top = tl.maximum(largest, tl.max(logits, 1))
        shares = tl.exp2(logits - top[:, None])
        fade = tl.exp2(largest - top)
        total = total * fade + tl.sum(shares, 1)
        mean = tl.dot(shares.to(value.dtype), value, mean * fade[:, None])
        largest = top
    mean = mean / total[:, None]
    tl.store(out + queries[:, None] * o_token + columns[None, :], mean.to(out.dtype.element_ty), mask=real[:, None])
    if LOG_SUMS:
        tl.store(log_sums + tl.program_id(0).to(tl.int64) * t + queries, largest + tl.log2(total), mask=real)


@triton.jit
@no_type_check
def _gradients_kernel(
    q, k, v, sizes, out, log_sums, upstream, dq, dk, dv, heads, t, prefix, scale,
    q_image, q_head, q_token, k_image, k_head, k_token, v_image, v_head, v_token,
    o_image, o_head, o_token, u_image, u_head, u_token, d_image, d_head, d_token,
    HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values, from all queries, and of the same block of queries, from all keys."""
    image = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    columns = tl.arange(0, HEAD)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    out += image * o_image + head * o_head
    upstream += image * u_image + head * u_head
    sizes += image * (t - prefix) - prefix
    log_sums += tl.program_id(0).to(tl.int64) * t
    in_base_2 = scale * 1.4426950408889634
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = (own < t)[:, None]
    at = image * d_image + head * d_head + own[:, None] * d_token + columns[None, :]

    key = tl.load(k + own[:, None] * k_token + columns[None, :], mask=real, other=0.0)
    value = tl.load(v + own[:, None] * v_token + columns[None, :], mask=real, other=0.0)
    size = tl.load(sizes + own, mask=(own >= prefix) & (own < t), other=1.0)
    bias = tl.where(own < t, tl.log2(size), float("-inf"))
    of_key = tl.zeros((BLOCK, HEAD), tl.float32)
    of_value = tl.zeros((BLOCK, HEAD), tl.float32)
    for start in range(0, t, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = (rows < t)[:, None]
        query = tl.load(q + rows[:, None] * q_token + columns[None, :], mask=inside, other=0.0)
        result = tl.load(out + rows[:, None] * o_token + columns[None, :], mask=inside, other=0.0)
        above = tl.load(upstream + rows[:, None] * u_token + columns[None, :], mask=inside, other=0.0)
        log_sum = tl.load(log_sums + rows, mask=rows < t, other=float("inf"))  # padding has no share in anything
        common = tl.sum(above.to(tl.float32) * result.to(tl.float32), 1)
        shares = tl.exp2(tl.dot(query, tl.trans(key)) * in_base_2 + bias[None, :] - log_sum[:, None])
        of_value = tl.dot(tl.trans(shares.to(above.dtype)), above, of_value)
        of_logits = shares * (tl.dot(above, tl.trans(value)) - common[:, None])
        of_key = tl.dot(tl.trans(of_logits.to(query.dtype)), query, of_key)
    tl.store(dk + at, (of_key * scale).to(dk.dtype.element_ty), mask=real)
    tl.store(dv + at, of_value.to(dv.dtype.element_ty), mask=real)

    query = tl.load(q + own[:, None] * q_token + columns[None, :], mask=real, other=0.0)
    result = tl.load(out + own[:, None] * o_token + columns[None, :], mask=real, other=0.0)
    above = tl.load(upstream + own[:, None] * u_token + columns[None, :], mask=real, other=0.0)
    log_sum = tl.load(log_sums + own, mask=own < t, other=float("inf"))
    common = tl.sum(above.to(tl.float32) * result.to(tl.float32), 1)
    of_query = tl.zeros((BLOCK, HEAD), tl.float32)
    for start in range(0, t, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = (rows < t)[:, None]
        key = tl.load(k + rows[:, None] * k_token + columns[None, :], mask=inside, other=0.0)
        value = tl.load(v + rows[:, None] * v_token + columns[None, :], mask=inside, other=0.0)
        size = tl.load(sizes + rows, mask=(rows >= prefix) & (rows < t), other=1.0)
        bias = tl.where(rows < t, tl.log2(size), float("-inf"))
        shares = tl.exp2(tl.dot(query, tl.trans(key)) * in_base_2 + bias[None, :] - log_sum[:, None])
        of_logits = shares * (tl.dot(above, tl.trans(value)) - common[:, None])
        of_query = tl.dot(of_logits.to(key.dtype), key, of_query)
    tl.store(dq + at, (of_query * scale).to(dq.dtype.element_ty), mask=real)


def sized_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + ln sizes) v for q, k, v (B, H, T, D) in half precision and sizes (B, N) in float32.

    The first T - N keys are prefix tokens, whose size is 1.

    The result is a (B, H, T, D) view of a (B, T, H, D) tensor, which is the layout that the projection after it reads.
    """
    out = _like(q)
    _launch(q, k, v, sizes, out, None)
    return out


def sized_attention_with_logs(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the logarithms to base 2 of the softmax's denominators, (B, H, T) in float32, for `gradients`."""
    out, log_sums = _like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _launch(q, k, v, sizes, out, log_sums)
    return out, log_sums


def gradients(
    q: Tensor, k: Tensor, v: Tensor, sizes: Tensor, out: Tensor, log_sums: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each (B, H, T, D), of what `sized_attention_with_logs` gave and the gradient of `out`.

    No atomics: every run gives the same.
    """
    batch, heads, t, width = q.shape
    found = _like(q), _like(q), _like(q)
    if q.numel():
        q, k, v, upstream = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v, upstream))
        block = 64 if t > 32 else 32
        _gradients_kernel[(batch * heads, triton.cdiv(t, block))](
            q, k, v, sizes.contiguous(), out, log_sums, upstream, *found, heads, t, t - sizes.shape[1], width**-0.5,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *upstream.stride()[:3],
            *found[0].stride()[:3], HEAD=width, BLOCK=block, num_warps=8 if width > 64 else 4, num_stages=1,
        )  # fmt: skip
    return found


def _like(q: Tensor) -> Tensor:
    batch, heads, t, width = q.shape
    return torch.empty((batch, t, heads, width), dtype=q.dtype, device=q.device).transpose(1, 2)


def _launch(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor, out: Tensor, log_sums: Tensor | None) -> None:
    batch, heads, t, width = q.shape
    if out.numel() == 0:
        return
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    queries, keys, warps, stages = _tiles(t)
    scale = width**-0.5 * 1.4426950408889634
    _attention_kernel[(batch * heads, triton.cdiv(t, queries))](  # the first axis has room for more than 65535
        q, k, v, sizes.contiguous(), out, log_sums, heads, t, t - sizes.shape[1], scale,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        HEAD=width, QUERIES=queries, KEYS=keys, LOG_SUMS=log_sums is not None, num_warps=warps, num_stages=stages,
    )  # fmt: skip


_traceable, _traceable_with_logs, _traceable_gradients = (
    torch.library.custom_op(
        f"tokenmerge_bench::{name}",
        function,
        mutates_args=(),
        tags=(torch.Tag.flexible_layout,),  # the kernels read any strides: nothing needs to be copied for them
    )
    for name, function in (
        ("sized_attention", sized_attention),
        ("sized_attention_with_logs", sized_attention_with_logs),
        ("sized_attention_gradients", gradients),
    )
)
"""The same for torch.compile, which cannot look into a launch; a call of an operator costs more than a plain one."""


@_traceable.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    return _like(q)


@_traceable_with_logs.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    return _like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@_traceable_gradients.register_fake
def _(q: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _like(q), _like(q)


class _WithGradients(torch.autograd.Function):
    """`sized_attention` with gradients of q, k and v, which have no gradients in turn."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
        attend = _traceable_with_logs if torch.compiler.is_compiling() else sized_attention_with_logs
        out, log_sums = attend(q, k, v, sizes)
        ctx.save_for_backward(q, k, v, sizes, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        differentiate = _traceable_gradients if torch.compiler.is_compiling() else gradients
        return *differentiate(*ctx.saved_tensors, *upstream), None


@triton.jit
@no_type_check
def _received_kernel(
    q, k, log_sums, received, heads, t, scale, q_image, q_head, q_token, k_image, k_head, k_token,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Sum over all queries of the attention that a block of keys receives, in one head of one image."""
    image = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    keys = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    columns = tl.arange(0, HEAD)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    at = image * heads * t + head * t
    key = tl.load(k + keys[None, :] * k_token + columns[:, None], mask=(keys < t)[None, :], other=0.0)
    total = tl.zeros((QUERIES, KEYS), tl.float32)
    for start in range(0, t, QUERIES):
        queries = start + tl.arange(0, QUERIES)
        inside = queries < t
        query = tl.load(q + queries[:, None] * q_token + columns[None, :], mask=inside[:, None], other=0.0)
        log_sum = tl.load(log_sums + at + queries, mask=inside, other=float("inf"))
        total += tl.exp2(tl.dot(query, key) * scale - 1.4426950408889634 * log_sum[:, None])
    tl.store(received + at + keys, tl.sum(total, 0), mask=keys < t)


def received_attention(
    q: Float[Tensor, "B H T D"], k: Float[Tensor, "B H T D"], log_sums: Float[Tensor, "B H T"]
) -> Float[Tensor, "B T"]:
    """Attention that every token receives, summed over heads and queries, without the (B, H, T, T) matrix.

    Args:
        q: queries, half precision, unscaled.
        k: keys.
        log_sums: logarithm of every query's softmax denominator, as fused attention returns it.
    """
    batch, heads, t, width = q.shape
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))
    received = torch.empty((batch, heads, t), dtype=torch.float32, device=q.device)
    if received.numel():
        _received_kernel[(batch * heads, triton.cdiv(t, 64))](
            q, k, log_sums.contiguous(), received, heads, t, width**-0.5 * 1.4426950408889634,
            *q.stride()[:3], *k.stride()[:3], HEAD=width, QUERIES=32, KEYS=64, num_warps=4, num_stages=2,
        )  # fmt: skip
    return received.sum(1)


def _tiles(t: int) -> tuple[int, int, int, int]:
    """Queries and keys of a tile, warps and pipeline stages, as they were fastest for D = 64 on an H200."""
    if t <= 16:
        return 16, 16, 1, 1
    if -(-t // 64) * 64 == -(-t // 32) * 32:  # wide tiles of keys where they are as full as narrow ones
        return 64, 64, 4, 1
    return 64, 32, 4, 2


class _Attending:
    """What can stand where torch's attention expects a mask, and then does the attention itself.

    torch asks an argument that has `__torch_function__` to take over, so timm's code needs no change.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        """The attention, (B, H, T, D), by a kernel; None where none can do it."""
        raise NotImplementedError

    def mask(self, q: Tensor, k: Tensor) -> Tensor | None:
        """What torch's attention gets in that case."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Attention in place of torch's, in the precision of autocast, which has not seen these arguments yet."""
        if func is not F.scaled_dot_product_attention:
            raise TypeError(f"a {cls.__name__} cannot be used in {getattr(func, '__name__', func)}, only as attn_mask")
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **(kwargs or {})}
        q, k, v, own = (given.pop(name) for name in _ARGUMENTS[:4])
        if torch.is_autocast_enabled(q.device.type):
            wanted = torch.get_autocast_dtype(q.device.type)
            q, k, v = q.to(wanted), k.to(wanted), v.to(wanted)
        plain = not any(given.values())  # no dropout, no causal mask, the usual scale
        out = own.attend(q, k, v) if plain and _fits(q) else None
        if out is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=own.mask(q, k), **given)
        return cast(Tensor, out)


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class SizeBias(_Attending):
    """Proportional attention: ln(sizes) of the key tokens is added to the logits.

    Args:
        sizes: number of patches behind every patch token, (B, N), float32; prefix tokens stand for themselves.
    """

    def __init__(self, sizes: Float[Tensor, "B N"]) -> None:
        self.sizes = sizes

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        """See `sized_attention`; sizes have no gradients there."""
        if torch.is_grad_enabled():
            if self.sizes.requires_grad:
                return None
            if q.requires_grad or k.requires_grad or v.requires_grad:
                return cast(Tensor, _WithGradients.apply(q, k, v, self.sizes))
        attend = _traceable if torch.compiler.is_compiling() else sized_attention
        return cast(Tensor, attend(q, k, v, self.sizes))

    def mask(self, q: Tensor, k: Tensor) -> Tensor | None:
        """The logarithms, (B, 1, 1, T)."""
        logarithms = F.pad(self.sizes.log().to(q.dtype), (k.shape[2] - self.sizes.shape[1], 0))
        return logarithms[:, None, None, :]


class Receiver(_Attending):
    """Plain attention, which afterwards knows how much of it every token received: `received`, (B, T), float32.

    That serves to choose tokens, hence no gradients flow through it.
    """

    received: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        """By FlashAttention, whose log-sums give the weights back; it needs compute capability 8."""
        if q.device.type != "cuda" or torch.cuda.get_device_capability(q.device) < (8, 0):
            return None
        out, log_sums = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
        self.received = received_attention(q.detach(), k.detach(), log_sums)
        return cast(Tensor, out)

    def mask(self, q: Tensor, k: Tensor) -> Tensor | None:
        """None; what tokens receive is worked out in the open."""
        with torch.no_grad():
            weights = (q.float() @ k.float().transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
            self.received = weights.sum((1, 2))
        return None


def _fits(q: Tensor) -> bool:
    """Whether the kernels can do it: half precision, and a head width that they are built for."""
    return q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] in HEAD_WIDTHS
