"""Checkpoints: what is written is what is read, and card and weights that do not belong together are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sweeping import TINY, save_checkpoint, save_random_weights

from tokenmerge_bench import checkpoints
from tokenmerge_bench.budgets import Budget, Solver, reduce_with
from tokenmerge_bench.checkpoints import CARD, WEIGHTS, Checkpoint, load_weights, open_checkpoint, shipped_checkpoints
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import fingerprint
from tokenmerge_bench.reduced_vit import geometry

CPU = torch.device("cpu")


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    return save_checkpoint(tmp_path / "mine")


def change_card(checkpoint: Checkpoint, **changes: object) -> None:
    file = checkpoint.file.with_name(CARD)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# --- reading and writing ----------------------------------------------------------------------------------------------


def test_what_was_written_is_loaded(saved: Checkpoint) -> None:
    stored = load_file(saved.file)
    loaded, reducers = saved.load(TINY, device=CPU)
    assert (loaded.name, loaded.weights, loaded.fingerprint) == (TINY, "mine", fingerprint(loaded.model))
    for key, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[key].float()), key
    assert not loaded.model.training
    assert {f"reducers.{key}" for key in reducers} == {key for key in stored if key.startswith("reducers.")}
    method = saved.method
    assert method is not None
    solution = Solver(loaded.model).solve(method, Budget("keep_rate", "0.7"))
    assert solution.schedule.steps == saved.card.schedule_steps
    reduced = reduce_with(loaded.model, method, solution)
    reduced.reducers.load_state_dict(reducers, strict=True)


def test_options_and_layers_come_back(tmp_path: Path) -> None:
    card = save_checkpoint(tmp_path / "a", "dpc_knn:learned_weights=true:k=3:layers=2/4")
    assert card.method is not None
    assert card.method.label == "dpc_knn:k=3:learned_weights=true:layers=2/4"
    plain = save_checkpoint(tmp_path / "b", "dpc_knn")
    assert plain.method is not None
    assert plain.method.label == "dpc_knn"
    assert save_checkpoint(tmp_path / "c", "none").method is None


def test_a_checkpoint_is_a_folder_its_weights_or_a_pair_of_files(saved: Checkpoint, tmp_path: Path) -> None:
    shutil.copy(saved.file, tmp_path / "pair.safetensors")
    shutil.copy(saved.file.with_name(CARD), tmp_path / "pair.json")
    paths = [saved.file.parent, saved.file, tmp_path / "pair.safetensors"]
    found = [open_checkpoint(path) for path in paths]
    assert [checkpoint and checkpoint.name for checkpoint in found] == ["mine", "mine", "pair"]
    assert {checkpoint.card.fingerprint for checkpoint in found if checkpoint} == {saved.card.fingerprint}


def test_a_file_without_a_card_of_a_method_is_plain_weights(tmp_path: Path) -> None:
    file = save_random_weights(tmp_path / "plain.safetensors")
    assert open_checkpoint(file) is None
    (tmp_path / "plain.json").write_text(json.dumps({"model": TINY, "recipe": {}}))  # of an earlier version
    assert open_checkpoint(file) is None
    assert open_checkpoint(tmp_path / "none.pth") is None


def test_the_fingerprint_is_of_card_and_weights(tmp_path: Path) -> None:
    same = [save_checkpoint(tmp_path / name).card.fingerprint for name in "ab"]
    others = [
        save_checkpoint(tmp_path / "c", seed=1),
        save_checkpoint(tmp_path / "d", weights="moving average, last epoch"),
    ]
    assert same[0] == same[1]
    assert len({*same, *(other.card.fingerprint for other in others)}) == 3


def test_shipped_checkpoints_are_those_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_SHIPPED", tmp_path)
    assert shipped_checkpoints(TINY) == []
    for name, model in (("sit-0.7", TINY), ("other-0.7", "tiny_bright")):
        folder = save_checkpoint(tmp_path / "made", model=model).file.parent
        shutil.move(folder / WEIGHTS, tmp_path / f"{name}.safetensors")
        shutil.move(folder / CARD, tmp_path / f"{name}.json")
    (found,) = shipped_checkpoints(TINY)
    assert (found.name, found.card.method) == ("embedded:sit-0.7", "sit")
    found.read()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_weights_of_another_card_are_refused(saved: Checkpoint) -> None:
    state = load_file(saved.file)
    state["head.bias"] = state["head.bias"] + 1
    save_file(state, saved.file)
    with pytest.raises(InputError, match=r"and its card disagree: the card describes weights .* the file holds"):
        saved.load(TINY, device=CPU)


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_damaged_weights_are_refused(saved: Checkpoint, damage: bytes | None) -> None:
    saved.file.write_bytes(saved.file.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(InputError, match=r"weights\.safetensors' is no readable safetensors file"):
        saved.read()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"classes": "many"}, "classes"),
        ({"steps": [{"block": 1, "site": "post", "n_in": 2, "n_out": 1}]}, "steps.0.site"),
        ({"weights_fingerprint": None}, "weights_fingerprint"),
    ],
)
def test_a_card_of_another_version_is_refused(saved: Checkpoint, changes: dict[str, object], words: str) -> None:
    change_card(saved, **changes)
    with pytest.raises(InputError, match=rf"card.json' cannot be used \({words}.*another version"):
        open_checkpoint(saved.file.parent)


def test_a_damaged_card_is_refused(saved: Checkpoint) -> None:
    saved.file.with_name(CARD).write_text('{"method": "si')
    with pytest.raises(InputError, match=r"card '.*card\.json' cannot be read .*copy it again"):
        open_checkpoint(saved.file.parent)


def test_a_folder_that_training_did_not_finish_is_refused(saved: Checkpoint) -> None:
    saved.file.with_name(CARD).unlink()
    with pytest.raises(InputError, match=r"mine' holds no card\.json: give a folder that `tmbench train` finished"):
        open_checkpoint(saved.file.parent)


def test_a_card_of_other_classes_or_another_model_is_refused(saved: Checkpoint) -> None:
    for name, changes in ((TINY, {"classes": 7}), ("tiny_rgb", {})):
        change_card(saved, **changes)
        opened = open_checkpoint(saved.file.parent)
        assert opened is not None
        with pytest.raises(InputError, match=f"weights of another architecture than '{name}'"):
            opened.load(name, device=CPU)


# --- a model's own weights --------------------------------------------------------------------------------------------


def test_an_unreduced_checkpoint_is_a_models_own_weights(tmp_path: Path) -> None:
    wide = save_checkpoint(tmp_path / "wide", "none", model_kwargs={"embed_dim": 32}, initial=None)
    assert wide.is_own
    loaded = load_weights(TINY, tmp_path / "wide", device=CPU)
    assert (loaded.weights, geometry(loaded.model).width) == ("wide", 32)
    file = save_random_weights(tmp_path / "plain.safetensors")
    assert load_weights(TINY, file, device=CPU).weights == "plain.safetensors"


def test_weights_trained_with_a_method_are_nobodys_own(saved: Checkpoint) -> None:
    assert not saved.is_own
    with pytest.raises(InputError, match="holds weights trained with sit, which are not those of the unreduced model"):
        load_weights(TINY, saved.file.parent, device=CPU)
