"""`tmbench show`: what methods merge, drawn on images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmerge_bench import completion
from tokenmerge_bench.commands.shared import complain, load_plugins, tell
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.flags import (
    OUTPUT,
    RUNNING,
    WEIGHTS,
    Comparison,
    Images,
    Json,
    Plugins,
    Running,
    given_flags,
    option,
    split_list,
    switch,
)

if TYPE_CHECKING:
    from tokenmerge_bench.experiment import Experiment

STILL, MOVING = ("png", "svg", "pdf"), ("apng", "gif", "png")
"""What pictures and animations can be written as; `png` is an animated one too."""
FORMAT = r"\.[A-Za-z]\w*"
"""An ending that stands for a format. The one of a folder `v1.2` does not."""


def show(
    comparison: Comparison,
    images: Images,
    image: Annotated[
        list[str] | None,
        typer.Argument(help="Image files, or images of --dataset by name, as demo[7].", metavar="IMAGE"),
    ] = None,
    weights: Annotated[
        list[str] | None,
        option("FILE, or a checkpoint of `tmbench train`, as for `sweep`. Repeatable.", "[MODEL=]FILE", WEIGHTS),
    ] = None,
    trained: Annotated[
        bool, switch("--trained", "Add the trained checkpoints that ship with the embedded model.", WEIGHTS)
    ] = False,
    untrained: Annotated[
        bool, switch("--untrained", "Show methods that must be trained with their initial weights too.", WEIGHTS)
    ] = False,
    seed: Annotated[
        int, option("Of the images that --limit draws, and of methods that draw random numbers.", "N", RUNNING)
    ] = 0,
    device: Annotated[str, option("cpu, cuda or cuda:N.", "DEVICE", RUNNING, completion.device)] = "cpu",
    attention: Annotated[bool, switch("--attention", "Add what the class token attends to.", OUTPUT)] = False,
    token: Annotated[
        int | None, option("Add the weights of all patches in this one of the final tokens, from 0.", "N", OUTPUT)
    ] = None,
    animate: Annotated[
        bool, switch("--animate", "Write one merge after the other as an animation, by default of dhtm.", OUTPUT)
    ] = False,
    formats: Annotated[
        str | None, option("png, svg, pdf, by default png,svg; with --animate apng (or png) or gif.", "NAMES", OUTPUT)
    ] = None,
    out: Annotated[
        Path | None, option("Folder, or the file of a single picture; by default show/.", "PATH", OUTPUT)
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Draw what methods merge on images: tokens, their number, the prediction.

    A picture for each image: a row for each method, a column for each reduction. Without arguments, an image of the
    embedded benchmark at 0.7 of the FLOPs.
    """
    load_plugins(plugin)
    from tokenmerge_bench.figures import merges
    from tokenmerge_bench.hardware import open_device
    from tokenmerge_bench.json_output import write_json
    from tokenmerge_bench.show import Viewer, Wanted, named_images, usual_images

    images.refuse_negative_limit()
    _refuse_idle(image or [], images, attention, token, animate)
    experiment = _experiment(comparison, images, seed, trained, untrained, animate)
    files = _Files(out, formats, MOVING if animate else STILL, image or [])
    named = named_images(image or [], experiment)
    own, checkpoints = Running(weights=weights).given_weights(experiment.models)
    viewer = Viewer(experiment, own, checkpoints, Wanted(attention, token, animate), open_device(device))
    chosen = named or usual_images(experiment, viewer.own.model, images.limit)
    files.expect(len(chosen) * (len(viewer.labels) if animate else 1))
    written: list[Path] = []
    left_out: dict[str, str] = {}
    for one in chosen:
        shown = viewer.look(one)
        drawings = merges.animations(shown) if animate else [("merges", merges.draw(shown))]
        for what, drawing in drawings:
            paths = merges.write(drawing, files.of(one.name, what))
            written += paths
            tell([] if as_json else paths, {})
        if animate:
            left_out |= {f"{run.label} at {run.budget}": run.obstacle for run in shown.runs if run.obstacle}
    complain(f"{what}: {why}" for what, why in left_out.items())
    if as_json:
        write_json({"files": written, "left_out": left_out})


def _refuse_idle(image: list[str], images: Images, attention: bool, token: int | None, animate: bool) -> None:
    """Raises InputError for an option that would do nothing beside the others."""
    if image and images.limit is not None:
        raise InputError(f"--limit {images.limit} draws images, and some are named; leave one of the two out.")
    idle = [flag for flag in given_flags(images) if flag in ("--dataset", "--data-dir", "--split")]
    if idle and image and all(Path(name).is_file() for name in image):
        raise InputError(f"{idle[0]} is of no use where all images are files; leave it out, or name images of it too.")
    if animate and (attention or token is not None):
        raise InputError("--animate shows nothing but merges; leave --attention and --token out, or draw a picture.")


def _experiment(
    comparison: Comparison, images: Images, seed: int, trained: bool, untrained: bool, animate: bool
) -> Experiment:
    """What is to be shown: the embedded benchmark's methods unless others are named, at one budget."""
    from tokenmerge_bench.experiment import load_experiment

    experiment = load_experiment("demo", **comparison.overrides_at_a_budget(), **images.overrides(), seed=seed)
    methods = experiment.methods[:1] if animate and comparison.methods is None else experiment.methods
    changed = {"dataset": images.dataset, "methods": methods, "seeds": 1}
    return experiment.model_copy(update={**changed, "trained": trained, "untrained": untrained})


class _Files:
    """Names of the files to be written, none of them twice and none an image that is shown.

    Args:
        out: a folder, or a file whose ending is its format; `show/` if None.
        formats: comma-separated; by default png and svg, or apng.
        known: formats that there are.
        images: what is shown.
    """

    def __init__(self, out: Path | None, formats: str | None, known: tuple[str, ...], images: Collection[str]) -> None:
        from tokenmerge_bench.products import check_names

        self.folder, self.forms = out or Path("show"), list(known[:2] if known is STILL else known[:1])
        self.file = out if out is not None and re.fullmatch(FORMAT, out.suffix) and not out.is_dir() else None
        if self.file is not None and formats is not None:
            raise InputError(f"--out {out} says what to write; leave --formats out, or give a folder.")
        if self.file is not None:
            self.forms = [self.file.suffix[1:]]
        self.forms = split_list(formats, "--formats") or self.forms
        check_names(self.forms, known, "format")
        self.shown = {Path(name).resolve() for name in images}
        self.written: Counter[str] = Counter()

    def expect(self, pictures: int) -> None:
        """Raises InputError where so many pictures are meant for a single file."""
        if self.file is not None and pictures != 1:
            raise InputError(f"--out {self.file} is one file, and there are {pictures} pictures; give a folder.")

    def of(self, image: str, what: str) -> list[Path]:
        """The files of a picture of an image, one for each format."""
        name = f"{_plain(Path(image).stem)}-{_plain(what)}"
        self.written[name] += 1
        number = "" if self.written[name] == 1 else f"-{self.written[name]}"
        files = [self.file] if self.file else [self.folder / f"{name}{number}.{form}" for form in self.forms]
        for file in files:
            if file.resolve() in self.shown:
                raise InputError(f"'{file}' is an image to be shown and would be written over; give another --out.")
        return files


def _plain(name: str) -> str:
    """A name as part of a file name: `demo[7]` becomes `demo-7`."""
    return re.sub(r"[^\w.=-]+", "-", name).strip("-")
