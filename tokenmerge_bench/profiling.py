"""Profiling: models and methods -> groups of rivals (rivals.py) -> samples (timing.py) -> records -> profile.csv.

The rivals of a group are timed interleaved, so that what the machine does meanwhile falls on all of them alike. In
every group are the unreduced model, which is what speedups are measured against, and each schedule's *free drop*, in
which tokens are dropped by position: the bound of what a method can gain.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import timm
import torch
from torch import nn

from tokenmerge_bench.batch_sizes import Search, check_batch_sizes, largest_batch
from tokenmerge_bench.checkpoints import load_weights
from tokenmerge_bench.engine import Hardware, Reporter, open_device
from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.experiment import Dtype, Experiment
from tokenmerge_bench.models import DEMO_MODEL, LoadedModel, build_model, data_config
from tokenmerge_bench.modes import Run, as_mode, check_modes, compiling, shared_by
from tokenmerge_bench.options import MethodSpec
from tokenmerge_bench.paths import path_for
from tokenmerge_bench.points import plan
from tokenmerge_bench.profile_rows import rows_of
from tokenmerge_bench.profiles import ProfileFolder
from tokenmerge_bench.provenance import hardware_name, provenance, version
from tokenmerge_bench.rivals import Group, noise
from tokenmerge_bench.store import write_text
from tokenmerge_bench.timing import Samples, Stopwatch, failure, take_samples, tracing_reason

STEPS = 100
"""Steps of the progress bar in each group."""
RANDOM = "random"
"""What the column `weights` says of weights that were never trained."""


@dataclass(frozen=True)
class ProfileResult:
    """What a profile came to."""

    path: Path
    table: pd.DataFrame

    @property
    def failed(self) -> bool:
        """Whether any cell failed."""
        return bool((self.table["status"] == "failed").any())


def run_profile(
    experiment: Experiment,
    *,
    batch_sizes: Sequence[str] = ("1", "8", "32"),
    dtypes: Sequence[str] = ("float32",),
    modes: Sequence[str] = ("eager",),
    weights: Mapping[str, Path] | None = None,
    device: str = "cpu",
    seconds: float = 10.0,
    out: Path | None = None,
    fresh: bool = False,
    reporter: Reporter,
) -> ProfileResult:
    """Times what is asked for, or what is left of it, into a folder.

    Args:
        experiment: models, methods, budgets and seed; nothing else of it is read. Methods that learn get initial
            weights, on whose values times do not depend.
        batch_sizes: numbers of images, or `max`.
        dtypes: precisions; the whole model is cast to each, which is not autocast.
        modes: see `modes.as_mode`.
        weights: local weight files by model name; without one, the embedded model has its own and others random ones.
        device: as torch names it.
        seconds: of samples in each group; there are at least as many rounds as the interval needs in any case.
        out: the folder; by default one under `results/` whose name follows from what is timed.
        fresh: start over even if the folder holds an earlier profile.
        reporter: told how it goes.

    Raises:
        InputError: before anything is timed, if something given is wrong or would make times mean nothing.
    """
    where = open_device(device)
    kinds = check_modes(list(dict.fromkeys(modes)), where)
    precisions, sizes = check_dtypes(dtypes), check_batch_sizes(batch_sizes)
    if not 0 <= seconds < float("inf"):
        raise InputError(f"--seconds {seconds:g} is no time; give seconds of samples per group, such as 10.")
    methods = experiment.all_methods()
    reason = tracing_reason()
    if reason is not None:
        raise InputError(f"{reason}, and times taken under it would mean nothing; run without it.")
    groups = []
    for name in dict.fromkeys(experiment.models):
        loaded = load(name, (weights or {}).get(name))
        points = tuple(plan(loaded, methods, experiment.all_budgets(), 1, experiment.seed, untrained=True))
        groups += [Group(loaded, points, size, dtype, mode) for dtype in precisions for size in sizes for mode in kinds]
    evaluation = _evaluation(methods, where, seconds, experiment.seed)
    pieces = {group.id: str(group) for group in groups}
    digest = hashlib.sha256(json.dumps([evaluation, pieces], sort_keys=True).encode()).hexdigest()[:6]
    with ProfileFolder(out or Path("results") / f"profile-{digest}", evaluation, pieces, fresh) as folder:
        return _Run(groups, where, seconds, experiment, folder, reporter).all()


def check_dtypes(names: Sequence[str]) -> list[str]:
    """Precisions by name, each once; InputError for one that is unknown."""
    known = list(get_args(Dtype))
    for name in names:
        if name not in known:
            raise InputError(f"there is no precision '{name}'{nearest(name, known)}; there are {', '.join(known)}.")
    return list(dict.fromkeys(names))


def load(name: str, weights: Path | None) -> LoadedModel:
    """A model on the CPU in float32; without a file, any but the embedded one gets random weights (seed 0)."""
    if weights is not None or name.split(".")[0] == DEMO_MODEL:
        return load_weights(name, weights, device=torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(name).eval()
    return LoadedModel(model, name, RANDOM, RANDOM, data_config(model))


class _Run:
    """A profile whose inputs have all been checked."""

    def __init__(
        self,
        groups: Sequence[Group],
        device: torch.device,
        seconds: float,
        experiment: Experiment,
        folder: ProfileFolder,
        reporter: Reporter,
    ) -> None:
        self.groups, self.device, self.seconds = groups, device, seconds
        self.experiment, self.folder, self.reporter = experiment, folder, reporter
        self._models: dict[tuple[str, str], nn.Module] = {}  # the last one alone

    def all(self) -> ProfileResult:
        """Times what is missing, then writes the table and the provenance."""
        missing = [group for group in self.groups if not self.folder.is_done(group.id)]
        self.reporter.start(STEPS * len(self.groups), STEPS * (len(self.groups) - len(missing)))
        for group in missing:
            told = _Steps(self.reporter, str(group))
            self.folder.finish(group.id, self._time(group, told))
            told(1.0)
        records = {group.id: self.folder.record(group.id) for group in self.groups}
        once = [records[group.id] for group in self.groups if not self._is_told_twice(group, records[group.id])]
        table = self.folder.write_table([row for record in once for row in record["rows"]])
        if missing or not (self.folder.path / "provenance.json").exists():
            self._write_provenance()
        return ProfileResult(self.folder.path, table)

    def _is_told_twice(self, group: Group, record: Mapping[str, Any]) -> bool:
        """Whether a group of the automatic maximum has turned out to be one that is timed under its number as well."""
        numbers = {other.batch for other in self.groups if group.differs_in_batch_alone(other)}
        return group.batch is None and record["batch_size"] in numbers

    def _write_provenance(self) -> None:
        origin = {
            **provenance(self.device),
            "hardware": hardware_name(self.device),
            "path": path_for(self.device),
            "experiment": self.experiment.model_dump(include={"methods", "models", "layers", "seed"}),
            "budgets": [budget.recorded for budget in self.experiment.all_budgets()],
        }
        write_text(self.folder.path / "provenance.json", json.dumps(origin, indent=1) + "\n")

    def _time(self, group: Group, told: Callable[[float], None]) -> dict[str, Any]:
        """The record of one group."""
        try:
            model = self._model(group)
            batch = group.batch or self._largest(group, model)
        except Exception as error:  # memory for the weights or one image, or a precision that the device lacks
            return self._record(group, Samples(failures=dict.fromkeys(group.names, failure(error))), {}, group.batch)
        numbers = {other.batch for other in self.groups if group.differs_in_batch_alone(other)}
        if group.batch is None and batch in numbers:
            return {"group": str(group), "batch_size": batch, "rows": []}  # timed under its number
        with _clean(self.device), torch.inference_mode(), Hardware(self.device).exact(), ExitStack() as stack:
            if group.mode.startswith("compile"):
                stack.enter_context(compiling())
            rivals, memory, failures = self._prepare(group, model, batch)
            samples = take_samples(rivals, self.device, seconds=self.seconds, seed=self.experiment.seed, told=told)
            rivals.clear()  # so that nothing keeps their memory
        samples.failures |= failures
        return self._record(group, samples, memory, batch)

    def _prepare(
        self, group: Group, model: nn.Module, batch: int
    ) -> tuple[dict[str, Run], dict[str, float | None], dict[str, str]]:
        """Forward passes, peak memory in MB and reasons of failure of the group's rivals, by name."""
        rivals: dict[str, Run] = {}
        memory: dict[str, float | None] = {}
        failures: dict[str, str] = {}
        try:
            images, ids = noise(model, batch, group.dtype, self.device, self.experiment.seed)
        except Exception as error:  # memory
            return {}, {}, dict.fromkeys(group.names, failure(error))
        shared, resident = shared_by(group.mode), _allocated(self.device)

        def ready(build: Callable[[], nn.Module]) -> tuple[Run, float | None]:
            network = build()
            peak = _peak_memory(as_mode(network, images, ids, "eager"), self.device, resident)
            run = as_mode(network, images, ids, group.mode, shared)
            run()  # compiles, where it does
            return run, peak

        for name, build in group.networks(model).items():
            try:
                rivals[name], memory[name] = ready(build)
            except Exception as error:  # a method's own, the compiler's, memory: the others go on
                failures[name] = failure(error)
            if name in failures:  # and not before the error is forgotten, which refers to what was computed
                _release(self.device)
        return rivals, memory, failures

    def _model(self, group: Group) -> nn.Module:
        """The model of a group on the device, in its precision; kept until another one is asked for."""
        key = (group.loaded.name, group.dtype)
        if key not in self._models:
            self._models.clear()
            with _clean(self.device):
                own = copy.deepcopy(group.loaded.model)
                self._models[key] = own.to(device=self.device, dtype=getattr(torch, group.dtype))
        return self._models[key]

    def _largest(self, group: Group, model: nn.Module) -> int:
        """The automatic maximum of a model at a precision: found with the unreduced model, eagerly, and remembered."""
        name = f"max-{group.loaded.name}-{group.dtype}"
        if self.folder.is_done(name):
            return int(self.folder.record(name)["batch_size"])
        clock = Stopwatch(self.device)

        def rate(batch: int) -> float:
            with _clean(self.device), torch.inference_mode(), Hardware(self.device).exact():
                run = as_mode(model, *noise(model, batch, group.dtype, self.device, 0), "eager")
                clock(run)
                return batch / min(clock(run) for _ in range(3))

        batch, tried = largest_batch(rate, Search.on(self.device))
        self.folder.finish(name, {"batch_size": batch, "tried": tried})
        return batch

    def _record(
        self, group: Group, samples: Samples, memory: Mapping[str, float | None], batch: int | None
    ) -> dict[str, Any]:
        shared = {"batch_size": batch, "device": hardware_name(self.device)}
        return {
            "group": str(group),
            **shared,
            "rows": [{**row, **shared} for row in rows_of(group, samples, memory, batch or 0)],
            "seconds": {name: [round(s, 9) for s in taken] for name, taken in samples.seconds.items()},
            "passes": samples.passes,
            "order": samples.order,
        }


class _Steps:
    """Tells a reporter how far a group is, in whole steps."""

    def __init__(self, reporter: Reporter, doing: str) -> None:
        self.reporter, self.doing, self.done = reporter, doing, 0

    def __call__(self, fraction: float) -> None:
        steps = int(STEPS * fraction) - self.done
        self.done += steps
        self.reporter.advance(steps, self.doing)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak_memory(run: Run, device: torch.device, resident: int) -> float | None:
    """Peak memory of a pass in MB (2^20 bytes), as if nothing but `resident` bytes had been there; None on the CPU."""
    if device.type != "cuda":
        return None
    run()  # libraries allocate
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return (resident + torch.cuda.max_memory_allocated(device) - before) / 2**20


@contextmanager
def _clean(device: torch.device) -> Iterator[None]:
    """Leaves no memory behind for what comes next: networks refer to themselves, so only a collection ends them."""
    try:
        yield
    finally:
        _release(device)


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _evaluation(specs: Sequence[MethodSpec], device: torch.device, seconds: float, seed: int) -> dict[str, Any]:
    """What must be the same for times to stand in one folder."""
    return {
        **{f"code of {spec.name}": spec.code for spec in specs},
        "version": version(),
        "hardware": hardware_name(device),
        "path": path_for(device),
        "seconds": seconds,
        "seed": seed,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
