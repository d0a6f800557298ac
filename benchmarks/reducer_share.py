"""How much of a reduced forward pass the reducer itself takes, and how fast the whole is against the unreduced model.

    python benchmarks/reducer_share.py [--model NAME] [--weights FILE] [--budget 0.7] [--batch-size 50] [--device cpu]

One process, all rivals in turn, in shuffled order in every round; medians over rounds. The rival is the unreduced
model in the same run; the bound is "free drop": the same token schedule with tokens dropped at no cost and without
the size bias, so the time above the bound is the reducer's and proportional attention's together.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tokenmerge_bench.budgets import attach
from tokenmerge_bench.engine import open_device
from tokenmerge_bench.models import DEMO_MODEL, build_model, load_model
from tokenmerge_bench.reduced_vit import ReducedViT, image_shape
from tokenmerge_bench.registry import list_methods


def main() -> None:
    """Prints a line per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEMO_MODEL)
    parser.add_argument("--weights", type=Path, help="without it, models other than the embedded one are untrained")
    parser.add_argument("--budget", type=float, default=0.7)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    device = open_device(given.device)
    if given.weights or given.model == DEMO_MODEL:
        model = load_model(given.model, given.weights, device=device).model
    else:
        model = build_model(given.model).to(device).eval()
    report(model, given.budget, given.batch_size, device, given.rounds)


@torch.inference_mode()
def report(model: nn.Module, budget: float, batch: int, device: torch.device, rounds: int) -> None:
    """Times the unreduced model and every method with and without its reducer's work."""
    images = torch.randn(batch, *image_shape(model), device=device)
    ids = torch.arange(batch, device=device)
    runs: dict[str, Callable[[], Tensor]] = {"unreduced": lambda: model(images)}
    for name in list_methods():
        reduced = attach(model, name, budget=budget)
        runs[name] = lambda reduced=reduced: reduced(images, ids)  # type: ignore[misc]
        dropped = attach(model, f"{name}:prop_attn=off" if has_prop_attn(reduced) else name, budget=budget)
        dropped.drop = True
        runs[f"{name} free drop"] = lambda dropped=dropped: dropped(images, ids)  # type: ignore[misc]
    seconds = measure(runs, device, rounds)
    base = statistics.median(seconds["unreduced"])
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, batch {batch}, budget {budget}")
    print(f"unreduced: {batch / base:.0f} images/s")
    print(f"{'method':12} {'speed of unreduced':>19} {'bound (free drop)':>18} {'share of time above bound':>26}")
    for name in list_methods():
        whole, free = statistics.median(seconds[name]), statistics.median(seconds[f"{name} free drop"])
        print(f"{name:12} {base / whole:19.2f} {base / free:18.2f} {100 * (1 - free / whole):25.0f}%")


def has_prop_attn(reduced: ReducedViT) -> bool:
    """Whether the method adds the size bias, which the bound leaves out."""
    return any(getattr(reducer, "proportional_attention", False) for reducer in reduced.reducers)


def measure(runs: dict[str, Callable[[], Tensor]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round, after one untimed warm-up each."""
    order = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(rounds + 1):
        random.Random(turn).shuffle(order)
        for name in order:
            synchronise(device)
            start = time.perf_counter()
            runs[name]()
            synchronise(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
