"""Counting: the golden MACs of the specification, and the closed form against fvcore on real forward passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenmerge_bench.counting import BackboneCost, Macs, closed_form, count, traced
from tokenmerge_bench.errors import CountingError
from tokenmerge_bench.reduced_vit import ReducedViT, build_reducers, geometry
from tokenmerge_bench.registry import list_methods, method
from tokenmerge_bench.schedule import Schedule, make_schedule

SIZES = ("tiny", "small", "base")
LAYERS = (3, 6, 10)


@lru_cache
def cost(size: str) -> BackboneCost:
    with torch.device("meta"):
        return BackboneCost.of(timm.create_model(f"deit_{size}_patch16_224"))


def merged(k: int, blocks: tuple[int, ...]) -> Schedule:
    counts = tuple(196 - k * (i + 1) for i in range(len(blocks)))
    return make_schedule(counts, blocks, "mid", n0=196, prefix=1, depth=12)


def giga(macs: int) -> float:
    return round(macs / 1e9, 4)


# --- golden values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "total", "products"), [("tiny", 1.2584, 1.2537), ("small", 4.6083, 4.5989), ("base", 17.5827, 17.5638)]
)
def test_unreduced_deit(size: str, total: float, products: float) -> None:
    macs = cost(size).macs(Schedule(196, 1, 12))
    assert giga(macs.backbone) == total
    assert giga(macs.backbone - macs.norm) == products


@pytest.mark.parametrize("size", SIZES)
def test_unreduced_deit_by_the_formula(size: str) -> None:
    width = {"tiny": 192, "small": 384, "base": 768}[size]
    t = 197
    products = 12 * (12 * t * width**2 + 2 * t**2 * width) + 196 * 768 * width + 1000 * width
    assert cost(size).macs(Schedule(196, 1, 12)) == Macs(products + 25 * 5 * t * width, 25 * 5 * t * width, 0)


KS = (0, 10, 20, 30, 40, 48, 56)
WITHOUT_NORM = {
    "tiny": (1.2537, 1.1628, 1.0741, 0.9875, 0.9030, 0.8370, 0.7724),
    "small": (4.5989, 4.2756, 3.9565, 3.6418, 3.3314, 3.0861, 2.8436),
    "base": (17.5638, 16.3509, 15.1467, 13.9510, 12.7639, 11.8204, 10.8824),
}
WITH_NORM = {
    "tiny": (1.2584, 1.1672, 1.0781, 0.9912, 0.9065, 0.8402, 0.7753),
    "small": (4.6083, 4.2844, 3.9647, 3.6493, 3.3382, 3.0925, 2.8494),
    "base": (17.5827, 16.3685, 15.1630, 13.9660, 12.7776, 11.8331, 10.8941),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("column", "k"), list(enumerate(KS)))
def test_k_merges_at_three_layers(size: str, column: int, k: int) -> None:
    macs = cost(size).macs(merged(k, LAYERS))
    assert giga(macs.backbone - macs.norm) == WITHOUT_NORM[size][column]
    assert giga(macs.backbone) == WITH_NORM[size][column]


@pytest.mark.parametrize(
    ("size", "k", "expected"),
    [
        ("tiny", 9, 0.8849), ("tiny", 10, 0.8459), ("small", 9, 3.2722),
        ("small", 10, 3.1286), ("base", 9, 12.5534), ("base", 10, 12.0045),
    ],
)  # fmt: skip
def test_k_merges_in_every_block(size: str, k: int, expected: float) -> None:
    macs = cost(size).macs(merged(k, tuple(range(12))))
    assert giga(macs.backbone - macs.norm) == expected


@pytest.mark.parametrize(("r", "reductions"), [(9, (29.4, 28.8, 28.5)), (10, (32.5, 32.0, 31.7))])
def test_reduction_of_tome_with_constant_r(r: int, reductions: tuple[float, ...]) -> None:
    for size, expected in zip(SIZES, reductions, strict=True):
        full, less = (cost(size).macs(s) for s in (Schedule(196, 1, 12), merged(r, tuple(range(12)))))
        ratio = (less.backbone - less.norm) / (full.backbone - full.norm)
        assert round(100 * (1 - ratio), 1) == expected


def test_the_reducers_are_a_column_of_their_own() -> None:
    plain, with_reducer = (cost("tiny").macs(merged(40, LAYERS), reducer) for reducer in (0, 5))
    assert with_reducer == Macs(plain.backbone, plain.norm, 5)
    assert with_reducer.total == plain.backbone + 5


# --- closed form against fvcore ---------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: VisionTransformer(**SMALL),
    "distilled": lambda: VisionTransformerDistilled(**SMALL),
    "registers": lambda: VisionTransformer(**SMALL, reg_tokens=4),
    "pooled": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="avg"),
    "qk_norm": lambda: VisionTransformer(**SMALL, qk_norm=True),
    "layer_scale": lambda: VisionTransformer(**SMALL, init_values=0.1),
    "scale_norms": lambda: VisionTransformer(**SMALL, scale_attn_norm=True, scale_mlp_norm=True),
    "pre_norm": lambda: VisionTransformer(**SMALL, pre_norm=True, mlp_ratio=3.0),
    "no_head": lambda: VisionTransformer(**{**SMALL, "num_classes": 0}),
    "grey_not_square": lambda: VisionTransformer(**{**SMALL, "img_size": (32, 48)}, in_chans=1),
}


def attach(model: nn.Module, name: str, counts: tuple[int, ...], blocks: tuple[int, ...], **options: Any) -> ReducedViT:
    cls, shape = method(name), geometry(model)
    chosen = cls.options_type(**options)
    site = cls(chosen).site
    schedule = make_schedule(counts, blocks, site, n0=shape.patches, prefix=shape.prefix, depth=shape.depth)
    return ReducedViT(model, schedule, build_reducers(cls, chosen, schedule, shape)).eval()


def fuse(model: Any, fused: bool) -> Any:
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("reducer", "fused"), [("tome", True), ("tome", False), ("k_medoids", True)])
def test_closed_form_is_exact_for_every_kind_of_model(name: str, reducer: str, fused: bool) -> None:
    model = fuse(MODELS[name](), fused)
    n0 = geometry(model).patches
    reduced = attach(model, reducer, (n0 - 5, n0 - 9), (1, 2))
    assert traced(reduced) == closed_form(model, reduced.schedule).backbone


@pytest.mark.parametrize("name", MODELS)
def test_closed_form_is_exact_without_reduction(name: str) -> None:
    model = MODELS[name]()
    shape = geometry(model)
    reduced = ReducedViT(model, Schedule(shape.patches, shape.prefix, shape.depth), [])
    assert traced(reduced) == closed_form(model, reduced.schedule).backbone


SITES: list[dict[str, Any]] = [{"position": "pre"}, {"position": "mid"}, {"position": "post"}]
CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in list_methods()] + [
    *[("dhtm", site) for site in SITES],
    *[("random", site) for site in SITES],
    ("dhtm", {"feature": "attn_out"}),
    ("dhtm", {"feature": "keys", "prop_attn": False}),
    ("tome", {"prop_attn": False}),
    ("lotm", {"iterative": True}),
    ("dpc_knn", {"learned_weights": True}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name}-{options}" for name, options in CASES])
@pytest.mark.parametrize("fused", [True, False])
def test_closed_form_is_exact_for_every_method(name: str, options: dict[str, Any], fused: bool) -> None:
    model = fuse(VisionTransformer(**SMALL), fused)
    reduced = attach(model, name, (11, 7), (0, 1), **options)
    macs = count(reduced)
    assert macs == closed_form(model, reduced.schedule, reduced.reducer_macs())
    assert macs.reducer == reduced.reducer_macs()


@pytest.fixture(scope="module")
def deit_tiny() -> nn.Module:
    model: nn.Module = timm.create_model("deit_tiny_patch16_224")
    return model


@pytest.mark.parametrize("name", list_methods())
def test_every_method_on_the_real_deit_tiny(name: str, deit_tiny: nn.Module) -> None:
    reduced = attach(deit_tiny, name, (156, 116, 76), LAYERS)
    expected = closed_form(deit_tiny, reduced.schedule, reduced.reducer_macs())
    assert count(reduced) == expected
    if reduced.schedule.steps[0].site == "mid":
        assert giga(expected.backbone) == 0.9065


# --- safety -----------------------------------------------------------------------------------------------------------


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.special.i0(x)
        return y


@pytest.mark.parametrize(("activation", "operator"), [(Cumulative, "aten::cumsum"), (Bessel, r"aten::(special_)?i0")])
def test_an_unknown_operator_is_an_error_that_names_it(activation: type[nn.Module], operator: str) -> None:
    model = VisionTransformer(**SMALL)
    model.blocks[2].mlp.act = activation()
    reduced = attach(model, "dhtm", (11,), (1,))
    with pytest.raises(CountingError, match=operator):
        traced(reduced)
    assert not reduced.drop


def test_a_layer_outside_the_closed_form_is_noticed() -> None:
    model = VisionTransformer(**SMALL)
    model.pos_drop = nn.Linear(32, 32)
    with pytest.raises(CountingError, match=r"fvcore counts .* the closed form .* not accounted for"):
        count(attach(model, "dhtm", (11,), (1,)))


@pytest.mark.parametrize("fails", [False, True])
def test_training_modes_and_gradients_are_as_before(fails: bool) -> None:
    model = VisionTransformer(**SMALL, drop_path_rate=0.2, proj_drop_rate=0.2)
    if fails:
        model.blocks[2].mlp.act = Cumulative()
    reduced = attach(model, "dhtm", (11,), (1,)).train()
    model.blocks[0].eval()
    modes = [module.training for module in (*model.modules(), *reduced.modules())]
    assert any(modes)
    assert not all(modes)
    if fails:
        with pytest.raises(CountingError):
            count(reduced)
    else:
        count(reduced)
    assert [module.training for module in (*model.modules(), *reduced.modules())] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_counting_does_not_disturb_the_next_forward_pass() -> None:
    torch.manual_seed(0)
    reduced = attach(VisionTransformer(**SMALL), "tome", (11, 8), (1, 2))
    x = torch.randn(2, 3, 32, 32)
    before = reduced(x)
    count(reduced)
    assert torch.equal(reduced(x), before)


def test_half_precision_models_can_be_counted() -> None:
    model = VisionTransformer(**SMALL).to(torch.bfloat16)
    reduced = attach(model, "dhtm", (11,), (1,))
    assert traced(reduced) == closed_form(model, reduced.schedule).backbone
