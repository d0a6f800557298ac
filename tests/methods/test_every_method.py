"""What every method must do, whatever it computes: counts, sizes, independence of the batch, precision, cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tokenmerge_bench.assignment import HardAssignment
from tokenmerge_bench.reduced_vit import ReducedViT, build_reducers, geometry
from tokenmerge_bench.reducers import TokenReducer
from tokenmerge_bench.registry import list_methods
from tokenmerge_bench.schedule import make_schedule
from tokenmerge_bench.tokens import Tokens

Options = dict[str, Any]
VARIANTS: dict[str, list[Options]] = {
    "dhtm": [
        {"averaging": "plain", "similarity": "euclidean"},
        {"similarity": "kl", "connectivity": 4},
        {"similarity": "kl_forward"},
        {"connectivity": "any"},
        {"similarity": "manhattan", "prop_attn": False},
        {"feature": "keys"},
        {"feature": "attn_out", "position": "post"},
        {"position": "pre"},
    ],
    "random": [{"pair": "token_neighbor"}, {"pair": "any", "averaging": "plain"}, {"position": "post"}],
    "tome": [{"prop_attn": False}, {"staged": True}],
    "lotm": [{"window": "fixed"}, {"iterative": True}, {"wrap": True, "averaging": "plain"}, {"position": "pre"}],
    "dpc_knn": [{"k": 2}, {"learned_weights": True}, {"noise": 1e-6}],
    "k_medoids": [{"variant": "tokenreduction"}, {"weights": "cls"}, {"iters": 0}],
    "sinkhorn": [{"values": "raw"}, {"eps": 0.25, "iters": 5}],
    "patchmerger": [{"scaled": True}, {"values": "raw"}],
}
CASES = [(name, options) for name in list_methods() for options in [{}, *VARIANTS.get(name, [])]]
EVERY = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{options}" for name, options in CASES])

GRID, N, M, WIDTH = (4, 6), 24, 14, 8
IMAGES = [3, 0, 11, 7]


def make(name: str, options: Options, n_in: int = N, n_out: int = M, width: int = WIDTH) -> TokenReducer:
    cls = list_methods()[name]
    reducer = cls(cls.options_type(**options))
    torch.manual_seed(0)
    reducer.build(n_in, n_out, width)
    return reducer.eval()


def tokens_of(images: list[int], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tokens:
    """Tokens that depend on the image number alone."""

    def draw(*shape: int) -> Tensor:
        generators = [torch.Generator().manual_seed(31 * image + len(shape)) for image in images]
        return torch.stack([scale * torch.randn(*shape, generator=g) for g in generators]).to(dtype)

    attention = draw(2, N + 1, N + 1).softmax(-1)
    features, keys, attn_out = draw(N, WIDTH), draw(2, N, 4), draw(N, WIDTH)
    ids = torch.tensor(images)
    received = attention[..., 1:].to(torch.promote_types(dtype, torch.float32)).sum((1, 2))
    return Tokens.of(
        features, GRID, image_ids=ids, block=3, keys=keys, attention=attention, received=received, attn_out=attn_out
    )


@EVERY
def test_leaves_exactly_the_tokens_asked_for(name: str, options: Options) -> None:
    tokens = tokens_of(IMAGES)
    fewest = make(name, options).fewest(N, GRID)
    for n_out in sorted({fewest, M, N - 1}):
        reducer = make(name, options, n_out=n_out)
        assignment = reducer.assign(tokens, n_out)
        assert (assignment.n_in, assignment.n_out) == (N, n_out)
        assert assignment.owner().shape == (4, N)
        merged = assignment.merge(reducer.values(tokens.features))
        assert merged.shape == (4, n_out, WIDTH)
        assert merged.isfinite().all()
        if isinstance(assignment, HardAssignment):
            for labels in assignment.owner():
                assert labels.unique().tolist() == list(range(n_out))


@EVERY
def test_sizes_are_conserved(name: str, options: Options) -> None:
    assignment = make(name, options).assign(tokens_of(IMAGES), M)
    sizes = assignment.merge_sizes(torch.ones(4, N))
    assert (sizes > 0).all()
    torch.testing.assert_close(sizes.sum(1), torch.full((4,), float(N)))


@EVERY
def test_an_image_gets_the_same_answer_in_any_batch(name: str, options: Options) -> None:
    reducer = make(name, options)
    together = reducer.assign(tokens_of(IMAGES), M)
    turned = reducer.assign(tokens_of(IMAGES[::-1]), M)
    assert torch.equal(turned.owner().flip(0), together.owner())
    torch.testing.assert_close(turned.matrix().flip(0), together.matrix())
    for row, image in enumerate(IMAGES):
        alone = reducer.assign(tokens_of([image]), M)
        assert torch.equal(alone.owner()[0], together.owner()[row])
        torch.testing.assert_close(alone.matrix()[0], together.matrix()[row])


@EVERY
def test_an_image_that_overflowed_does_not_disturb_the_others(name: str, options: Options) -> None:
    clean, spoilt = tokens_of(IMAGES), tokens_of(IMAGES)
    for tensor in (spoilt.features, spoilt.keys, spoilt.attention, spoilt.attn_out):
        assert tensor is not None
        tensor[1] = torch.nan
    reducer = make(name, options)
    expected, found = reducer.assign(clean, M), reducer.assign(spoilt, M)
    others = [0, 2, 3]
    assert torch.equal(found.owner()[others], expected.owner()[others])
    merged = found.merge(reducer.values(spoilt.features))[others]
    assert torch.equal(merged, expected.merge(reducer.values(clean.features))[others])
    assert found.owner().min() >= 0
    assert found.owner().max() < M


@EVERY
def test_is_deterministic_and_leaves_its_input_alone(name: str, options: Options) -> None:
    reducer, tokens, untouched = make(name, options), tokens_of(IMAGES), tokens_of(IMAGES)
    first, second = reducer.assign(tokens, M), reducer.assign(tokens, M)
    assert torch.equal(first.matrix(), second.matrix())
    for field in ("features", "sizes", "keys", "attention", "attn_out"):
        assert torch.equal(getattr(tokens, field), getattr(untouched, field))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_half_precision_stays_finite(name: str, options: Options, dtype: torch.dtype, scale: float) -> None:
    # Squares of 3000 overflow in float16: scores must be computed in float32. (Learned weights are exponentials.)
    scale = min(scale, 100.0) if options.get("learned_weights") else scale
    tokens = tokens_of(IMAGES[:2], dtype, scale)
    reducer = make(name, options)
    assignment = reducer.assign(tokens, M)
    merged = assignment.merge(reducer.values(tokens.features))
    assert merged.dtype == dtype
    assert merged.isfinite().all()
    assert assignment.merge_sizes(tokens.sizes).isfinite().all()


@EVERY
def test_scores_of_half_precision_features_are_computed_in_float32(name: str, options: Options) -> None:
    half = tokens_of(IMAGES, torch.bfloat16)
    rest = {field: getattr(half, field).float() for field in ("keys", "attention", "received", "attn_out")}
    widened = Tokens.of(half.features.float(), GRID, image_ids=half.image_ids, block=3, **rest)
    reducer = make(name, options)
    assert torch.equal(reducer.assign(half, M).owner(), reducer.assign(widened, M).owner())


# --- in a model -------------------------------------------------------------------------------------------------------

DEPTH, BLOCKS, COUNTS = 4, (1, 2), (11, 7)


def vit(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": DEPTH, "num_heads": 2, "num_classes": 5}
    model: VisionTransformer = VisionTransformer(**{**sizes, **settings})
    return model.eval()


def attach(model: VisionTransformer, name: str, options: Options) -> ReducedViT:
    cls = list_methods()[name]
    chosen = cls.options_type(**options)
    shape = geometry(model)
    site = cls(chosen).site
    schedule = make_schedule(COUNTS, BLOCKS, site, n0=shape.patches, prefix=shape.prefix, depth=shape.depth)
    torch.manual_seed(0)
    return ReducedViT(model, schedule, build_reducers(cls, chosen, schedule, shape)).eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@contextmanager
def recorded_reductions(reduced: ReducedViT, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor]]]:
    seen: list[tuple[Tensor, Tensor]] = []
    real = ReducedViT._reduce

    def reduce(self: ReducedViT, x: Tensor, step: int, tap: Any) -> Tensor:
        before = x.clone()
        after = real(self, x, step, tap)
        seen.append((before, after))
        return after

    with monkeypatch.context() as patch:
        patch.setattr(ReducedViT, "_reduce", reduce)
        yield seen


@EVERY
@pytest.mark.parametrize("registers", [0, 3])
def test_prefix_tokens_pass_untouched(
    name: str, options: Options, registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vit(reg_tokens=registers)
    prefix = 1 + registers
    reduced = attach(model, name, options)
    with recorded_reductions(reduced, monkeypatch) as seen:
        reduced(images())
    lengths = [(before.shape[1] - prefix, after.shape[1] - prefix) for before, after in seen]
    assert lengths == [(16, 11), (11, 7)]
    for before, after in seen:
        assert torch.equal(before[:, :prefix], after[:, :prefix])


@EVERY
def test_logits_do_not_depend_on_the_batch(name: str, options: Options) -> None:
    reduced, x, ids = attach(vit(), name, options), images(), torch.tensor([8, 2, 5])
    together = reduced(x, ids)
    turned = reduced(x.flip(0), ids.flip(0)).flip(0)
    alone = torch.cat([reduced(x[i : i + 1], ids[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(turned, together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


@EVERY
def test_sizes_and_source_agree_at_the_end(name: str, options: Options) -> None:
    reduced = attach(vit(), name, options)
    reduced(images())
    assert reduced.source is not None
    assert [(a.n_in, a.n_out) for a in reduced.assignments] == [(16, 11), (11, 7)]
    assert (reduced.source.n_in, reduced.source.n_out) == (16, 7)
    assert reduced.last is not None
    sizes = reduced.last.sizes
    assert sizes is not None
    torch.testing.assert_close(sizes.sum(1), torch.full((3,), 16.0))
    if isinstance(reduced.source, HardAssignment):
        torch.testing.assert_close(reduced.source.merge_sizes(torch.ones(3, 16)), sizes)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_stays_finite(name: str, options: Options, dtype: torch.dtype) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        assert attach(vit(), name, options)(images()).isfinite().all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_whole_model_may_have_another_precision(name: str, options: Options, dtype: torch.dtype) -> None:
    reduced = attach(vit(), name, options).to(dtype)
    with torch.no_grad():
        logits = reduced(images().to(dtype))
    assert logits.dtype == dtype
    assert logits.isfinite().all()


@EVERY
@pytest.mark.parametrize("fused", [True, False])
def test_gradients_are_finite_in_training(name: str, options: Options, fused: bool) -> None:
    model = vit(drop_path_rate=0.1, proj_drop_rate=0.1, init_values=0.1)
    for block in model.blocks:
        block.attn.fused_attn = fused
    reduced = attach(model, name, options).train()
    torch.nn.functional.cross_entropy(reduced(images()), torch.tensor([0, 1, 2])).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0
    for parameter in reduced.reducers.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


# --- cost -------------------------------------------------------------------------------------------------------------

OVERHEADS: list[tuple[str, Options, int, list[float]]] = [
    # M MACs at N = 196 for C = 192, 384, 768 as the specification lists them; k = 40 merges or M = 137 tokens left
    ("random", {}, 156, [0.01, 0.02, 0.03]),
    ("lotm", {}, 156, [0.08, 0.16, 0.32]),
    ("dhtm", {}, 156, [0.28, 0.56, 1.12]),
    ("tome", {}, 156, [0.68, 0.73, 0.82]),
    ("dpc_knn", {"learned_weights": True}, 137, [7.5, 14.9, 29.8]),
    ("k_medoids", {}, 137, [7.6, 14.9, 29.7]),
    ("sinkhorn", {}, 137, [10.5, 20.9, 41.6]),
    ("patchmerger", {}, 137, [10.5, 21.0, 42.0]),
    ("sit", {}, 137, [11.5, 30.3, 89.5]),
]


@pytest.mark.parametrize(("name", "options", "n_out", "listed"), OVERHEADS, ids=[row[0] for row in OVERHEADS])
def test_own_arithmetic_is_of_the_listed_order(name: str, options: Options, n_out: int, listed: list[float]) -> None:
    for width, expected in zip((192, 384, 768), listed, strict=True):
        rounding = 0.05 if expected > 2 else 0.005
        found = list_methods()[name](list_methods()[name].options_type(**options)).macs(196, n_out, width) / 1e6
        assert abs(found - expected) <= rounding + 0.1 * expected


EXACT: list[tuple[str, Options, int]] = [
    # for N = 196, M = 156 (40 removed), C = 192, D = 64, P = 1, written out from the formulae of each method's section
    ("random", {}, 40 * 192),
    ("lotm", {}, (196 + 182) * 192 + 40 * 192),
    ("dhtm", {}, (196 + 702) * 192 + 40 * (10 + 2) * 192),
    ("tome", {}, 197 * 192 + 197 * 64 + 99 * 98 * 64 + 40 * 192),
    ("dpc_knn", {}, 196**2 * 192 + 196 * 5 + 196**2 + 196 * 192),
    ("dpc_knn", {"learned_weights": True, "k": 7}, 196**2 * 192 + 196 * 7 + 196**2 + 2 * 196 * 192),
    ("k_medoids", {}, 196**2 * 192 + 3 * (196 * 156 + 196**2)),
    ("k_medoids", {"iters": 5, "variant": "tokenreduction"}, 196**2 * 192 + 5 * (196 * 156 + 156 * 196**2)),
    ("sit", {}, 196 * 192 * 96 + 196 * 96 * 156 + 196 * 156 * 192 + 5 * 196 * 192),
    ("sinkhorn", {}, 196 * 192 + 2 * 196 * 156 * 192 + 3 * 2 * 196 * 156),
    ("sinkhorn", {"iters": 5, "values": "raw"}, 196 * 192 + 2 * 196 * 156 * 192 + 5 * 2 * 196 * 156),
    ("patchmerger", {}, 2 * 196 * 156 * 192 + 5 * 196 * 192),
]


@pytest.mark.parametrize(("name", "options", "expected"), EXACT, ids=[f"{row[0]}-{row[1]}" for row in EXACT])
def test_own_arithmetic_equals_the_formula(name: str, options: Options, expected: int) -> None:
    assert list_methods()[name](list_methods()[name].options_type(**options)).macs(196, 156, 192) == expected


@EVERY
def test_own_arithmetic_grows_with_tokens_and_width(name: str, options: Options) -> None:
    reducer = make(name, options)
    small = reducer.macs(96, 60, 192)
    assert 0 <= small < reducer.macs(96, 60, 384)
    assert small <= reducer.macs(196, 124, 192)
