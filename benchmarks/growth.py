"""How time grows: DHTM's reducer with the number of tokens, of merges and of images, and a sweep with its points.

    python benchmarks/growth.py [--device cpu] [--width 384] [--seconds 5] [--quick] [--out FOLDER]

The reducer is what one site of a model does: choose what goes together, and merge. Each series varies one thing and
keeps the rest; its exponent is the slope of a least-squares line through the logarithms, with its standard error: 1 is
linear. A small exponent at the left end of a series means that something constant (launching kernels, above all) still
outweighs the work. `--quick` is for trying it out. With `--out`: growth.json, growth.csv and growth.png. The
implementation of the inner loops follows the environment variable TMBENCH_PATH (torch, numba or triton).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import linregress
from torch import Tensor

from tokenmerge_bench.display import SilentReporter
from tokenmerge_bench.durations import quartiles
from tokenmerge_bench.engine import open_device
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.experiment import load_experiment
from tokenmerge_bench.figures.style import SINGLE, paper, save
from tokenmerge_bench.modes import Run
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.paths import path_for
from tokenmerge_bench.provenance import hardware_name, version
from tokenmerge_bench.sweep import run_sweep
from tokenmerge_bench.timing import take_samples, tracing_reason
from tokenmerge_bench.tokens import Tokens

GRIDS = (14, 20, 28, 40, 64)
MERGES = (5, 10, 20, 40, 80)
BATCHES = (1, 4, 16, 64, 256)
POINTS = (1, 2, 4, 8)


@dataclass
class Series:
    """Seconds (median and quartiles) over one thing that varies."""

    name: str
    unit: str
    fixed: str
    x: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, x: int, taken: Sequence[float]) -> None:
        """A value and the times that it took."""
        spread = quartiles(taken)
        self.x.append(x)
        self.seconds.append(spread.median)
        self.low.append(spread.q25)
        self.high.append(spread.q75)

    def exponent(self) -> tuple[float, float]:
        """Slope of the logarithms, and its standard error."""
        fitted = linregress(np.log(self.x), np.log(self.seconds))
        return float(fitted.slope), float(fitted.stderr)


def main() -> None:
    """Prints a series after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=384, help="C; DeiT-Small has 384")
    parser.add_argument("--seconds", type=float, default=5.0, help="of samples in each series")
    parser.add_argument("--quick", action="store_true", help="three small values of everything")
    parser.add_argument("--no-sweep", action="store_true", help="leaves the sweeps out, which take longest on the CPU")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device, few = open_device(given.device), 3 if given.quick else len(GRIDS)
    reason = tracing_reason()
    if reason is not None:
        raise InputError(f"{reason}, and times taken under it would mean nothing; run without it.")
    about = {
        "hardware": hardware_name(device), "torch": torch.__version__, "cuda": torch.version.cuda,
        "tokenmerge_bench": version(), "path": path_for(device), "width": given.width,
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    small = 4 if given.quick else 32
    shapes = {
        ("tokens", "N", f"k = 40, batch {small}"): [(side * side, (side, 40, small)) for side in GRIDS[:few]],
        ("merges", "k", f"N = 784, batch {small}"): [(k, (28, k, small)) for k in MERGES[:few]],
        ("images", "batch", "N = 196, k = 40"): [(batch, (14, 40, batch)) for batch in BATCHES[:few]],
    }
    found = [of_reducer(Series(*key), cases, given.width, given.seconds, device) for key, cases in shapes.items()]
    if not given.no_sweep:
        found.append(of_sweep(POINTS[:few], 20 if given.quick else 200, given.device))
    for series in found:
        show(series)
    if given.out:
        write(found, about, given.out)


@torch.inference_mode()
def of_reducer(
    series: Series, cases: Sequence[tuple[int, tuple[int, int, int]]], width: int, seconds: float, device: torch.device
) -> Series:
    """Times DHTM at one site. Cases are (what varies, (side of the grid, merges, images)), interleaved."""
    rivals = {str(x): reduction(*shape, width, device) for x, shape in cases}
    for run in rivals.values():
        run()  # compiles, where the path does
    samples = take_samples(rivals, device, seconds=seconds)
    for name, reason in samples.failures.items():
        print(f"{series.name} {name} failed: {reason}")
    for name, taken in samples.seconds.items():
        series.add(int(name), taken)
    return series


def reduction(side: int, k: int, batch: int, width: int, device: torch.device) -> Run:
    """Choosing and merging k pairs among side x side tokens of `batch` images of noise."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, side * side, width, generator=generator).to(device)
    tokens = Tokens.of(features, (side, side), image_ids=torch.arange(batch, device=device))
    reducer = parse_method("dhtm").build()
    n_out = side * side - k

    def run() -> Tensor:
        return reducer.assign(tokens, n_out).merge(features)

    return run


def of_sweep(points: Sequence[int], images: int, device: str) -> Series:
    """Times whole sweeps of the embedded benchmark with more and more settings of DHTM; the images are read once."""
    series = Series("sweep", "points", f"{images} images of the embedded benchmark")
    for rounds, count in [(1, 1), *((3, count) for count in points)]:  # the first is a warm-up
        k = [str(10 + 3 * number) for number in range(count)]
        experiment = load_experiment("demo", methods=["dhtm"], k=k, limit=images)
        taken = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as scratch:
                started = time.perf_counter()
                run_sweep(experiment, device=device, out=Path(scratch) / "swept", reporter=SilentReporter())
                taken.append(time.perf_counter() - started)
        if rounds > 1:
            series.add(count, taken)
    return series


def show(series: Series) -> None:
    """Prints a series."""
    slope, error = series.exponent()
    print(f"\n{series.name} ({series.fixed}): time grows as {series.unit}^{slope:.2f} (standard error {error:.2f})")
    for x, seconds, low, high in zip(series.x, series.seconds, series.low, series.high, strict=True):
        print(f"{x:8} {1000 * seconds:12.3f} ms  ({1000 * low:.3f} to {1000 * high:.3f})")


def write(found: Sequence[Series], about: dict[str, object], out: Path) -> None:
    """Numbers and a drawing."""
    out.mkdir(parents=True, exist_ok=True)
    kept = [{**asdict(series), "exponent": series.exponent()[0], "error": series.exponent()[1]} for series in found]
    (out / "growth.json").write_text(json.dumps({**about, "series": kept}, indent=1) + "\n", encoding="utf-8")
    rows = [(s.name, x, t) for s in found for x, t in zip(s.x, s.seconds, strict=True)]
    pd.DataFrame(rows, columns=["series", "x", "seconds"]).to_csv(out / "growth.csv", index=False)
    print(f"\nfigure {save(draw(found, str(about['hardware'])), out, 'growth', ['png'])[0]}")


def draw(found: Sequence[Series], hardware: str) -> Figure:
    """A panel per series, both axes logarithmic, with the fitted line."""
    with paper():
        figure = Figure(figsize=(SINGLE * 2, 2.3 * ((len(found) + 1) // 2)), layout="constrained")
        for number, series in enumerate(found, 1):
            ax = figure.add_subplot((len(found) + 1) // 2, 2, number)
            x, y = np.array(series.x), 1000 * np.array(series.seconds)
            slope, error = series.exponent()
            level = np.exp(np.mean(np.log(y) - slope * np.log(x)))
            ends = (y - 1000 * np.array(series.low), 1000 * np.array(series.high) - y)
            ax.errorbar(x, y, ends, fmt="o", capsize=2, markersize=3.5)
            ax.plot(x, level * x**slope, linestyle="--", color="0.4", linewidth=0.8)
            ax.set(xscale="log", yscale="log", xlabel=series.unit, ylabel="ms")
            ax.set_xticks(series.x, labels=[f"{value:,}" for value in series.x])
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:,g}")  # the usual powers need mathematical text
            ax.yaxis.set_minor_formatter("{x:,g}" if y.max() < 2 * y.min() else NullFormatter())
            ax.set_title(f"{series.name}: {series.unit}^{slope:.2f} ± {error:.2f}\n{fill(series.fixed, 32)}")
        figure.suptitle(f"on {hardware}", fontsize=6.5, color="0.4", x=0.01, horizontalalignment="left")
    return figure


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"growth.py: {error}") from None
