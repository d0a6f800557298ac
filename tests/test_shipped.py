"""The trained checkpoints in the package are whole, small, and trained as the documents say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tokenmerge_bench
from tokenmerge_bench.budgets import Budget
from tokenmerge_bench.checkpoints import Checkpoint, shipped_checkpoints
from tokenmerge_bench.engine import attached
from tokenmerge_bench.models import DEMO_MODEL, load_model
from tokenmerge_bench.options import MethodSpec
from tokenmerge_bench.published import table2
from tokenmerge_bench.recipe import read_recipe
from tokenmerge_bench.trained import Places

CPU = torch.device("cpu")
SHIPPED = shipped_checkpoints(DEMO_MODEL)


def test_every_method_that_the_paper_trains_is_there_at_two_budgets() -> None:
    reported = table2()
    trained = set(reported.loc[reported["trained"] == "yes", "method"])
    wanted = {(method, budget) for method in trained for budget in ("0.5", "0.7")} | {("none", "1")}
    assert {(checkpoint.card.method, checkpoint.card.budget) for checkpoint in SHIPPED} == wanted


def test_all_weights_of_the_package_stay_under_25_mb() -> None:
    package = Path(tokenmerge_bench.__file__).parent
    assert 0 < sum(file.stat().st_size for file in package.rglob("*.safetensors")) < 25e6


def test_all_were_trained_alike_from_the_embedded_weights() -> None:
    embedded = load_model(DEMO_MODEL, device=CPU)
    recipe = read_recipe("demo_finetune").model_dump(mode="json")
    for checkpoint in SHIPPED:
        assert checkpoint.began_with(embedded.fingerprint)
        same = {key: value for key, value in checkpoint.card.recipe.items() if recipe[key] == value}
        assert same == checkpoint.card.recipe
        assert checkpoint.card.weights == "moving average, last epoch"


@pytest.mark.parametrize("checkpoint", SHIPPED, ids=lambda checkpoint: checkpoint.name)
def test_weights_are_those_of_the_card_and_fit_what_a_sweep_solves(checkpoint: Checkpoint) -> None:
    method: MethodSpec | None = checkpoint.method
    loaded, reducers = checkpoint.load(DEMO_MODEL, device=CPU)
    methods = [] if method is None else [method]
    places = Places(loaded.model, methods, [Budget("fraction", checkpoint.card.budget)]).of(checkpoint)
    assert [place.method for place in places] == [method]
    network = attached(loaded.model, places[0].point(loaded), reducers)
    logits = network(torch.zeros(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
