"""Training recipes: what ships, what overrides do, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import DEMO_MODEL
from tokenmerge_bench.recipe import Recipe, purpose, read_recipe, shipped_recipes

GOOD = 'model = "m"\nepochs = 3\nbatch_size = 4\nlr = 1e-3\n'


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_all_shipped_recipes_are_read() -> None:
    assert {"demo", "tokenreduction_30ep", "tome_from_scratch_300ep"} <= set(shipped_recipes())
    for name in shipped_recipes():
        assert read_recipe(name).model, name


def test_the_common_protocol_is_that_of_the_paper() -> None:
    recipe = read_recipe("tokenreduction_30ep")
    assert (recipe.init, recipe.keep, recipe.holdout) == ("pretrained", "last", 0)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.batch_size, recipe.peak_lr) == (30, 20, 1024, 1e-3)
    assert (recipe.mixup, recipe.cutmix, recipe.erasing, recipe.repeats) == (0.8, 1.0, 0.25, 3)


def test_overrides_replace_keys_and_nested_keys(tmp_path: Path) -> None:
    assert read_recipe("demo").model == DEMO_MODEL
    changed = read_recipe("demo", ["epochs=30", "model_kwargs.embed_dim=96", "amp=none", "crop_scale=[0.5, 1.0]"])
    assert (changed.epochs, changed.model_kwargs, changed.amp) == (30, {"weight_init": "jax", "embed_dim": 96}, "none")
    assert changed.crop_scale == (0.5, 1.0)
    assert read_recipe(write(tmp_path / "r.toml", GOOD)).lr == 1e-3


def test_what_a_recipe_sets_can_be_turned_off() -> None:
    changed = read_recipe("tokenreduction_30ep", ["crop_scale=none", "auto_augment=none"])
    assert (changed.crop_scale, changed.auto_augment) == (None, None)


def test_the_learning_rate_follows_the_batch_if_it_is_meant_for_another() -> None:
    assert Recipe(epochs=1, batch_size=1024, lr=5e-4).peak_lr == 5e-4
    assert Recipe(epochs=1, batch_size=1024, lr=5e-4, lr_batch_size=512).peak_lr == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "epohcs = 3\n", r"unknown key 'epohcs' \(did you mean 'epochs'\?\)"),
        (GOOD.replace("epochs = 3\n", ""), "the key 'epochs' is missing"),
        (GOOD + "erasing = 1.5\n", "'erasing': .* got 1.5"),
        (GOOD + 'init = "hub"\n', "'init': .* got 'hub'"),
        (GOOD + "warmup_epochs = 3\n", r"warmup_epochs \(3\) must be less than epochs \(3\)"),
        (GOOD.replace("4", "5") + "mixup = 0.1\n", r"batch_size \(5\) must be even"),
        (GOOD + 'keep = "best"\n', "keep = best chooses by held-out images, and holdout is 0"),
        (GOOD + "model_kwargs = {num_classes = 3}\n", "must not set num_classes"),
        (GOOD + "crop_scale = [1.0, 0.1]\n", r"crop_scale \[1\.0, 0\.1\] must be fractions"),
        (GOOD + "seed = -1\n", "'seed': .* got -1"),
        (GOOD + "lr = \n", "no valid TOML"),
    ],
)
def test_bad_recipes_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recipe(write(tmp_path / "r.toml", text))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("dmeo", [], r"no recipe 'dmeo' \(did you mean 'demo'\?\): .*tokenreduction_30ep"),
        ("demo", ["epochs"], "must read key=value"),
        ("demo", ["lr.max=3"], "'lr' is a plain value"),
        ("demo", ["epoch=3"], r"unknown key 'epoch' \(did you mean 'epochs'\?\)"),
    ],
)
def test_missing_recipes_and_bad_overrides_are_explained(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recipe(name, overrides)


def test_recipes_are_listed_with_what_they_are_for(tmbench: Command) -> None:
    done = tmbench("list", "recipes")
    assert (done.code, done.err) == (0, "")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines()]
    found = {row[0]: row[1:] for row in rows if row}
    for name in shipped_recipes():
        recipe = read_recipe(name)
        begins = {"scratch": "nothing", "pretrained": "pretrained weights"}[recipe.init]
        assert found[name] == [purpose(name), recipe.model, begins, str(recipe.epochs)]
    assert found["demo"][0] == "The demo model's recipe: Fashion-MNIST, light augmentation, long cosine schedule"
