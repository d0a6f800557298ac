"""The demo model's registration with timm, and one strict way to load any timm model's weights.

Importing this module registers `deit_micro_patch2_28` with timm. Weights come from the package (demo model),
from a local file, or from the Hugging Face hub through timm; nothing here unpickles arbitrary objects.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from tokenmerge_bench.errors import InputError, nearest

__all__ = [
    "CIFAR_MODEL",
    "DEMO_MODEL",
    "ListedModel",
    "LoadedModel",
    "build_model",
    "data_config",
    "fingerprint",
    "list_models",
    "load_model",
    "load_state",
    "mismatch",
    "read_weights",
    "state_fingerprint",
]

DEMO_MODEL = "deit_micro_patch2_28"
CIFAR_MODEL = "deit_tiny_patch2_28"
_EMBEDDED = Path(__file__).parent / "demo" / f"{DEMO_MODEL}.safetensors"
_LISTED = ("deit_*", "deit3_*", "vit_tiny_patch16_224*", "vit_small_patch16_224*", "vit_base_patch16_224*")

# timm looks up the configuration of a registered model under this very name in the module that registers it.
default_cfgs = generate_default_cfgs(
    {
        f"{DEMO_MODEL}.fashion_mnist": {
            "input_size": (1, 28, 28),
            "mean": (0.2860,),
            "std": (0.3530,),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "num_classes": 10,
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
        f"{CIFAR_MODEL}.cifar10": {
            "input_size": (3, 28, 28),
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "num_classes": 10,
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
    }
)


@register_model
def deit_micro_patch2_28(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT shrunk to Fashion-MNIST.

    14x14 patches + CLS = 197 tokens through 12 blocks, as DeiT has at 224 px. Takes (B, 1, 28, 28), gives (B,
    10). Any VisionTransformer argument overrides the shape, e.g. `embed_dim=96`. `pretrained` is timm's; the
    weights shipped with this package are loaded by `load_model`.
    """
    shape = {"img_size": 28, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 12, "num_heads": 4}
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer, DEMO_MODEL, pretrained, **{**shape, "mlp_ratio": 4, "num_classes": 10, **kwargs}
    )
    return model


@register_model
def deit_tiny_patch2_28(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-Tiny at its full width on small natural images, such as CIFAR-10.

    The middle 28 of 32 pixels in patches of 2 give the 14x14 patches + CLS = 197 tokens, and the FLOPs of a block, that
    DeiT-Tiny has at 224 px. Takes (B, 3, 28, 28), gives (B, 10). There are no weights of it to download.
    """
    shape = {"img_size": 28, "patch_size": 2, "embed_dim": 192, "depth": 12, "num_heads": 3}
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer, CIFAR_MODEL, pretrained, **{**shape, "mlp_ratio": 4, "num_classes": 10, **kwargs}
    )
    return model


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be measured, with what identifies it.

    `weights` is the results table's label: a file name, `embedded`, or `hub:<id>`. `fingerprint` is
    `fingerprint(model)` of the float32 weights, so it is the same on every device and at every precision.
    `data_config` is timm's (`input_size` (C, H, W), `mean`, `std`, `crop_pct`, `crop_mode`, `interpolation`).
    """

    model: nn.Module
    name: str
    weights: str
    fingerprint: str
    data_config: dict[str, Any]


@dataclass(frozen=True)
class ListedModel:
    """One line of `tmbench list models`: a timm name and its source, `embedded` or `hub:<id>`."""

    name: str
    source: str


def list_models() -> list[ListedModel]:
    """The demo model, then the DeiT, DeiT-III and ViT/16-224 models that timm has weights for."""
    names = sorted({name for pattern in _LISTED for name in timm.list_models(pattern, pretrained=True)})
    return [
        ListedModel(DEMO_MODEL, "embedded"),
        *(ListedModel(name, f"hub:{_hub_id(name)}") for name in names),
    ]


def build_model(name: str, **kwargs: Any) -> nn.Module:
    """A timm model with untrained weights; `kwargs` go to `timm.create_model`.

    Raises InputError for a name or tag timm does not know (naming the nearest) and for arguments the model
    refuses.
    """
    _check_name(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"model '{name}' cannot be built with {kwargs}: {error}; correct these arguments") from error
    return model


def load_model(
    name: str,
    weights: Path | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    num_classes: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a timm model with its weights, strictly, in eval mode on `device` at `dtype`.

    Without `weights` the demo model takes the file shipped in the package and every other model is downloaded
    through timm. `weights` is a `.safetensors` file, or a `.pth`/`.pt`/`.bin` state dict (plain, or under
    `model` or `state_dict`, as DeiT and DeiT-III were released). A file whose head has another number of classes than
    the model's default decides that number, unless `num_classes` is given. `model_kwargs` go to `timm.create_model` (a
    demo model trained wider, say); with `img_size` among them, position embeddings trained at another size are
    resampled as timm does it.

    Raises InputError for an unknown name, a missing or unsafe file, weights of another architecture, no
    network.
    """
    _check_name(name)
    kwargs = dict(model_kwargs or {})
    if weights is None and name.split(".")[0] != DEMO_MODEL:
        return _ready(_from_hub(name, num_classes, kwargs), name, f"hub:{_hub_id(name)}", device, dtype)
    if weights is None and not _EMBEDDED.is_file():
        raise InputError(
            f"this installation lacks the weights of '{DEMO_MODEL}' (demo/{_EMBEDDED.name}): reinstall "
            "tokenmerge-bench, or pass a file by --weights FILE.safetensors"
        )
    path, label = (_EMBEDDED, "embedded") if weights is None else (weights, weights.name)
    state = read_weights(path)
    return load_state(
        name, state, path, label, device=device, dtype=dtype, num_classes=num_classes, model_kwargs=kwargs
    )


def load_state(
    name: str,
    state: Mapping[str, Tensor],
    path: Path,
    label: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    num_classes: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """A timm model with the weights of a state dict, as `load_model` gives it.

    Args:
        state: under timm's names, or those of DeiT's and DeiT-III's releases.
        path: the file that it comes from, for messages.
        label: what results show of the weights.

    Raises:
        InputError: if the weights are those of another architecture.
    """
    model = _from_state(name, _as_timm_names_them(state), path, num_classes, dict(model_kwargs or {}))
    return _ready(model, name, label, device, dtype)


def _ready(model: nn.Module, name: str, label: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """A model with its weights, to be measured."""
    model.eval()
    _check_patches(name, model)
    config = data_config(model)
    mark = fingerprint(model)
    return LoadedModel(model.to(device=device, dtype=dtype), name, label, mark, config)


def _check_patches(name: str, model: nn.Module) -> None:
    """timm would leave the pixels beyond the last whole patch out without a word."""
    size, patch = (getattr(getattr(model, "patch_embed", None), what, None) for what in ("img_size", "patch_size"))
    if size and patch and any(side % step for side, step in zip(size, patch, strict=True)):
        raise InputError(
            f"images of {size[0]} pixels are not whole patches of {patch[0]} pixels of '{name}': give a multiple of "
            f"{patch[0]} by --img-size"
        )


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data config of a model: `input_size` (C, H, W), `mean`, `std`, `crop_pct` and the rest.

    Channels and size are those that the model was built for, where timm tells those of its weights.
    """
    config = dict(resolve_model_data_config(model))
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None)
    channels = getattr(getattr(embed, "proj", None), "in_channels", config["input_size"][0])
    return {**config, "input_size": (channels, *(size or config["input_size"][1:]))}


def fingerprint(model: nn.Module) -> str:
    """Identity of the weights of a model: `state_fingerprint` of its state dict."""
    return state_fingerprint(model.state_dict())


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Identity of a state dict.

    The first 16 hex digits of sha256 over the state dict's sorted names, with each tensor's shape, dtype and
    bytes.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # Viewed as bytes because numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise InputError(f"timm has no model '{name}'{nearest(name, timm.list_models())}; see `tmbench list models`")
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{name.split('.')[0]}*")
        raise InputError(f"timm knows no weights tagged '{name}'{nearest(name, known)}; leave the tag out") from error


def _hub_id(name: str) -> str:
    cfg = get_pretrained_cfg(name)
    return str((cfg and (cfg.hf_hub_id or cfg.tag)) or name)


def _from_hub(name: str, num_classes: int | None, kwargs: dict[str, Any]) -> nn.Module:
    cfg = get_pretrained_cfg(name)
    if num_classes is not None and cfg is not None and num_classes != cfg.num_classes:
        # timm would give the model a new, untrained head without a word.
        raise InputError(
            f"the hub weights of '{name}' tell {cfg.num_classes} classes apart, not {num_classes}: "
            "pass weights trained for these classes by --weights FILE.safetensors"
        )
    try:
        with _silent_retries():
            model: nn.Module = timm.create_model(name, pretrained=True, **kwargs)
    except Exception as error:  # the hub client, urllib and timm each fail with types of their own
        cause = _first_cause(error)
        raise InputError(
            f"the weights of '{name}' could not be downloaded from the hub ('{_hub_id(name)}'; "
            f"{type(cause).__name__}: {_first_line(cause)}): fetch {_file_url(name)} where there is a network and "
            f"pass it by --weights FILE.safetensors or --weights {name}=FILE.safetensors"
        ) from error
    return model


@contextmanager
def _silent_retries() -> Iterator[None]:
    """The hub's client would warn of every attempt; what they come to is said once."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_cause(error: BaseException) -> BaseException:
    """What an error began with: of a download that failed, what the network said."""
    while earlier := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = earlier
    return error


def _file_url(name: str) -> str:
    """Where a browser finds the weights of a model."""
    cfg = get_pretrained_cfg(name)
    if cfg is not None and cfg.hf_hub_id:
        return f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/model.safetensors"
    return str((cfg and cfg.url) or "its weights")


def _from_state(
    name: str, state: dict[str, Tensor], path: Path, num_classes: int | None, kwargs: dict[str, Any]
) -> nn.Module:
    classes = num_classes if num_classes is not None else _head_classes(name, state)
    model = build_model(name, **kwargs, **({} if classes is None else {"num_classes": classes}))
    if "img_size" in kwargs:
        state = _resampled(state, model, path)
    problem = mismatch(model.state_dict(), state)
    if problem:
        raise InputError(f"'{path}' holds weights of another architecture than '{name}': {problem}; pass its own")
    model.load_state_dict(state, strict=True)
    return model


def _as_timm_names_them(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with DeiT-III's own names of the LayerScale factors replaced by timm's."""
    return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): tensor for key, tensor in state.items()}


def _resampled(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The state dict with its position embeddings resampled by timm to the grid of the model; nothing else changes."""
    wanted, found = model.state_dict().get("pos_embed"), state.get("pos_embed")
    # What resampling cannot mend is left for the strict comparison to report.
    if wanted is None or found is None or found.ndim != 3 or found.shape[2] != wanted.shape[2]:
        return state
    try:
        return {**state, "pos_embed": checkpoint_filter_fn({"pos_embed": found}, model)["pos_embed"]}
    except RuntimeError as error:  # torch's, of a grid that is empty or, in the file, not square
        raise InputError(
            f"the position embeddings in '{path}' ({_size(found)}) cannot be resampled for {_size(wanted)}: give an "
            "--img-size of at least one patch, and weights trained on square images"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors`, `.pth`, `.pt` or `.bin` file, on the CPU.

    Nothing but tensors is ever unpickled. Raises InputError for a missing file, another suffix, a damaged
    file, or one that holds more than plain tensors.
    """
    if not path.is_file():
        raise InputError(f"weights file '{path}' does not exist: check the path given to --weights")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path, device="cpu"))
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"'{path}' is no readable safetensors file ({_first_line(error)}): download or save it again"
            ) from error
    if path.suffix not in {".pth", ".pt", ".bin"}:
        raise InputError(f"weights file '{path}' must end in .safetensors, .pth, .pt or .bin: convert it")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or damaged pickle can fail in any way
        raise InputError(
            f"'{path}' is damaged or holds more than plain tensors, which is never unpickled here: save its "
            "state dict again as .safetensors"
        ) from error
    return _plain_tensors(path, loaded)


def _plain_tensors(path: Path, loaded: object) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise InputError(
            f"'{path}' holds no state dict (tensors by name, plain or under 'model' or 'state_dict'): save "
            "one with torch.save(model.state_dict(), ...) or safetensors"
        )
    return {str(key): value for key, value in loaded.items()}


def _head_classes(name: str, state: Mapping[str, Tensor]) -> int | None:
    """Number of classes of the file's classifier, or None where there is no plain linear one."""
    cfg = get_pretrained_cfg(name)
    classifier: Any = cfg.classifier if cfg is not None else "head"
    # Distilled models have two classifiers, of the same size.
    name_of_head = classifier[0] if isinstance(classifier, (tuple, list)) and classifier else classifier
    head = state.get(f"{name_of_head}.weight")
    return int(head.shape[0]) if head is not None and head.ndim == 2 else None


def mismatch(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps `found` from loading into `wanted`, the first few of each kind; empty if nothing does."""
    shapes = [
        f"{key} ({_size(found[key])} in the file, {_size(tensor)} in the model)"
        for key, tensor in wanted.items()
        if key in found and found[key].shape != tensor.shape
    ]
    kinds = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "of another shape": shapes,
    }
    return "; ".join(f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in kinds.items() if keys)


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no details"])[0]
