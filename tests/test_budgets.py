"""From budgets to token schedules."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, cast

import pytest
import timm
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sweeping import TINY
from torch import nn

from tokenmerge_bench.budgets import TOLERANCE, Budget, Solution, Solver, Unreachable, attach, reduce_with
from tokenmerge_bench.counting import closed_form, count
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import DEMO_MODEL, LoadedModel, build_model
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.points import plan
from tokenmerge_bench.reduced_vit import ReducedViT
from tokenmerge_bench.store import UNREDUCED

DEITS = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")
MODELS = (*DEITS, DEMO_MODEL)
DEFAULTS = ("dhtm", "random", "tome", "tome:staged=on", "tome:inflection=-1", "lotm", "dpc_knn", "k_medoids")
METHODS = (
    "dhtm", "dhtm:layers=all", "dhtm:position=post", "dhtm:layers=5",
    "random", "random:layers=all", "random:pair=any",
    "tome", "tome:staged=on", "tome:inflection=-1", "tome:inflection=1", "tome:inflection=0.02", "tome:layers=3/6/9",
    "lotm", "lotm:window=fixed", "lotm:layers=all", "lotm:iterative=on",
    "dpc_knn", "dpc_knn:layers=all", "k_medoids", "k_medoids:variant=tokenreduction",
)  # fmt: skip


@cache
def model(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(name)


@cache
def solver(name: str) -> Solver:
    return Solver(model(name))


@cache
def offered(name: str, method: str) -> list[Solution]:
    """Everything that a method's knob has to offer on a model."""
    found, spec = solver(name), parse_method(method)
    reducer = found._prototype(spec)
    sites, shape = len(spec.blocks(found.shape.depth)), found.shape
    values = reducer.knob.candidates(shape.patches, sites, lambda n_in: reducer.fewest(n_in, shape.grid))
    return [found.at(spec, value) for value in values]


def strongest(method: str) -> float:
    """The smallest fraction of the FLOPs of the demo model that a method can leave."""
    return min(found.macs.total for found in offered(DEMO_MODEL, method)) / solver(DEMO_MODEL).unreduced.total


def knob_budget(found: Solution) -> Budget:
    kind, _, text = found.knob.partition("=")
    return Budget(cast(Any, kind), text)


# --- fractions and GFLOPs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((DEMO_MODEL, method) for method in METHODS),
        *((name, method) for name in DEITS for method in ("dhtm", "tome", "tome:inflection=-1", "k_medoids")),
    ],
)
def test_every_fraction_down_to_the_strongest_can_be_hit(name: str, method: str) -> None:
    """Neighbouring costs lie so close together that every fraction is within the tolerance of one of them.

    Below half of the FLOPs, one token in each of 12 blocks is more than 1 % of what is left: twice the tolerance there.
    """
    whole = solver(name).unreduced.total
    costs = sorted({found.macs.total for found in offered(name, method)})
    assert costs[-1] >= whole
    assert costs[0] < 0.5 * whole
    gaps = {above / whole: (above - below) / (above + below) for below, above in pairwise(costs)}
    assert max(gap for at, gap in gaps.items() if at >= 0.5) <= TOLERANCE
    assert max(gap for at, gap in gaps.items() if at >= 0.2) <= 2 * TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_what_is_recorded_is_what_the_schedule_costs_and_leads_to_it_again(method: str) -> None:
    found, spec = solver(DEMO_MODEL), parse_method(method)
    reducer = found._prototype(spec)
    for solution in offered(DEMO_MODEL, method)[::61]:
        steps = solution.schedule.steps
        own = sum(reducer.macs(step.n_in, step.n_out, found.shape.width) for step in steps)
        assert solution.macs == closed_form(model(DEMO_MODEL), solution.schedule, own)
        assert solution.macs.reducer == own
        assert found.solve(spec, knob_budget(solution)).schedule == solution.schedule


@given(st.sampled_from(DEFAULTS), st.floats(0.5, 1))
@settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_the_solver_takes_the_nearest(method: str, fraction: float) -> None:
    found, spec = solver(DEMO_MODEL), parse_method(method)
    target = fraction * found.unreduced.total
    solution = found.solve(spec, Budget("fraction", repr(fraction)))
    distance = abs(solution.macs.total - target)
    assert distance <= TOLERANCE * target
    assert distance == min(abs(other.macs.total - target) for other in offered(DEMO_MODEL, method))


@pytest.mark.parametrize("method", DEFAULTS)
def test_below_the_strongest_the_message_names_the_nearest(method: str) -> None:
    least = strongest(method)
    name = method.partition(":")[0]
    with pytest.raises(Unreachable, match=f"nearest that {name}.* can do is {least:.3f} of the unreduced FLOPs"):
        solver(DEMO_MODEL).solve(parse_method(method), Budget("fraction", repr(least * 0.99)))


@pytest.mark.parametrize("method", DEFAULTS)
def test_everything_is_kept_at_a_budget_of_one(method: str) -> None:
    found = solver(DEMO_MODEL).solve(parse_method(method), Budget("fraction", "1"))
    assert found.schedule.steps == ()
    assert found.macs == solver(DEMO_MODEL).unreduced


def test_a_gap_in_what_a_knob_offers_is_unreachable_on_both_sides() -> None:
    # One merge in the last of 12 blocks of a model of 49 patches: nothing lies between two neighbouring values.
    small, spec = Solver(build_model(TINY)), parse_method("dhtm:layers=0")
    one, two = (small.at(spec, (k,)).macs.total / small.unreduced.total for k in (1, 2))
    assert one - two > 2.5 * TOLERANCE
    with pytest.raises(Unreachable, match=r"k=[12]\)$"):
        small.solve(spec, Budget("fraction", repr((one + two) / 2)))


@pytest.mark.parametrize(("name", "gflops"), [(DEITS[0], 0.9), (DEITS[1], 3.26), (DEITS[2], 12.3)])
@pytest.mark.parametrize("method", ["dhtm", "tome", "dpc_knn"])
def test_absolute_budgets_are_hit(name: str, gflops: float, method: str) -> None:
    found = solver(name).solve(parse_method(method), Budget("gflops", str(gflops)))
    assert found.macs.total / 1e9 == pytest.approx(gflops, rel=TOLERANCE)


def test_more_than_the_unreduced_model_needs_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"1.5 GFLOPs is more than the unreduced model needs \(1.258 GFLOPs\)"):
        solver(DEITS[0]).solve(parse_method("dhtm"), Budget("gflops", "1.5"))
    assert solver(DEITS[0]).solve(parse_method("dhtm"), Budget("gflops", "1.2584")).schedule.steps == ()


def test_reducers_count_towards_the_budget_unless_asked_otherwise() -> None:
    spec, budget = parse_method("dpc_knn"), Budget("fraction", "0.7")
    with_them, without = (Solver(model(DEMO_MODEL), count_reducers=c).solve(spec, budget).macs for c in (True, False))
    target = 0.7 * solver(DEMO_MODEL).unreduced.total
    assert with_them.total == pytest.approx(target, rel=TOLERANCE)
    assert without.backbone == pytest.approx(target, rel=TOLERANCE)
    assert without.total > target * (1 + TOLERANCE)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (DEITS[0], (1.2584, 1.1672, 1.0781, 0.9912, 0.9065, 0.8402, 0.7753)),
        (DEITS[1], (4.6083, 4.2844, 3.9647, 3.6493, 3.3382, 3.0925, 2.8494)),
        (DEITS[2], (17.5827, 16.3685, 15.1630, 13.9660, 12.7776, 11.8331, 10.8941)),
    ],
)
def test_golden_costs_of_k_merges(name: str, values: tuple[float, ...]) -> None:
    found = [solver(name).solve(parse_method("dhtm"), Budget("k", str(k))) for k in (0, 10, 20, 30, 40, 48, 56)]
    assert [round(f.macs.backbone / 1e9, 4) for f in found] == list(values)


@pytest.mark.parametrize("method", ["dhtm", "tome", "dpc_knn:learned_weights=on", "lotm"])
def test_the_attached_model_costs_what_was_solved(method: str) -> None:
    network, spec = build_model(TINY).eval(), parse_method(method)
    found = Solver(network).solve(spec, Budget("fraction", "0.5"))
    macs = count(reduce_with(network, spec, found))
    assert macs.total == pytest.approx(found.macs.total, rel=1e-3)
    assert macs.reducer == found.macs.reducer


# --- knobs ------------------------------------------------------------------------------------------------------------


def test_all_but_one_token_can_be_merged() -> None:
    spec = parse_method("dhtm:layers=3")
    assert solver(DEMO_MODEL).solve(spec, Budget("k", "195")).schedule.steps[0].n_out == 1
    with pytest.raises(InputError, match=r"k=196 is too many at reduction 1 of 1: .*k can be at most 195"):
        solver(DEMO_MODEL).solve(spec, Budget("k", "196"))
    # Three layers: 65 three times is 195.
    assert solver(DEMO_MODEL).solve(parse_method("dhtm"), Budget("k", "65")).schedule.steps[-1].n_out == 1
    with pytest.raises(InputError, match="k=66 is too many at reduction 3 of 3: 64 patch tokens"):
        solver(DEMO_MODEL).solve(parse_method("dhtm"), Budget("k", "66"))


def test_k_above_the_half_that_a_pass_can_pair_is_refused_for_lotm() -> None:
    least = parse_method("lotm").build().fewest(196, (14, 14))
    assert 1 < least < 196
    assert solver(DEMO_MODEL).solve(parse_method("lotm:layers=3"), Budget("k", str(196 - least)))
    with pytest.raises(InputError, match=f"at least {least} must stay"):
        solver(DEMO_MODEL).solve(parse_method("lotm:layers=3"), Budget("k", str(197 - least)))


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("tome", Budget("k", "8"), r"tome has no knob 'k' \(its own is --r\); use --budgets or --gflops"),
        ("dhtm", Budget("r", "8"), r"dhtm has no knob 'r' \(its own is --k\)"),
        ("tome:staged=on", Budget("r", "8"), r"has no knob 'r' \(its own is --keep-rate\)"),
        ("dhtm", Budget("k", "-1"), "--k '-1' is no count"),
        ("dhtm", Budget("k", "1.5"), "--k '1.5' is no count"),
        ("dhtm", Budget("k", ""), "--k '' is no count"),
        ("dhtm", Budget("k", "40/40"), "k lists 2 values for 3 reduction layers; give one, or 3"),
        ("tome", Budget("r", "/".join("1" * 13)), "r lists 13 values for 12 blocks"),
        ("dpc_knn", Budget("keep_rate", "1.1"), "--keep-rate '1.1' is no keep rate"),
        ("dpc_knn", Budget("keep_rate", "nan"), "is no keep rate"),
        ("dpc_knn", Budget("keep_rate", "0.1"), "keep_rate=0.1 leaves 0 of 1 patch tokens at stage 3"),
    ],
)
def test_knobs_that_do_not_fit(method: str, budget: Budget, message: str) -> None:
    with pytest.raises(InputError, match=message):
        solver(DEMO_MODEL).solve(parse_method(method), budget)


def test_a_short_list_of_r_stops_early_and_says_so() -> None:
    found = solver(DEMO_MODEL).solve(parse_method("tome"), Budget("r", "5/5"))
    assert [step.n_out for step in found.schedule.steps] == [191, 186]
    assert found.knob == "r=5/5"


# --- budgets as given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "-0.1", "1.0001", "70", "nan", "inf", "-inf"])
def test_fractions_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match=f"budget {text} is out of range; give the fraction .* above 0 and at most 1"):
        Budget("fraction", text)


@pytest.mark.parametrize("text", ["0", "-3", "nan", "inf"])
def test_gflops_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match=f"--gflops {text} is no budget"):
        Budget("gflops", text)


def test_text_that_is_no_number() -> None:
    with pytest.raises(InputError, match=r"budget 'half' is no number; write for instance 0.7"):
        Budget("fraction", "half")


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget("fraction", "0.70"), "0.7"),
        (Budget("gflops", "3.260"), "3.26 GFLOPs"),
        (Budget("k", "41/41/40"), "k=41/41/40"),
        (Budget("keep_rate", "0.7"), "keep_rate=0.7"),
    ],
)
def test_budgets_as_recorded(budget: Budget, text: str) -> None:
    assert budget.recorded == text


# --- plan -------------------------------------------------------------------------------------------------------------


def loaded(fingerprint: str = "0") -> LoadedModel:
    return LoadedModel(model(DEMO_MODEL), DEMO_MODEL, "embedded", fingerprint, {})


def test_random_methods_get_a_point_for_each_seed() -> None:
    points = plan(loaded(), [parse_method("dhtm"), parse_method("random")], [Budget("fraction", "0.7")], 3, 5)
    drawn = [point for point in points if point.method is not None and point.method.name == "random"]
    assert [point.seed for point in drawn] == [5, 6, 7]
    assert len(points) == 5
    assert UNREDUCED in points[0].id
    assert len({point.id for point in points}) == 5


def test_random_methods_that_remove_nothing_draw_nothing() -> None:
    points = plan(loaded(), [parse_method("random")], [Budget("fraction", "1"), Budget("k", "0")], 3, 0)
    assert len(points) == 3


def test_identifiers_change_with_whatever_decides_the_outcome() -> None:
    dhtm, budget = parse_method("dhtm"), Budget("fraction", "0.7")
    ids = [
        plan(model_, [method], [budget_], 1, seed)[-1].id
        for model_, method, budget_, seed in (
            (loaded(), dhtm, budget, 0),
            (loaded("1"), dhtm, budget, 0),
            (loaded(), parse_method("dhtm:averaging=plain"), budget, 0),
            (loaded(), parse_method("dhtm:layers=all"), budget, 0),
            (loaded(), dhtm, Budget("fraction", "0.6"), 0),
            (loaded(), parse_method("random"), budget, 0),
            (loaded(), parse_method("random"), budget, 1),
        )
    ]
    assert len(set(ids)) == len(ids)
    assert ids[0] == plan(loaded(), [dhtm], [budget], 1, 0)[-1].id


def test_identifiers_of_what_draws_nothing_do_not_change_with_the_seed() -> None:
    points = [plan(loaded(), [parse_method("dhtm")], [Budget("fraction", "0.7")], 2, seed) for seed in (0, 1)]
    assert [point.id for point in points[0]] == [point.id for point in points[1]]


def test_a_budget_beyond_every_method_is_refused_and_one_beyond_some_is_kept_as_a_row() -> None:
    staged = parse_method("tome:staged=on")
    with pytest.raises(InputError, match=r"no method reaches budget 0.2 .* the nearest that tome:staged=true can do"):
        plan(loaded(), [staged], [Budget("fraction", "0.2")], 1, 0)
    points = plan(loaded(), [staged, parse_method("dhtm:layers=0")], [Budget("fraction", "0.2")], 1, 0)
    assert [point.solution is None for point in points] == [False, True, False]
    assert "nearest" in points[1].reason


# --- attach -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return build_model(TINY).eval()


@pytest.mark.parametrize(
    ("method", "budget", "left"),
    [
        ("dhtm", {"k": 10}, 19),
        ("dhtm", {"k": "10/9/8"}, 22),
        ("dhtm:layers=all", {"k": 2}, 25),
        ("tome", {"r": 2}, 25),
        ("dpc_knn", {"keep_rate": 0.5}, 6),
        ("lotm", {"budget": 0.5}, None),
        ("random", {"gflops": 0.001457}, None),
    ],
)
def test_attach_leaves_the_tokens_asked_for(
    small: nn.Module, method: str, budget: dict[str, Any], left: int | None
) -> None:
    reduced = attach(small, method, **budget)
    assert isinstance(reduced, ReducedViT)
    assert reduced(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    source = reduced.source
    assert source is not None
    if left is not None:
        assert source.n_out == left
    assert reduced.detach() is small


def test_the_example_of_the_docstring() -> None:
    network = timm.create_model(DEITS[0], pretrained=False).eval()
    reduced = attach(network, "dhtm", k=40)
    with torch.inference_mode():
        logits = reduced(torch.randn(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    assert reduced.schedule.mlp_tokens() == [197] * 3 + [157] * 3 + [117] * 4 + [77] * 2


@pytest.mark.parametrize("given_", [{}, {"budget": 0.7, "k": 40}, {"r": 8, "keep_rate": 0.7}])
def test_attach_wants_exactly_one_budget(small: nn.Module, given_: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give exactly one of budget=, gflops=, k=, r= and keep_rate="):
        attach(small, "dhtm", **given_)


def test_attach_takes_zero_for_a_budget(small: nn.Module) -> None:
    images = torch.randn(2, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(attach(small, "dhtm", k=0)(images), small(images))


def test_attach_says_what_does_not_fit(small: nn.Module) -> None:
    with pytest.raises(InputError, match="unknown method 'dhmt'"):
        attach(small, "dhmt", k=1)
    with pytest.raises(InputError, match="ResNet is not supported"):
        attach(timm.create_model("resnet18"), "dhtm", k=1)
    with pytest.raises(Unreachable, match="nearest"):
        attach(small, "tome:staged=on", budget=0.1)


def test_attach_keeps_the_mode_and_draws_by_seed(small: nn.Module) -> None:
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, again, other = (attach(small, "random", k=14, seed=seed)(images) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert attach(build_model(TINY).train(), "dhtm", k=1).training
    assert not attach(small, "dhtm", k=1).training
