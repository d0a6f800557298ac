"""Training throughput: `tmbench train` against the bare loop of timm, every method against the unreduced model.

    python benchmarks/training.py [--model deit_tiny_patch2_28] [--methods sit,tome] [--budget 0.7] [--batch-size 512]
        [--updates 100] [--epochs 4] [--device cpu] [--compile default] [--profile]

One process. The rival is what anybody would write with timm: the model, AdamW, mixup and autocast on one batch that
lies on the device already, without augmentation, moving average, learning curve or saved state, which `tmbench train`
has (its state is written after every epoch). The rival runs before and after, so that its spread shows; it is compiled
where `--compile` says so. `--profile` adds an epoch under torch's profiler: for how long an update keeps the GPU busy,
and how many kernels it asks for. Where that is less than an update takes, the host is the limit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from timm.optim import create_optimizer_v2
from torch.profiler import DeviceType, ProfilerActivity, profile

import tokenmerge_bench.models  # noqa: F401 - registers the project's models with timm
from tokenmerge_bench.budgets import Budget
from tokenmerge_bench.data import ArrayImages
from tokenmerge_bench.distributed import Team, open_team
from tokenmerge_bench.learning_curve import CurveRow, Quiet
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.provenance import hardware_name
from tokenmerge_bench.recipe import Recipe
from tokenmerge_bench.train import Task, train

MIX = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": 10}


class Times(Quiet):
    """Keeps the seconds of every epoch, and what the profiler sees of one more after `plain` of them."""

    def __init__(self, plain: int, updates: int, profiled: bool) -> None:
        self.plain, self.updates = plain, updates
        self.seconds: list[float] = []
        self.seen = ""
        self._profiler = profile(activities=[ProfilerActivity.CUDA]) if profiled else None

    def epoch(self, row: CurveRow) -> None:
        self.seconds.append(row.seconds)
        if self._profiler is None:
            return
        if len(self.seconds) == self.plain:
            self._profiler.start()
        elif len(self.seconds) > self.plain:
            self._profiler.stop()
            kernels = [event for event in self._profiler.events() or [] if event.device_type == DeviceType.CUDA]
            busy = sum(event.self_device_time_total for event in kernels) / 1000 / self.updates
            self.seen = f"GPU busy for {busy:.1f} ms of an update, {len(kernels) / self.updates:.0f} kernels"

    def median(self) -> float:
        """Of the epochs without the first, which warms up, and the profiled one."""
        return median(self.seconds[1 : self.plain])


def main() -> None:
    """Prints images per second of the rival and of every method."""
    given = arguments()
    team = open_team(given.device)
    print(f"{hardware_name(team.device)}, torch {torch.__version__}, timm {timm.__version__}; {given.model}, batch "
          f"{given.batch_size}, {'bfloat16' if team.device.type == 'cuda' else 'float32'}")  # fmt: skip
    rival = bare(given, team)
    show("bare loop", rival)
    unreduced, seen = ours(given, team, "none")
    show("unreduced", unreduced, f"{unreduced / rival:.3f} of bare  {seen}")
    for method in given.methods.split(","):
        speed, seen = ours(given, team, method)
        ratios = f"{speed / rival:.3f} of bare, {speed / unreduced:.3f} of unreduced  {seen}"
        show(f"{method} at {given.budget}", speed, ratios)
    show("bare loop again", bare(given, team))


def show(name: str, speed: float, ratios: str = "") -> None:
    """A row, at once, as a run may be cut off."""
    print(f"{name:<40}{speed:>10.0f} images/s   {ratios}".rstrip(), flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch2_28")
    parser.add_argument("--methods", default="sit,sinkhorn,patchmerger,dpc_knn:learned_weights=true,k_medoids,tome")
    parser.add_argument("--budget", default="0.7")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--updates", type=int, default=100, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="of which the first is not counted")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", choices=["none", "default"], default="none", help="torch.compile's mode, on CUDA")
    parser.add_argument("--profile", action="store_true", help="one more epoch under torch's profiler, on CUDA")
    given = parser.parse_args()
    if given.profile and not given.device.startswith("cuda"):
        parser.error("--profile looks at a GPU: give --device cuda")
    return given


def bare(given: argparse.Namespace, team: Team) -> float:
    """Images per second of a plain loop."""
    device = team.device
    model = timm.create_model(given.model, num_classes=10, drop_path_rate=0.1).to(device).train()
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05, **fused)
    mix = Mixup(**MIX)
    images = torch.randn(given.batch_size, *shape(given.model), device=device)
    labels = torch.arange(given.batch_size, device=device) % 10
    forward = torch.compile(model) if given.compile != "none" else model
    seconds = []
    for _ in range(given.epochs):
        began = time.perf_counter()
        for _ in range(given.updates):
            pixels, targets = mix(images.clone(), labels)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = forward(pixels)
            F.cross_entropy(logits.float(), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return float(given.batch_size * given.updates / median(seconds[1:]))


def ours(given: argparse.Namespace, team: Team, method: str) -> tuple[float, str]:
    """Images per second of `tmbench train`, augmentation and moving average included; and what the profiler saw."""
    channels, height, width = shape(given.model)
    rng = np.random.default_rng(0)
    count = given.batch_size * given.updates
    config = timm.data.resolve_model_data_config(timm.create_model(given.model))
    side = int(height / config["crop_pct"]), int(width / config["crop_pct"])
    pixels = rng.integers(0, 256, (count, *side, channels), dtype=np.uint8)
    images = ArrayImages.of("noise", pixels[..., 0] if channels == 1 else pixels, np.arange(count) % 10, 10)
    recipe = Recipe(
        model=given.model, epochs=given.epochs + given.profile, batch_size=given.batch_size, lr=1e-4, weight_decay=0.05,
        pad=2, hflip=0.5, erasing=0.25, mixup=0.8, cutmix=1.0, label_smoothing=0.1, drop_path=0.1, ema_decay=0.999,
        amp="bfloat16", compile=given.compile,
    )  # fmt: skip
    task = Task(recipe) if method == "none" else Task(recipe, parse_method(method), Budget("fraction", given.budget))
    times = Times(given.epochs, given.updates, given.profile)
    with tempfile.TemporaryDirectory() as scratch:
        train(task, images, Path(scratch) / "run", team, reporter=times)
    return count / times.median(), times.seen


def shape(model: str) -> tuple[int, int, int]:
    """Channels, height and width of a model's images."""
    size: tuple[int, int, int] = timm.data.resolve_model_data_config(timm.create_model(model))["input_size"]
    return size


if __name__ == "__main__":
    main()
