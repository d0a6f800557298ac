"""Loading models: registration, strict weights, safe files, messages that say how to mend things."""

from __future__ import annotations

import logging.handlers
import pickle
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenmerge_bench import models
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import DEMO_MODEL, build_model, fingerprint, list_models, load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def demo() -> nn.Module:
    torch.manual_seed(0)
    return build_model(DEMO_MODEL)


@pytest.fixture
def state(demo: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in demo.state_dict().items()}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained:
            raise OSError("Name or service not known\nsecond line")
        model: nn.Module = real(name, **kwargs)
        return model

    monkeypatch.setattr(timm, "create_model", create_model)


def test_demo_model_is_registered_with_timm_and_has_197_tokens_and_12_blocks() -> None:
    model: Any = timm.create_model(DEMO_MODEL)
    assert model.pos_embed.shape == (1, 197, 64)
    assert len(model.blocks) == 12
    assert model.blocks[0].attn.num_heads == 4
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_demo_model_can_be_widened_by_keyword() -> None:
    assert timm.create_model(DEMO_MODEL, embed_dim=96, depth=1).embed_dim == 96


def test_data_config_is_that_of_fashion_mnist(demo: nn.Module) -> None:
    config = models.data_config(demo)
    assert config["input_size"] == (1, 28, 28)
    assert (config["mean"], config["std"], config["crop_pct"]) == ((0.2860,), (0.3530,), 1.0)


def test_safetensors_load_strictly_in_eval_mode(tmp_path: Path, demo: nn.Module, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "mine.safetensors")
    loaded = load_model(DEMO_MODEL, tmp_path / "mine.safetensors", device=CPU)
    assert not loaded.model.training
    assert (loaded.name, loaded.weights) == (DEMO_MODEL, "mine.safetensors")
    assert loaded.fingerprint == fingerprint(demo)
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())


def test_half_precision_file_loads_as_float32_and_the_fingerprint_ignores_the_working_precision(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "half.safetensors")
    full = load_model(DEMO_MODEL, tmp_path / "half.safetensors", device=CPU)
    low = load_model(DEMO_MODEL, tmp_path / "half.safetensors", device=CPU, dtype=torch.bfloat16)
    assert next(full.model.parameters()).dtype == torch.float32
    assert next(low.model.parameters()).dtype == torch.bfloat16
    assert full.fingerprint == low.fingerprint


def test_fingerprint_sees_one_changed_value(demo: nn.Module, state: dict[str, Tensor]) -> None:
    other = build_model(DEMO_MODEL)
    other.load_state_dict(state)
    assert fingerprint(other) == fingerprint(demo)
    with torch.no_grad():
        other.get_parameter("head.bias")[3] += 1e-3
    assert fingerprint(other) != fingerprint(demo)


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_torch_files_load_plain_or_wrapped(tmp_path: Path, state: dict[str, Tensor], wrap: str | None) -> None:
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "w.pth")
    loaded = load_model(DEMO_MODEL, tmp_path / "w.pth", device=CPU)
    assert torch.equal(loaded.model.get_parameter("head.weight"), state["head.weight"])


class _Evil:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (_Evil, "ran", True)


def test_a_pickle_of_anything_but_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_Evil()))
    torch.save({"model": {}, "args": _Evil()}, tmp_path / "zip.pt")
    for name in ("raw.pt", "zip.pt"):
        with pytest.raises(InputError, match="more than plain tensors"):
            load_model(DEMO_MODEL, tmp_path / name, device=CPU)
    assert not _Evil.ran


def test_number_of_classes_is_read_from_the_file(tmp_path: Path, state: dict[str, Tensor]) -> None:
    state["head.weight"], state["head.bias"] = torch.zeros(7, 64), torch.zeros(7)
    save_file(state, tmp_path / "seven.safetensors")
    loaded = load_model(DEMO_MODEL, tmp_path / "seven.safetensors", device=CPU)
    assert loaded.model(torch.zeros(1, 1, 28, 28)).shape == (1, 7)
    with pytest.raises(InputError, match=r"head.weight \(7x64 in the file, 5x64 in the model\)"):
        load_model(DEMO_MODEL, tmp_path / "seven.safetensors", device=CPU, num_classes=5)


def test_wider_weights_load_with_model_kwargs(tmp_path: Path) -> None:
    save_file(build_model(DEMO_MODEL, embed_dim=32, depth=2).state_dict(), tmp_path / "w.safetensors")
    kwargs = {"embed_dim": 32, "depth": 2}
    loaded = load_model(DEMO_MODEL, tmp_path / "w.safetensors", device=CPU, model_kwargs=kwargs)
    assert loaded.model(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["cls_token"]
    state["extra"], state["pos_embed"] = torch.zeros(1), torch.zeros(1, 50, 64)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(InputError) as caught:
        load_model(DEMO_MODEL, tmp_path / "other.safetensors", device=CPU)
    message = str(caught.value)
    assert "other.safetensors" in message
    assert f"another architecture than '{DEMO_MODEL}'" in message
    assert "1 missing: cls_token" in message
    assert "1 unexpected: extra" in message
    assert "1 of another shape: pos_embed (1x50x64 in the file, 1x197x64 in the model)" in message


def test_long_lists_of_differences_are_cut(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"152 missing: cls_token, pos_embed, [\w.]+, \.\.\.; 1 unexpected: x;"):
        load_model(DEMO_MODEL, tmp_path / "x.safetensors", device=CPU)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.safetensors", None, "does not exist"),
        ("text.safetensors", b"hello", "no readable safetensors file"),
        ("text.pth", b"hello", "damaged"),
        ("weights.onnx", b"hello", "must end in"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model(DEMO_MODEL, tmp_path / name, device=CPU)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"epoch": 3}}, {}, torch.zeros(2)])
def test_a_torch_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.bin")
    with pytest.raises(InputError, match="holds no state dict"):
        load_model(DEMO_MODEL, tmp_path / "w.bin", device=CPU)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'deit_tiny_"):
        build_model("deit_tinny")
    with pytest.raises(InputError, match="did you mean 'deit_tiny_patch16_224'"):
        load_model("deit_tiny_patch16_242", device=CPU)
    with pytest.raises(InputError, match=r"did you mean 'deit_tiny_patch16_224.fb_in1k'"):
        load_model("deit_tiny_patch16_224.fb_in2k", device=CPU)


def test_arguments_a_model_refuses_are_named() -> None:
    with pytest.raises(InputError, match="widht"):
        build_model(DEMO_MODEL, widht=3)


DEITS = ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"]
SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2}  # a DeiT that is quickly made


def trained(name: str, **kwargs: Any) -> dict[str, Tensor]:
    """A state dict whose every value is random, as training leaves it."""
    torch.manual_seed(0)
    return {key: torch.randn(value.shape) for key, value in build_model(name, **SMALL, **kwargs).state_dict().items()}


@pytest.mark.parametrize("size", [384, 160, (160, 224), 224])
@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"]
)
def test_weights_trained_at_another_size_are_resampled_as_timm_does_it(tmp_path: Path, name: str, size: Any) -> None:
    path = tmp_path / "w.safetensors"
    save_file(trained(name), path)
    loaded = load_model(name, path, device=CPU, model_kwargs={**SMALL, "img_size": size})
    expected = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path}, img_size=size, **SMALL)
    state = loaded.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())
    height, width = size if isinstance(size, tuple) else (size, size)
    assert loaded.data_config["input_size"] == (3, height, width)
    assert loaded.model(torch.zeros(1, 3, height, width)).shape == (1, 1000)


def test_weights_trained_at_the_asked_size_are_taken_as_they_are(tmp_path: Path) -> None:
    state = trained("deit_tiny_patch16_224", img_size=64)
    save_file(state, tmp_path / "w.safetensors")
    kwargs = {**SMALL, "img_size": 64}
    loaded = load_model("deit_tiny_patch16_224", tmp_path / "w.safetensors", device=CPU, model_kwargs=kwargs)
    assert torch.equal(loaded.model.get_parameter("pos_embed"), state["pos_embed"])


def test_nothing_is_resampled_unless_another_size_is_asked_for(tmp_path: Path) -> None:
    save_file(trained("deit_tiny_patch16_224", img_size=64), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"pos_embed \(1x17x16 in the file, 1x197x16 in the model\)"):
        load_model("deit_tiny_patch16_224", tmp_path / "w.safetensors", device=CPU, model_kwargs=SMALL)


def test_all_but_the_position_embeddings_stays_strict_at_another_size(tmp_path: Path) -> None:
    state = trained("deit_tiny_patch16_224")
    state["patch_embed.proj.weight"] = torch.zeros(16, 3, 14, 14)  # timm's own filter would resample this too
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"1 of another shape: patch_embed.proj.weight \(16x3x14x14 in the file"):
        load_model(
            "deit_tiny_patch16_224",
            tmp_path / "w.safetensors",
            device=CPU,
            model_kwargs={**SMALL, "img_size": 64},
        )


def test_grids_that_cannot_be_resampled_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for trained_at, size in [((64, 48), 224), (224, 8)]:  # not square in the file; less than a patch in the model
        save_file(trained("deit_tiny_patch16_224", img_size=trained_at), path)
        with pytest.raises(InputError, match=r"position embeddings in '.*' \(1x\d+x16\) cannot be resampled"):
            load_model("deit_tiny_patch16_224", path, device=CPU, model_kwargs={**SMALL, "img_size": size})


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"]
)
def test_checkpoints_as_their_authors_released_them_load(tmp_path: Path, name: str) -> None:
    state = trained(name)
    theirs = {key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): v for key, v in state.items()}
    assert (theirs.keys() != state.keys()) == name.startswith("deit3")
    torch.save({"model": theirs}, tmp_path / "released.pth")
    loaded = load_model(name, tmp_path / "released.pth", device=CPU, model_kwargs=SMALL)
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())


def test_weights_in_the_cache_of_the_hub_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    kwargs = {**SMALL, "cache_dir": tmp_path}
    with pytest.raises(
        InputError, match=r"could not be downloaded from the hub \('timm/deit_tiny_patch16_224.fb_in1k'"
    ):
        load_model("deit_tiny_patch16_224", device=CPU, model_kwargs=kwargs)
    state, revision = trained("deit_tiny_patch16_224"), "0" * 40
    repository = tmp_path / "models--timm--deit_tiny_patch16_224.fb_in1k"
    for folder in ("refs", f"snapshots/{revision}"):
        (repository / folder).mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    save_file(state, repository / "snapshots" / revision / "model.safetensors")
    loaded = load_model("deit_tiny_patch16_224", device=CPU, model_kwargs=kwargs)
    assert loaded.weights == "hub:timm/deit_tiny_patch16_224.fb_in1k"
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())


@pytest.mark.usefixtures("no_network")
def test_a_failed_download_says_how_to_pass_local_weights() -> None:
    with pytest.raises(InputError) as caught:
        load_model("deit_tiny_patch16_224", device=CPU)
    message = str(caught.value)
    assert "'timm/deit_tiny_patch16_224.fb_in1k'" in message
    assert "fetch https://huggingface.co/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/model.safetensors " in message
    assert "--weights FILE.safetensors or --weights deit_tiny_patch16_224=FILE.safetensors" in message
    assert "\n" not in message


def test_a_failed_download_is_one_sentence_that_says_what_the_network_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, told = logging.getLogger("huggingface_hub.utils._http"), SimpleQueue[logging.LogRecord]()
    monkeypatch.setattr(client, "handlers", [logging.handlers.QueueHandler(told)])

    def download(*_: Any, **__: Any) -> None:
        client.warning("Retrying in 1s [Retry 1/5].")
        try:
            raise OSError("Name or service not known")
        except OSError as error:
            raise ValueError("cannot find the file in the cache") from error

    monkeypatch.setattr(timm, "create_model", download)
    with pytest.raises(InputError, match=r"OSError: Name or service not known\): fetch"):
        load_model("deit_tiny_patch16_224", device=CPU)
    assert told.empty()
    client.warning("as before")
    assert told.get_nowait().getMessage() == "as before"


def test_hub_weights_never_get_an_untrained_head() -> None:
    with pytest.raises(InputError, match="tell 1000 classes apart, not 10"):
        load_model("deit_tiny_patch16_224", device=CPU, num_classes=10)


def test_hub_weights_are_labelled_with_the_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **kwargs: real(name, **kwargs))
    loaded = load_model("deit_tiny_patch16_224", device=CPU, model_kwargs={"depth": 1})
    assert loaded.weights == "hub:timm/deit_tiny_patch16_224.fb_in1k"


def test_absent_embedded_weights_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "_EMBEDDED", tmp_path / "demo.safetensors")
    with pytest.raises(InputError, match=r"lacks the weights .* --weights FILE.safetensors"):
        load_model(DEMO_MODEL, device=CPU)


def test_embedded_weights_are_labelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    save_file(state, tmp_path / "demo.safetensors")
    monkeypatch.setattr(models, "_EMBEDDED", tmp_path / "demo.safetensors")
    assert load_model(DEMO_MODEL, device=CPU).weights == "embedded"


def test_listed_models_are_known_to_timm_and_begin_with_the_embedded_one() -> None:
    listed = list_models()
    assert (listed[0].name, listed[0].source) == (DEMO_MODEL, "embedded")
    sources = {model.name: model.source for model in listed}
    assert sources["deit_tiny_patch16_224.fb_in1k"] == "hub:timm/deit_tiny_patch16_224.fb_in1k"
    assert any(name.startswith("deit3_") for name in sources)
    assert any(name.startswith("vit_base_patch16_224") for name in sources)
    assert len(sources) == len(listed)
    assert all(timm.is_model(name) for name in sources)
