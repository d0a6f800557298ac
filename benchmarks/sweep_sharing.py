"""What a sweep saves against evaluating its points one at a time.

    python benchmarks/sweep_sharing.py [--methods ...] [--budgets 0.7,0.5,0.4] [--limit 400] [--device cpu]
    python benchmarks/sweep_sharing.py --models deit_small_patch16_224 --jpegs 50000 --batch-size 256 --device cuda
        --dtype bfloat16 --cuda-graphs --alone 0 --processes 2

Three ways over the same points and images, in one run: the sweep; every point alone, one after the other in this
process, each decoding the images anew (or some of them, with --alone, for all); and, with --processes, a process per
point, as is usual, of which some are measured for all. The bound is the greater of two times that no sweep gets below:
decoding all images once, and computing once every piece of work that differs, on images that lie in memory. Where every
point runs alone, the sweep is measured before and after them, and the mean counts. Predictions of sweep and single runs
are compared, and where they differ the distance of the two best logits is shown.
"""

# ruff: noqa: E402 (importing torch is a part of what a process per point costs)
from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tokenmerge_bench.data import Batch, default_workers, eval_transform, iter_views, load_batch, subset
from tokenmerge_bench.datasets import open_dataset
from tokenmerge_bench.display import SilentReporter
from tokenmerge_bench.engine import Engine, Evaluator, evaluate, prepare
from tokenmerge_bench.experiment import load_experiment
from tokenmerge_bench.hardware import open_hardware
from tokenmerge_bench.imagenet import wordnet_ids
from tokenmerge_bench.images import ImageSet, Indices
from tokenmerge_bench.models import LoadedModel, build_model, data_config, load_model
from tokenmerge_bench.points import Point, plan
from tokenmerge_bench.provenance import hardware_name

Predictions = dict[str, list[int]]
_ENOUGH = 8192
"""Images after which the time to decode one is known."""
_DIFFERENT = 500


@dataclass
class Setup:
    """Everything that the ways share."""

    given: argparse.Namespace
    images: ImageSet = field(init=False)
    chosen: Indices = field(init=False)
    loaded: list[LoadedModel] = field(init=False)

    def __post_init__(self) -> None:
        g = self.given
        self.hardware = open_hardware(g.device, getattr(torch, g.dtype), g.compile, g.cuda_graphs)
        self.workers = default_workers(self.hardware.device) if g.workers is None else g.workers
        changes = {
            "methods": g.methods and g.methods.split(","),
            "models": g.models and g.models.split(","),
            "budgets": g.budgets and [float(text) for text in g.budgets.split(",")],
            "k": g.k and g.k.split(","),
            "dataset": g.dataset,
            "seeds": g.seeds,
            "batch_size": g.batch_size,
        }
        self.experiment = load_experiment(g.experiment, **changes)
        assert self.experiment.dataset is not None
        self.images = open_dataset(self.experiment.dataset)
        limit = self.experiment.limit if g.limit is None else g.limit
        self.chosen = subset(self.images, limit or None, self.experiment.seed)
        self.loaded = [self._load(name) for name in self.experiment.models]

    def _load(self, name: str) -> LoadedModel:
        g = self.given
        if g.weights is not None or self.experiment.dataset == "demo":
            return load_model(name, g.weights, device=self.hardware.device)
        torch.manual_seed(0)
        model = build_model(name).to(self.hardware.device).eval()
        return LoadedModel(model, name, "random", "random", data_config(model))

    def points(self) -> list[Point]:
        """All points that can be run."""
        methods = self.experiment.all_methods()
        budgets, seed = self.experiment.all_budgets(), self.experiment.seed
        planned = [p for m in self.loaded for p in plan(m, methods, budgets, self.experiment.seeds, seed)]
        return [point for point in planned if point.solution is not None]

    def prepare(self, points: list[Point]) -> dict[str, dict[str, Evaluator]]:
        """Evaluators by model and point."""
        models = {loaded.name: loaded.model for loaded in self.loaded}
        found: dict[str, dict[str, Evaluator]] = {}
        for point in points:
            found.setdefault(point.model, {})[point.id] = prepare(models[point.model], point)
        return found

    def run(self, evaluators: dict[str, dict[str, Evaluator]], held: int = 0) -> tuple[float, Predictions]:
        """Seconds and predictions of points that are evaluated together.

        With `held`, on so many full batches that lie in memory, after two that are not timed.
        """
        failures: dict[str, str] = {}
        predictions: Predictions = {}
        size = self.experiment.batch_size
        engines = [
            Engine(name, own, self.hardware, SilentReporter(), failures, view=view, batch_size=size)
            for view, (name, own) in enumerate(evaluators.items())
        ]
        configs = [loaded.data_config for loaded in self.loaded if loaded.name in evaluators]
        pin = self.hardware.device.type == "cuda"
        transforms = [eval_transform(config) for config in configs]
        batches: Iterable[Sequence[Batch]]
        if held:
            views = next(iter(iter_views(self.images, self.chosen, transforms, size, 0, pin=pin)))
            batches = [views] * (2 + held)
        else:
            batches = iter_views(self.images, self.chosen, transforms, size, self.workers, pin=pin)
        self._wait()
        start = time.perf_counter()
        for done, outcomes in enumerate(evaluate(engines, batches, {}, self.hardware), start=1):
            for name, outcome in outcomes.points.items():
                predictions.setdefault(name, []).extend(outcome.prediction)
            if held and done == 2 * len(engines):
                start = time.perf_counter()
        self._wait()
        if failures:
            raise RuntimeError(str(failures))
        return time.perf_counter() - start, predictions

    def decode(self) -> float:
        """Seconds to decode all images once, for one model; of very many, from the first."""
        chosen = self.chosen[:_ENOUGH]
        start = time.perf_counter()
        transforms = [eval_transform(self.loaded[0].data_config)]
        for _ in iter_views(self.images, chosen, transforms, self.experiment.batch_size, self.workers):
            pass
        return (time.perf_counter() - start) * len(self.chosen) / len(chosen)

    def work(self, evaluators: dict[str, dict[str, Evaluator]]) -> float:
        """Seconds to compute what differs between the points, once for every image."""
        size = min(self.experiment.batch_size, len(self.chosen))
        held = max(1, min(20, len(self.chosen) // size))
        return self.run(evaluators, held)[0] * len(self.chosen) / (held * size)

    def margin(self, evaluator: Evaluator, position: int) -> float:
        """Distance of the two best logits of one image, in the batch in which it was evaluated."""
        size = self.experiment.batch_size
        first = position // size * size
        config = next(loaded.data_config for loaded in self.loaded if loaded.name == evaluator.point.model)
        batch = load_batch(self.images, self.chosen[first : first + size], eval_transform(config))
        with self.hardware.forward():
            pixels = batch.pixels.to(self.hardware.device)
            logits = evaluator.network(pixels, torch.from_numpy(batch.ids).to(self.hardware.device))
        best = logits[position - first].float().topk(2).values
        return float(best[0] - best[1])

    def _wait(self) -> None:
        if self.hardware.device.type == "cuda":
            torch.cuda.synchronize(self.hardware.device)


def main() -> None:
    """Prints the three ways and what they come to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="demo")
    for flag in ("methods", "models", "budgets", "k", "dataset"):
        parser.add_argument(f"--{flag}")
    parser.add_argument("--weights", type=Path, help="without, other models than the embedded one are untrained")
    for flag in ("limit", "seeds", "batch-size", "workers"):
        parser.add_argument(f"--{flag}", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--jpegs", type=int, help="make so many JPEG files of 500x375, ImageNet's usual size")
    parser.add_argument("--replicate", type=Path, help="and take them from this folder of images, over and over")
    parser.add_argument("--alone", type=int, metavar="M", help="run M of the points alone in this process; else all")
    parser.add_argument("--processes", type=int, metavar="M", help="run M of the points in processes of their own")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a point, in a process of its own
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.only:
        setup = Setup(given)
        setup.run(setup.prepare([point for point in setup.points() if given.only == point.id]))
        return
    made = time.perf_counter()
    with jpegs(given.jpegs, given.replicate) as folder:
        if folder is not None:
            given.dataset = str(folder)
            given.limit = 0 if given.limit is None else given.limit
        report(given, started=STARTED + time.perf_counter() - made)


def report(given: argparse.Namespace, started: float) -> None:
    """Runs all ways."""
    setup = Setup(given)
    points = setup.points()
    evaluators = setup.prepare(points)
    batches = -(-len(setup.chosen) // setup.experiment.batch_size)
    print(
        f"torch {torch.__version__}, {hardware_name(setup.hardware.device)}, {setup.workers} workers, {given.dtype}, "
        f"compile {given.compile}, CUDA graphs {given.cuda_graphs}; {len(points)} points of "
        f"{', '.join(setup.experiment.models)} on {len(setup.chosen)} images in {batches} batches",
        flush=True,
    )
    warm = copy.copy(setup)
    warm.chosen = setup.chosen[: min(len(setup.chosen), 2 * setup.experiment.batch_size)]
    warm.run(evaluators)  # libraries allocate, kernels are built
    sweep, together = setup.run(evaluators)
    whole = time.perf_counter() - started
    print(f"sweep                       {sweep:9.2f} s", flush=True)

    single = [{model: {name: own}} for model, group in evaluators.items() for name, own in group.items()]
    measured = spread(single, len(single) if given.alone is None else given.alone)
    times = []
    apart: Predictions = {}
    for one in measured:
        seconds, found = setup.run(one)
        times.append(seconds)
        apart |= found
    if len(measured) == len(single):
        again, _ = setup.run(evaluators)
        print(f"sweep, once more            {again:9.2f} s")
        sweep = (sweep + again) / 2
    if measured:
        rival = sum(times) / len(times) * len(single)
        how = extrapolated(len(times), len(single))
        print(f"each point alone, in turn   {rival:9.2f} s   (the slowest {max(times):.2f} s){how}")
        print(f"sweep over that             {sweep / rival:9.3f}")
    decode, work = setup.decode(), setup.work(evaluators)
    bound = max(decode, work)
    print(f"bound                       {bound:9.2f} s   (decoding {decode:.2f}, work that differs {work:.2f})")
    print(f"sweep over bound            {sweep / bound:9.3f}", flush=True)
    compare(setup, {name: own for group in evaluators.values() for name, own in group.items()}, together, apart)
    if given.processes:
        processes(given, points, whole)


def spread(items: list[Any], count: int) -> list[Any]:
    """So many of the items, evenly spread."""
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def extrapolated(measured: int, total: int) -> str:
    """Says so where not all were measured."""
    return "" if measured == total else f", extrapolated from {measured} of {total}"


def compare(setup: Setup, evaluators: dict[str, Evaluator], together: Predictions, apart: Predictions) -> None:
    """Says where predictions of the sweep and of single runs differ, and by how little the logits decide there."""
    total = sum(map(len, apart.values()))
    found = [
        (name, position)
        for name in apart
        for position in np.flatnonzero(np.array(together[name]) != np.array(apart[name])).tolist()
    ]
    print(f"predictions that differ     {len(found):9d}     of {total}")
    for name, position in found[:20]:
        margin = setup.margin(evaluators[name], position)
        print(f"    {name}, image {position}: the two best logits are {margin:.2g} apart")


def processes(given: argparse.Namespace, points: list[Point], whole: float) -> None:
    """A process per point against this one, which had evaluated all `whole` seconds after Python had started."""
    command = [sys.executable, *sys.argv, *(["--dataset", given.dataset] if given.dataset else []), "--limit"]
    command.append(str(given.limit if given.limit is not None else load_experiment(given.experiment).limit or 0))
    measured = spread(points, given.processes)
    alone = []
    for point in measured:
        start = time.perf_counter()
        subprocess.run([*command, "--only", point.id], check=True, stdout=subprocess.DEVNULL)
        alone.append(time.perf_counter() - start)
    rival = sum(alone) / len(alone) * len(points)
    print(f"a process per point         {rival:9.2f} s{extrapolated(len(alone), len(points))}")
    print(f"one process for all         {whole:9.2f} s   (with its start, planning and kernels)")
    print(f"a process per point takes   {rival / whole:9.2f} times as long")


@contextmanager
def jpegs(number: int | None, source: Path | None) -> Iterator[Path | None]:
    """A folder of that many JPEG files in class folders, gone afterwards; None if there are to be none.

    A few hundred are different; the others are further names of these files, to be opened and decoded like all.
    """
    if number is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp())
    try:
        classes = list(wordnet_ids())
        files = sorted(f for f in source.rglob("*") if f.suffix.lower() in (".jpeg", ".jpg", ".png")) if source else []
        for index in range(number):
            target = folder / classes[index % len(classes)] / f"{index}.JPEG"
            target.parent.mkdir(exist_ok=True)
            first = index % min(number, len(files) or _DIFFERENT)
            if index == first and files:
                with Image.open(files[index]) as image:
                    image.convert("RGB").resize((500, 375)).save(target, quality=90)
            elif index == first:
                smooth(index).save(target, quality=90)
            else:
                os.link(folder / classes[first % len(classes)] / f"{first}.JPEG", target)
        yield folder
    finally:
        shutil.rmtree(folder)


def smooth(seed: int) -> Image.Image:
    """A picture of soft blobs with a little noise, which JPEG needs about as many bytes for as for a photograph."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(blobs).astype(np.int16) + rng.integers(-12, 13, (375, 500, 1), dtype=np.int16)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
