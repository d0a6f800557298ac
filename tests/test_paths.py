"""Which path runs: automatic, overridden, and on machines that lack numba or Triton."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tokenmerge_bench import paths
from tokenmerge_bench.contraction import contract_most_similar
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.paths import path_for, use_path

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TMBENCH_PATH", "TRITON_INTERPRET"):
        monkeypatch.delenv(variable, raising=False)


def lacking(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    monkeypatch.setattr(paths, "_installed", lambda module: module not in modules)


def test_the_fastest_path_of_the_device_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    assert path_for(CPU) == "numba"
    assert path_for(CUDA) == "triton"
    assert path_for(torch.device("meta")) == "torch"
    lacking(monkeypatch, "numba", "triton")
    assert path_for(CPU) == path_for(CUDA) == "torch"


def test_the_environment_and_then_the_program_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    monkeypatch.setenv("TMBENCH_PATH", "torch")
    assert path_for(CPU) == path_for(CUDA) == "torch"
    with use_path("numba"):
        assert path_for(CPU) == "numba"
        with use_path("auto"):
            assert path_for(CUDA) == "triton"
        assert path_for(CPU) == "numba"
    assert path_for(CPU) == "torch"
    monkeypatch.setenv("TMBENCH_PATH", "auto")
    assert path_for(CPU) == "numba"


@pytest.mark.parametrize(
    ("wanted", "device", "missing", "said"),
    [
        ("numbra", CPU, (), r"'numbra' \(did you mean 'numba'\?\)"),
        ("numba", CUDA, (), "numba runs on the CPU, not on cuda"),
        ("numba", CPU, ("numba",), "numba is not installed"),
        ("triton", CPU, (), "Triton runs on CUDA, not on cpu"),
        ("triton", CUDA, ("triton",), "Triton is not installed"),
    ],
)
def test_a_path_that_cannot_be_followed_is_an_error(
    wanted: str, device: torch.device, missing: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(monkeypatch, *missing)
    monkeypatch.setenv("TMBENCH_PATH", wanted)
    with pytest.raises(InputError, match=said):
        path_for(device)


def test_interpreted_triton_runs_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use_path("triton"):
        assert path_for(CPU) == "triton"
    assert path_for(CPU) == "numba"


def test_a_choice_is_that_of_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    with use_path("torch"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(path_for, CPU).result() == "numba"
        assert path_for(CPU) == "torch"


@pytest.mark.parametrize("error", [ImportError("needs NumPy 2.1 or less"), OSError("no libllvmlite.so")])
def test_a_module_that_cannot_be_imported_is_not_there(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> Any:
        raise error

    monkeypatch.setattr(paths, "import_module", fail)
    paths._installed.cache_clear()
    try:
        assert path_for(CPU) == "torch"
        pairs = contract_most_similar(torch.ones(1, 3, 2), torch.ones(1, 3), torch.tensor([[[0, 1], [1, 2]]]), 2).pairs
        assert pairs.tolist() == [[[0, 1], [0, 2]]]
    finally:
        paths._installed.cache_clear()


def test_a_method_runs_where_neither_numba_nor_triton_is() -> None:
    """In a process of its own, which cannot import them."""
    script = """
import sys
sys.modules["numba"] = sys.modules["triton"] = None
import torch, tokenmerge_bench
from tokenmerge_bench.methods.dhtm import Dhtm
from tokenmerge_bench.tokens import Tokens
x = torch.ones(1, 6, 2)
assignment = Dhtm().assign(Tokens.of(x, (2, 3)), 3)
assert assignment.merge(x).shape == (1, 3, 2)
assert assignment.owner().tolist() == [[0, 0, 0, 0, 1, 2]], assignment.owner()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
