"""What a sweep saves against evaluating its points one at a time.

    python benchmarks/sweep_sharing.py [--methods ...] [--budgets 0.7,0.5,0.4] [--limit 400] [--device cpu]
    python benchmarks/sweep_sharing.py --models deit_small_patch16_224 --jpegs 2048 --batch-size 256 --device cuda

Three ways over the same points and images, in one run: the sweep; every point alone, one after the other in this
process, each decoding the images anew; and, with --processes, a process per point, as is usual, of which some may
be measured for all. The bound is the greater of two times that no sweep gets below: decoding all images once, and
computing once every piece of work that differs. The sweep is measured before and after the rival, and the mean counts.
Predictions of sweep and single runs are compared, and where they differ the distance of the two best logits is shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokenmerge_bench.data import default_workers, eval_transform, iter_views, load_batch, subset
from tokenmerge_bench.datasets import open_dataset
from tokenmerge_bench.display import SilentReporter
from tokenmerge_bench.engine import Engine, Evaluator, Launched, evaluate, prepare
from tokenmerge_bench.experiment import available, load_experiment
from tokenmerge_bench.hardware import open_hardware
from tokenmerge_bench.imagenet import wordnet_ids
from tokenmerge_bench.images import ImageSet, Indices
from tokenmerge_bench.models import LoadedModel, build_model, data_config, load_model
from tokenmerge_bench.points import Point, plan
from tokenmerge_bench.store import BatchOutcomes

Predictions = dict[str, list[int]]


class Added(Engine):
    """An engine that adds up the time of every piece of work that it ran."""

    worked = 0.0

    def finish(self, launched: Launched) -> BatchOutcomes:
        """See `Engine.finish`."""
        outcomes = super().finish(launched)
        self.worked += sum(sum(part.laps.seconds().values()) for part in launched.parts)
        return outcomes


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
        methods, _ = available(self.experiment)
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

    def run(self, evaluators: dict[str, dict[str, Evaluator]]) -> tuple[float, float, Predictions]:
        """Seconds in all, seconds of the pieces of work, and predictions, of points that are evaluated together."""
        failures: dict[str, str] = {}
        predictions: Predictions = {}
        size = self.experiment.batch_size
        engines = [
            Added(name, own, self.hardware, SilentReporter(), failures, view=view, batch_size=size)
            for view, (name, own) in enumerate(evaluators.items())
        ]
        configs = [loaded.data_config for loaded in self.loaded if loaded.name in evaluators]
        self._wait()
        start = time.perf_counter()
        pin = self.hardware.device.type == "cuda"
        transforms = [eval_transform(config) for config in configs]
        batches = iter_views(self.images, self.chosen, transforms, size, self.workers, pin=pin)
        for outcomes in evaluate(engines, batches, {}, self.hardware):
            for name, outcome in outcomes.points.items():
                predictions.setdefault(name, []).extend(outcome.prediction)
        self._wait()
        if failures:
            raise RuntimeError(str(failures))
        return time.perf_counter() - start, sum(engine.worked for engine in engines), predictions

    def decode(self) -> float:
        """Seconds to decode all images once, for one model."""
        start = time.perf_counter()
        transforms = [eval_transform(self.loaded[0].data_config)]
        for _ in iter_views(self.images, self.chosen, transforms, self.experiment.batch_size, self.workers):
            pass
        return time.perf_counter() - start

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
    parser.add_argument("--processes", type=int, metavar="M", help="run M of the points in processes of their own")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a point, in a process of its own; `all` for the sweep
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.only:
        setup = Setup(given)
        setup.run(setup.prepare([point for point in setup.points() if given.only in ("all", point.id)]))
        return
    with jpegs(given.jpegs, given.replicate) as folder:
        if folder is not None:
            given.dataset = str(folder)
            given.limit = 0 if given.limit is None else given.limit
        report(given)


def report(given: argparse.Namespace) -> None:
    """Runs all ways."""
    setup = Setup(given)
    points = setup.points()
    evaluators = setup.prepare(points)
    single = [{model: {name: own}} for model, group in evaluators.items() for name, own in group.items()]
    batches = -(-len(setup.chosen) // setup.experiment.batch_size)
    print(
        f"torch {torch.__version__}, {setup.hardware.device} ({torch.get_num_threads()} threads, {setup.workers} "
        f"workers), {given.dtype}; {len(points)} points of {', '.join(setup.experiment.models)} on {len(setup.chosen)} "
        f"images in {batches} batches"
    )
    warm = dataclasses.replace(setup, given=given)
    warm.chosen = setup.chosen[: min(len(setup.chosen), 2 * setup.experiment.batch_size)]
    warm.run(evaluators)  # libraries allocate, kernels are built
    first, worked, together = setup.run(evaluators)
    times = []
    apart: Predictions = {}
    for one in single:
        seconds, _, found = setup.run(one)
        times.append(seconds)
        apart |= found
    second, worked_again, _ = setup.run(evaluators)
    sweep, decode, rival = (first + second) / 2, setup.decode(), sum(times)
    work = (worked + worked_again) / 2
    print(f"each point alone, in turn   {rival:9.2f} s   (the slowest {max(times):.2f} s)")
    print(
        f"sweep                       {sweep:9.2f} s   ({first:.2f} and {second:.2f}); {sweep / rival:.3f} of the rival"
    )
    bound = max(decode, work)
    print(f"bound                       {bound:9.2f} s   (decoding {decode:.2f}, work that differs {work:.2f})")
    print(f"sweep over bound            {sweep / bound:9.3f}")
    compare(setup, {name: own for group in evaluators.values() for name, own in group.items()}, together, apart)
    if given.processes:
        processes(given, points)


def compare(setup: Setup, evaluators: dict[str, Evaluator], together: Predictions, apart: Predictions) -> None:
    """Says where predictions of the sweep and of single runs differ, and by how little the logits decide there."""
    total = sum(map(len, together.values()))
    found = [
        (name, position)
        for name in together
        for position in np.flatnonzero(np.array(together[name]) != np.array(apart[name])).tolist()
    ]
    print(f"predictions that differ     {len(found):9d}     of {total}")
    for name, position in found[:20]:
        margin = setup.margin(evaluators[name], position)
        print(f"    {name}, image {position}: the two best logits are {margin:.2g} apart")


def processes(given: argparse.Namespace, points: list[Point]) -> None:
    """A process per point against one process for all; everything from the start of Python on."""
    command = [sys.executable, *sys.argv, "--dataset", given.dataset] if given.dataset else [sys.executable, *sys.argv]
    step = max(1, len(points) // given.processes)
    measured = points[::step][: given.processes]

    def seconds(only: str) -> float:
        start = time.perf_counter()
        subprocess.run([*command, "--only", only], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    alone = [seconds(point.id) for point in measured]
    whole = seconds("all")
    rival = sum(alone) / len(alone) * len(points)
    how = "" if len(alone) == len(points) else f", extrapolated from {len(alone)} of {len(points)}"
    print(f"a process per point         {rival:9.2f} s{how}")
    print(f"one process for all         {whole:9.2f} s   {whole / rival:.3f} of the rival")


@contextmanager
def jpegs(number: int | None, source: Path | None) -> Iterator[Path | None]:
    """A folder of that many JPEG files in class folders, gone afterwards; None if there are to be none."""
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
            if not files:
                smooth(index).save(target, quality=90)
            elif index < len(files):
                with Image.open(files[index]) as image:
                    image.convert("RGB").resize((500, 375)).save(target, quality=90)
            else:
                first = index % len(files)
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
