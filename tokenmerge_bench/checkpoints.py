"""Trained checkpoints: weights as safetensors with a JSON card beside them that says what they are and how they came.

A checkpoint is a folder that `tmbench train` wrote (`weights.safetensors`, `card.json`), or a file `NAME.safetensors`
with its card `NAME.json` beside it. The weights are those of the model under timm's own names, and of the reducers as
`reducers.STEP.NAME`; a checkpoint of the unreduced model is thus a plain weights file as well. A weights file without a
card, or with one that names no method, is no checkpoint but plain weights of an off-the-shelf model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pydantic
import safetensors.torch
import torch
from torch import Tensor

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import LoadedModel, load_model, load_state, read_weights, state_fingerprint
from tokenmerge_bench.options import MethodSpec, all_options, make_method
from tokenmerge_bench.schedule import Step
from tokenmerge_bench.store import UNREDUCED, write_bytes, write_text

__all__ = [
    "Card",
    "Checkpoint",
    "load_weights",
    "open_checkpoint",
    "shipped_checkpoints",
    "write_checkpoint",
]

FORMAT = 1
WEIGHTS, CARD = "weights.safetensors", "card.json"
_REDUCERS = "reducers."
_SHIPPED = Path(__file__).parent / "demo" / "trained"


class _Step(pydantic.BaseModel):
    """One reduction, as `schedule.Step`."""

    model_config = pydantic.ConfigDict(frozen=True)

    block: int
    site: Literal["pre", "mid"]
    n_in: int
    n_out: int


class Card(pydantic.BaseModel):
    """What a checkpoint is, and how it came to be. Keys that this version does not know are kept."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    format: Literal[1] = 1
    model: str
    """timm's name."""
    model_kwargs: dict[str, Any] = {}
    classes: int
    method: str
    """Name of the method it was trained with; `none`: unreduced."""
    options: dict[str, Any] = {}
    """All options of the method, and `layers` as they are typed."""
    budget: str = "1"
    """As it stands in results: `0.7`, `k=40`."""
    knob: str = ""
    steps: list[_Step] = []
    gflops: float
    """Multiply-accumulates of one image / 1e9, reducers included."""
    recipe: dict[str, Any] = {}
    seed: int = 0
    initial: dict[str, str] | None = None
    """Label and fingerprint of the weights that training began with; None: from scratch."""
    data: dict[str, Any]
    """Name, number of images and fingerprint of the training set."""
    weights: str
    """Which of the weights these are: `last epoch`, `moving average, last epoch`, ..."""
    weights_fingerprint: str
    metrics: dict[str, Any] = {}
    hardware: str = ""
    precision: str = "float32"
    versions: dict[str, str] = {}
    seconds: float = 0.0
    command: str = ""

    @property
    def fingerprint(self) -> str:
        """Identity of card and weights: the first 16 hex digits of sha256 over the card's content."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def schedule_steps(self) -> tuple[Step, ...]:
        """Where tokens are reduced to how many."""
        return tuple(Step(**step.model_dump()) for step in self.steps)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A card and the file of the weights that it describes. `name` is what results show."""

    card: Card
    file: Path
    name: str

    @property
    def method(self) -> MethodSpec | None:
        """The method with the options that it was trained with; None for the unreduced model.

        Raises:
            InputError: if this version has no such method or option.
        """
        if self.card.method == UNREDUCED:
            return None
        spec = make_method(self.card.method, self.card.options)
        return replace(spec, layers=None) if spec.layers == spec.build().layers else spec

    @property
    def is_own(self) -> bool:
        """Whether these are a model's own weights, off the shelf: unreduced, and not fine-tuned from others."""
        return self.card.method == UNREDUCED and self.card.initial is None

    def began_with(self, fingerprint: str) -> bool:
        """Whether training began with these weights."""
        return self.card.initial is not None and self.card.initial.get("fingerprint") == fingerprint

    @property
    def described(self) -> str:
        """What was trained, in words: `sit at 0.7 of deit_tiny_patch16_224`."""
        reduced = "" if self.card.method == UNREDUCED else f" with {self.card.method} at {self.card.budget}"
        return f"{self.card.model}{reduced}"

    def read(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """State dicts of the model and of the reducers (`STEP.NAME`), on the CPU as stored.

        Raises:
            InputError: if the file is missing or damaged, or is not the one that the card describes.
        """
        state = read_weights(self.file)
        found = state_fingerprint(state)
        if found != self.card.weights_fingerprint:
            raise InputError(
                f"'{self.file}' and its card disagree: the card describes weights {self.card.weights_fingerprint}, the "
                f"file holds {found}; copy both from where they were trained, or train again."
            )
        model = {key: tensor for key, tensor in state.items() if not key.startswith(_REDUCERS)}
        reducers = {key.removeprefix(_REDUCERS): t for key, t in state.items() if key.startswith(_REDUCERS)}
        return model, reducers

    def load(
        self,
        name: str,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[LoadedModel, dict[str, Tensor]]:
        """The model with these weights, as `load_model` gives it, and the state dict of the reducers.

        Args:
            name: timm's, as results show it.
            device: where the model goes.
            dtype: its precision there.
            model_kwargs: go to timm beside those that it was trained with.

        Raises:
            InputError: if card, weights and model do not fit together.
        """
        model, reducers = self.read()
        kwargs = {key: value for key, value in self.card.model_kwargs.items() if key != "num_classes"}
        loaded = load_state(
            name,
            {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in model.items()},
            self.file,
            self.name,
            device=device,
            dtype=dtype,
            num_classes=self.card.classes,
            model_kwargs={**kwargs, **(model_kwargs or {})},
        )
        return loaded, reducers


def load_weights(
    name: str,
    weights: Path | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    model_kwargs: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """A model with its own weights: those that `load_model` finds, or those of a checkpoint of the unreduced model.

    Raises:
        InputError: as `load_model` and `Checkpoint.load`, and for a checkpoint that was trained with a method.
    """
    checkpoint = None if weights is None else open_checkpoint(weights)
    if checkpoint is None:
        return load_model(name, weights, device=device, dtype=dtype, model_kwargs=model_kwargs)
    if checkpoint.card.method != UNREDUCED:
        raise InputError(
            f"'{weights}' holds weights trained with {checkpoint.card.method}, which are not those of the unreduced "
            f"model; give it as --weights {weights}, without a model's name, to evaluate it with its method."
        )
    return checkpoint.load(name, device=device, dtype=dtype, model_kwargs=model_kwargs)[0]


def open_checkpoint(path: Path, name: str | None = None) -> Checkpoint | None:
    """The checkpoint in a folder or weights file; None for a file of plain weights, which has no card of a method.

    Raises:
        InputError: if there is no such folder or file, or its card is damaged or of a later version.
    """
    if path.is_dir():
        file, card_file = path / WEIGHTS, path / CARD
        if not card_file.is_file():
            raise InputError(
                f"'{path}' holds no {CARD}: give a folder that `tmbench train` finished, or a weights file."
            )
    else:
        file = path
        card_file = path.with_name(CARD) if path.name == WEIGHTS else path.with_suffix(".json")
        if path.suffix != ".safetensors" or not card_file.is_file():
            return None
    content = _content(card_file)
    if "method" not in content:
        return None
    try:
        card = Card.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"card '{card_file}' cannot be used ({where}: {first['msg']}); it was made by another version or changed "
            "by hand."
        ) from error
    own = path.resolve().name if path.is_dir() else path.parent.resolve().name if path.name == WEIGHTS else path.stem
    return Checkpoint(card, file, name or own)


def _content(card_file: Path) -> dict[str, Any]:
    try:
        content = json.loads(card_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"card '{card_file}' cannot be read ({error}); copy it again, or train again.") from error
    return content if isinstance(content, dict) else {}


def shipped_checkpoints(model: str) -> list[Checkpoint]:
    """The trained checkpoints of a model that the package holds, named `embedded:METHOD-BUDGET`."""
    files = sorted(_SHIPPED.glob("*.safetensors"))
    opened = [open_checkpoint(file, f"embedded:{file.stem}") for file in files]
    return [checkpoint for checkpoint in opened if checkpoint is not None and checkpoint.card.model == model]


def write_checkpoint(
    folder: Path, model: Mapping[str, Tensor], reducers: Mapping[str, Tensor], described: Mapping[str, Any]
) -> Card:
    """Writes weights, in half precision, and then their card, which marks the checkpoint as whole.

    Args:
        folder: created if missing.
        model: state dict of the model.
        reducers: state dict of the reducers, `STEP.NAME`.
        described: all fields of the card but `weights_fingerprint`.
    """
    state = {**model, **{f"{_REDUCERS}{key}": tensor for key, tensor in reducers.items()}}
    stored = {
        key: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for key, tensor in state.items()
    }
    card = Card(**described, weights_fingerprint=state_fingerprint(stored))
    write_bytes(folder / WEIGHTS, safetensors.torch.save(stored, metadata={"format": "pt"}))
    write_text(folder / CARD, json.dumps(card.model_dump(mode="json"), indent=2) + "\n")
    return card


def method_fields(spec: MethodSpec | None) -> dict[str, Any]:
    """The card's fields `method` and `options`."""
    if spec is None:
        return {"method": UNREDUCED, "options": {}}
    return {"method": spec.name, "options": json.loads(all_options(spec))}


def step_fields(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    """The card's field `steps`."""
    return [asdict(step) for step in steps]
