"""The training track: recipes, augmentation, and a toy problem learnt in seconds."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import own_classes
from safetensors.torch import load_file
from sweeping import save_image

from tokenmerge_bench.augment import Augment, normalize, pad_crop, random_erase, random_hflip
from tokenmerge_bench.data import ArrayImages
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import DEMO_MODEL, load_model
from tokenmerge_bench.train import CurveRow, Recipe, open_training_set, read_recipe, train

CPU = torch.device("cpu")
TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 7}
RECIPE: dict[str, Any] = {
    "model": DEMO_MODEL,
    "model_kwargs": TINY,
    "epochs": 2,
    "batch_size": 32,
    "lr": 3e-3,
    "holdout": 40,
    "ema_decay": 0.9,
}


class Silent:
    """Keeps the rows that a reporter is told of."""

    def __init__(self) -> None:
        self.rows: list[CurveRow] = []
        self.closed = False

    def start(self, epochs: int) -> None:
        self.epochs = epochs

    def epoch(self, row: CurveRow) -> None:
        self.rows.append(row)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def toy() -> ArrayImages:
    """360 noisy images of four textures: flat, columns, rows, checks."""
    rng = np.random.default_rng(0)
    labels = np.arange(360, dtype=np.int64) % 4
    pixels = rng.integers(0, 120, (360, 28, 28), dtype=np.uint8)
    row, column = np.indices((28, 28))
    textures = np.stack([0 * row, column % 2, row % 2, (row + column) % 2]).astype(np.uint8)
    pixels += 120 * textures[labels]
    return ArrayImages.of("toy", pixels, labels, 4)


def run(toy: ArrayImages, out: Path, **changes: Any) -> dict[str, Any]:
    return train(Recipe(**{**RECIPE, **changes}), toy, out, CPU, 0, Silent())


def test_a_learnable_problem_is_learnt_and_the_files_are_whole(toy: ArrayImages, tmp_path: Path) -> None:
    reporter = Silent()
    card = train(Recipe(**{**RECIPE, "epochs": 10, "lr": 1e-2}), toy, tmp_path / "out", CPU, 0, reporter)
    assert reporter.closed
    losses = [row.train_loss for row in reporter.rows]
    assert losses[-1] < 0.5 * losses[0]
    assert card["holdout_top1"] > 60  # chance is 25
    assert json.loads((tmp_path / "out" / "card.json").read_text()) == card
    assert card["data"] == {"name": "toy", "images": 360, "fingerprint": toy.fingerprint}
    with (tmp_path / "out" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 11)]
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "holdout_top1", "holdout_top1_ema", "seconds"]
    assert float(rows[-1]["holdout_top1_ema"]) == pytest.approx(card["holdout_top1"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "card.json",
        "curve.csv",
        "weights.safetensors",
    ]


def test_weights_are_half_precision_and_load_back_strictly(toy: ArrayImages, tmp_path: Path) -> None:
    run(toy, tmp_path)
    path = tmp_path / "weights.safetensors"
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    loaded = load_model(DEMO_MODEL, path, device=CPU, model_kwargs=TINY)
    assert loaded.model(torch.zeros(1, 1, 28, 28)).shape == (1, 4)


FULL = {
    "pad": 2,
    "hflip": 0.5,
    "erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "drop_path": 0.1,
}


@pytest.mark.parametrize("changes", [FULL, {"auto_augment": "rand-m5-mstd0.5", "crop_scale": (0.6, 1.0)}])
def test_the_same_seed_gives_the_same_weights(toy: ArrayImages, tmp_path: Path, changes: dict[str, Any]) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(toy, tmp_path / name, epochs=1, seed=seed, **changes)
    a, b, c = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_images_the_model_does_not_take_as_they_are_go_through_timms_transform(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(96, dtype=np.int64) % 2
    pixels = (labels[:, None, None, None] * 150 + rng.integers(0, 100, (96, 32, 40, 3))).astype(np.uint8)
    images = ArrayImages.of("rgb", pixels, labels, 2)
    card = run(images, tmp_path, epochs=4, holdout=16, batch_size=16)
    assert card["holdout_top1"] > 90


def test_without_an_average_or_holdout_the_columns_are_empty(toy: ArrayImages, tmp_path: Path) -> None:
    card = run(toy, tmp_path, epochs=1, holdout=0, ema_decay=0.0)
    assert card["holdout_top1"] is None
    assert card["weights"] == "last epoch"
    assert (tmp_path / "curve.csv").read_text().splitlines()[1].split(",")[3:5] == ["", ""]


def test_the_learning_rate_warms_up_and_falls(toy: ArrayImages, tmp_path: Path) -> None:
    reporter = Silent()
    recipe = Recipe(**{**RECIPE, "epochs": 5, "warmup_epochs": 2, "warmup_lr": 1e-5, "min_lr": 1e-4})
    train(recipe, toy, tmp_path, CPU, 0, reporter)
    lrs = [row.lr for row in reporter.rows]
    assert lrs[0] == pytest.approx(1e-5)
    assert lrs[0] < lrs[1] < lrs[2]
    assert lrs[2] > lrs[3] > lrs[4] > 1e-4


def test_divergence_stops_with_a_clear_message(toy: ArrayImages, tmp_path: Path) -> None:
    reporter = Silent()
    with pytest.raises(InputError, match=r"diverged: the loss is \w+ in epoch \d"):
        train(Recipe(**{**RECIPE, "opt": "sgd", "lr": 1e12, "epochs": 3}), toy, tmp_path, CPU, 0, reporter)
    assert reporter.closed
    assert not (tmp_path / "weights.safetensors").exists()


def test_an_earlier_run_is_not_overwritten(toy: ArrayImages, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(InputError, match=r"already holds card.json"):
        run(toy, tmp_path)
    assert (tmp_path / "card.json").read_text() == "{}"


def test_too_few_images_are_refused(toy: ArrayImages, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"360 training images of 'toy' are too few for holdout 340"):
        run(toy, tmp_path, holdout=340)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "deit_micro_patch2_82"}, f"did you mean '{DEMO_MODEL}'"),
        ({"model_kwargs": {"embed_dmi": 16}}, "embed_dmi"),
        ({"opt": "adamq"}, "optimizer 'adamq' .*did you mean"),
    ],
)
def test_what_timm_does_not_know_is_named(
    toy: ArrayImages, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(toy, tmp_path, **changes)


def test_the_card_names_no_absolute_path(toy: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "tmbench"), "train", "--out", str(tmp_path / "o"), "x=1"])
    assert run(toy, tmp_path / "o", epochs=1)["command"] == "tmbench train --out o x=1"


def test_lines_are_reported_where_stderr_is_no_terminal(
    toy: ArrayImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Recipe(**RECIPE), toy, tmp_path, CPU, 0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2, ")
    assert "averaged" in lines[0]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


GOOD = 'model = "m"\nepochs = 3\nbatch_size = 4\nlr = 1e-3\n'


def test_the_shipped_recipe_reads_and_overrides_apply(tmp_path: Path) -> None:
    assert read_recipe("demo").model == DEMO_MODEL
    changed = read_recipe("demo", ["epochs=30", "model_kwargs.embed_dim=96", "amp=none", "crop_scale=[0.5, 1.0]"])
    assert (changed.epochs, changed.model_kwargs, changed.amp) == (30, {"weight_init": "jax", "embed_dim": 96}, "none")
    assert changed.crop_scale == (0.5, 1.0)
    assert read_recipe(write(tmp_path / "r.toml", GOOD)).lr == 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "epohcs = 3\n", r"unknown key 'epohcs' \(did you mean 'epochs'\?\)"),
        (GOOD.replace("epochs = 3\n", ""), "the key 'epochs' is missing"),
        (GOOD + "erasing = 1.5\n", "'erasing': .* got 1.5"),
        (GOOD + "warmup_epochs = 3\n", r"warmup_epochs \(3\) must be less than epochs \(3\)"),
        (GOOD.replace("4", "5") + "mixup = 0.1\n", r"batch_size \(5\) must be even"),
        (GOOD + "model_kwargs = {num_classes = 3}\n", "must not set num_classes"),
        (GOOD + "lr = \n", "no valid TOML"),
    ],
)
def test_bad_recipes_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recipe(write(tmp_path / "r.toml", text))


def test_missing_recipes_and_bad_overrides_are_explained() -> None:
    with pytest.raises(InputError, match=r"no recipe 'dmeo'.*demo"):
        read_recipe("dmeo")
    with pytest.raises(InputError, match="must read key=value"):
        read_recipe("demo", ["epochs"])
    with pytest.raises(InputError, match="'lr' is a plain value"):
        read_recipe("demo", ["lr.max=3"])


def test_a_test_set_is_not_trained_on() -> None:
    with pytest.raises(InputError, match="'demo' is a test set"):
        open_training_set("demo")


def test_training_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .* to train on"):
        open_training_set(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no images in dataset folder"):
        open_training_set(str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").touch()
    with pytest.raises(InputError, match="no Fashion-MNIST training files"):
        open_training_set(str(tmp_path))


def test_validation_images_beside_training_images_are_not_trained_on(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "val")):
        save_image(tmp_path / part / "n01440764" / f"{part}.png", seed=number)
    assert open_training_set(str(tmp_path)).paths == ["n01440764/train.png"]


@pytest.mark.parametrize("name", ["train", "training"])
def test_the_training_split_is_found_by_its_synonyms(tmp_path: Path, name: str) -> None:
    own_classes(tmp_path / name, ["ants", "bees"])
    own_classes(tmp_path / "validation", ["ants"])
    (tmp_path / "devkit").mkdir()  # no split, and no class either: it holds no images
    images = open_training_set(str(tmp_path))
    assert (images.name, images.classes) == (name, 2)


def test_splits_without_a_training_one_are_not_trained_on(tmp_path: Path) -> None:
    own_classes(tmp_path / "val")
    own_classes(tmp_path / "test")
    with pytest.raises(InputError, match=r"holds test, val but no training images: put them in a folder train/"):
        open_training_set(str(tmp_path))


def test_a_class_named_as_a_split_is_trained_on_as_a_class(tmp_path: Path) -> None:
    images = open_training_set(str(own_classes(tmp_path, ["bus", "car", "train"])))
    assert (images.classes, len(images)) == (3, 6)


def test_every_image_is_shifted_on_its_own_and_nothing_is_invented() -> None:
    images = torch.zeros(64, 2, 9, 7, dtype=torch.uint8)
    images[:, :, 4, 3] = torch.tensor([5, 9], dtype=torch.uint8)
    shifted = pad_crop(images, 2, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape
    where = shifted[:, 0].flatten(1).argmax(1)
    rows, columns = where // 7, where % 7
    assert set(rows.tolist()) == {2, 3, 4, 5, 6}
    assert set(columns.tolist()) == {1, 2, 3, 4, 5}
    assert shifted[:, 1].flatten(1).argmax(1).equal(where)  # channels move together
    assert (shifted.sum((2, 3)) == torch.tensor([5, 9])).all()


def test_pad_crop_of_nothing_and_less() -> None:
    images = torch.rand(2, 1, 3, 3)
    assert pad_crop(images, 0).equal(images)
    with pytest.raises(ValueError, match="must not be negative"):
        pad_crop(images, -1)


def test_flips_mirror_the_share_of_images_asked_for() -> None:
    images = torch.arange(3.0).expand(1000, 1, 2, 3)
    flipped = random_hflip(images, 0.3, torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == images).flatten(1).all(1)).all()
    assert 250 < int(mirrored.sum()) < 350
    assert random_hflip(images, 1.0).equal(images.flip(-1))
    assert random_hflip(images, 0.0).equal(images)


def test_normalize_uses_each_channels_own_numbers() -> None:
    images = torch.full((1, 2, 1, 1), 255, dtype=torch.uint8)
    assert normalize(images, (0.5, 0.2), (0.25, 0.4)).flatten().tolist() == pytest.approx([2.0, 2.0])


def test_boxes_are_erased_from_the_share_of_images_asked_for() -> None:
    images = torch.zeros(2000, 2, 24, 30)
    erased = random_erase(images, 0.4, torch.Generator().manual_seed(0)) != 0
    assert erased[:, 0].equal(erased[:, 1])  # all channels
    rows, columns = erased[:, 0].any(2), erased[:, 0].any(1)
    assert (rows[:, :, None] & columns[:, None, :]).equal(erased[:, 0])  # what is erased is rows x columns
    for span in (rows, columns):
        assert (span.diff(dim=1).sum(1) <= 2).all()  # of one run each
        assert (span.float().mean(0) > 0.01).all()  # which reaches every pixel
    shares = erased[:, 0].float().mean((1, 2))
    hit = shares > 0
    assert 700 < int(hit.sum()) < 900
    assert 0.01 < shares[hit].min() < 0.05
    assert 0.30 < shares.max() < 0.36
    assert shares[hit].mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert random_erase(images, 0.0) is images


def test_augment_leaves_its_input_alone_and_erases_when_asked() -> None:
    images = torch.full((8, 1, 28, 28), 128, dtype=torch.uint8)
    kept = images.clone()
    config: dict[str, object] = {"mean": (0.5,), "std": (0.5,)}
    generator = torch.Generator().manual_seed(0)
    plain = Augment(config, pad=0, hflip=0.5, erasing=0.0, generator=generator)(images)
    erased = Augment(config, pad=0, hflip=0.5, erasing=1.0, generator=generator)(images)
    assert images.equal(kept)
    assert (plain == plain[0, 0, 0, 0]).all()
    assert (erased != plain).flatten(1).any(1).all()
