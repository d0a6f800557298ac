"""`tmbench show`: what is drawn is what the model did, whatever the image, the model and the method."""

from __future__ import annotations

import base64
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from commands import Command, assert_refused
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from safetensors.torch import save_file
from sweeping import TINY, TINY_RGB, save_checkpoint, save_image
from timm.models import generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from tokenmerge_bench import attach, idx
from tokenmerge_bench.assignment import Assignment, HardAssignment
from tokenmerge_bench.budgets import Budget, Solver, reduce_with
from tokenmerge_bench.checkpoints import Checkpoint, load_weights
from tokenmerge_bench.data import as_seen, eval_transform, subset
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.experiment import Experiment
from tokenmerge_bench.figures import merges, style
from tokenmerge_bench.images import ArrayImages, FileImages, Member
from tokenmerge_bench.models import LoadedModel, build_model
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.reduced_vit import ReducedViT
from tokenmerge_bench.reducers import TokenReducer, reducer
from tokenmerge_bench.results import Site
from tokenmerge_bench.show import Run, Shown, Viewer, Wanted, class_names, named_images, usual_images
from tokenmerge_bench.watching import ClassAttention, merge_sequence

pytestmark = pytest.mark.usefixtures("own_registry")

SHAPES: dict[str, dict[str, Any]] = {
    "odd_registers": {"reg_tokens": 3},
    "odd_classless": {"class_token": False, "global_pool": "avg"},
    "odd_classless_registers": {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
    "odd_wide": {"img_size": (14, 28)},
    "odd_tall": {"img_size": (42, 14), "patch_size": (6, 7)},
    "odd_headless": {"num_classes": 0},
    "odd_distilled": {},
}
default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, *shape.get("img_size", (28, 28))),
            "num_classes": shape.get("num_classes", 5),
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
            "crop_pct": 1.0,
            "classifier": "head",
            "first_conv": "patch_embed.proj",
        }
        for name, shape in SHAPES.items()
    }
)


def _odd(name: str) -> VisionTransformer:
    kind = VisionTransformerDistilled if name == "odd_distilled" else VisionTransformer
    common = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 12, "num_heads": 2, "num_classes": 5}
    model: VisionTransformer = kind(**{**common, **SHAPES[name]})
    model.pretrained_cfg = default_cfgs[name].default.to_dict()
    return model


@register_model
def odd_registers(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _odd("odd_registers")


@register_model
def odd_classless(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _odd("odd_classless")


@register_model
def odd_classless_registers(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _odd("odd_classless_registers")


@register_model
def odd_wide(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _odd("odd_wide")


@register_model
def odd_tall(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _odd("odd_tall")


@register_model
def odd_headless(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _odd("odd_headless")


@register_model
def odd_distilled(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return _odd("odd_distilled")


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Weights are read once for all viewers and commands, which do not change a model."""
    read: dict[str, LoadedModel] = {}

    def load(model: str, weights: Path | None, **settings: Any) -> LoadedModel:
        key = f"{model} {weights} {settings}"
        if key not in read:
            read[key] = load_weights(model, weights, **settings)
        return read[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenmerge_bench.jobs.load_weights", load)
        yield


DEMO = idx.demo()
_viewers: dict[object, Viewer] = {}


def show(
    weights: Path, names: Sequence[object] = ("demo[3]",), *, checkpoints: Sequence[Checkpoint] = (), **changes: Any
) -> list[Shown]:
    """What is shown of a tiny model on images; `wanted` is a `Wanted`, all else belongs to the experiment."""
    wanted = changes.pop("wanted", Wanted())
    usual: dict[str, Any] = {"methods": ["dhtm", "lotm", "random"], "models": [TINY], "seeds": 1, "dataset": "demo"}
    budget = {} if changes.keys() & {"budgets", "keep_rate", "r"} else {"k": ["6"]}
    experiment = Experiment(**{**usual, **budget, **changes})
    key = (experiment.model_dump_json(), weights, wanted)
    if checkpoints or key not in _viewers:  # opened once for all images
        own = {experiment.models[0]: weights}
        _viewers[key] = Viewer(experiment, own, checkpoints, wanted, torch.device("cpu"))
    viewer = _viewers[key]
    return [viewer.look(one) for one in named_images([str(name) for name in names], experiment)]


@cache
def loaded(name: str, weights: Path) -> torch.nn.Module:
    from tokenmerge_bench.models import load_model

    return load_model(name, weights, device=torch.device("cpu")).model


def pixels_of(model: torch.nn.Module, index: int = 3) -> torch.Tensor:
    from tokenmerge_bench.models import data_config

    return eval_transform(data_config(model))(DEMO.load(index))[None]


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


# --- what is computed -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(weights: Path) -> Shown:
    """Three methods on the demo image 3."""
    return show(weights, wanted=Wanted(attention=True, token=2))[0]


@pytest.fixture(scope="module")
def drawn(three: Shown) -> Figure:
    """The picture of `three`."""
    return merges.draw(three)


def test_regions_and_predictions_are_those_of_the_attached_model(three: Shown, weights: Path) -> None:
    model = loaded(TINY, weights)
    assert [run.label for run in three.runs] == ["unreduced", "dhtm", "lotm", "random"]
    for run in three.runs:
        reduced = model if run.label == "unreduced" else attach(model, run.label, k=6)
        with torch.inference_mode():
            given = (pixels_of(model),) if run.label == "unreduced" else (pixels_of(model), torch.tensor([3]))
            likely = reduced(*given)[0].softmax(0)
        assert run.prediction is not None
        assert run.prediction.label == int(likely.argmax())
        assert run.prediction.confidence == pytest.approx(float(likely.max()), abs=1e-6)
        assert run.prediction.name == idx.CLASSES[run.prediction.label] or run.prediction.name.startswith("class ")
        if isinstance(reduced, ReducedViT):
            assert [(site.block, site.tokens) for site in run.sites] == [(3, 43), (6, 37), (10, 31)]
            assert (run.sites[-1].owner == reduced.source.owner()[0].numpy()).all()
            first = reduced.assignments[0]
            assert isinstance(first, HardAssignment)
            assert (run.sites[0].owner == first.labels[0].numpy()).all()
            assert 0 < run.kept < 1


def test_the_picture_is_what_the_model_sees_and_the_truth_is_known(three: Shown) -> None:
    assert (three.picture[..., 0] == DEMO.pixels[3]).all()
    assert three.picture.shape == (28, 28, 3)
    assert three.grid == (7, 7)
    assert three.truth == idx.CLASSES[DEMO.labels[3]]


def test_weights_of_a_token_of_a_hard_method_are_its_region_and_sum_to_one(three: Shown) -> None:
    assert three.runs[0].weights is None
    for run in three.runs[1:]:
        assert run.weights is not None
        assert ((run.weights > 0) == (run.sites[-1].owner == 2)).all()
        assert run.weights.sum() == pytest.approx(1, abs=1e-5)


def test_soft_methods_show_ownership_and_weights(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "sit", "sit", "0.7")
    own = save_file_of(tmp_path / "own.safetensors", TINY)
    changes: dict[str, Any] = {"methods": ["sit", "dpc_knn"], "keep_rate": ["0.7"], "wanted": Wanted(token=1)}
    (shown,) = show(own, checkpoints=[checkpoint], **changes)
    assert [run.label for run in shown.runs] == ["unreduced", "sit, trained", "dpc_knn"]
    run = shown.runs[1]
    model, reducers = checkpoint.load(TINY, device=torch.device("cpu"))
    spec = parse_method("sit")
    reduced = reduce_with(model.model, spec, Solver(model.model).solve(spec, Budget("keep_rate", "0.7")))
    reduced.reducers.load_state_dict(dict(reducers))
    with torch.inference_mode():
        reduced(pixels_of(model.model), torch.tensor([3]))
    matrix = reduced.source.matrix()[0]
    assert run.soft
    assert run.weights is not None
    assert run.weights == pytest.approx(matrix[1].double().numpy(), abs=1e-6)
    assert (run.sites[-1].owner == matrix.argmax(0).numpy()).all()
    assert not shown.runs[2].soft
    owners = len(set(run.sites[-1].owner.tolist()))
    assert f"{run.sites[-1].tokens} tokens\n{owners} of them own patches" in texts(merges.draw(shown))


def save_file_of(path: Path, model: str) -> Path:
    """Random weights of a model."""
    torch.manual_seed(0)
    state = {key: value + 0.3 * torch.randn(value.shape) for key, value in build_model(model).state_dict().items()}
    save_file(state, path)
    return path


@pytest.mark.parametrize(
    "method", ["dhtm", "dhtm:layers=11", "tome", "k_medoids", "dhtm:feature=keys:layers=11", "lotm"]
)
def test_class_attention_is_that_of_the_last_block(method: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken here from the whole matrix, as timm's attention holds it when it is not fused."""
    model = loaded(TINY, weights)
    vit: Any = model
    last = vit.blocks[-1].attn
    knob = {"tome": {"r": 3}, "k_medoids": {"keep_rate": 0.8}}.get(method, {"k": 6})
    reduced = attach(model, method, **knob)  # type: ignore[arg-type]
    matrices: list[torch.Tensor] = []
    with torch.inference_mode(), ClassAttention(reduced) as attention:
        reduced(pixels_of(model), torch.tensor([3]))
        found = attention.per_cell()[0]
    assert not last._forward_hooks
    monkeypatch.setattr(last, "fused_attn", False)
    handle = last.attn_drop.register_forward_hook(lambda module, given, out: matrices.append(given[0]))
    twin = attach(model, method, **knob)  # type: ignore[arg-type]
    with torch.inference_mode():
        twin(pixels_of(model), torch.tensor([3]))
    handle.remove()
    to_tokens = matrices[-1][0, :, 0].mean(0)[1:]
    assert float(found.sum()) == pytest.approx(float(to_tokens.sum()), abs=1e-5)
    source: Assignment = HardAssignment.identity(1, 49)
    for assignment in twin.assignments:
        source = source.compose(assignment) if source.n_out > len(to_tokens) else source
    owner = source.owner()[0]
    assert source.n_out == len(to_tokens)
    for token, received in enumerate(to_tokens):
        assert found[owner == token].sum().item() == pytest.approx(received.item(), abs=1e-5)
        assert found[owner == token].std(correction=0).item() == pytest.approx(0, abs=1e-6)


# --- one merge after the other ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dhtm", "random", "lotm", "dhtm:connectivity=4:averaging=plain"])
def test_a_sequence_has_one_token_less_each_time(method: str, weights: Path) -> None:
    reduced = attach(loaded(TINY, weights), method, k=6)
    with torch.inference_mode():
        frames: list[Site] = merge_sequence(reduced, pixels_of(reduced.detach()), torch.tensor([3]))
        reduced(pixels_of(reduced.detach()), torch.tensor([3]))
    assert [frame.tokens for frame in frames] == list(range(48, 30, -1))
    assert [frame.block for frame in frames] == [3] * 6 + [6] * 6 + [10] * 6
    assert (frames[-1].owner == reduced.source.owner()[0].numpy()).all()
    for earlier, later in pairwise(frames):
        pairs = set(zip(earlier.owner.tolist(), later.owner.tolist(), strict=True))
        assert len(pairs) == earlier.tokens  # tokens stay together
        assert len(set(later.owner.tolist())) == later.tokens


def test_methods_without_a_sequence_show_what_they_leave(weights: Path) -> None:
    (shown,) = show(weights, methods=["dpc_knn"], keep_rate=["0.6"], wanted=Wanted(frames=True))
    run = shown.runs[1]
    assert [frame.tokens for frame in run.frames] == [site.tokens for site in run.sites]


def test_an_animation_shows_every_merge_and_marks_what_grew(weights: Path) -> None:
    (shown,) = show(weights, methods=["dhtm"], k=["2"], wanted=Wanted(frames=True))
    ((label, animation),) = merges.animations(shown)
    assert label == "dhtm"
    assert len(animation.frames) == len(animation.milliseconds) == 1 + 6
    pauses = [time for time in animation.milliseconds if time == merges.PAUSE]
    assert len(pauses) == 2
    orange = np.array(style.PALETTE[1]) * 255
    first, second = (np.asarray(frame).astype(float) for frame in animation.frames[:2])
    assert not (np.abs(first - orange).max(-1) < 3).any()
    assert (np.abs(second - orange).max(-1) < 3).any()


# --- drawing ----------------------------------------------------------------------------------------------------------

grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def owned(draw: st.DrawFn) -> tuple[tuple[int, int], np.ndarray[Any, Any]]:
    grid = draw(grids)
    count = grid[0] * grid[1]
    return grid, np.array(draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=count)))


@given(owned(), st.integers(1, 3), st.integers(0, 2**31))
def test_merged_regions_have_their_mean_colour_and_others_their_pixels(
    case: tuple[tuple[int, int], np.ndarray[Any, Any]], side: int, seed: int
) -> None:
    (rows, columns), owner = case
    shape = (rows * side, columns * (side + 1), 3)
    picture = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    filled = merges.filled(picture, (rows, columns), owner)
    token = owner.reshape(rows, columns).repeat(side, 0).repeat(side + 1, 1)
    for label in set(owner.tolist()):
        region = picture[token == label]
        merged = (owner == label).sum() > 1
        expected = np.rint(region.mean(0, keepdims=True)) if merged else region
        assert (filled[token == label] == expected).all()


@given(owned())
def test_borders_lie_between_cells_of_different_tokens_and_nowhere_else(
    case: tuple[tuple[int, int], np.ndarray[Any, Any]],
) -> None:
    grid, owner = case
    tokens = owner.reshape(grid)
    expected = {
        *(((x, y), (x, y + 1)) for y, x in np.ndindex(grid) if x and tokens[y, x] != tokens[y, x - 1]),
        *(((x, y), (x + 1, y)) for y, x in np.ndindex(grid) if y and tokens[y, x] != tokens[y - 1, x]),
    }
    lines = np.asarray(merges.borders(owner, grid).vertices).reshape(-1, 2, 2)
    pieces = list(in_pieces(lines))
    assert len(pieces) == len(expected)
    assert set(pieces) == expected


def in_pieces(lines: np.ndarray[Any, Any]) -> Iterator[tuple[Any, ...]]:
    for start, stop in lines.astype(int):
        step = np.sign(stop - start)
        for i in range(int(np.abs(stop - start).sum())):
            yield tuple((start + i * step).tolist()), tuple((start + (i + 1) * step).tolist())


def picture_in(ax: Axes) -> np.ndarray[Any, Any]:
    return np.asarray(ax.images[0].get_array())


def test_heat_is_from_nothing_to_the_largest_value_of_a_picture() -> None:
    white = np.full((2, 6, 3), 255, dtype=np.uint8)
    nothing, half, largest = merges.heated(white, (1, 3), np.array([-1.0, 2.0, 4.0]))[0, ::2].astype(int)
    expected = [255 * np.array(matplotlib.colormaps[merges.HEAT](value)[:3]) for value in (0.0, 0.5, 1.0)]
    for colour, hue, strength in zip((nothing, half, largest), expected, (0.2, 0.55, 0.9), strict=True):
        assert np.abs(colour - (strength * hue + (1 - strength) * 255)).max() <= 1
    assert (merges.heated(white, (1, 3), np.zeros(3))[0, 0] == nothing).all()


def test_the_drawing_holds_the_regions_counts_and_predictions(three: Shown, drawn: Figure) -> None:
    columns = 3 + 2  # and two of heat
    unreduced, *rows = drawn.axes[:2], *(drawn.axes[i : i + columns] for i in range(2, 2 + 3 * columns, columns))
    assert (picture_in(unreduced[0]) == three.picture).all()
    for run, row in zip(three.runs[1:], rows, strict=True):
        for site, ax in zip(run.sites, row[:3], strict=True):
            assert (picture_in(ax) == merges.filled(three.picture, three.grid, site.owner)).all()
            assert ax.texts[0].get_text() == f"block {site.block}: {site.tokens} tokens"
        assert run.prediction is not None
        last = " ".join(text.get_text() for text in row[2].texts[1:])
        assert f"{run.prediction.name} {100 * run.prediction.confidence:.1f} %" in last
        assert last.startswith(merges.OTHER) == merges.changed(three, run)
        assert run.weights is not None
        assert (picture_in(row[4]) == merges.heated(three.picture, three.grid, run.weights)).all()
    for words in ("class attention, last block", "weights of token 2", three.image, "true class", "k=6", "own scale"):
        assert words in texts(drawn)
    check_layout(drawn)


def check_layout(figure: Figure) -> None:
    """Nothing leaves the page, and no text runs into another text or a picture beside it."""
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
    page = figure.bbox
    for box in boxes:
        assert min(box.x0, box.y0, page.x1 - box.x1, page.y1 - box.y1) >= 0
    for ax in figure.axes:
        assert not any(box.shrunk(0.9, 0.8).overlaps(ax.bbox) for box in boxes)
    for i, box in enumerate(boxes):
        assert not any(box.shrunk(0.98, 0.6).overlaps(other.shrunk(0.98, 0.6)) for other in boxes[:i])


@pytest.mark.parametrize(
    ("counts", "columns"), [([3, 3], 3), ([12, 3], 3), ([12, 12], 6), ([1], 3), ([5, 12], 5), ([], 3)]
)
def test_columns_follow_the_methods_that_reduce_a_few_times(counts: list[int], columns: int) -> None:
    site = Site(0, 1, np.zeros(1, dtype=np.int64))
    runs = [Run("unreduced"), *(Run("method", sites=[site] * count) for count in counts), Run("none", obstacle="no")]
    assert merges.columns(runs) == columns


def test_a_wrong_prediction_is_called_so_where_the_class_is_known(three: Shown) -> None:
    run = three.runs[0]
    assert run.prediction is not None
    for truth, wrong in (("", False), (run.prediction.name, False), ("another class", True)):
        said = " ".join(merges.predicted(replace(three, truth=truth), run))
        assert said.endswith("%, wrong") is wrong
        assert "%" in said


def test_the_extent_of_heat_is_told_and_whether_there_is_any() -> None:
    assert merges.extent(np.array([0.001, 0.25])) == "0.001 to 0.25 per patch"
    assert merges.extent(np.array([0.01101, 0.01099])) == "0.011 for every patch"


def test_reductions_shown_are_evenly_spread_and_end_with_the_last() -> None:
    sites = [Site(block, 12 - block, np.zeros(1, dtype=np.int64)) for block in range(12)]
    assert [site.block for site in merges.sites_shown(sites, 3)] == [3, 7, 11]
    assert [site.block for site in merges.sites_shown(sites, 5)] == [2, 4, 7, 9, 11]
    assert merges.sites_shown(sites[:2], 3) == sites[:2]
    assert merges.sites_shown([]) == []


def test_a_svg_is_small_with_vector_borders_and_real_text(drawn: Figure, tmp_path: Path) -> None:
    (svg,) = merges.write(drawn, [tmp_path / "a.svg"])
    nodes = list(ElementTree.parse(svg).iter())
    names = ["".join(node.itertext()) for node in nodes if node.tag.endswith("}text")]
    assert "block 3: 43 tokens" in names
    assert sum(node.tag.endswith("}image") for node in nodes) == 17
    assert svg.stat().st_size < 100_000


def test_a_svg_holds_photographs_as_jpeg_and_small_pictures_exactly(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    photograph = np.asarray(Image.fromarray(noise).resize((224, 224), Image.Resampling.BICUBIC))
    figure = Figure()
    for ax, picture in zip(figure.subplots(1, 2), (noise, photograph), strict=True):
        merges.draw_picture(ax, picture, (8, 8))
    (svg,) = merges.write(figure, [tmp_path / "a.svg"])
    nodes = [node for node in ElementTree.parse(svg).iter() if node.tag.endswith("}image")]
    links = [node.attrib["{http://www.w3.org/1999/xlink}href"].partition("base64,")[2] for node in nodes]
    small, large = (Image.open(io.BytesIO(base64.b64decode(link))) for link in links)
    assert (small.format, large.format) == ("PNG", "JPEG")
    assert (np.asarray(small.convert("RGB")) == noise).all()
    assert np.abs(np.asarray(large).astype(int) - photograph).mean() < 3


# --- images, models and methods of all kinds --------------------------------------------------------------------------


def grey() -> Image.Image:
    return Image.fromarray(np.arange(60 * 40, dtype=np.uint16).reshape(60, 40).astype(np.uint8))


def palette() -> Image.Image:
    image = grey().convert("RGB").convert("P")
    image.info["transparency"] = 0
    return image


KINDS: dict[str, Callable[[], Image.Image]] = {
    "L.png": grey,
    "RGBA.png": lambda: grey().convert("RGBA"),
    "P.png": palette,
    "1.png": lambda: grey().convert("1"),
    "deep.png": lambda: Image.fromarray(np.full((50, 50), 40_000, dtype=np.uint16)),
    "CMYK.jpg": lambda: grey().convert("CMYK"),
    "one.png": lambda: Image.new("RGB", (1, 1), "red"),
    "long.png": lambda: Image.new("RGB", (900, 10), "blue"),
    "huge.jpg": lambda: Image.new("RGB", (2000, 3000), "green"),
    "moving.gif": lambda: grey().convert("P"),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_images_of_any_size_and_mode(name: str, tmp_path: Path, weights: Path, rgb_weights: Path) -> None:
    KINDS[name]().save(tmp_path / name)
    for model, own in ((TINY, weights), (TINY_RGB, rgb_weights)):
        (shown,) = show(own, [tmp_path / name], models=[model], methods=["dhtm"])
        assert shown.picture.shape == (28, 28, 3)
        assert shown.image == name
        assert shown.truth == ""


def test_a_photograph_is_turned_upright(tmp_path: Path, rgb_weights: Path) -> None:
    image = Image.new("RGB", (40, 40), "black")
    image.paste("white", (0, 0, 40, 20))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned, upright = show(
        rgb_weights, [tmp_path / "turned.jpg", tmp_path / "upright.png"], models=[TINY_RGB], methods=["dhtm"]
    )
    assert np.abs(turned.picture.astype(int) - upright.picture.astype(int)).mean() < 2


@pytest.mark.parametrize("model", list(SHAPES))
def test_any_vit_that_can_be_attached(model: str, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", seed=1, size=60)
    own = save_file_of(tmp_path / "w.safetensors", model)
    (shown,) = show(own, [tmp_path / "a.png"], models=[model], k=["2"], methods=["dhtm"], wanted=Wanted(attention=True))
    vit = build_model(model)
    shape: Any = vit.patch_embed
    assert shown.grid == shape.grid_size
    assert shown.picture.shape[:2] == shape.img_size
    if model in ("odd_wide", "odd_tall"):
        check_layout(merges.draw(shown))
    if "classless" in model:
        assert shown.runs[1].attention is None
        assert "no class token" in " ".join(merges.notes(shown, 3))
    else:
        assert shown.runs[1].attention is not None
        assert 0 < shown.runs[1].attention.sum() < 1
    assert (shown.runs[1].prediction is None) == (model == "odd_headless")


def test_methods_that_cannot_be_shown_are_rows_that_say_why(weights: Path, tmp_path: Path) -> None:
    @reducer("breaks")
    class Breaks(TokenReducer):
        def assign(self, tokens: Any, n_out: int) -> Any:
            raise RuntimeError("out of patience")

        def macs(self, n_in: int, n_out: int, width: int) -> int:
            return 0

    (shown,) = show(weights, methods=["breaks", "dhtm", "sit", "lotm"], budgets=[0.38])
    reasons = {run.label: run.obstacle for run in shown.runs}
    assert "out of patience" in reasons["breaks"]
    assert reasons["dhtm"] == ""
    assert "must be trained first" in reasons["sit"]
    assert "the nearest that lotm can do" in reasons["lotm"]
    figure = merges.draw(shown)
    check_layout(figure)
    assert "out of patience" in texts(figure)
    assert [label for label, _ in merges.animations(shown)] == ["dhtm"]


def test_class_names(three: Shown, rgb_weights: Path, image_folder: Path) -> None:
    assert three.runs[0].prediction is not None
    assert three.runs[0].prediction.name in idx.CLASSES
    file = image_folder / "n01440764" / "0.png"
    (shown,) = show(rgb_weights, [file], models=[TINY_RGB], methods=["dhtm"])
    assert shown.truth == "tench"
    (same,) = show(rgb_weights, ["n01440764/0.png"], models=[TINY_RGB], methods=["dhtm"], dataset=str(image_folder))
    assert (same.truth, same.image) == ("tench", "n01440764/0.png")
    assert same.runs[0].prediction == shown.runs[0].prediction


def test_classes_without_a_folder_each_have_numbers() -> None:
    """As those of `hfds/NAME`, whose images are called `hfds/NAME[0]`, and of a flat folder."""
    model = LoadedModel(build_model("odd_registers"), "m", "w", "f", {})
    labels, member = np.arange(5), Member("a", "a", 0, 0)
    rows = ArrayImages.of("hfds/faces", np.zeros((5, 4, 4), dtype=np.uint8), labels, 5)
    assert class_names(model, rows) == {}
    flat = FileImages.of("flat", 5, [(f"all/{label}.png", label, member) for label in range(5)])
    assert class_names(model, flat) == {}
    folders = FileImages.of("folders", 5, [(f"{name}/0.png", label, member) for label, name in enumerate("abcde")])
    assert class_names(model, folders) == dict(enumerate("abcde"))


def test_images_that_are_chosen(weights: Path, rgb_weights: Path) -> None:
    grey_model, model = loaded(TINY, weights), loaded(TINY_RGB, rgb_weights)
    free = Experiment(methods=["dhtm"], models=[TINY], k=["1"])
    assert [one.name for one in usual_images(free, grey_model, None)] == ["demo[30]"]
    drawn = subset(DEMO, 2, seed=0)
    assert [one.index for one in usual_images(free, grey_model, 2)] == list(drawn)
    demo = free.model_copy(update={"dataset": "demo"})
    assert [one.index for one in usual_images(demo, grey_model, None)] == list(subset(DEMO, 1, seed=0))
    named = named_images(["demo[4]", "demo[2]", "demo[4]"], free)
    assert [one.name for one in named] == ["demo[4]", "demo[2]"]
    pytest.importorskip("sklearn")
    assert [one.name for one in usual_images(free, model, None)] == ["flower.jpg"]
    for limit in (2, 0):
        assert [one.name for one in usual_images(free, model, limit)] == ["flower.jpg", "china.jpg"]
    assert usual_images(free, model, 1)[0].load().size == (640, 427)


def test_what_a_model_sees_is_cropped_as_it_is_evaluated() -> None:
    image = Image.fromarray(np.arange(100 * 60 * 3, dtype=np.uint32).reshape(60, 100, 3).astype(np.uint8))
    config = {"input_size": (3, 30, 30), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.5}
    config |= {"interpolation": "bicubic", "crop_mode": "center"}
    assert (np.asarray(as_seen(image, config)) == np.asarray(image)[15:45, 35:65]).all()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmbench: Command, weights: Path) -> Command:
    """`tmbench show` with the tiny model and one method."""

    def call(*arguments: object) -> Any:
        return tmbench("show", "--model", TINY, "--weights", weights, "--k", 2, "--methods", "dhtm", *arguments)

    return call


def test_the_embedded_model_and_image_need_no_arguments_but_a_budget(tmbench: Command, tmp_path: Path) -> None:
    done = tmbench("show", "--methods", "dhtm", "--k", 40)
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "show").iterdir()) == ["demo-30-merges.png", "demo-30-merges.svg"]
    assert done.out == "figure  show/demo-30-merges.png (also svg)\n"
    with Image.open(tmp_path / "show" / "demo-30-merges.png") as picture:
        assert picture.format == "PNG"
    written = ElementTree.parse(tmp_path / "show" / "demo-30-merges.svg").iter()
    lines = ["".join(node.itertext()) for node in written if node.tag.endswith("}text")]
    assert "true class: Bag; bold: predicted" in lines
    assert len([line for line in lines if line.startswith("Bag ")]) == 2  # the first picture is one the model knows


def test_a_picture_for_each_image_and_names_that_do_not_clash(tiny: Command, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_image(tmp_path / folder / "cat.png", seed=1)
    done = tiny("a/cat.png", "b/cat.png", "demo[7]", "--dataset", "demo", "--formats", "svg", "--out", "here")
    assert (done.code, done.err) == (0, "")
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == ["cat-merges-2.svg", "cat-merges.svg", "demo-7-merges.svg"]


def test_an_animation_is_written_by_its_ending(tiny: Command, tmp_path: Path) -> None:
    assert tiny("--k", 1, "--animate", "--out", "a.gif").code == 0
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    others = [tmp_path / "a.apng", tmp_path / "a.png"]
    merges.write(merges.Animation(frames, [100, 200, 300]), others)
    for path, form, count in [(tmp_path / "a.gif", "GIF", 4), *((path, "PNG", 3) for path in others)]:
        with Image.open(path) as moving:
            assert moving.format == form
            assert getattr(moving, "n_frames", 1) == count
            assert moving.info["loop"] == 0


def test_each_budget_out_of_reach_is_told(tmbench: Command, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merges, "animations", lambda shown: [])
    wanted = ("--methods", "lotm,dpc_knn", "--budgets", "0.38,0.37", "--animate", "--json")
    done = tmbench("show", "--model", TINY, "--weights", weights, *wanted)
    found = json.loads(done.out)
    assert list(found["left_out"]) == ["lotm at 0.38", "lotm at 0.37"]
    assert done.err.splitlines() == [f"tmbench: {what}: {why}" for what, why in found["left_out"].items()]


@pytest.mark.parametrize("folder", ["v1.2", "pictures.png"])
def test_a_folder_may_have_a_dot_in_its_name(tiny: Command, tmp_path: Path, folder: str) -> None:
    (tmp_path / "pictures.png").mkdir()
    assert tiny("--out", folder, "--formats", "svg").out == f"figure  {folder}/demo-30-merges.svg\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_shows_what_the_cpu_shows(weights: Path) -> None:
    experiment = Experiment(methods=["dhtm", "dpc_knn", "dhtm:layers=11"], models=[TINY], budgets=[0.97])
    (chosen,), wanted = named_images(["demo[3]"], experiment), Wanted(attention=True, token=2, frames=True)
    there, here = (
        Viewer(experiment, {TINY: weights}, [], wanted, torch.device(device)).look(chosen).runs
        for device in ("cuda", "cpu")
    )
    for gpu, cpu in zip(there, here, strict=True):
        assert gpu.obstacle == cpu.obstacle == ""
        assert gpu.prediction is not None
        assert cpu.prediction is not None
        assert gpu.prediction.confidence == pytest.approx(cpu.prediction.confidence, abs=1e-4)
        assert gpu.attention == pytest.approx(cpu.attention, abs=1e-5)
        assert len(gpu.frames) == len(cpu.frames)
        assert all((a.owner == b.owner).all() for a, b in zip(gpu.sites, cpu.sites, strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.jpg"], ["'none.jpg' does not exist", "check the path"]),
        (["none.jpg", "--dataset", "demo"], ["'none.jpg' does not exist", "'demo[0]'"]),
        (["folder"], ["'folder' is a folder", "--dataset"]),
        (["torn.png"], ["'torn.png' cannot be decoded"]),
        (["text.png"], ["'text.png' cannot be decoded"]),
        (["empty.png"], ["'empty.png' cannot be decoded"]),
        (["thin.png"], ["'thin.png' is 2 x 300 pixels", "crop it"]),
        (["cat.png", "--out", "cat.png"], ["'cat.png' is an image to be shown", "--out"]),
        (["cat.png", "--out", "out.jpg"], ["no format 'jpg'"]),
        (["cat.png", "--out", "out.gif"], ["no format 'gif'"]),
        (["cat.png", "--out", "out.svgz"], ["no format 'svgz'", "did you mean 'svg'"]),
        (["cat.png", "--dataset", "demo"], ["--dataset is of no use", "leave it out"]),
        (["cat.png", "--split", "train"], ["--split is of no use"]),
        (["cat.png", "--device", "tpu"], ["'tpu' is no device"]),
        (["cat.png", "--animate", "--formats", "svg"], ["no format 'svg'", "apng"]),
        (["cat.png", "--out", "x.png", "--formats", "svg"], ["--out x.png", "--formats"]),
        (["cat.png", "torn.png", "--out", "x.png"], ["one file", "2 pictures"]),
        (["cat.png", "--token", "43"], ["--token 43", "0 to 42"]),
        (["cat.png", "--token", "-1"], ["--token -1", "0 to 42"]),
        (["--token", "0", "--k", "0"], ["--token 0", "no method here reduces any"]),
        (["--limit", "-1"], ["--limit -1 is negative"]),
        (["cat.png", "--limit", "2"], ["--limit 2", "leave one of the two out"]),
        (["--animate", "--token", "0"], ["--animate", "leave --attention and --token out"]),
        (["--animate", "--attention"], ["--animate", "leave --attention and --token out"]),
        (["--methods", "dhmt"], ["'dhmt'", "did you mean 'dhtm'"]),
        (["--methods", "tome"], ["no knob 'k'"]),
        (["--models", f"{TINY},{TINY_RGB}"], ["does not say for which model"]),
    ],
)
def test_bad_input(tiny: Command, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "folder").mkdir()
    save_image(tmp_path / "cat.png", seed=1)
    (tmp_path / "torn.png").write_bytes((tmp_path / "cat.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (2, 300)).save(tmp_path / "thin.png")
    before = (tmp_path / "cat.png").read_bytes()
    assert_refused(tiny(*arguments), *words)
    assert (tmp_path / "cat.png").read_bytes() == before


def test_one_model_at_a_time_and_no_untrained_method_alone(weights: Path) -> None:
    with pytest.raises(InputError, match="one model is shown at a time"):
        show(weights, models=[TINY, TINY_RGB])
    with pytest.raises(InputError, match="must be trained first"):
        show(weights, methods=["sit"], keep_rate=["0.7"])
    (shown,) = show(weights, methods=["sit"], keep_rate=["0.7"], untrained=True)
    assert shown.runs[1].label == "sit, untrained"
