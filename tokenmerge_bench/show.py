"""What `tmbench show` draws: images as a model sees them, and what methods merge on them. Nothing is drawn here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from tokenmerge_bench import idx
from tokenmerge_bench.assignment import SoftAssignment
from tokenmerge_bench.checkpoints import Checkpoint
from tokenmerge_bench.data import as_seen, eval_transform, subset
from tokenmerge_bench.datasets import open_dataset
from tokenmerge_bench.display import short_knob
from tokenmerge_bench.engine import attached
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.experiment import Experiment
from tokenmerge_bench.hardware import Hardware
from tokenmerge_bench.imagenet import wordnet_ids
from tokenmerge_bench.images import FileImages, ImageSet, Member, Unreadable
from tokenmerge_bench.jobs import Job, Loader
from tokenmerge_bench.models import LoadedModel
from tokenmerge_bench.points import Point
from tokenmerge_bench.reduced_vit import ReducedViT, geometry, image_shape
from tokenmerge_bench.results import Site
from tokenmerge_bench.trie import reason
from tokenmerge_bench.watching import ClassAttention, has_class_token, merge_sequence, sites

LONGEST = 100
"""Images more elongated than this would be enormous once their short side has the model's size."""

FIRST = 30
"""The embedded image that is shown where none is named: a bag, which the unreduced model knows."""

PerCell = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """The most likely class: its number, its name (`class 7` where nobody knows one), its softmax probability."""

    label: int
    name: str
    confidence: float


@dataclass(frozen=True, eq=False)
class Run:
    """What one method did to an image at one budget, or why it could not (`obstacle`, then the rest is empty).

    `sites` are the reductions from first to last, none for the unreduced model. `attention` and `weights` are (N0,)
    where they were asked for: attention of the class token to each grid cell in the last block, and weight of each grid
    cell in the token that was asked for. `frames` is `watching.merge_sequence`.
    """

    label: str
    budget: str = ""
    """As a sweep records it: `0.7` or `k=40`."""
    knob: str = ""
    kept: float = 1.0
    """Fraction of the unreduced model's MACs."""
    obstacle: str = ""
    sites: list[Site] = field(default_factory=list)
    soft: bool = False
    """Whether cells are spread over several tokens, so that an owner is the one with the largest weight."""
    prediction: Prediction | None = None
    """None where the model has no classifier."""
    attention: PerCell | None = None
    weights: PerCell | None = None
    frames: list[Site] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Shown:
    """One image: `picture` (H, W, 3) is the model's own crop, `grid` its rows and columns of patches.

    The unreduced model is the first of `runs`. `truth` is the name of the true class, empty where it is not known.
    """

    image: str
    picture: Picture
    grid: tuple[int, int]
    model: str
    weights: str
    runs: list[Run]
    truth: str = ""
    token: int | None = None
    """The token whose weights were asked for."""
    notes: list[str] = field(default_factory=list)
    """What was asked for and cannot be shown, in sentences."""


@dataclass(frozen=True)
class Wanted:
    """What is to be shown beside regions and predictions."""

    attention: bool = False
    token: int | None = None
    frames: bool = False


@dataclass(frozen=True, eq=False)
class Chosen:
    """An image to be shown: position `index` of `images`. `loose`: a file named by the user, without a label."""

    images: ImageSet
    index: int
    loose: bool

    @property
    def name(self) -> str:
        """As tables of outcomes name it; for a loose file its file name."""
        return self.images.paths[self.index]

    def load(self) -> Image.Image:
        """The image; a loose file is turned upright if it says how, which evaluations do not ask.

        Raises:
            InputError: if it cannot be decoded, or is too elongated.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is large, and that is all
            try:
                image = self.images.load(self.index)
            except Unreadable as error:
                raise InputError(
                    f"image '{self.name}' cannot be decoded; give a whole image file of a format that Pillow reads, of "
                    f"at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels."
                ) from error
        if max(image.size) > LONGEST * min(image.size):
            raise InputError(
                f"image '{self.name}' is {image.width} x {image.height} pixels, one side more than {LONGEST} times the "
                "other; crop it first."
            )
        return ImageOps.exif_transpose(image) if self.loose else image


def named_images(names: Sequence[str], experiment: Experiment) -> list[Chosen]:
    """Images by name, each once: files, or images of the experiment's data set as tables of outcomes name them.

    Where the experiment leaves the data set to the user, such a name is one of the embedded images: `demo[7]`.

    Raises:
        InputError: for a name that is no image.
    """
    names = list(dict.fromkeys(names))
    loose = {name: _loose(name) for name in names if Path(name).exists()}
    missing = [name for name in names if name not in loose]
    if not missing:
        return list(loose.values())
    images = _dataset(experiment, experiment.dataset or "demo")
    place = {name: index for index, name in enumerate(images.paths)}
    if unknown := [name for name in missing if name not in place]:
        raise InputError(
            f"image '{unknown[0]}' does not exist, and data set '{images.name}' has none of this name (it has "
            f"'{images.paths[0]}', ...); check the path, or name its data set by --dataset."
        )
    return [loose.get(name) or Chosen(images, place[name], False) for name in names]


def usual_images(experiment: Experiment, model: nn.Module, limit: int | None) -> list[Chosen]:
    """What is shown where no image is named: images of the experiment's data set, drawn by its seed.

    Where it leaves the data set to the user, a model of grey images gets the embedded ones, and any other the
    photographs that come with scikit-learn.

    Args:
        experiment: whose images.
        model: has to see them.
        limit: how many, 0 for all; None for a single one, of the embedded images always the same.

    Raises:
        InputError: if there are none.
    """
    grey = image_shape(model)[0] == 1
    dataset = experiment.dataset or ("demo" if grey else None)
    count = 1 if limit is None else limit or None
    if dataset is None:
        return [_loose(name) for name in _photographs()[:count]]
    images = _dataset(experiment, dataset)
    fixed = limit is None and experiment.dataset is None
    indices = [FIRST] if fixed else subset(images, count, experiment.seed)
    return [Chosen(images, int(index), False) for index in indices]


def _dataset(experiment: Experiment, dataset: str) -> ImageSet:
    data_dir = Path(experiment.data_dir).expanduser() if experiment.data_dir else None
    return open_dataset(dataset, data_dir, experiment.split)


def _loose(name: str) -> Chosen:
    path = Path(name)
    if path.is_dir():
        raise InputError(f"'{name}' is a folder; name images in it, or give it by --dataset.")
    label = wordnet_ids().get(path.resolve().parent.name, -1)
    member = Member(path.name, str(path), 0, path.stat().st_size)
    return Chosen(FileImages.of(path.name, len(wordnet_ids()), [(path.name, label, member)]), 0, True)


def _photographs() -> list[str]:
    """The photographs that come with scikit-learn."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise InputError("no image was given; name an image file, or a data set by --dataset.") from None
    files: list[str] = load_sample_images().filenames
    return sorted(files, reverse=True)  # the flower is of a class of ImageNet's


class Viewer:
    """The methods of an experiment on its one model, ready to be looked at on images.

    Args:
        experiment: what to show; its model is the first.
        weights: the model's own weights by model name, as for a sweep.
        checkpoints: trained points, as for a sweep.
        wanted: what to show beside regions and predictions.
        device: where the model runs.

    Raises:
        InputError: if something given is wrong, or no method can be shown.
    """

    def __init__(
        self,
        experiment: Experiment,
        weights: Mapping[str, Path],
        checkpoints: Sequence[Checkpoint],
        wanted: Wanted,
        device: torch.device,
    ) -> None:
        if len(experiment.models) > 1:
            raise InputError(
                f"one model is shown at a time, not {', '.join(experiment.models)}; give one of them by --models."
            )
        self.hardware = Hardware(device)
        self.experiment, self.wanted = experiment, wanted
        loader, name = Loader(experiment, self.hardware, None), experiment.models[0]
        self.own: LoadedModel = loader.own(name, weights.get(name))
        methods, budgets = experiment.all_methods(), experiment.all_budgets()
        jobs = loader.jobs(self.own, methods, budgets, checkpoints)
        self.unreduced_macs = jobs[0].unreduced.total
        order = {(budget.recorded, method.name): i for i, (budget, method) in enumerate(product(budgets, methods))}

        def turn(pair: tuple[Job, Point]) -> int:
            """The unreduced model, then budget by budget the methods as they were asked for, trained ones behind."""
            method = pair[1].method
            return -1 if method is None else order[pair[1].budget.recorded, method.name]

        self.points = sorted(((job, point) for job in jobs for point in job.points), key=turn)

    @property
    def labels(self) -> list[str]:
        """The methods that can be shown, in the order of `Shown.runs`."""
        return [label_of(point) for _, point in self.points if point.method is not None and not point.obstacle]

    def look(self, chosen: Chosen) -> Shown:
        """What all methods do to one image.

        Raises:
            InputError: if the image cannot be shown, or no method has the token that was asked for.
        """
        image = chosen.load()
        names = class_names(self.own, chosen.images)
        label = int(chosen.images.labels[chosen.index])
        known = label >= 0 and self.own.model.num_classes == chosen.images.classes
        runs = [self._run(job, point, image, chosen, names) for job, point in self.points]
        notes = []
        if self.wanted.attention and not has_class_token(self.own.model):
            notes.append(f"{self.own.name} has no class token, so there is no class attention to show.")
        if self.wanted.token is not None and all(run.weights is None for run in runs):
            raise InputError(f"--token {self.wanted.token} {_why_no_weights(runs)}")
        picture = np.asarray(as_seen(image, self.own.data_config).convert("RGB"))
        return Shown(
            chosen.name,
            picture,
            geometry(self.own.model).grid,
            self.own.name,
            self.own.weights,
            runs,
            names.get(label, f"class {label}") if known else "",
            self.wanted.token,
            notes,
        )

    def _run(self, job: Job, point: Point, image: Image.Image, chosen: Chosen, names: Mapping[int, str]) -> Run:
        """One method on one image; what goes wrong in it is shown in its place."""
        if point.obstacle or point.solution is None:
            return Run(label_of(point), point.budget.recorded, obstacle=point.reason)
        reduced = attached(job.loaded.model, point, job.reducers)
        transform = eval_transform(job.loaded.data_config)
        pixels = transform(image)[None].to(self.hardware.device)
        image_id = torch.from_numpy(chosen.images.ids[[chosen.index]]).to(self.hardware.device)
        kept = point.solution.macs.total / self.unreduced_macs
        try:
            with self.hardware.forward(), ClassAttention(reduced) as attention:
                prediction = predict(reduced, pixels, image_id, names)
                source = reduced.source
                return Run(
                    label_of(point),
                    point.budget.recorded,
                    short_knob(point.solution.knob) if point.solution.knob else "",
                    kept,
                    sites=sites(reduced),
                    soft=isinstance(source, SoftAssignment),
                    prediction=prediction,
                    attention=self._attention(reduced, attention),
                    weights=self._weights(reduced),
                    frames=self._frames(reduced, pixels, image_id),
                )
        except InputError:
            raise
        except Exception as error:  # of somebody's method: the others are shown all the same
            return Run(label_of(point), point.budget.recorded, obstacle=f"failed: {reason(error)}")

    def _attention(self, reduced: ReducedViT, attention: ClassAttention) -> PerCell | None:
        if not self.wanted.attention or not has_class_token(reduced.detach()):
            return None
        return attention.per_cell()[0].double().cpu().numpy()

    def _weights(self, reduced: ReducedViT) -> PerCell | None:
        token, source = self.wanted.token, reduced.source
        if token is None or not reduced.schedule.steps or not 0 <= token < source.n_out:
            return None
        return source.matrix()[0, token].double().cpu().numpy()

    def _frames(self, reduced: ReducedViT, pixels: Tensor, image_id: Tensor) -> list[Site]:
        return merge_sequence(reduced, pixels, image_id) if self.wanted.frames else []


def _why_no_weights(runs: Sequence[Run]) -> str:
    """Why no method has the token that was asked for."""
    left = [run.sites[-1].tokens for run in runs if run.sites]
    if not left:
        return "asks for a reduced token, and no method here reduces any; ask for another budget."
    return f"is none of the tokens that are left, which are numbered from 0 to {max(left) - 1}; give one of them."


def predict(
    reduced: ReducedViT,
    pixels: Float[Tensor, "1 I height width"],
    image_id: Int[Tensor, " 1"],
    names: Mapping[int, str],
) -> Prediction | None:
    """What the model says of an image; None if it has no classifier.

    Raises:
        ArithmeticError: if the logits are not finite.
    """
    logits = cast(Tensor, reduced(pixels, image_id))[0]
    if not logits.isfinite().all():
        raise ArithmeticError("its logits are not finite")
    if not cast(int, reduced.detach().num_classes):
        return None
    confidence, label = logits.double().softmax(0).max(0)
    return Prediction(int(label), names.get(int(label), f"class {int(label)}"), float(confidence))


def label_of(point: Point) -> str:
    """The method with its options, and whether it was trained."""
    name = "unreduced" if point.method is None else point.method.label
    if point.checkpoint is not None:
        return f"{name}, trained"
    learned = point.method is not None and point.method.build().learned and not point.obstacle
    return f"{name}, untrained" if learned else name


def class_names(loaded: LoadedModel, images: ImageSet) -> dict[int, str]:
    """Names of the classes of a model, as far as its weights or the images know them."""
    classes = loaded.model.num_classes
    if loaded.weights == "embedded" or (images.name in idx.NAMES and images.classes == classes):
        return dict(enumerate(idx.CLASSES))
    if imagenet := infer_imagenet_subset(loaded.model):
        info = ImageNetInfo(imagenet)
        return {label: info.index_to_description(label).partition(",")[0] for label in range(info.num_classes())}
    if isinstance(images, FileImages) and images.classes == classes:
        folders = {
            (int(label), Path(path).parent.name) for label, path in zip(images.labels, images.paths, strict=True)
        }
        names = dict(folders)
        if len(folders) == len(set(names.values())):  # a folder for each class
            return names
    return {}
