"""Proportional attention at the speed of fused attention: softmax(q k^T / sqrt(D) + ln size) v, with no mask in memory.

torch's fused kernels take the term ln size only as a mask of shape (B, H, T, T), for which they leave the fast path.
Here it is one number per key, read with the keys; everything else is the usual tiling of FlashAttention (Dao et al.,
2022). Where gradients are wanted, torch's fused attention does it, with the term in channels of its own.
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
    q, k, v, sizes, out, heads, t, prefix, scale,
    q_image, q_head, q_token, k_image, k_head, k_token, v_image, v_head, v_token, o_image, o_head, o_token,
    HEAD: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
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


def sized_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + ln sizes) v for q, k, v (B, H, T, D) in half precision and sizes (B, N) in float32.

    The first T - N keys are prefix tokens, whose size is 1.

    The result is a (B, H, T, D) view of a (B, T, H, D) tensor, which is the layout that the projection after it reads.
    """
    batch, heads, t, width = q.shape
    out = torch.empty((batch, t, heads, width), dtype=q.dtype, device=q.device).transpose(1, 2)
    if out.numel() == 0:
        return out
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    queries, keys, warps, stages = _tiles(t)
    scale = width**-0.5 * 1.4426950408889634
    _attention_kernel[(batch * heads, triton.cdiv(t, queries))](  # the first axis has room for more than 65535
        q, k, v, sizes.contiguous(), out, heads, t, t - sizes.shape[1], scale,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        HEAD=width, QUERIES=queries, KEYS=keys, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


_traceable = torch.library.custom_op(
    "tokenmerge_bench::sized_attention",
    sized_attention,
    mutates_args=(),
    tags=(torch.Tag.flexible_layout,),  # the kernel reads any strides: nothing needs to be copied for it
)
"""The same for torch.compile, which cannot look into a launch; a call of an operator costs more than a plain one."""


@_traceable.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    batch, heads, t, width = q.shape
    return torch.empty((batch, t, heads, width), dtype=q.dtype, device=q.device).transpose(1, 2)


_MORE = 8
"""Channels that are added for the term: fused attention takes widths that are multiples of 8."""


def padded_attention(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    """What `sized_attention` computes, with gradients, by torch's fused attention: two more channels hold the term.

    In them all queries are 1 and the keys are ln size / scale, as the sum of two numbers of half precision, whose error
    is that of one of twice the precision. Takes and gives (B, H, T, D) of any dtype, sizes (B, N) in float32.
    """
    batch, heads, t, width = q.shape
    scale = width**-0.5
    term = F.pad(sizes.log(), (t - sizes.shape[1], 0)) / scale
    high = term.to(k.dtype)
    low = (term - high).to(k.dtype)
    of_keys = F.pad(torch.stack([high, low], -1), (0, _MORE - 2))[:, None].expand(batch, heads, t, _MORE)
    q, k = F.pad(q, (0, _MORE), value=1.0), torch.cat([k, of_keys], -1)
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, _MORE)), scale=scale)[..., :width]


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
        """See `sized_attention`, and for gradients `padded_attention`."""
        if _wants_gradients(q, k, v):
            return padded_attention(q, k, v, self.sizes)
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


def _wants_gradients(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
