"""DHTM's merges on every path of a device: are they the same, how fast are they, and what share of a forward is that?

    python benchmarks/dhtm_paths.py [--device cpu] [--model deit_tiny_patch16_224] [--weights FILE] [--batch-size 32]
        [--k 40] [--blocks 3,6,10] [--seconds 20] [--threads 2]

One process, all rivals in turn in shuffled order in every round; medians over rounds; on CUDA by the device's events.
The tokens are those of the model at the three sites, for images of noise. Per path: `select` finds the merges of the
three sites, `reducer` finds and applies them. The rivals are plain torch and the unreduced model's forward pass. The
bound is the larger of two times: the multiply-accumulates that the method needs, at the rate of a matrix product of
this machine, and its reads and writes of tokens, at the rate of a copy.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.engine import open_device
from tokenmerge_bench.methods.dhtm import Dhtm
from tokenmerge_bench.models import build_model, load_model
from tokenmerge_bench.paths import Path as Implementation
from tokenmerge_bench.paths import path_for, use_path
from tokenmerge_bench.reduced_vit import ReducedViT, build_reducers, geometry, image_shape
from tokenmerge_bench.schedule import make_schedule
from tokenmerge_bench.timing import take_samples
from tokenmerge_bench.tokens import Tokens


class Recorded(Dhtm):
    """DHTM that keeps what it is asked."""

    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        self.asked = tokens, n_out
        return super().assign(tokens, n_out)


def main() -> None:
    """Prints a line per path."""
    given = arguments()
    if given.threads:
        torch.set_num_threads(given.threads)
    device = open_device(given.device)
    model = load_model(given.model, given.weights, device=device).model if given.weights else build_model(given.model)
    model = model.to(device).eval()
    blocks = tuple(int(block) for block in given.blocks.split(","))
    with torch.inference_mode():
        images = torch.randn(given.batch_size, *image_shape(model), generator=torch.Generator().manual_seed(0)).to(
            device
        )
        report(model, images, [*sites(model, images, given.k, blocks)], given.seconds)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", type=Path, help="without it, the model is untrained")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--k", type=int, default=40, help="merges in each block")
    parser.add_argument("--blocks", default="3,6,10", help="where, counted from 0")
    parser.add_argument("--seconds", type=float, default=20, help="of timing")
    parser.add_argument("--threads", type=int, help="of torch and of the compiled path")
    return parser.parse_args()


def sites(model: nn.Module, images: Tensor, k: int, blocks: tuple[int, ...]) -> list[tuple[Recorded, Tokens, int]]:
    """The reducer of each site, and the tokens it saw and was to leave in a forward pass."""
    shape = geometry(model)
    counts = tuple(shape.patches - k * (site + 1) for site in range(len(blocks)))
    schedule = make_schedule(counts, blocks, "mid", n0=shape.patches, prefix=shape.prefix, depth=shape.depth)
    reduced = ReducedViT(model, schedule, build_reducers(Recorded, Recorded.options_type(), schedule, shape)).eval()
    reduced(images, torch.arange(len(images), device=images.device))
    return [(reducer, *reducer.asked) for reducer in reduced.reducers if isinstance(reducer, Recorded)]


def report(model: nn.Module, images: Tensor, asked: list[tuple[Recorded, Tokens, int]], seconds: float) -> None:
    """Checks the paths against float64, then times them."""
    device = images.device
    paths: list[Implementation] = list(dict.fromkeys(["torch", path_for(device)]))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, timm {timm.__version__}, {device} ({where}), {len(images)} images")
    for path in paths:
        print(f"{path}: the merges of float64 in {same_as_float64(path, asked):.1%} of images and sites")
    rivals: dict[str, Callable[[], Tensor]] = {"unreduced": partial(model, images)}
    for path in paths:
        rivals[f"{path} select"] = partial(run, path, asked, apply=False)
        rivals[f"{path} reducer"] = partial(run, path, asked, apply=True)
    square = torch.randn(2048, 2048, device=device)
    long = torch.randn(2**25, device=device)
    rivals["product"] = lambda: square @ square
    rivals["copy"] = lambda: long.clone()
    samples = take_samples(rivals, device, seconds=seconds)
    if samples.failures:
        raise RuntimeError(str(samples.failures))
    median = {name: statistics.median(taken) for name, taken in samples.seconds.items()}
    print(f"medians over {len(samples.order)} rounds; unreduced forward {1000 * median['unreduced']:.2f} ms")
    for path in paths:
        for part in ("select", "reducer"):
            time = median[f"{path} {part}"]
            against = median[f"torch {part}"] / time
            share = time / median["unreduced"]
            print(f"{path:7} {part:8} {1000 * time:9.3f} ms  {against:7.1f}x plain torch  {share:7.2%} of the forward")
    macs = sum(len(images) * r.macs(t.features.shape[1], n_out, t.features.shape[2]) for r, t, n_out in asked)
    values = sum(len(images) * (t.features.shape[1] + n_out) * t.features.shape[2] for _, t, n_out in asked)
    rate, bandwidth = 2048**3 / median["product"], 2 * long.nbytes / median["copy"]
    by_macs, by_bytes = macs / rate, values * asked[0][1].features.element_size() / bandwidth
    print(
        f"bound: {macs / 1e6:.1f} M MACs at {rate / 1e9:.1f} G/s are {1000 * by_macs:.3f} ms, "
        f"{values * 4 / 1e6:.1f} MB at {bandwidth / 1e9:.1f} GB/s are {1000 * by_bytes:.3f} ms; the reducer takes "
        f"{median[f'{paths[-1]} reducer'] / max(by_macs, by_bytes):.1f} times the bound"
    )


def run(path: Implementation, asked: list[tuple[Recorded, Tokens, int]], apply: bool) -> Tensor:
    """The reducer's work at all sites."""
    with use_path(path):
        for reducer, tokens, n_out in asked:
            assignment = reducer.assign(tokens, n_out)
            result = assignment.owner()
            if apply:
                result = assignment.merge(tokens.features)
                assignment.merge_sizes(tokens.sizes)
    return result


def same_as_float64(path: Implementation, asked: list[tuple[Recorded, Tokens, int]]) -> float:
    """Fraction of images and sites where a path merges what plain torch merges in float64."""
    same: list[Tensor] = []
    for reducer, tokens, n_out in asked:
        exact = Tokens.of(tokens.features.double(), tokens.grid, cells=tokens.cells)
        with use_path("torch"):
            expected = reducer.assign(exact, n_out).owner()
        with use_path(path):
            same.append((reducer.assign(tokens, n_out).owner() == expected).all(1))
    return float(torch.cat(same).float().mean())


if __name__ == "__main__":
    main()
