"""Attaching: the stock model computes the same to the last bit and never changes; reductions act where they should."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.reduced_vit import ReducedViT, build_reducers, geometry
from tokenmerge_bench.reducers import Need, Site, TokenReducer
from tokenmerge_bench.registry import method
from tokenmerge_bench.schedule import Schedule, Step, make_schedule
from tokenmerge_bench.tokens import Tokens

SMALL: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
N0, DEPTH = 16, 4


def shaken(model: nn.Module) -> Any:
    """Random values everywhere, so that no part of the model is an identity or a zero by its initialisation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def vit(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model: VisionTransformer = shaken(VisionTransformer(**{**SMALL, **settings}))
    return model


def distilled() -> VisionTransformerDistilled:
    torch.manual_seed(0)
    model: VisionTransformerDistilled = shaken(VisionTransformerDistilled(**SMALL))
    return model


def deit3() -> nn.Module:
    torch.manual_seed(0)
    small = {name: value for name, value in SMALL.items() if name != "patch_size"}
    model: nn.Module = timm.create_model("deit3_small_patch16_224", **{**small, "img_size": 64})
    return model


def images(count: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class NothingOptions:
    site: Site = "mid"
    proportional: bool = False


class Nothing(TokenReducer):
    """Keeps every token, and remembers what it was shown."""

    options_type = NothingOptions

    def __init__(self, options: NothingOptions | None = None, needs: frozenset[Need] = frozenset()) -> None:
        super().__init__(options)
        self.site, self.proportional_attention = self.options.site, self.options.proportional
        self.needs = needs
        self.seen: list[Tokens] = []

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        self.seen.append(tokens)
        return HardAssignment.identity(tokens.features.shape[0], n_out, tokens.features.device)

    def macs(self, n_in: int, n_out: int, width: int) -> int:
        return 0


class Pairs(Nothing):
    """Joins tokens 2i and 2i + 1."""

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        self.seen.append(tokens)
        labels = torch.arange(2 * n_out) // 2
        return HardAssignment(labels.expand(len(tokens.features), -1), n_out, tokens.sizes)


def keep_all(model: nn.Module, site: Any, reducers: list[TokenReducer], blocks: tuple[int, ...]) -> ReducedViT:
    """Reductions that run and remove nothing."""
    shape = geometry(model)
    steps = tuple(Step(block, site, shape.patches, shape.patches) for block in blocks)
    return ReducedViT(model, Schedule(shape.patches, shape.prefix, shape.depth, steps), reducers).eval()


def attach(model: nn.Module, name: str, counts: tuple[int, ...], blocks: tuple[int, ...], **options: Any) -> ReducedViT:
    cls, shape = method(name), geometry(model)
    chosen = cls.options_type(**options)
    site = cls(chosen).site
    schedule = make_schedule(counts, blocks, site, n0=shape.patches, prefix=shape.prefix, depth=shape.depth)
    return ReducedViT(model, schedule, build_reducers(cls, chosen, schedule, shape)).eval()


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "deit": (vit, 32),
    "distilled": (distilled, 32),
    "layer scale (deit3)": (lambda: shaken(deit3()), 64),
    "registers": (lambda: vit(reg_tokens=4), 32),
    "registers, pooled, no class token": (lambda: vit(reg_tokens=4, class_token=False, global_pool="avg"), 32),
    "qk-norm": (lambda: vit(qk_norm=True), 32),
    "pre-norm, fc-norm": (lambda: vit(pre_norm=True, global_pool="avg"), 32),
}
EVERY_MODEL = pytest.mark.parametrize(("build", "size"), MODELS.values(), ids=MODELS)


# --- nothing changes --------------------------------------------------------------------------------------------------


@EVERY_MODEL
def test_logits_are_bit_equal_with_an_empty_schedule(build: Callable[[], nn.Module], size: int) -> None:
    model, x = build(), images(size=size)
    shape = geometry(model)
    reduced = ReducedViT(model, Schedule(shape.patches, shape.prefix, shape.depth), [])
    assert torch.equal(reduced(x), model(x))
    assert reduced.assignments == []
    assert torch.equal(
        reduced.source.owner(), torch.arange(reduced.geometry.patches).expand(len(reduced.source.owner()), -1)
    )


@EVERY_MODEL
@pytest.mark.parametrize("site", ["pre", "mid"])
@pytest.mark.parametrize("fused", [True, False])
def test_logits_are_bit_equal_when_wrapped_blocks_remove_nothing(
    build: Callable[[], nn.Module], size: int, site: Any, fused: bool
) -> None:
    model, x = build(), images(size=size)
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = fused
    reducers: list[TokenReducer] = [Nothing(NothingOptions(site)) for _ in range(DEPTH)]
    reduced = keep_all(model, site, reducers, tuple(range(DEPTH)))
    assert torch.equal(reduced(x), model(x))
    assert len(reduced.assignments) == DEPTH


@EVERY_MODEL
def test_recording_keys_and_outputs_changes_no_bit(build: Callable[[], nn.Module], size: int) -> None:
    model, x = build(), images(size=size)
    reducers: list[TokenReducer] = [Nothing(needs=frozenset({"keys", "attn_out"})) for _ in range(DEPTH)]
    assert torch.equal(keep_all(model, "mid", reducers, tuple(range(DEPTH)))(x), model(x))


def test_proportional_attention_with_all_sizes_one_changes_nothing_but_rounding() -> None:
    model, x = vit(), images()
    options = NothingOptions("pre", proportional=True)
    reduced = keep_all(model, "pre", [Nothing(options)], (0,))
    torch.testing.assert_close(reduced(x), model(x))


@pytest.mark.parametrize("site", ["pre", "mid"])
def test_dropout_and_drop_path_draw_the_same_numbers(site: Any) -> None:
    model = vit(drop_path_rate=0.5, proj_drop_rate=0.2, attn_drop_rate=0.2, pos_drop_rate=0.1, init_values=0.5).train()
    reducers: list[TokenReducer] = [Nothing(NothingOptions(site)) for _ in range(DEPTH)]
    reduced = keep_all(model, site, reducers, tuple(range(DEPTH))).train()
    torch.manual_seed(3)
    expected = model(images())
    torch.manual_seed(3)
    assert torch.equal(reduced(images()), expected)
    torch.manual_seed(4)
    assert not torch.equal(reduced(images()), expected)


def test_gradients_are_bit_equal_when_nothing_is_removed() -> None:
    model = vit()
    gradients = []
    for network in (model, keep_all(model, "mid", [Nothing(), Nothing()], (1, 2))):
        model.zero_grad()
        network(images()).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_real_deit_tiny() -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224").eval()
    x = images(1, 224)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(keep_all(model, "mid", [Nothing()], (3,))(x), expected)
        reduced = attach(model, "dhtm", (156, 116, 76), (3, 6, 10))
        assert reduced(x).shape == (1, 1000)
        assert [a.n_out for a in reduced.assignments] == [156, 116, 76]
        assert not torch.equal(reduced(x), expected)
        assert torch.equal(model(x), expected)


def snapshot(model: nn.Module) -> dict[str, Any]:
    modules = dict(model.named_modules())
    return {
        "modules": {name: id(module) for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "fused": {name: module.fused_attn for name, module in modules.items() if hasattr(module, "fused_attn")},
        "training": {name: module.training for name, module in modules.items()},
        "parameters": {name: id(parameter) for name, parameter in model.named_parameters()},
        "hooks": {
            name: [len(getattr(module, kind)) for kind in vars(module) if kind.endswith("hooks")]
            for name, module in modules.items()
        },
    }


@pytest.mark.parametrize(
    ("name", "options"), [("dhtm", {"feature": "attn_out"}), ("tome", {}), ("k_medoids", {}), ("random", {})]
)
def test_the_stock_model_is_never_changed(name: str, options: dict[str, Any]) -> None:
    model, x = vit(), images()
    before, weights, expected = snapshot(model), copy.deepcopy(model.state_dict()), model(x)
    reduced = attach(model, name, (11, 7), (1, 2), **options)
    reduced(x)
    assert snapshot(model) == before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert list(model.state_dict()) == list(weights)
    assert torch.equal(model(x), expected)
    assert reduced.detach() is model


def test_many_attachments_share_the_weights() -> None:
    model, x = vit(), images()
    names = ["dhtm", "tome", "k_medoids", "lotm"]
    attached = [attach(model, name, (11, 8), (1, 2)) for name in names]
    first = [reduced(x) for reduced in attached]
    for reduced in attached:
        own = {id(parameter) for parameter in reduced.model.parameters()}
        assert own == {id(parameter) for parameter in model.parameters()}
    again = [reduced(x) for reduced in reversed(attached)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.add_(0.5)
    for reduced, old in zip(attached, first, strict=True):
        assert not torch.allclose(reduced(x), old)


def test_every_weight_is_listed_once() -> None:
    model = vit()
    reduced = attach(model, "dhtm", (11,), (1,))
    assert sum(p.numel() for p in reduced.parameters()) == sum(p.numel() for p in model.parameters())
    assert len(reduced.state_dict()) == len(model.state_dict())


# --- the reduction acts where it should -------------------------------------------------------------------------------


def join_pairs(x: Tensor, prefix: int, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows 2i and 2i + 1 after the prefix, in plain torch."""
    head, rest, s = x[:, :prefix], x[:, prefix:], sizes[:, prefix:, None]
    total = s[:, 0::2] + s[:, 1::2]
    merged = (s[:, 0::2] * rest[:, 0::2] + s[:, 1::2] * rest[:, 1::2]) / total
    return torch.cat([head, merged], 1), torch.cat([sizes[:, :prefix], total[..., 0]], 1)


@torch.no_grad()
def by_hand(model: Any, x: Tensor, steps: tuple[Step, ...], proportional: bool) -> Tensor:
    """The whole network with its reductions, written out; attention by an explicit softmax."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    prefix, sizes = model.num_prefix_tokens, torch.ones(x.shape[:2], dtype=x.dtype)
    sites = {(step.block, step.site) for step in steps}
    for index, block in enumerate(model.blocks):
        if (index, "pre") in sites:
            x, sizes = join_pairs(x, prefix, sizes)
        attn, rows = block.attn, block.norm1(x)
        batch, length, width = rows.shape
        qkv = (rows @ attn.qkv.weight.T + attn.qkv.bias).reshape(batch, length, 3, attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        logits = attn.q_norm(q) @ attn.k_norm(k).transpose(2, 3) / attn.head_dim**0.5
        if proportional:
            logits = logits + sizes.log()[:, None, None, :]
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        x = x + block.ls1(attn.proj((weights @ v).transpose(1, 2).reshape(batch, length, width)))
        if (index, "mid") in sites:
            x, sizes = join_pairs(x, prefix, sizes)
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return torch.as_tensor(model.forward_head(model.norm(x)))


def join_at(model: nn.Module, sites: list[tuple[int, Any]], proportional: list[bool]) -> ReducedViT:
    """Halves the number of patch tokens at each of the sites."""
    shape = geometry(model)
    steps = tuple(Step(block, site, N0 >> i, N0 >> (i + 1)) for i, (block, site) in enumerate(sites))
    reducers = [Pairs(NothingOptions(step.site, on)) for step, on in zip(steps, proportional, strict=True)]
    return ReducedViT(model, Schedule(shape.patches, shape.prefix, shape.depth, steps), reducers)


SITES: list[list[tuple[int, Any]]] = [
    [(0, "pre")], [(0, "mid")], [(2, "pre")], [(2, "mid")], [(3, "pre")], [(3, "mid")],
    [(0, "mid"), (2, "mid")], [(1, "pre"), (1, "mid")], [(1, "mid"), (2, "pre"), (3, "mid")],
]  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"init_values": 0.3, "qk_norm": True}, {"reg_tokens": 4}], ids=str)
@pytest.mark.parametrize("proportional", [False, True])
@pytest.mark.parametrize("sites", SITES, ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_a_network_with_its_reductions_written_out(
    settings: dict[str, Any], proportional: bool, sites: list[tuple[int, Any]], fused: bool
) -> None:
    model, x = vit(**settings).double(), images().double()
    for block in model.blocks:
        block.attn.fused_attn = fused
    reduced = join_at(model, sites, [proportional] * len(sites)).double()
    expected = by_hand(model, x, reduced.schedule.steps, proportional)
    torch.testing.assert_close(reduced(x), expected, atol=1e-9, rtol=1e-9)
    if sites[0] != (3, "mid"):  # nothing attends to merged tokens then
        other = by_hand(model, x, reduced.schedule.steps, not proportional)
        assert not torch.allclose(expected, other, atol=1e-5)


def test_attention_stays_proportional_after_a_method_that_does_not_ask_for_it() -> None:
    model, x = vit().double(), images().double()
    reduced = join_at(model, [(0, "mid"), (1, "mid")], [True, False]).double()
    expected = by_hand(model, x, reduced.schedule.steps, True)
    torch.testing.assert_close(reduced(x), expected, atol=1e-9, rtol=1e-9)


def test_post_is_pre_of_the_next_block() -> None:
    assert make_schedule((11,), (1,), "post", n0=N0, prefix=1, depth=4) == make_schedule(
        (11,), (2,), "pre", n0=N0, prefix=1, depth=4
    )
    model, x = vit(), images()
    after = attach(model, "dhtm", (11, 8), (0, 1), position="post")
    before = attach(model, "dhtm", (11, 8), (1, 2), position="pre")
    assert torch.equal(after(x), before(x))
    assert not torch.equal(after(x), attach(model, "dhtm", (11, 8), (0, 1), position="mid")(x))


@torch.no_grad()
def attention_by_hand(model: Any, x: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, attention weights and projected output of one block of the unreduced model."""
    found: dict[str, Tensor] = {}
    hook = model.blocks[block].attn.register_forward_hook(
        lambda module, inputs, output: found.update(x=inputs[0], y=output)
    )
    model(x)
    hook.remove()
    attn = model.blocks[block].attn
    batch, length, _ = found["x"].shape
    qkv = attn.qkv(found["x"]).reshape(batch, length, 3, attn.num_heads, attn.head_dim)
    q, k = (norm(qkv[:, :, i].transpose(1, 2)) for i, norm in enumerate((attn.q_norm, attn.k_norm)))
    return k, (q @ k.transpose(2, 3) / attn.head_dim**0.5).softmax(-1), found["y"]


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, {"reg_tokens": 4}], ids=str)
@pytest.mark.parametrize(("site", "source"), [("mid", 2), ("pre", 1)])
def test_reducers_receive_what_the_attention_before_them_computed(
    settings: dict[str, Any], site: Any, source: int
) -> None:
    model, x = vit(**settings), images()
    reducer = Nothing(NothingOptions(site), frozenset({"keys", "attention", "attn_out"}))
    keep_all(model, site, [reducer], (2,))(x)
    (tokens,) = reducer.seen
    keys, attention, output = attention_by_hand(model, x, source)
    prefix = geometry(model).prefix
    assert tokens.keys is not None
    assert tokens.attention is not None
    assert tokens.attn_out is not None
    torch.testing.assert_close(tokens.keys, keys[:, :, prefix:])
    torch.testing.assert_close(tokens.attention, attention)
    torch.testing.assert_close(tokens.attn_out, output[:, prefix:])
    assert (tokens.block, tokens.prefix, tokens.grid) == (2, prefix, (4, 4))


def test_k_medoids_weighs_tokens_by_the_attention_of_the_previous_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = vit(), images()
    seen: list[Tokens] = []
    cls = method("k_medoids")
    real = cls.assign

    def assign(self: TokenReducer, tokens: Tokens, n_out: int) -> Assignment:
        seen.append(tokens)
        return real(self, tokens, n_out)

    monkeypatch.setattr(cls, "assign", assign)
    attach(model, "k_medoids", (7,), (2,))(x)
    assert seen[0].received is not None
    prefix = geometry(model).prefix
    torch.testing.assert_close(seen[0].received, attention_by_hand(model, x, 1)[1].sum((1, 2))[:, prefix:])
    attach(model, "k_medoids", (7,), (0,))(x)
    assert seen[1].received is None


def test_attention_handed_over_contains_the_sizes_where_attention_is_proportional() -> None:
    model, x = vit(), images()
    shape = geometry(model)
    first, then = Pairs(NothingOptions("mid", True)), Nothing(NothingOptions("pre"), frozenset({"attention"}))
    steps = (Step(0, "mid", 16, 8), Step(2, "pre", 8, 8))
    ReducedViT(model, Schedule(16, shape.prefix, shape.depth, steps), [first, then])(x)
    assert then.seen[0].attention is not None
    plain = Nothing(NothingOptions("pre"), frozenset({"attention"}))
    ReducedViT(model, Schedule(16, shape.prefix, shape.depth, steps), [Pairs(), plain])(x)
    assert plain.seen[0].attention is not None
    ratio = then.seen[0].attention / plain.seen[0].attention
    # Every patch stands for two: its weight against the class token's doubles, in every query and head.
    against_cls = ratio[..., 1:] / ratio[..., :1]
    torch.testing.assert_close(against_cls, torch.full_like(against_cls, 2.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("need", ["keys", "attention", "attn_out"])
def test_nothing_but_the_needs_is_handed_over(need: Need) -> None:
    reducer = Nothing(needs=frozenset({need}))
    keep_all(vit(), "mid", [reducer], (2,))(images())
    (tokens,) = reducer.seen
    assert [getattr(tokens, name) is not None for name in ("keys", "attention", "attn_out")] == [
        need == name for name in ("keys", "attention", "attn_out")
    ]


def test_tome_protects_both_prefix_tokens_of_a_distilled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = distilled(), images()
    reduced = attach(model, "tome", (11, 8), (0, 1))
    rows: list[tuple[Tensor, Tensor]] = []
    real = ReducedViT._reduce

    def spy(self: ReducedViT, x: Tensor, *rest: Any) -> Tensor:
        before = x.clone()
        rows.append((before, real(self, x, *rest)))
        return rows[-1][1]

    monkeypatch.setattr(ReducedViT, "_reduce", spy)
    reduced(x)
    assert [(before.shape[1], after.shape[1]) for before, after in rows] == [(18, 13), (13, 10)]
    for before, after in rows:
        assert torch.equal(before[:, :2], after[:, :2])
    assert reduced.last is not None
    assert reduced.last.sizes is not None
    assert reduced.last.sizes.shape == (3, 8)  # of the patch tokens alone
    assert reduced.last.sizes.sum(1).tolist() == [16.0] * 3


@pytest.mark.parametrize("name", ["dhtm", "tome", "k_medoids", "random"])
def test_no_state_leaks_from_one_forward_pass_to_the_next(name: str) -> None:
    reduced = attach(vit(), name, (11, 8), (1, 2))
    ids = torch.arange(3)
    first = reduced(images(3), ids)
    reduced(images(5, seed=9))
    reduced(images(1, seed=4))
    assert torch.equal(reduced(images(3), ids), first)
    assert len(reduced.assignments) == 2


def test_a_pass_that_failed_leaves_nothing_behind() -> None:
    model, x = vit(dynamic_img_size=True), images()
    reduced = attach(model, "tome", (11, 8), (1, 2))
    expected = reduced(x)
    with pytest.raises(InputError, match="were planned"):
        reduced(images(2, size=40))
    assert torch.equal(reduced(x), expected)


def test_image_ids_seed_random_methods() -> None:
    reduced, x = attach(vit(), "random", (6,), (1,)), images(1).expand(4, -1, -1, -1)
    same = reduced(x)
    assert torch.equal(same[0], same[1])
    other = reduced(x, torch.arange(4))
    assert not torch.equal(other[0], other[1])
    assert torch.equal(other[0], same[0])


def test_source_maps_grid_cells_to_final_tokens() -> None:
    reduced = attach(vit(), "dhtm", (11, 7), (1, 2))
    reduced(images())
    first, second = (assignment.owner() for assignment in reduced.assignments)
    assert torch.equal(reduced.source.owner(), second.gather(1, first))


def test_reducer_macs_add_up_over_steps() -> None:
    reduced = attach(vit(), "dhtm", (11, 7), (1, 2))
    one = method("dhtm")()
    assert reduced.reducer_macs() == one.macs(16, 11, 32) + one.macs(11, 7, 32)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [ResPostBlock, ParallelScalingBlock])
def test_unknown_blocks_are_refused_by_name(block: type[nn.Module]) -> None:
    with pytest.raises(InputError, match=rf"block 0 is a {block.__name__}"):
        geometry(VisionTransformer(**SMALL, block_fn=block))


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "resnet18"])
def test_unknown_models_are_refused_by_name(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(InputError, match=f"model class {type(model).__name__} is not supported"):
        geometry(model)


def test_unknown_attention_is_refused_by_name() -> None:
    class MyAttention(timm.layers.Attention):  # type: ignore[misc]
        pass

    model = vit()
    model.blocks[2].attn = MyAttention(32, 2)
    with pytest.raises(InputError, match="attention of block 2 is a MyAttention"):
        geometry(model)


def test_subclasses_of_known_models_are_refused() -> None:
    class MyTransformer(VisionTransformer):  # type: ignore[misc]
        pass

    with pytest.raises(InputError, match="MyTransformer"):
        geometry(MyTransformer(**SMALL))


def test_random_patch_dropping_is_refused() -> None:
    with pytest.raises(InputError, match="patch_drop_rate"):
        geometry(VisionTransformer(**SMALL, patch_drop_rate=0.5))


def test_images_of_another_size_are_refused() -> None:
    reduced = attach(vit(dynamic_img_size=True), "dhtm", (11,), (1,))
    with pytest.raises(InputError, match=r"block 1 got 26 tokens where 17 were planned.*4x4 patches"):
        reduced(images(size=40))


def test_a_reduction_cannot_use_attention_whose_tokens_are_gone() -> None:
    model = vit()
    steps = (Step(1, "mid", 16, 8), Step(2, "pre", 8, 8))
    reducers: list[TokenReducer] = [Pairs(), Nothing(NothingOptions("pre"), frozenset({"attention"}))]
    with pytest.raises(InputError, match="before block 2 needs the attention of block 1"):
        ReducedViT(model, Schedule(16, 1, 4, steps), reducers)


def test_as_many_reducers_as_steps() -> None:
    with pytest.raises(ValueError, match="1 steps need as many reducers, not 2"):
        ReducedViT(vit(), Schedule(16, 1, 4, (Step(1, "mid", 16, 8),)), [Pairs(), Pairs()])


@EVERY_MODEL
def test_geometry(build: Callable[[], nn.Module], size: int) -> None:
    shape = geometry(build())
    assert (shape.grid, shape.patches, shape.depth, shape.width, shape.head_width) == ((4, 4), 16, 4, 32, 16)
