"""The tree of settings: bit for bit what each setting alone computes, nothing twice, and bounded memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.clocks import Laps, NoLaps
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.pieces import Halves, Merge, Piece, State, pieces_of
from tokenmerge_bench.reduced_vit import ReducedViT, build_reducers, geometry
from tokenmerge_bench.reducers import TokenReducer
from tokenmerge_bench.registry import list_methods
from tokenmerge_bench.schedule import Schedule, make_schedule
from tokenmerge_bench.tokens import Tokens
from tokenmerge_bench.trie import Node, Tree, Trouble

SMALL: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
N0, DEPTH = 16, 4
IDS = torch.tensor([4, 0, 9])


def shaken(cls: type[nn.Module], **settings: Any) -> Any:
    """A model with random values everywhere, so that no part of it is an identity or a zero."""
    torch.manual_seed(0)
    model = cls(**{**SMALL, **settings})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def vit(**settings: Any) -> Any:
    return shaken(VisionTransformer, **settings)


MODELS: dict[str, Callable[[], Any]] = {
    "deit": vit,
    "distilled": lambda: shaken(VisionTransformerDistilled),
    "registers": lambda: vit(reg_tokens=3, class_token=False, global_pool="avg"),
    "qk-norm, layer scale": lambda: vit(qk_norm=True, init_values=0.3),
    "not fused": lambda: unfused(vit()),
}


def unfused(model: Any) -> Any:
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def attach(
    model: nn.Module, name: str, counts: Sequence[int], blocks: Sequence[int] = (1, 2), seed: int = 0, **options: Any
) -> ReducedViT:
    cls, shape = list_methods()[name], geometry(model)
    chosen = cls.options_type(**options)
    reducer = cls(chosen)
    schedule = make_schedule(
        tuple(counts), tuple(blocks), reducer.site, n0=shape.patches, prefix=shape.prefix, depth=shape.depth
    )
    torch.manual_seed(0)
    return ReducedViT(model, schedule, build_reducers(cls, chosen, schedule, shape), seed).eval()


def unreduced(model: nn.Module) -> ReducedViT:
    shape = geometry(model)
    return ReducedViT(model, Schedule(shape.patches, shape.prefix, shape.depth), [])


def every_option(cls: type[TokenReducer]) -> Iterator[dict[str, Any]]:
    """The defaults, and every other value of every option that has a list of them."""
    yield {}
    hints = typing.get_type_hints(cls.options_type)
    for field in dataclasses.fields(cls.options_type):
        values = [True, False] if hints[field.name] is bool else typing.get_args(hints[field.name])
        for value in values:
            if value != field.default:
                yield {field.name: value}


def settings_of(model: nn.Module, budgets_of_options: int = 2) -> dict[str, ReducedViT]:
    """Every method at three budgets, with every other option at as many as asked for, and the model without any."""
    found = {"none": unreduced(model)}
    for name, cls in list_methods().items():
        for options in every_option(cls):
            for counts in ([13, 9], [13, 8], [10, 7])[: budgets_of_options if options else 3]:
                for seed in (0, 1) if cls.stochastic else (0,):
                    try:
                        found[f"{name} {options} {counts} {seed}"] = attach(model, name, counts, seed=seed, **options)
                    except InputError:  # options that exclude each other, weights=cls without a class token
                        continue
    return found


def tree_of(networks: dict[str, ReducedViT]) -> Tree:
    halves = Halves()
    return Tree({name: pieces_of(network, halves) for name, network in networks.items()})


def run(tree: Tree, count: int = 3) -> dict[str, Tensor]:
    """Logits by setting; nothing may go wrong."""
    troubles: list[Trouble] = []
    with torch.inference_mode():
        ends = [(names, state.x) for names, state in tree.run(images(count), IDS[:count], NoLaps(), troubles)]
    assert troubles == []
    return {name: logits for names, logits in ends for name in names}


@contextmanager
def counted(model: Any) -> Iterator[Counter[str]]:
    """How often each attention and each MLP of a model runs."""
    calls: Counter[str] = Counter()
    handles = []
    for index, block in enumerate(model.blocks):
        for half in ("attn", "mlp"):
            name = f"{half}{index}"
            handles.append(getattr(block, half).register_forward_hook(lambda *_, name=name: calls.update([name])))
    yield calls
    for handle in handles:
        handle.remove()


# --- the same, to the last bit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_all_settings_together_give_the_logits_of_each_alone(build: Callable[[], Any]) -> None:
    """How budgets of one option share work is no matter of the kind of model: all but one get one budget of each."""
    model = build()
    networks = settings_of(model, 2 if build is MODELS["deit"] else 1)
    assert len(networks) > (70 if build is MODELS["deit"] else 45)
    together = run(tree_of(networks))
    assert set(together) == set(networks)
    with torch.inference_mode():
        assert torch.equal(together["none"], model(images()))
        for name, network in networks.items():
            assert torch.equal(together[name], network(images(), IDS)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_that_holds_under_autocast(dtype: torch.dtype) -> None:
    model = vit()
    networks = settings_of(model, 0)
    with torch.autocast("cpu", dtype):
        together = run(tree_of(networks))
    for name, network in networks.items():
        with torch.inference_mode(), torch.autocast("cpu", dtype):
            assert torch.equal(together[name], network(images(), IDS)), name


def test_the_same_tree_gives_the_same_again_for_any_number_of_images() -> None:
    tree = tree_of({name: attach(vit(), name, [12, 9]) for name in ("dhtm", "random", "tome")})
    first = run(tree)
    alone = run(tree, 1)
    again = run(tree)
    for name, logits in first.items():
        assert torch.equal(logits, again[name])
        torch.testing.assert_close(alone[name], logits[:1])


# --- nothing twice ----------------------------------------------------------------------------------------------------


def test_what_stands_before_the_first_reduction_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    networks = {f"{k}": attach(model, "dhtm", [16 - k, 16 - 2 * k], (2, 3)) for k in (1, 2, 3, 4)}
    cls, asked = list_methods()["dhtm"], []
    real = cls.assign_each

    def assign_each(self: TokenReducer, tokens: Tokens, n_outs: Sequence[int]) -> list[Assignment]:
        asked.append(list(n_outs))
        return real(self, tokens, n_outs)

    monkeypatch.setattr(cls, "assign_each", assign_each)
    with counted(model) as calls:
        run(tree_of({"none": unreduced(model), **networks}))
    assert calls == {
        "attn0": 1, "mlp0": 1, "attn1": 1, "mlp1": 1, "attn2": 1, "mlp2": 5, "attn3": 5, "mlp3": 5,
    }  # fmt: skip
    assert asked[0] == [12, 13, 14, 15] or [12, 13, 14, 15] in asked
    assert sorted(map(len, asked)) == [1, 1, 1, 1, 4]


def test_a_longer_common_beginning_is_shared_too() -> None:
    model = vit()
    networks = {str(last): attach(model, "tome", [13, 11, last], (0, 1, 2)) for last in (10, 9, 8)}
    with counted(model) as calls:
        run(tree_of(networks))
    assert calls == {
        "attn0": 1, "mlp0": 1, "attn1": 1, "mlp1": 1, "attn2": 1, "mlp2": 3, "attn3": 3, "mlp3": 3,
    }  # fmt: skip


def test_settings_that_do_the_same_run_once() -> None:
    model = vit()
    names = ["none", "twice", "a", "b"]
    networks = dict(
        zip(names, [unreduced(model), unreduced(model), *(attach(model, "lotm", [12, 9]) for _ in "ab")], strict=True)
    )
    tree = tree_of(networks)
    with counted(model) as calls:
        found = run(tree)
    assert calls["mlp3"] == 2
    assert torch.equal(found["a"], found["b"])
    assert torch.equal(found["none"], found["twice"])


def test_recording_keys_takes_no_branch_but_explicit_attention_does() -> None:
    model = vit()
    with counted(model) as calls:
        run(tree_of({"none": unreduced(model), "tome": attach(model, "tome", [12], (1,))}))
    assert calls["attn1"] == 1
    with counted(model) as calls:
        run(tree_of({"none": unreduced(model), "k_medoids": attach(model, "k_medoids", [12], (2,), weights="cls")}))
    assert (calls["attn0"], calls["attn1"], calls["attn2"]) == (1, 2, 2)


def test_seeds_part_and_numbers_of_tokens_do_not() -> None:
    model = vit()
    networks = {f"{n} {seed}": attach(model, "random", [n], (1,), seed) for n in (12, 9) for seed in (0, 1)}
    tree = tree_of(networks)
    chooses = [node for node in nodes(tree.root) if node.piece.key[0] == "choose"]
    assert [{child.piece.key for child in node.children} for node in chooses] == [{("merge", 9), ("merge", 12)}] * 2
    found = run(tree)
    assert not torch.equal(found["9 0"], found["9 1"])


def test_methods_and_options_and_weights_of_ones_own_part() -> None:
    model = vit()
    networks = {
        "dhtm": attach(model, "dhtm", [12], (1,)),
        "plain": attach(model, "dhtm", [12], (1,), averaging="plain"),
        "lotm": attach(model, "lotm", [12], (1,)),
        "learned": attach(model, "dpc_knn", [12], (1,), learned_weights=True),
        "learned again": attach(model, "dpc_knn", [12], (1,), learned_weights=True),
    }
    networks["learned, shared"] = ReducedViT(
        model, networks["learned"].schedule, [typing.cast(TokenReducer, r) for r in networks["learned"].reducers]
    )
    assert sum(node.piece.key[0] == "choose" for node in nodes(tree_of(networks).root)) == 5


def nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from nodes(child)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_few_states_are_alive_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one for each time that the settings can be halved, the one at work, and the one it makes."""
    model = vit(depth=12)
    blocks = (1, 4, 7, 10)
    removed = itertools.product((1, 2, 3), repeat=4)
    counts = [[16 - total for total in itertools.accumulate(numbers)] for numbers in removed]
    networks = {str(count): attach(model, "random", count, blocks) for count in counts}
    tree = tree_of({"none": unreduced(model), **networks})
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def watch(cls: type[Piece]) -> None:
        real = cls.run

        def run(self: Piece, state: State) -> State:
            nonlocal most
            made = real(self, state)
            if made.x is not state.x:
                alive.add(made.x)
            most = max(most, len(alive))
            return made

        monkeypatch.setattr(cls, "run", run)

    for cls in Piece.__subclasses__():
        watch(cls)
    with torch.inference_mode():
        ends = sum(len(names) for names, _ in tree.run(images(), IDS, NoLaps(), []))
    assert ends == 82
    assert 3 <= most <= math.floor(math.log2(82)) + 2
    assert len(alive) == 0


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_what_raises_ends_the_settings_that_need_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    networks = {f"dhtm {k}": attach(model, "dhtm", [16 - k], (1,)) for k in (1, 2, 3)}
    networks |= {"none": unreduced(model), "lotm": attach(model, "lotm", [12], (1,))}
    expected = run(tree_of(networks))
    real = Merge.run

    def broken(self: Merge, state: State) -> State:
        if self.left == 14:
            raise KeyError("nobody")
        return real(self, state)

    monkeypatch.setattr(Merge, "run", broken)
    troubles: list[Trouble] = []
    with torch.inference_mode():
        ends = {n: state.x for names, state in tree_of(networks).run(images(), IDS, NoLaps(), troubles) for n in names}
    assert troubles == [Trouble(["dhtm 2"], "KeyError: 'nobody'")]
    assert set(ends) == set(networks) - {"dhtm 2"}
    assert all(torch.equal(logits, expected[name]) for name, logits in ends.items())


def test_errors_that_are_passed_on_are_raised() -> None:
    model = vit()
    tree = tree_of({"none": unreduced(model)})
    with pytest.raises(AssertionError, match="Input height"):
        list(tree.run(images()[..., :16, :], IDS, NoLaps(), [], lambda error: isinstance(error, AssertionError)))


def test_times_of_a_setting_are_those_of_its_pieces() -> None:
    model = vit()
    tree = tree_of({"none": unreduced(model), "dhtm": attach(model, "dhtm", [12], (1,))})
    laps = Laps.on(torch.device("cpu"))
    with torch.inference_mode():
        list(tree.run(images(), IDS, laps, []))
    seconds = laps.seconds()
    assert set(seconds) == set(range(tree.size))
    assert all(value > 0 for value in seconds.values())
    assert len(tree.paths["none"]) == 2 + 2 * DEPTH
    assert len(tree.paths["dhtm"]) == 2 + 2 * DEPTH + 2
    assert len(set(tree.paths["none"]) & set(tree.paths["dhtm"])) == 4
