"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import array_checks  # noqa: F401 - before the package
import pytest
import torch
import typer.main
from commands import Command, Done
from hypothesis import settings
from sweeping import TINY_RGB, save_image, save_random_weights


def pytest_collection_finish() -> None:
    """What was imported by now stays: garbage collections, of which a profile starts many, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors are slower on many threads, above all when the machine is busy."""
    torch.set_num_threads(1)


# A busy machine is no failure.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="module")
def closed_form_counts() -> Iterator[None]:
    """MACs are computed and not traced, which takes most of a small sweep; that both agree has tests of its own."""
    from tokenmerge_bench import counting, engine

    def count(reduced: Any) -> Any:
        return counting.closed_form(reduced.detach(), reduced.schedule, reduced.reducer_macs())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "count", count)
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny model for demo images."""
    return save_random_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights under the same file name, so that only their content tells them apart."""
    return save_random_weights(tmp_path_factory.mktemp("other") / "tiny.safetensors", seed=1)


@pytest.fixture(scope="session")
def rgb_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny model for ImageNet folders."""
    return save_random_weights(tmp_path_factory.mktemp("rgb") / "tiny_rgb.safetensors", TINY_RGB)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two images in each of three ImageNet classes."""
    root = tmp_path / "val"
    for number, wnid in enumerate(("n01440764", "n01443537", "n02102040")):
        for image in range(2):
            save_image(root / wnid / f"{image}.png", seed=10 * number + image)
    return root


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that a test adds are gone after it."""
    from tokenmerge_bench import reducers
    from tokenmerge_bench.options import parse_method

    parse_method("dhtm")
    known = dict(reducers._registered)
    monkeypatch.setattr(reducers, "_registered", known)
    monkeypatch.setattr("tokenmerge_bench.registry._registered", known)


_get_command = cache(typer.main.get_command)  # which reads the flags of all commands, as if for another process


@pytest.fixture
def tmbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the command in this process, in an empty folder, as a script that is piped."""
    from tokenmerge_bench.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(typer.main, "get_command", _get_command)

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tmbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and figures after a sweep are named, not made: they have tests of their own and only take time."""
    monkeypatch.setattr(
        "tokenmerge_bench.products.make", lambda _, names, folder, *__: ([folder / f"{name}.png" for name in names], {})
    )
