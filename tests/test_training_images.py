"""Where training takes its images from: which folders, which images of an epoch, and what becomes of broken ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import own_classes
from sweeping import save_image
from toy_training import ALONE, RECIPE, Silent, files_of, run, save_textures, task, textures

from tokenmerge_bench.data import ArrayImages, ImageSet
from tokenmerge_bench.distributed import Team
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.recipe import Recipe
from tokenmerge_bench.training_images import Source, divide, open_source, open_training_set

CONFIG: dict[str, Any] = {
    "input_size": (1, 28, 28),
    "crop_pct": 1.0,
    "mean": (0.0,),
    "std": (1 / 255,),  # so that pixels are the stored bytes
    "interpolation": "bilinear",
}
LARGE = 66
"""Pixels a side of images that are not kept in memory."""
TWO = [Team(torch.device("cpu"), rank, 2) for rank in range(2)]


def marked(count: int = 40, side: int = 28) -> ArrayImages:
    """Images that are their own index all over."""
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, side, side)).copy()
    return ArrayImages.of("marked", pixels, np.arange(count, dtype=np.int64) % 4, 4)


def source(images: ImageSet, team: Team = ALONE, workers: int = 0, **changes: Any) -> Source:
    recipe = Recipe(**{**RECIPE, "batch_size": 8, "holdout": 0, **changes})
    return open_source(images, divide(images, recipe), recipe, CONFIG, team, workers)


def seen(of: Source, epoch: int = 1) -> list[list[int]]:
    """The marks of the images of an epoch, micro-batch by micro-batch."""
    return [micro.pixels[:, 0, 14, 14].round().long().tolist() for micro in of.micros(epoch)]


def flat(parts: Iterable[list[int]]) -> list[int]:
    return [mark for part in parts for mark in part]


def pixels(of: Source, epoch: int = 1) -> torch.Tensor:
    return torch.cat([micro.pixels for micro in of.micros(epoch)])


# --- which folders are trained on -------------------------------------------------------------------------------------


def test_a_test_set_is_not_trained_on() -> None:
    with pytest.raises(InputError, match="'demo' is a test set"):
        open_training_set("demo")


def test_folders_without_training_images_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .* to train on"):
        open_training_set(str(tmp_path / "nowhere"))
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no images in dataset folder"):
        open_training_set(str(tmp_path / "train"))
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
    own_classes(tmp_path / "validation", ["ants", "bees"])
    (tmp_path / "devkit").mkdir()  # no split, and no class either: it holds no images
    for given in (tmp_path, tmp_path / name):
        images = open_training_set(str(given))
        assert (images.name, images.classes) == (name, 2)


def test_a_development_kit_beside_the_splits_is_no_split(tmp_path: Path) -> None:
    for part in ("train", "val"):
        own_classes(tmp_path / part, ["ants", "bees"])
    (tmp_path / "devkit" / "data").mkdir(parents=True)
    assert open_training_set(str(tmp_path)).classes == 2


def test_images_of_one_class_are_refused(tmp_path: Path) -> None:
    own_classes(tmp_path / "train", ["ants"])
    with pytest.raises(InputError, match="has images of one class, and nothing to tell apart"):
        open_training_set(str(tmp_path / "train"))


def test_splits_without_a_training_one_are_not_trained_on(tmp_path: Path) -> None:
    own_classes(tmp_path / "val")
    with pytest.raises(InputError, match=r"holds val but no training images: put them in a folder train/"):
        open_training_set(str(tmp_path))
    own_classes(tmp_path / "test")
    with pytest.raises(InputError, match=r"holds test, val but no training images: put them in a folder train/"):
        open_training_set(str(tmp_path))


@pytest.mark.parametrize("classes", [["ants", "bees"], ["bus", "car", "train"]])
def test_a_folder_that_is_not_divided_might_be_a_test_set(tmp_path: Path, classes: list[str]) -> None:
    with pytest.raises(InputError, match=r"not divided into train/ and val/, so that it might be a test set"):
        open_training_set(str(own_classes(tmp_path / "photographs", classes)))


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["ants", "bees"], ["ants"], r"train/ has the class 'bees', which val/ lacks \(1 such in all\)"),
        (["ants"], ["ants", "bees", "cats"], r"val/ has the class 'bees', which train/ lacks \(2 such in all\)"),
    ],
)
def test_splits_whose_classes_differ_are_refused(
    tmp_path: Path, train: list[str], val: list[str], message: str
) -> None:
    own_classes(tmp_path / "train", train)
    own_classes(tmp_path / "val", val)
    for given in (tmp_path, tmp_path / "train"):
        with pytest.raises(InputError, match=message):
            open_training_set(str(given))


def test_a_validation_split_without_some_classes_of_imagenet_is_no_mistake(tmp_path: Path) -> None:
    own_classes(tmp_path / "train", ["n01440764", "n01443537"])
    own_classes(tmp_path / "val", ["n01440764"])
    assert open_training_set(str(tmp_path)).classes == 1000


# --- which images an epoch has ----------------------------------------------------------------------------------------


def test_an_epoch_has_every_image_once_and_another_order_each_time() -> None:
    held = source(marked(), holdout=4)
    first, second = seen(held, 1), seen(held, 2)
    assert [len(micro) for micro in first] == [8] * held.updates == [8] * 4  # a rest of 4 is left out
    assert first != second
    trained = flat(first)
    assert len(set(trained)) == 32
    assert set(trained) <= set(held.split.train.tolist())


def test_the_images_held_out_are_of_every_class_and_never_trained_on() -> None:
    held = source(marked(), holdout=8)
    (micro,) = held.holdout()
    out = micro.pixels[:, 0, 0, 0].long().tolist()
    assert out == held.split.holdout.tolist() == micro.ids.tolist()
    assert sorted(mark % 4 for mark in out) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not any(set(out) & set(flat(seen(held, epoch))) for epoch in range(5))


@pytest.mark.parametrize("side", [28, 30])
def test_nothing_held_out_is_no_batch(side: int) -> None:
    assert list(source(marked(side=side)).holdout()) == []


@pytest.mark.parametrize("side", [28, 30])
def test_the_processes_of_a_team_share_an_epoch_and_what_is_held_out(side: int) -> None:
    images = marked(side=side)
    alone, shared = source(images, holdout=5), [source(images, team, holdout=5) for team in TWO]
    for whole, *halves in zip(seen(alone), *map(seen, shared), strict=True):
        assert [len(half) for half in halves] == [4, 4]
        assert sorted(flat(halves)) == sorted(whole)
    parts = [torch.cat([micro.ids for micro in part.holdout()]).tolist() for part in shared]
    assert sorted(flat(parts)) == alone.split.holdout.tolist()
    assert sorted(map(len, parts)) == [2, 3]


def test_repeated_augmentation_shows_fewer_images_in_several_views_of_one_batch() -> None:
    views = flat(seen(source(marked(), batch_size=20, repeats=3)))
    counts = {mark: views.count(mark) for mark in views}
    assert len(views) == 40
    assert sorted(counts.values()) == [1, *[3] * 13]
    once = source(textures(40), batch_size=20, repeats=3, pad=3)
    same = once._order(1)[:3]
    assert len(set(same.tolist())) == 1
    three = pixels(once)[:3]
    assert not three[0].equal(three[1])


def test_a_batch_comes_in_equal_parts_that_are_no_larger_than_asked_for() -> None:
    assert [source(marked(), micro_batch_size=most).micro for most in (0, 1, 2, 3, 5, 8, 99)] == [8, 1, 2, 2, 4, 8, 8]
    assert source(marked(), TWO[0], micro_batch_size=3).micro == 2
    assert source(marked(), batch_size=6, mixup=0.5, micro_batch_size=3).micro == 2  # mixup needs pairs


@pytest.mark.parametrize(
    ("team", "changes"),
    [
        (TWO[0], {"batch_size": 7}),
        (ALONE, {"mixup": 0.5, "micro_batch_size": 1}),
        (TWO[0], {"batch_size": 6, "mixup": 1}),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(team: Team, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"cannot be shared equally by \d processes .*change batch_size"):
        source(marked(), team, **changes)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"40 training images of 'marked' are too few for holdout 33"):
        source(marked(), holdout=33)


# --- how they look ----------------------------------------------------------------------------------------------------


def test_small_files_are_decoded_once_and_look_as_from_memory(tmp_path: Path) -> None:
    root = save_textures(tmp_path / "train", 24)
    files = open_training_set(str(root))
    memory = ArrayImages.of("toy", np.stack([np.asarray(files.load(i)) for i in range(24)]), files.labels, 4)
    held = source(files, pad=2)
    assert pixels(held).equal(pixels(source(memory, pad=2)))
    for path in root.rglob("*.png"):
        path.unlink()
    assert len(pixels(held, 2)) == 24


@pytest.mark.parametrize("changes", [{}, {"auto_augment": "rand-m9-mstd0.5-inc1", "crop_scale": (0.3, 1.0)}])
def test_what_an_epoch_sees_does_not_hang_on_the_number_of_workers(changes: dict[str, Any]) -> None:
    images = textures(24, side=32)
    none, two = (source(images, workers=workers, hflip=0.5, **changes) for workers in (0, 2))
    for epoch in (1, 2):
        assert pixels(none, epoch).equal(pixels(two, epoch))
    assert not pixels(none, 1).equal(pixels(none, 2))


def test_decoding_leaves_the_random_numbers_of_training_alone() -> None:
    """Without workers it is done between updates, which draw for mixup and drop path."""

    def drawn() -> tuple[float, float]:
        # Not Python's own: beartype, which checks shapes in the tests, draws from them.
        return float(np.random.random()), float(torch.rand(()))  # noqa: NPY002 - as timm does

    def seed() -> None:
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)

    held = source(textures(24, side=32), auto_augment="rand-m9-mstd0.5-inc1", crop_scale=(0.3, 1.0))
    seed()
    undisturbed = [drawn() for _ in range(3)]
    seed()
    assert [drawn() for _ in zip(range(3), held.micros(1), strict=False)] == undisturbed


def test_training_crops_where_evaluation_does() -> None:
    """With a crop_pct of less than 1, images are made larger than what the model takes, and cropped."""
    config = {**CONFIG, "crop_pct": 0.875}
    images = marked(16, side=32)
    images.pixels[:, :, :16] = 255
    recipe = Recipe(**{**RECIPE, "batch_size": 8, "holdout": 4})
    held = open_source(images, divide(images, recipe), recipe, config, ALONE, 0)
    columns = {int((image[0, 0] > 200).sum()) for image in pixels(held)}
    assert columns <= set(range(12, 17))
    assert len(columns) > 1
    ((middle,),) = [{int((image[0, 0] > 200).sum()) for image in micro.pixels} for micro in held.holdout()]
    assert middle == 14


def test_color_images_are_turned_grey_for_a_model_of_one_channel() -> None:
    grey = marked()
    color = ArrayImages.of("color", np.repeat(grey.pixels[..., None], 3, 3), grey.labels, grey.classes)
    assert pixels(source(color)).equal(pixels(source(grey)))


# --- images that cannot be decoded ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [28, LARGE])
def test_unreadable_images_are_left_out_and_recorded(tmp_path: Path, side: int) -> None:
    root = save_textures(tmp_path / "train", 40, side)
    (root / "rows" / "002.png").write_bytes(b"no image")
    reporter = Silent()
    card = run(open_training_set(str(root)), tmp_path / "out", reporter=reporter, epochs=1, batch_size=8, holdout=0)
    assert card.metrics["unreadable"] == ["rows/002.png"]
    assert reporter.notes == ["1 training images could not be decoded and were left out, such as 'rows/002.png'"]


def test_in_the_place_of_an_unreadable_image_stands_another_of_the_batch(tmp_path: Path) -> None:
    root = save_textures(tmp_path / "train", 16, LARGE)
    (root / "rows" / "002.png").write_bytes(b"no image")
    held = source(open_training_set(str(root)), batch_size=16)
    (micro,) = held.micros(1)
    assert len(micro.pixels.flatten(1).unique(dim=0)) == 15
    assert micro.pixels.flatten(1).std(1).min() > 5  # no blank one among them
    assert int((micro.labels < 0).sum()) == 0


def test_no_batch_is_made_of_held_out_images_that_cannot_be_decoded(tmp_path: Path) -> None:
    root = save_textures(tmp_path / "train", 24, LARGE)
    images = open_training_set(str(root))
    held = source(images, batch_size=8, micro_batch_size=2, holdout=8)
    broken = [images.paths[index] for index in held.split.holdout[2:5]]
    for path in broken:
        (root / path).write_bytes(b"no image")
    assert [len(micro.labels) for micro in held.holdout()] == [2, 1, 2]
    assert held.unreadable == set(broken)


def test_files_of_which_none_can_be_decoded_are_refused(tmp_path: Path) -> None:
    root = save_textures(tmp_path / "train", 16)
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of the 16 images of 'train' can be decoded"):
        run(open_training_set(str(root)), tmp_path / "out", batch_size=8, holdout=0)


def test_a_batch_of_which_no_image_can_be_decoded_is_refused(tmp_path: Path) -> None:
    root = save_textures(tmp_path / "train", 16, LARGE)
    for path in sorted(root.rglob("*.png"))[1:]:
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of 4 images in a row of 'train' can be decoded, such as '.*png'"):
        run(open_training_set(str(root)), tmp_path / "out", batch_size=4, holdout=0)


def test_too_few_images_that_can_be_decoded_are_refused(tmp_path: Path) -> None:
    root = save_textures(tmp_path / "train", 16)
    (root / "rows" / "002.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"only 15 images of 'train' to train on can be decoded"):
        run(open_training_set(str(root)), tmp_path / "out", batch_size=16, holdout=0)
    assert files_of(tmp_path / "out") == {"train.json"}
    # Nothing was finished there, so that the corrected command may use the folder.
    run(open_training_set(str(root)), tmp_path / "out", task(batch_size=8, holdout=0, epochs=1))
