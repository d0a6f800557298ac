"""The jobs of a sweep: a model with its own weights or a checkpoint's, and the points that are evaluated with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tokenmerge_bench.budgets import Budget
from tokenmerge_bench.checkpoints import Checkpoint, load_weights, shipped_checkpoints
from tokenmerge_bench.counting import Macs
from tokenmerge_bench.data import ImageSet, eval_transform
from tokenmerge_bench.engine import attached
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.experiment import Experiment
from tokenmerge_bench.hardware import Hardware
from tokenmerge_bench.models import LoadedModel
from tokenmerge_bench.options import MethodSpec
from tokenmerge_bench.points import Point, plan
from tokenmerge_bench.trained import Place, Places, refuse_other_shape


@dataclass
class Job:
    """A model with its own weights or those of a checkpoint, and its points."""

    loaded: LoadedModel
    points: list[Point]
    unreduced: Macs
    """Of the unreduced model."""
    checkpoint: Checkpoint | None = None
    reducers: Mapping[str, torch.Tensor] | None = None
    """State dict of the reducers, from the checkpoint."""

    @property
    def key(self) -> str:
        """Tells the jobs of a sweep apart."""
        trained = "" if self.checkpoint is None else f"@{self.checkpoint.card.fingerprint}"
        return f"{self.loaded.name}{trained}"

    @property
    def runnable(self) -> list[Point]:
        """The points that can be evaluated."""
        return [point for point in self.points if not point.obstacle]


class Loader:
    """Makes the jobs of a sweep: models for its images, their data configs with what the experiment changes in them.

    Args:
        experiment: what to compare.
        hardware: where models go, and how precise they are there.
        images: what is evaluated, whose classes must be the model's; None for images without labels.
    """

    def __init__(self, experiment: Experiment, hardware: Hardware, images: ImageSet | None) -> None:
        self.experiment, self.images = experiment, images
        self.kwargs: dict[str, Any] = {
            "device": hardware.device,
            "dtype": torch.float64 if hardware.dtype == torch.float64 else torch.float32,
            "model_kwargs": {"img_size": experiment.img_size} if experiment.img_size else {},
        }

    def own(self, model: str, weights: Path | None) -> LoadedModel:
        """A model with its own weights."""
        return self._suited(load_weights(model, weights, **self.kwargs))

    def jobs(
        self,
        own: LoadedModel,
        methods: Sequence[MethodSpec],
        budgets: Sequence[Budget],
        given: Sequence[Checkpoint],
    ) -> list[Job]:
        """A model off the shelf, and then each checkpoint of it that has a place in the sweep."""
        experiment = self.experiment
        of_model = shipped_checkpoints(own.name.partition(".")[0])  # whose cards leave timm's tag away
        shipped = [checkpoint for checkpoint in of_model if checkpoint.began_with(own.fingerprint)]
        places = Places(own.model, methods, budgets).all(given, shipped, experiment.trained)
        filled = [(place.asked, place.budget) for place in places if place.asked is not None]
        points = plan(own, methods, budgets, experiment.seeds, experiment.seed, filled, untrained=experiment.untrained)
        assert points[0].solution is not None
        unreduced = points[0].solution.macs
        by_checkpoint: dict[Checkpoint, list[Place]] = defaultdict(list)
        for place in places:
            by_checkpoint[place.checkpoint].append(place)
        trained = [self._trained(own, unreduced, held) for held in by_checkpoint.values()]
        return [Job(own, points, unreduced), *trained]

    def _trained(self, own: LoadedModel, unreduced: Macs, places: Sequence[Place]) -> Job:
        """The points of one checkpoint."""
        checkpoint = places[0].checkpoint
        loaded, reducers = checkpoint.load(own.name, **self.kwargs)
        refuse_other_shape(checkpoint, loaded, own)
        loaded = self._suited(loaded)
        points = [place.point(loaded) for place in places]
        for point in points:
            attached(loaded.model, point, reducers)  # refuses weights of other reducers
        return Job(loaded, points, unreduced, checkpoint=checkpoint, reducers=reducers)

    def _suited(self, loaded: LoadedModel) -> LoadedModel:
        """The model with what the experiment changes in its data config.

        Raises:
            InputError: for a model of other classes, or preprocessing that is not possible.
        """
        images, classes = self.images, loaded.model.num_classes
        if images is not None and classes != images.classes:
            raise InputError(
                f"model '{loaded.name}' distinguishes {classes} classes but data set '{images.name}' has "
                f"{images.classes}; give a model trained on these classes (--models, --weights) or its data set "
                "(--dataset)."
            )
        suited = replace(loaded, data_config={**loaded.data_config, **self.experiment.preprocessing})
        eval_transform(suited.data_config, **self.experiment.preprocessing)  # refuses what it cannot follow
        return suited
