"""Tokens drawn on the image that they cover: pieces, also of figures 2 and 3, and what `tmbench show` draws.

Coordinates are grid cells: x to the right and y downwards, from the upper left corner of the first patch.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from PIL import Image

from tokenmerge_bench.figures import style
from tokenmerge_bench.results import Site
from tokenmerge_bench.store import write_bytes

if TYPE_CHECKING:
    from tokenmerge_bench.show import Run, Shown

COLUMNS = 6
"""At most so many reductions are shown, the last one among them."""
PIXELS = 448
"""About the side of a panel at `style`'s resolution; really the next multiple of the image's, so that all are crisp."""
WIDTH, COARSE = 0.45, 5.0
"""Points: width of the white lines between tokens, and of patches that are not too small for it."""
HEAT = "viridis"
OTHER = "\N{NOT EQUAL TO}"
"""Stands before a prediction that is not the unreduced model's."""

Picture = npt.NDArray[np.uint8]
Owner = npt.NDArray[np.int64]
PerCell = npt.NDArray[np.float64]


# --- pieces -----------------------------------------------------------------------------------------------------------


def cell_of_pixels(shape: tuple[int, int], grid: tuple[int, int]) -> Owner:
    """Grid cell of every pixel (H, W) of an image of this height and width."""
    (height, width), (rows, columns) = shape, grid
    return (np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width


def filled(picture: Picture, grid: tuple[int, int], owner: Owner) -> Picture:
    """The picture (H, W, 3) with the patches of every merged token in their mean colour.

    Args:
        picture: what the model sees.
        grid: rows and columns of patches.
        owner: (N0,) token of each patch.
    """
    token = owner[cell_of_pixels((picture.shape[0], picture.shape[1]), grid)]
    pixels = np.maximum(np.bincount(token.ravel()), 1)  # after a soft assignment, some tokens have no patch
    means = np.stack([np.bincount(token.ravel(), picture[..., c].ravel()) / pixels for c in range(3)], axis=-1)
    merged = np.bincount(owner)[token] > 1
    return np.where(merged[..., None], np.rint(means[token]).astype(np.uint8), picture)


def heated(picture: Picture, grid: tuple[int, int], values: PerCell) -> Picture:
    """The picture (H, W, 3) in grey under a colour for the value of each patch, from 0 to the largest of `values`."""
    scaled = np.clip(values / max(float(values.max()), np.finfo(np.float64).tiny), 0, 1)
    cell = cell_of_pixels((picture.shape[0], picture.shape[1]), grid)
    strength = (0.2 + 0.7 * scaled)[cell, None]
    colour = 255 * matplotlib.colormaps[HEAT](scaled)[cell, :3]
    blended: Picture = np.rint(strength * colour + (1 - strength) * picture.mean(-1, keepdims=True)).astype(np.uint8)
    return blended


def borders(owner: Owner, grid: tuple[int, int]) -> Path:
    """The lines between neighbouring patches of different tokens, each as long as it is straight."""
    tokens = owner.reshape(grid)
    # Padding ends every run of a line within it.
    upright = np.pad(tokens[:, :-1] != tokens[:, 1:], ((1, 1), (0, 0))).T.astype(np.int8)  # lines x = 1, 2, ... along y
    level = np.pad(tokens[:-1] != tokens[1:], ((0, 0), (1, 1))).astype(np.int8)  # lines y = 1, 2, ... along x
    ends = []
    for lines, flipped in ((upright, False), (level, True)):
        number, start = np.nonzero(np.diff(lines) == 1)
        stop = np.nonzero(np.diff(lines) == -1)[1]
        across = number + 1
        points = np.stack([np.stack([across, start], -1), np.stack([across, stop], -1)], 1)
        ends.append(points[..., ::-1] if flipped else points)
    vertices = np.concatenate(ends).reshape(-1, 2).astype(np.float64)
    return Path(vertices, np.tile([Path.MOVETO, Path.LINETO], len(vertices) // 2))


def draw_borders(ax: Axes, owner: Owner, grid: tuple[int, int], width: float | None = None, colour: Any = None) -> None:
    """The borders of tokens: white in black, to be seen on all regions, or in one colour.

    Args:
        ax: where; its size on the page, at the moment, decides how thin the lines of a fine grid are.
        owner: (N0,) token of each patch.
        grid: rows and columns of patches.
        width: in points; by default at most `WIDTH`.
        colour: instead of white in black.
    """
    path, patch = borders(owner, grid), 72 * ax.bbox.width / ax.figure.dpi / grid[1]
    width = min(WIDTH, WIDTH * patch / COARSE) if width is None else width
    for each, points in [("black", 2 * width), ("white", width)] if colour is None else [(colour, width)]:
        ax.add_patch(PathPatch(path, fill=False, edgecolor=each, linewidth=points, capstyle="projecting"))


def draw_picture(ax: Axes, picture: Picture, grid: tuple[int, int]) -> None:
    """An image in units of grid cells, its pixels as sharp squares, without ticks and frame."""
    ax.imshow(picture, extent=(0, grid[1], grid[0], 0), interpolation="none", aspect=_aspect(picture, grid))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def draw_tokens(ax: Axes, picture: Picture, grid: tuple[int, int], owner: Owner) -> None:
    """An image with the patches of every merged token filled and the borders of all tokens."""
    draw_picture(ax, filled(picture, grid, owner), grid)
    draw_borders(ax, owner, grid)


def scale(picture: Picture) -> int:
    """How many times a picture is enlarged, so that its sides are about `PIXELS`."""
    return max(1, round(PIXELS / int(max(picture.shape[:2]))))


def _aspect(picture: Picture, grid: tuple[int, int]) -> float:
    """Height of a patch over its width."""
    return float(picture.shape[0] / grid[0] / (picture.shape[1] / grid[1]))


def sites_shown(sites: Sequence[Site], room: int = COLUMNS) -> list[Site]:
    """All reductions, or as many as there is room for: evenly spread, the last one among them."""
    shown = min(room, len(sites))
    return [sites[-(-(i + 1) * len(sites) // shown) - 1] for i in range(shown)]


# --- the picture of `tmbench show` ------------------------------------------------------------------------------------

LABEL, GAP, MARGIN, NARROWEST = 1.3, 0.09, 0.08, 1.45
"""Inches: what stands left of a row, space between panels, margin of the page, width of the text below a panel."""
INCH = 300
"""Pixels of an inch, as `style` saves."""
LINE, LETTERS = 0.13, 17
"""Inches from a line of text to the next, and about how many letters are an inch."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a row, with the borders of these tokens unless None, and the lines that stand below.

    `says`, the last lines, are the prediction; `changed` where the unreduced model's is another.
    """

    picture: Picture
    owner: Owner | None
    below: list[str]
    says: list[str] = field(default_factory=list)
    changed: bool = False


def draw(shown: Shown) -> Figure:
    """One image: the unreduced model, then a row for each method with the tokens that its reductions left.

    Class attention and the weights of a token, where they were asked for, are the last columns.
    """
    room = columns(shown.runs)
    rows = [panels(shown, run, room) for run in shown.runs]
    height, width = (scale(shown.picture) * side / INCH for side in shown.picture.shape[:2])
    step = max(width, NARROWEST) + GAP
    across = 1 + max(room - 1, *(column for row in rows for column in row))
    wide = LABEL + across * step + MARGIN
    reasons = [wrapped(run.obstacle, wide - LABEL - MARGIN) for run in shown.runs]
    heights = [
        height + LINE * (1 + lines_below(row)) if row else LINE * (1 + max(len(reason), 2))
        for row, reason in zip(rows, reasons, strict=True)
    ]
    with style.paper():
        page = _Page(wide, sum(heights) + MARGIN)
        for number, (run, row) in enumerate(zip(shown.runs, rows, strict=True)):
            top = MARGIN + sum(heights[:number])
            page.write(MARGIN, top, LABEL - 2 * MARGIN, *about(run))
            page.write(LABEL, top, wide - LABEL - MARGIN, "", run.obstacle)
            for column, panel in row.items():
                draw_panel(page.axes(LABEL + column * step, top, width, height), panel, shown.grid)
        page.write(LABEL + step + GAP, MARGIN, (room - 1) * step - 2 * GAP, *notes(shown, room))
    return page.figure


def columns(runs: Sequence[Run]) -> int:
    """Columns for reductions: as many as a method has that has no more than `COLUMNS`, and 3 at least.

    Beside the unreduced model, which needs one, they are room for text.
    """
    counts = [len(run.sites) for run in runs if run.sites]
    if counts and min(counts) > COLUMNS:
        return COLUMNS
    return max([3, *(count for count in counts if count <= COLUMNS)])


def lines_below(row: Mapping[int, Panel]) -> int:
    """Lines of text below the panels of a row."""
    return max(len(panel.below + panel.says) for panel in row.values())


class _Page:
    """A figure on which things are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height))
        self.width, self.height = width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height
        return self.figure.add_axes(box)

    def write(self, left: float, top: float, room: float, heading: str, *lines: str) -> None:
        """Lines of text under a bold heading, which may be empty, broken where they are wider than `room`."""
        bold, plain = wrapped(heading, room), [part for line in lines for part in wrapped(line, room)]
        for number, part in enumerate(bold + plain):
            place = left / self.width, 1 - (top + number * LINE) / self.height
            self.figure.text(*place, part, va="top", weight="bold" if number < len(bold) else "normal")


def wrapped(text: str, room: float) -> list[str]:
    """A text in lines of `room` inches; between the options of a method, lines may break too."""
    spaced = text.replace(":", " :") if "=" in text else text
    return [part.replace(" :", ":") for part in textwrap.wrap(spaced, int(room * LETTERS))]


def draw_panel(ax: Axes, panel: Panel, grid: tuple[int, int]) -> None:
    """One picture of a row with what stands below it."""
    draw_picture(ax, panel.picture, grid)
    if panel.owner is not None:
        draw_borders(ax, panel.owner, grid)
    colour = style.PALETTE[3] if panel.changed else "black"
    looks = [{"color": "black"}] * len(panel.below) + [{"color": colour, "weight": "bold"}] * len(panel.says)
    for number, (line, look) in enumerate(zip(panel.below + panel.says, looks, strict=True)):
        place = (0, -3 - 72 * LINE * number)
        ax.annotate(line, (0, 0), place, "axes fraction", "offset points", va="top", fontsize=7, **look)


def panels(shown: Shown, run: Run, room: int) -> dict[int, Panel]:
    """The pictures of a row by column, reductions in the first `room`; none of a method that cannot be shown."""
    if run.obstacle:
        return {}
    sites = sites_shown(run.sites, room)
    row = {
        column: Panel(filled(shown.picture, shown.grid, site.owner), site.owner, counted(site, run))
        for column, site in enumerate(sites)
    }
    if not sites:
        row[0] = Panel(shown.picture, None, [f"{shown.grid[0] * shown.grid[1]} tokens in all blocks"])
    row[max(row)] = replace(row[max(row)], says=predicted(shown, run), changed=changed(shown, run))
    for column, heat in enumerate(heats(shown), start=room):
        values = heat.values[shown.runs.index(run)]
        if values is not None:
            end = run.sites[-1].owner if run.sites else None
            row[column] = Panel(heated(shown.picture, shown.grid, values), end, [heat.title, extent(values)])
    return row


@dataclass(frozen=True, eq=False)
class Heat:
    """A column with a value for each patch, or None, of each of the runs."""

    title: str
    values: list[PerCell | None]


def heats(shown: Shown) -> list[Heat]:
    """The columns of heat that were asked for."""
    columns = [
        Heat("class attention, last block", [run.attention for run in shown.runs]),
        Heat(f"weights of token {shown.token}", [run.weights for run in shown.runs]),
    ]
    return [column for column in columns if any(values is not None for values in column.values)]


def extent(values: PerCell) -> str:
    """The smallest and the largest value of a patch."""
    low, high = (f"{value:.2g}" for value in (values.min(), values.max()))
    return f"{low} for every patch" if low == high else f"{low} to {high} per patch"


def about(run: Run) -> list[str]:
    """What stands left of a row: the method, its knob, its FLOPs."""
    if run.obstacle or not run.knob:
        return [run.label]
    return [run.label, run.knob, f"{100 * run.kept:.1f} % of FLOPs"]


def counted(site: Site, run: Run) -> list[str]:
    """Number of tokens that a block leaves, counted from 0; where each is a mix of all patches, how many own one."""
    owners = len(np.unique(site.owner))
    lines = [f"block {site.block}: {site.tokens} tokens"]
    return [*lines, f"{owners} of them own patches"] if run.soft else lines


def changed(shown: Shown, run: Run) -> bool:
    """Whether a run predicts another class than the unreduced model."""
    usual = shown.runs[0].prediction
    return usual is not None and run.prediction is not None and usual.label != run.prediction.label


def predicted(shown: Shown, run: Run) -> list[str]:
    """The prediction in at most two lines, marked where it is another than the unreduced model's."""
    if run.prediction is None:
        return []
    wrong = ", wrong" if shown.truth and shown.truth != run.prediction.name else ""
    text = f"{run.prediction.name} {100 * run.prediction.confidence:.1f} %{wrong}"
    return textwrap.wrap(f"{OTHER} {text}" if changed(shown, run) else text, 24)[:2]


def notes(shown: Shown, room: int) -> list[str]:
    """What is said beside the unreduced model."""
    rows, across = shown.grid
    height, width = shown.picture.shape[:2]
    patches = f"{across} x {rows} patches of {width // across} x {height // rows} pixels"
    lines = [shown.image, f"{shown.model}, weights {shown.weights}; {patches}"]
    if shown.truth:
        lines.append(f"true class: {shown.truth}; bold: predicted")
    lines.append("filled: patches that became one token, in their mean colour; lines: borders of tokens")
    if any(changed(shown, run) for run in shown.runs):
        lines.append(f"{OTHER} another class than the unreduced model's")
    if any(run.soft for run in shown.runs):
        lines.append("tokens that are mixed of all patches: a patch is drawn with the one it weighs most in")
    if heats(shown):
        lines.append("heat: from nothing to the largest value below the picture, each picture on its own scale")
    for run in shown.runs:
        if len(run.sites) > room:
            lines.append(f"{run.label}: {room} of {len(run.sites)} reductions, the last one among them")
    return [*lines, *shown.notes]


# --- animations -------------------------------------------------------------------------------------------------------

FRAMES = 200
"""At most about so many merges are shown one by one; of more, several in a frame."""
FIRST, STEP, PAUSE, END = 1500, 100, 900, 3000
"""Milliseconds: the whole image, a merge, what leaves a block, the end."""


@dataclass(frozen=True)
class Animation:
    """Frames with the milliseconds that each is shown for."""

    frames: list[Image.Image]
    milliseconds: list[int]


def animations(shown: Shown) -> list[tuple[str, Animation]]:
    """Of each method that can be shown, its label and one merge after the other (`Run.frames`)."""
    return [(run.label, animated(shown, run)) for run in shown.runs[1:] if not run.obstacle]


def animated(shown: Shown, run: Run) -> Animation:
    """One merge after the other, a pause where the tokens go on to the next block; what has just grown is marked."""
    cells = shown.grid[0] * shown.grid[1]
    last = {frame.block: number for number, frame in enumerate(run.frames)}  # of each block
    stride = -(-len(run.frames) // FRAMES)
    kept = [(i, frame) for i, frame in enumerate(run.frames) if i in last.values() or i % stride == stride - 1]
    canvas = _Canvas(shown, f"{run.label} {run.knob}")
    frames, owner = [canvas.paint(np.arange(cells), None, f"at first: {cells} tokens")], np.arange(cells)
    for number, frame in kept:
        final = predicted(shown, run) if number == len(run.frames) - 1 else []
        says = [f"block {frame.block}: {frame.tokens} tokens", *final[:1]]
        frames.append(canvas.paint(frame.owner, grown(owner, frame.owner), *says))
        owner = frame.owner
    times = [FIRST, *(PAUSE if number in last.values() else STEP for number, _ in kept)]
    return Animation(frames, [*times[:-1], END])


def grown(before: Owner, after: Owner) -> Owner:
    """The token after a merge of each cell whose token has more cells than before; -1 elsewhere."""
    return np.where(np.bincount(after)[after] > np.bincount(before)[before], after, -1)


class _Canvas:
    """One panel on which frame after frame is painted, under a heading, the image's name and two lines of text."""

    def __init__(self, shown: Shown, heading: str) -> None:
        self.picture, self.grid, self.above = shown.picture, shown.grid, (heading, shown.image)
        height, width = (scale(shown.picture) * side / INCH for side in shown.picture.shape[:2])
        self.room = max(width, NARROWEST)
        text = LINE * (2 + sum(len(wrapped(line, self.room)) for line in self.above))
        with style.paper():
            self.page = _Page(self.room + 2 * MARGIN, text + height + 3 * MARGIN)
            self.axes = self.page.axes(MARGIN, text + 2 * MARGIN, width, height)
        self.page.figure.set_dpi(INCH)
        self.canvas: Any = FigureCanvasAgg(self.page.figure)

    def paint(self, owner: Owner, marked: Owner | None, *lines: str) -> Image.Image:
        """A frame: tokens, of which the `marked` ones have strong borders, and at most two lines of text."""
        for artist in [*self.axes.images, *self.axes.patches, *self.page.figure.texts]:
            artist.remove()
        with style.paper():
            draw_tokens(self.axes, self.picture, self.grid, owner)
            if marked is not None:
                for colour, width in (("black", 2.5), (style.PALETTE[1], 1.5)):
                    draw_borders(self.axes, marked, self.grid, width, colour)
            self.page.write(MARGIN, MARGIN, self.room, *self.above, *lines)
            self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB")


def write(drawing: Figure | Animation, files: Sequence[FilePath]) -> list[FilePath]:
    """Writes a figure or an animation to files, as their endings say, each whole or not at all; returns the files."""
    for file in files:
        if isinstance(drawing, Figure):
            style.save(drawing, file.parent, file.stem, (file.suffix[1:],))
        else:
            first, *others = with_one_palette(drawing.frames)
            form, times, buffer = "GIF" if file.suffix == ".gif" else "PNG", drawing.milliseconds, io.BytesIO()
            first.save(buffer, form, save_all=True, append_images=others, duration=times, loop=0)
            write_bytes(file, buffer.getvalue())
    return list(files)


def with_one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames in 256 colours, the same for all and undithered, so that what stands still is stored once."""
    some = [*frames[:: max(1, len(frames) // 4)], frames[-1]]
    colours = Image.fromarray(np.concatenate([np.asarray(frame) for frame in some])).quantize(256)
    return [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in frames]
