"""Faults that a reader of the code found once, and that must not come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tokenmerge_bench.budgets import Budget, Solver, attach
from tokenmerge_bench.counting import count
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.experiment import load_experiment
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.reduced_vit import geometry
from tokenmerge_bench.store import ResultFolder

EVALUATION = {"dataset": "demo 0", "code of mine": "a"}


@pytest.fixture
def model() -> VisionTransformer:
    return VisionTransformer(img_size=14, patch_size=2, embed_dim=32, depth=12, num_heads=2, num_classes=5).eval()


def test_counting_leaves_the_source_map_of_the_last_pass(model: VisionTransformer) -> None:
    reduced = attach(model, "dhtm", k=5)
    reduced(torch.randn(3, 3, 14, 14))
    before = reduced.source.owner().clone()
    count(reduced)
    assert before.shape == (3, 49)
    assert torch.equal(reduced.source.owner(), before)


def test_frozen_blocks_stay_frozen_when_attached(model: VisionTransformer) -> None:
    model.train()
    model.blocks[0].eval()
    attach(model, "dhtm", k=5)
    assert not model.blocks[0].training
    assert model.blocks[1].training


def test_attention_pooling_is_refused() -> None:
    pooled = VisionTransformer(img_size=14, patch_size=2, embed_dim=32, depth=1, num_heads=2, global_pool="map")
    with pytest.raises(InputError, match="global_pool='map'"):
        geometry(pooled)


@pytest.mark.parametrize("method", ["dhtm", "tome", "dpc_knn", "k_medoids", "lotm"])
def test_half_a_percent_is_kept_on_few_tokens_too(method: str) -> None:
    few = VisionTransformer(img_size=224, patch_size=32, embed_dim=192, depth=12, num_heads=3)
    solver = Solver(few)
    for percent in range(95, 49, -5):
        budget = Budget("fraction", str(percent / 100))
        achieved = solver.solve(parse_method(method), budget).macs.total / solver.unreduced.total
        assert abs(achieved - percent / 100) <= 0.005 * percent / 100


def test_words_for_switches_are_no_numbers() -> None:
    with pytest.raises(InputError, match="k=on"):
        parse_method("dpc_knn:k=on")
    with pytest.raises(InputError, match="noise=nan"):
        parse_method("dpc_knn:noise=nan")


def test_noise_makes_a_method_stochastic() -> None:
    assert parse_method("dpc_knn:noise=1e-6").build().stochastic
    assert not parse_method("dpc_knn").build().stochastic


def test_edited_code_is_another_experiment_and_a_new_method_is_not(tmp_path: Path) -> None:
    points = {"p": "a point"}
    ResultFolder(tmp_path, EVALUATION, points).close()
    ResultFolder(tmp_path, {**EVALUATION, "code of other": "b"}, {**points, "q": "another"}).close()
    with pytest.raises(InputError, match="code of mine was a, now c"):
        ResultFolder(tmp_path, {**EVALUATION, "code of mine": "c"}, points)


def test_a_kill_during_fresh_leaves_a_usable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ResultFolder(tmp_path, EVALUATION, {"p": "a point"}).close()
    with monkeypatch.context() as patch:
        patch.setattr("tokenmerge_bench.store.write_text", _killed)
        with pytest.raises(KeyboardInterrupt):
            ResultFolder(tmp_path, EVALUATION, {"q": "another"}, fresh=True)
    ResultFolder(tmp_path, EVALUATION, {"q": "another"}, fresh=True).close()


def _killed(path: Path, text: str) -> None:
    raise KeyboardInterrupt


def test_a_knob_selects_the_methods_that_have_it() -> None:
    assert load_experiment("demo", k=["40"]).methods == ["dhtm", "lotm", "random"]
    assert load_experiment("demo", keep_rate=["0.7"]).methods == ["dpc_knn", "k_medoids"]


def test_equal_budgets_are_one() -> None:
    assert len(load_experiment("demo", budgets=[0.7, 0.7000001]).all_budgets()) == 1
