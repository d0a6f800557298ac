"""The straight line: experiment -> points -> engine -> records -> results table."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import timm
import torch

from tokenmerge_bench.checkpoints import Checkpoint
from tokenmerge_bench.data import (
    ImageSet,
    Indices,
    Unreadable,
    as_seen,
    default_workers,
    eval_transform,
    iter_views,
    subset,
)
from tokenmerge_bench.datasets import open_dataset
from tokenmerge_bench.engine import Engine, Evaluator, Reporter, evaluate, prepare
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.experiment import Experiment
from tokenmerge_bench.hardware import Hardware, open_hardware
from tokenmerge_bench.jobs import Job, Loader
from tokenmerge_bench.options import MethodSpec
from tokenmerge_bench.paths import path_for
from tokenmerge_bench.points import Point
from tokenmerge_bench.provenance import device_name, provenance, version
from tokenmerge_bench.reduced_vit import geometry
from tokenmerge_bench.standings import Standings
from tokenmerge_bench.statistics import wilson_interval
from tokenmerge_bench.store import UNREDUCED, BatchOutcomes, ResultFolder, write_bytes, write_text
from tokenmerge_bench.trained import model_of, nothing_shipped
from tokenmerge_bench.trie import reason


@runtime_checkable
class Follower(Protocol):
    """A reporter that looks at how the points stand, whenever it likes."""

    def follow(self, standings: Standings) -> None:
        """Called once, before anything is evaluated."""


@dataclass
class SweepResult:
    """What a sweep came to."""

    path: Path
    table: pd.DataFrame
    failures: dict[str, str]
    unreadable: list[str]


@dataclass
class _Job(Job):
    """A job, and what is known of its points."""

    done: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Points that the journal has, by chunk."""
    journal: list[BatchOutcomes] = field(default_factory=list)
    evaluators: dict[str, Evaluator] = field(default_factory=dict)


def run_sweep(
    experiment: Experiment,
    *,
    name: str = "sweep",
    weights: Mapping[str, Path] | None = None,
    checkpoints: Sequence[Checkpoint] = (),
    device: str = "cpu",
    out: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    compiled: bool = False,
    graphs: bool = False,
    reporter: Reporter,
) -> SweepResult:
    """Runs an experiment, or what is left of it, into a results folder.

    Args:
        experiment: what to compare on what.
        name: recorded in the column `experiment`.
        weights: the models' own weights by model name: files, or checkpoints of the unreduced model.
        checkpoints: trained points, beside those off the shelf and those that ship with the package.
        device: as torch names it.
        out: results folder; by default one under `results/` whose name follows from the experiment.
        fresh: start over even if the folder holds earlier results.
        workers: processes that decode images; None chooses their number.
        compiled: compile the halves of blocks. That changes roundings, so it is part of what an evaluation is.
        graphs: replay full batches from a CUDA graph.
        reporter: told how it goes.

    Raises:
        InputError: before anything is evaluated, if something given is wrong.
    """
    if workers is not None and workers < 0:
        raise InputError(f"--workers {workers} is negative; give 0 to decode images in this process, or more.")
    methods = experiment.all_methods()
    budgets = experiment.all_budgets()
    hardware = open_hardware(device, getattr(torch, experiment.dtype), compiled, graphs)
    if experiment.dataset is None:
        raise InputError(f"experiment '{name}' leaves the choice of images to you; name them with --dataset.")
    data_dir = Path(experiment.data_dir).expanduser() if experiment.data_dir else None
    images = open_dataset(experiment.dataset, data_dir, experiment.split)
    chosen = subset(images, experiment.limit, experiment.seed)
    models = list(dict.fromkeys(experiment.models))
    loader = Loader(experiment, hardware, images)
    jobs: list[_Job] = []
    for model in models:
        given = [checkpoint for checkpoint in checkpoints if model_of(checkpoint, models) == model]
        own = loader.own(model, (weights or {}).get(model))
        jobs += [_Job(**vars(job)) for job in loader.jobs(own, methods, budgets, given)]

    evaluation = _evaluation(experiment, methods, images, chosen, hardware)
    points = {point.id: _describe(point) for job in jobs for point in job.points if point.obstacle != "missing"}
    path = out or _default_folder(images, evaluation, points)
    with ResultFolder(path, evaluation, points, fresh) as folder:
        if experiment.trained and not any(map(_is_trained, jobs)):
            reporter.note(nothing_shipped(models))
        run = _Run(name, experiment, images, chosen, hardware, folder, reporter)
        return run.all(jobs, default_workers(hardware.device) if workers is None else workers)


class _Run:
    """A sweep whose inputs have all been checked."""

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        images: ImageSet,
        chosen: Indices,
        hardware: Hardware,
        folder: ResultFolder,
        reporter: Reporter,
    ) -> None:
        self.name, self.experiment, self.images, self.chosen = name, experiment, images, chosen
        self.hardware, self.folder, self.reporter = hardware, folder, reporter
        self.failures: dict[str, str] = {}
        self.unreadable: list[str] = []
        self._tried: dict[str, bool] = {}
        self.evaluated = False  # anything at all; a run that finds everything done leaves the provenance alone

    def all(self, jobs: Sequence[_Job], workers: int) -> SweepResult:
        """Evaluates what is missing, then writes the table and the provenance."""
        # A batch with unreadable images is evaluated again: the fault may have been the disk's, and is then over.
        journal = [batch for batch in self.folder.read_journal() if not batch.unreadable]
        for job in jobs:
            job.journal = [batch for batch in journal if batch.model == job.key]
            for batch in job.journal:
                job.done[batch.chunk].update(batch.points)
        self.standings = Standings((point for job in jobs for point in job.points), len(self.chosen), self.failures)
        self._announce(jobs, journal)
        self._evaluate(jobs, workers)
        rows = self._ordered([row for job in jobs for row in self._rows(job)])
        table = self.folder.write_results(rows)
        # Points of an earlier run remember theirs; its journal is gone.
        self.unreadable = sorted({name for row in rows for name in row.get("unreadable", [])}.union(self.unreadable))
        if self.evaluated or not (self.folder.path / "provenance.json").exists():
            self._write_provenance(jobs)
        if not self.failures:
            self.folder.drop_journal()
        return SweepResult(self.folder.path, table, self.failures, self.unreadable)

    def _is_done(self, point: Point) -> bool:
        """Whether a point has been evaluated on every image that can be read, also on one that was mended since."""
        if not self.folder.is_done(point.id):
            return False
        return not any(map(self._readable, self.folder.record(point.id).get("unreadable", [])))

    def _readable(self, name: str) -> bool:
        if name not in self._tried:
            try:
                self.images.load(self.images.paths.index(name))
                self._tried[name] = True
            except Unreadable:
                self._tried[name] = False
        return self._tried[name]

    def _write_provenance(self, jobs: Sequence[_Job]) -> None:
        sources = {
            job.loaded.name: {
                "weights": job.loaded.weights,
                "fingerprint": job.loaded.fingerprint,
                "preprocessing": _plain(job.loaded.data_config),
            }
            for job in jobs
            if job.checkpoint is None
        }
        trained = [
            {"name": job.checkpoint.name, "fingerprint": job.checkpoint.card.fingerprint, "model": job.loaded.name}
            | {"card": job.checkpoint.card.model_dump(mode="json")}
            for job in jobs
            if job.checkpoint is not None
        ]
        origin = {
            **provenance(self.hardware.device),
            "compile": self.hardware.compiled,
            "path": path_for(self.hardware.device),
            "cuda_graphs": self.hardware.graphs,
            "experiment": self.experiment.model_dump(),
            "dataset": {"name": self.images.name, "fingerprint": self.images.fingerprint},
            "subset": {"images": len(self.chosen), "fingerprint": _digest(self.images.ids[self.chosen])},
            "models": sources,
            "checkpoints": trained,
            "unreadable": self.unreadable,
        }
        write_text(self.folder.path / "provenance.json", json.dumps(origin, indent=1) + "\n")

    def _announce(self, jobs: Sequence[_Job], journal: Sequence[BatchOutcomes]) -> None:
        planned = [point for job in jobs for point in job.runnable]
        runnable, finished = {point.id for point in planned}, {point.id for point in planned if self._is_done(point)}
        journaled = sum(
            len(batch.indices) for batch in journal for point in batch.points if point in runnable - finished
        )
        for name in finished:
            record = self.folder.record(name)
            self.standings.count_whole(name, record["n_images"], record["top1"])
        for batch in journal:
            self.standings.count(batch, but=finished)
        if isinstance(self.reporter, Follower):
            self.reporter.follow(self.standings)
        self.reporter.start(len(runnable) * len(self.chosen), len(finished) * len(self.chosen) + journaled)

    def _evaluate(self, jobs: Sequence[_Job], workers: int) -> None:
        """Takes the images through all points that have not seen them, and finishes the points."""
        missing = [[point for point in job.runnable if not self._is_done(point)] for job in jobs]
        self.evaluated |= any(missing)  # even if the journal has all of it: an earlier run did not get to the end
        for job, points in zip(jobs, missing, strict=True):
            for point in points:
                try:
                    job.evaluators[point.id] = prepare(job.loaded.model, point, job.reducers)
                except Exception as error:
                    self.failures[point.id] = reason(error)
        by_key = {job.key: job for job in jobs if job.evaluators}
        for batch in self._outcomes(by_key, workers):
            self.folder.append(batch)
            by_key[batch.model].journal.append(batch)
            self.standings.count(batch)
        self._note_unreadable([batch for job in jobs for batch in job.journal])
        for job, points in zip(jobs, missing, strict=True):
            for point in points:
                if point.id not in self.failures:
                    self._finish(job, job.evaluators[point.id])

    def _outcomes(self, jobs: Mapping[str, _Job], workers: int) -> Iterator[BatchOutcomes]:
        """What the points that are missing say, batch by batch, all models in turn."""
        size, device = self.experiment.batch_size, self.hardware.device
        # Models that see images alike share them.
        configs = list({_view(job): job.loaded.data_config for job in jobs.values()}.items())
        views = [view for view, _ in configs]
        # Spread over the choice, which is sorted by class in most folders.
        wanted = min(self.experiment.examples, len(self.chosen))
        examples = self.chosen[np.linspace(0, len(self.chosen) - 1, wanted).astype(int)].tolist()
        engines = [
            Engine(
                name,
                job.evaluators,
                self.hardware,
                self.reporter,
                self.failures,
                examples=examples,
                view=views.index(_view(job)),
                batch_size=size,
            )
            for name, job in jobs.items()
        ]
        chunks = range(-(-len(self.chosen) // size))
        complete = {c for c in chunks if all(job.done[c].issuperset(job.evaluators) for job in jobs.values())}
        if len(complete) == len(chunks):
            return iter(())  # and no processes are started to decode nothing
        transforms = [eval_transform(config, **self.experiment.preprocessing) for _, config in configs]
        batches = iter_views(self.images, self.chosen, transforms, size, workers, complete, device.type == "cuda")
        return evaluate(engines, batches, {name: job.done for name, job in jobs.items()}, self.hardware)

    def _note_unreadable(self, journal: Sequence[BatchOutcomes]) -> None:
        names = {name for batch in journal for name in batch.unreadable}
        new = sorted(names.difference(self.unreadable))
        self.unreadable = sorted(names.union(self.unreadable))
        if new:
            shown = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
            plural = "s were" if len(new) > 1 else " was"
            self.reporter.note(f"{len(new)} image{plural} unreadable and left out for every point: {shown}")

    def _finish(self, job: _Job, evaluator: Evaluator) -> None:
        """Turns a point's journal lines into its record."""
        point = evaluator.point
        seen = {batch.chunk: batch for batch in job.journal if point.id in batch.points}
        batches = [seen[chunk] for chunk in sorted(seen)]
        indices = np.concatenate([np.array(batch.indices, dtype=np.int64) for batch in batches])
        outcomes = [batch.points[point.id] for batch in batches]
        table = pd.DataFrame(
            {
                "image": [self.images.paths[i] for i in indices],
                "label": self.images.labels[indices],
                "prediction": np.concatenate([o.prediction for o in outcomes]).astype(np.int64),
                "rank": np.concatenate([o.rank for o in outcomes]).astype(np.int64),
            }
        )
        n = len(table)
        if n == 0:
            raise InputError(
                f"none of the {len(self.chosen)} images of '{self.images.name}' can be read; check the files."
            )
        hits, hits5 = int((table["rank"] == 0).sum()), int((table["rank"] < 5).sum())
        low, high = wilson_interval(hits, n)
        seconds = [o.seconds for o in outcomes if o.seconds > 0]
        record = {
            "n_images": n,
            "top1": round(100 * hits / n, 4),
            "top1_low": round(100 * low, 4),
            "top1_high": round(100 * high, 4),
            "top5": round(100 * hits5 / n, 4),
            "gflops": evaluator.macs.total / 1e9,
            "gflops_reducer": evaluator.macs.reducer / 1e9,
            "reduction": round(1 - evaluator.macs.total / job.unreduced.total, 6),
            "images_per_s": round(n / sum(seconds), 1),
            "latency_ms": round(1000 * median(seconds), 3),
            "peak_memory_mb": None,  # points share their memory; `tmbench profile` measures it
            "unreadable": sorted({name for batch in batches for name in batch.unreadable}),
        }
        merges = {int(index): sites for o in outcomes if o.merges for index, sites in o.merges.items()}
        self.folder.finish_point(point.id, record, table, [self._example(job, i, merges[i]) for i in sorted(merges)])

    def _example(self, job: _Job, index: int, sites: list[dict[str, Any]]) -> dict[str, Any]:
        """Describes the merges of an example image, whose picture is written beside it."""
        name = f"{job.loaded.name}-{self.images.ids[index]}.png"
        picture = self.folder.path / "examples" / name
        if not picture.exists():
            buffer = io.BytesIO()
            as_seen(self.images.load(index), job.loaded.data_config).save(buffer, "PNG")
            write_bytes(picture, buffer.getvalue())
        grid = geometry(job.loaded.model).grid
        return {"image": self.images.paths[index], "picture": name, "grid": grid, "sites": sites}

    def _rows(self, job: _Job) -> list[dict[str, Any]]:
        """The rows of results.csv of a model's points."""
        shared = {
            "experiment": self.name,
            "model": job.loaded.name,
            "weights": job.loaded.weights,
            "dataset": self.images.name,
            "device": self.hardware.device.type,
            "dtype": self.experiment.dtype,
        }
        return [{**shared, **self._row(point)} for point in job.points]

    def _ordered(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of results.csv by model and budget as they were asked for, the unreduced model first."""
        models = self.experiment.models
        budgets = ["1", *(budget.recorded for budget in self.experiment.all_budgets())]
        return sorted(rows, key=lambda row: (models.index(row["model"]), budgets.index(row["budget"])))

    def _row(self, point: Point) -> dict[str, Any]:
        """What a point's row says of the point itself."""
        row: dict[str, Any] = {
            "method": UNREDUCED if point.method is None else point.method.name,
            "options": "" if point.method is None else point.method.changed,
            "budget": point.budget.recorded,
            # What is missing is what was to be trained.
            "trained": "yes" if point.checkpoint is not None or point.obstacle == "missing" else "no",
            "checkpoint": "" if point.checkpoint is None else point.checkpoint.card.fingerprint,
            "seed": point.seed,
            "point": point.id,
        }
        if point.obstacle or point.solution is None:
            return {**row, "status": point.obstacle, "reason": point.reason}
        row["knob"] = point.solution.knob
        row["tokens_per_block"] = " ".join(map(str, point.solution.schedule.mlp_tokens()))
        if point.id in self.failures:
            return {**row, "status": "failed", "reason": self.failures[point.id]}
        return {**row, **self.folder.record(point.id), "status": "ok"}


def _evaluation(
    experiment: Experiment, specs: Sequence[MethodSpec], images: ImageSet, chosen: Indices, hardware: Hardware
) -> dict[str, Any]:
    """What must be the same for outcomes to be comparable within one folder."""
    return {
        **{f"code of {spec.name}": spec.code for spec in specs},
        "version": version(),
        "dataset": f"{images.name} {images.fingerprint}",
        "subset": f"{len(chosen)} images {_digest(images.ids[chosen])}",
        "preprocessing": json.dumps({**experiment.preprocessing, "img_size": experiment.img_size}, sort_keys=True),
        "examples": experiment.examples,
        "batch size": experiment.batch_size,
        "path of the inner loops": path_for(hardware.device),  # which decides what rounding decides
        # Folders made before anything could be compiled are not.
        "dtype": f"{experiment.dtype}, compiled" if hardware.compiled else experiment.dtype,
        "device": device_name(hardware.device),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def _is_trained(job: _Job) -> bool:
    """Whether a job holds a method that was trained, rather than methods off the shelf or the unreduced model."""
    return job.checkpoint is not None and job.checkpoint.card.method != UNREDUCED


def _describe(point: Point) -> str:
    """A point in words, for messages."""
    method = "unreduced" if point.method is None else f"{point.method.label} at {point.budget.recorded}"
    reducer = None if point.method is None else point.method.build()
    drawn = reducer is not None and (reducer.stochastic or reducer.learned)
    seed = f" seed {point.seed}" if drawn or point.checkpoint is not None else ""
    return f"{point.model} {point.weights} {method}{seed}"


def _default_folder(images: ImageSet, evaluation: Mapping[str, Any], points: Mapping[str, str]) -> Path:
    content = json.dumps([dict(evaluation), sorted(points)], sort_keys=True).encode()
    return Path("results") / f"{images.name}-{hashlib.sha256(content).hexdigest()[:6]}"


def _digest(ids: Indices) -> str:
    """Fingerprint of a choice of images."""
    return hashlib.sha256(np.sort(ids).astype("<i8").tobytes()).hexdigest()[:16]


def _view(job: _Job) -> str:
    """How a model sees images: equal for two models whose transforms are equal."""
    return json.dumps(_plain(job.loaded.data_config), sort_keys=True)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A data config as JSON values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
