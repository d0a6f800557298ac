"""The command line: what it prints, how it ends, and what it says to bad input."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from commands import Command, Done, assert_refused
from sweeping import TINY, TINY_RGB, contents, lasting

from tokenmerge_bench.display import SilentReporter
from tokenmerge_bench.provenance import version
from tokenmerge_bench.store import ResultFolder, read_results

pytestmark = pytest.mark.usefixtures("closed_form_counts", "own_registry")

PLUGIN = '''
import torch
from tokenmerge_bench.assignment import HardAssignment
from tokenmerge_bench.reducers import TokenReducer, reducer

@reducer("{name}")
class Front(TokenReducer):
    """Keeps the first tokens; the others join the first one."""

    def assign(self, tokens, n_out):
        {body}
        n = tokens.features.shape[1]
        labels = torch.arange(n).where(torch.arange(n) < n_out, 0).expand(len(tokens.features), n)
        return HardAssignment(labels, n_out, tokens.sizes)

    def macs(self, n_in, n_out, width):
        return 0
'''


@pytest.fixture
def sweep(tmbench: Command, weights: Path) -> Command:
    """A small sweep into `out`, with more arguments."""
    usual = ("--weights", weights, "--models", TINY, "--limit", 4, "--batch-size", 2, "--seeds", 2, "--out", "out")
    return lambda *more, methods="dhtm,random", k=6: tmbench(
        "sweep", *usual, "--methods", methods, *(("--k", k) if k is not None else ()), *more
    )


@pytest.fixture(autouse=True)
def figures_where_asked_for(request: pytest.FixtureRequest) -> None:
    """Quick figures, unless a test asks for `real_figures`."""
    if "real_figures" not in request.fixturenames:
        request.getfixturevalue("quick_figures")


@pytest.fixture
def real_figures() -> None:
    """Asks for real figures."""


# --- a good sweep -----------------------------------------------------------------------------------------------------


def test_a_sweep_prints_a_table_and_says_where_things_are(sweep: Command, tmp_path: Path, real_figures: None) -> None:
    done = sweep()
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{TINY} (tiny.safetensors) on demo, 4 images")
    assert re.search(r"unreduced .* \d+\.\d\d [|] *\d+\.\d\d to \d+\.\d\d", done.out)
    assert re.search(r"dhtm +[|] *k=6 +[|] *k=6 +[|] *0\.00\d+ [|] *\d+\.\d %", done.out)
    assert re.search(r"random .*\d+\.\d\d ± \d+\.\d\d", done.out)
    assert lines[-3:] == [
        "table   out/results.csv",
        "figure  out/fig1.png (also svg, pdf)",
        "next    tmbench report out -o report.html",
    ]
    for name in ("results.csv", "fig1.png", "fig1.svg", "fig1.pdf", "provenance.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    table = read_results(tmp_path / "out")
    assert table["method"].tolist() == ["none", "dhtm", "random", "random"]
    assert set(table["experiment"]) == {"demo"}


def test_the_same_command_again_evaluates_nothing(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep()
    before = contents(tmp_path / "out")["results.csv"]
    monkeypatch.setattr(SilentReporter, "advance", None)
    second = sweep()
    assert (second.code, second.out, second.err) == (0, first.out, first.err)
    assert contents(tmp_path / "out")["results.csv"] == before


def test_without_out_the_folder_is_new_and_named_after_the_data(
    tmbench: Command, weights: Path, tmp_path: Path
) -> None:
    done = tmbench("sweep", "--weights", weights, "--models", TINY, "--limit", 2, "--methods", "dhtm", "--k", "3")
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.startswith("demo-")
    assert f"results/{folder.name}/results.csv" in done.out


def test_inline_options_and_layers_arrive(sweep: Command, tmp_path: Path) -> None:
    assert sweep("--layers", "1/5", methods="dhtm:connectivity=4,lotm:layers=all", k=3).code == 0
    table = read_results(tmp_path / "out").set_index("method")
    assert table.loc["dhtm", "options"] == "connectivity=4:layers=1/5"
    assert table.loc["lotm", "options"] == "layers=all"
    assert str(table.loc["dhtm", "tokens_per_block"]).split() == ["50"] + ["47"] * 4 + ["44"] * 7


def test_limit_zero_means_all_images(tmbench: Command, rgb_weights: Path, image_folder: Path, tmp_path: Path) -> None:
    common = ("sweep", "--models", TINY_RGB, "--weights", rgb_weights, "--dataset", image_folder, "--methods", "dhtm")
    for limit, n in (((), 6), (("--limit", 0), 6), (("--limit", 3), 3)):
        assert tmbench(*common, "--k", 3, "--out", f"out{n}{len(limit)}", *limit).code == 0
        assert set(read_results(tmp_path / f"out{n}{len(limit)}")["n_images"]) == {n}


def test_weights_by_model_and_paths_with_an_equals_sign(tmbench: Command, weights: Path, tmp_path: Path) -> None:
    odd = tmp_path / "run=3.safetensors"
    odd.write_bytes(weights.read_bytes())
    for number, text in enumerate((f"{TINY}={odd}", odd)):
        out = tmp_path / str(number)
        done = tmbench(
            "sweep", "--models", TINY, "--methods", "dhtm", "--k", 3, "--limit", 2, "--weights", text, "--out", out
        )
        assert done.code == 0, done.err
        assert set(read_results(out)["weights"]) == {"run=3.safetensors"}


@pytest.mark.parametrize("unreadable", [1, 6])
def test_unreadable_images_are_one_line(
    tmbench: Command, rgb_weights: Path, image_folder: Path, unreadable: int
) -> None:
    for file in sorted(image_folder.rglob("*.png"))[:unreadable]:
        file.write_bytes(b"")
    done = tmbench(
        "sweep",
        "--models",
        TINY_RGB,
        "--weights",
        rgb_weights,
        "--dataset",
        image_folder,
        "--methods",
        "dhtm",
        "--k",
        3,
    )
    note, *rest = done.err.splitlines()
    assert "unreadable and left out for every point: n01440764/0.png" in note
    if unreadable == 1:
        assert (done.code, rest) == (0, [])
    else:
        assert done.code == 2
        assert rest == ["tmbench: none of the 6 images of 'val' can be read; check the files."]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def traps(tmp_path: Path, rgb_weights: Path) -> Path:
    """A folder of wrong things."""
    root = tmp_path / "traps"
    (root / "empty").mkdir(parents=True)
    (root / "imagenet" / "cats").mkdir(parents=True)
    (root / "no_images" / "n01440764").mkdir(parents=True)
    (root / "file").write_text("x")
    (root / "text.safetensors").write_text("no tensors")
    (root / "rgb.safetensors").write_bytes(rgb_weights.read_bytes())
    (root / "evil.pth").write_bytes(pickle.dumps(_Evil()))
    (root / "notes.txt").write_text("x")
    (root / "syntax.py").write_text("def f(:\n")
    (root / "nothing.py").write_text("x = 1\n")
    (root / "same.py").write_text(PLUGIN.format(name="dhtm", body="pass"))
    return root


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("hacked",))


BAD: list[tuple[str, list[str], dict[str, Any], list[str]]] = [
    ("unknown method", [], {"methods": "dhmt"}, ["'dhmt'", "did you mean 'dhtm'", "tmbench list methods"]),
    ("unknown model", ["--models", "tiny_82"], {}, ["'tiny_82'", "did you mean 'tiny_28'", "tmbench list models"]),
    ("unknown option", [], {"methods": "dhtm:conect=4"}, ["'dhtm'", "'conect'", "did you mean 'connectivity'"]),
    ("wrong option", [], {"methods": "dhtm:connectivity=6"}, ["'dhtm'", "connectivity=6"]),
    ("no methods", [], {"methods": ","}, ["empty list", "comma-separated"]),
    ("budget above one", ["--budgets", "1.5"], {"k": None}, ["budget 1.5", "at most 1", "--gflops"]),
    ("budget of zero", ["--budgets", "0.5,0"], {"k": None}, ["budget 0.0", "above 0"]),
    ("budget in words", ["--budgets", "half"], {"k": None}, ["--budgets 'half'", "0.9,0.7"]),
    (
        "budget below the floor",
        ["--budgets", "0.01"],
        {"k": None, "methods": "dhtm"},
        ["budget 0.01", "nearest that dhtm can do", "ask for another budget"],
    ),
    ("k above N - 1", ["--layers", "3"], {"k": 49}, ["k=49", "49 patch tokens", "at most 48"]),
    ("k below zero", [], {"k": -1}, ["--k '-1'", "such as 40"]),
    ("k in words", [], {"k": "many"}, ["--k 'many'", "such as 40"]),
    ("a knob of others", [], {"methods": "dhtm,tome"}, ["tome has no knob 'k'", "--budgets or --gflops"]),
    ("two kinds of budget", ["--budgets", "0.5"], {}, ["exactly one way", "--budgets, --gflops, --k"]),
    ("layers beyond the model", ["--layers", "3/12"], {}, ["block 12", "blocks 0 to 11", "dhtm:layers=1/2"]),
    ("layers in words", ["--layers", "some"], {}, ["layers 'some'", "3/6/10"]),
    ("no layers", ["--layers", ""], {}, ["layers ''", "3/6/10"]),
    ("weights of another model", ["--weights", "{}/rgb.safetensors"], {}, ["--weights names two files"]),
    ("missing data", ["--dataset", "{}/none"], {}, ["{}/none", "does not exist", "check the path"]),
    ("unknown data", ["--dataset", "demos"], {}, ["'demos'", "'demo' or a folder"]),
    ("empty data", ["--dataset", "{}/empty"], {}, ["{}/empty", "no images", "class folders"]),
    ("no images", ["--dataset", "{}/no_images"], {}, ["{}/no_images", "no images"]),
    ("data that is a file", ["--dataset", "{}/file"], {}, ["{}/file", "is a file"]),
    ("no WordNet id", ["--dataset", "{}/imagenet"], {}, ["'cats'", "{}/imagenet", "n01440764", "class folders"]),
    ("another experiment", ["--seed", "5"], {}, ["'out' holds another experiment", "--out", "--fresh"]),
    ("a folder of somebody", ["--out", "{}"], {}, ["holds files that no sweep made", "--out"]),
    ("a folder below a file", ["--out", "{}/file/out"], {}, ["{}/file/out", "cannot be written", "--out"]),
    ("unknown device", ["--device", "gpu"], {}, ["--device 'gpu'", "write cpu, cuda"]),
    ("unknown precision", ["--dtype", "float8"], {}, ["--dtype float8", "float32"]),
    ("no images wanted", ["--limit", "-1"], {}, ["--limit -1", "0 for all"]),
    ("no workers", ["--workers", "-1"], {}, ["--workers -1", "0 to decode"]),
    ("graphs without CUDA", ["--cuda-graphs"], {}, ["--cuda-graphs needs a CUDA device", "--device cuda"]),
    ("no batch", ["--batch-size", "0"], {}, ["--batch-size 0"]),
    ("no seeds", ["--seeds", "0"], {}, ["--seeds 0"]),
    ("no such plugin", ["--plugin", "{}/none.py"], {}, ["{}/none.py", "not a file"]),
    ("a plugin that is no Python", ["--plugin", "{}/notes.txt"], {}, ["{}/notes.txt", ".py"]),
    ("a plugin with a mistake", ["--plugin", "{}/syntax.py"], {}, ["{}/syntax.py", "SyntaxError"]),
    ("a plugin without a method", ["--plugin", "{}/nothing.py"], {}, ["{}/nothing.py", "@reducer"]),
    ("a plugin with a name that is taken", ["--plugin", "{}/same.py"], {}, ["'dhtm' is defined twice", "{}/same.py"]),
]


@pytest.mark.parametrize(("flags", "settings", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_one_sentence_and_harms_nothing(
    sweep: Command,
    finished: Path,
    traps: Path,
    tmp_path: Path,
    flags: list[str],
    settings: dict[str, Any],
    words: list[str],
) -> None:
    before = contents(tmp_path)
    done = sweep(*(flag.format(traps) for flag in flags), **settings)
    assert_refused(done, *(word.format(traps) for word in words))
    assert contents(tmp_path) == before


@pytest.fixture
def finished(template: Path, tmp_path: Path) -> Path:
    """Earlier results in `out`, copied from one sweep for all tests."""
    import shutil

    return Path(shutil.copytree(template, tmp_path / "out"))


@pytest.fixture(scope="module")
def template(weights: Path, tmp_path_factory: pytest.TempPathFactory, closed_form_counts: None) -> Path:
    from sweeping import run

    out = tmp_path_factory.mktemp("template") / "out"
    run(out, weights, methods=["dhtm", "random"], limit=4, examples=2)
    return out


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("rgb.safetensors", ["rgb.safetensors", "another architecture than 'tiny_28'", "of another shape"]),
        ("text.safetensors", ["text.safetensors", "no readable safetensors"]),
        ("evil.pth", ["evil.pth", "more than plain tensors", ".safetensors"]),
        ("none.safetensors", ["none.safetensors", "does not exist", "--weights"]),
        ("notes.txt", ["notes.txt", "must end in .safetensors"]),
        ("other_model=x.safetensors", ["names 'other_model'", "not among the models (tiny_28)"]),
    ],
)
def test_bad_weights(tmbench: Command, traps: Path, tmp_path: Path, file: str, words: list[str]) -> None:
    text = file if "=" in file else traps / file
    assert_refused(tmbench("sweep", "--models", TINY, "--weights", text, "--methods", "dhtm", "--k", 3), *words)
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "hacked").exists()


def test_weights_that_do_not_say_for_which_model(tmbench: Command, weights: Path) -> None:
    done = tmbench("sweep", "--models", f"{TINY},{TINY_RGB}", "--weights", weights)
    assert_refused(done, f"--weights {weights} does not say for which model", f"MODEL={weights}")


def test_a_model_of_other_classes(tmbench: Command, rgb_weights: Path, weights: Path, image_folder: Path) -> None:
    done = tmbench("sweep", "--models", TINY_RGB, "--weights", rgb_weights)
    assert_refused(done, "'tiny_rgb' distinguishes 1000 classes but data set 'demo' has 10", "--dataset")
    done = tmbench("sweep", "--models", TINY, "--weights", weights, "--dataset", image_folder)
    assert_refused(done, "'tiny_28' distinguishes 10 classes but data set 'val' has 1000", "--models")


def test_own_images_need_a_model(tmbench: Command, image_folder: Path) -> None:
    assert_refused(tmbench("sweep", "--dataset", image_folder), str(image_folder), "name one with --models")


def test_a_model_that_is_no_vit(tmbench: Command, tmp_path: Path) -> None:
    assert_refused(tmbench("flops", "--models", "resnet18"), "ResNet is not supported", "VisionTransformer")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_where_there_is_none(sweep: Command, tmp_path: Path) -> None:
    assert_refused(sweep("--device", "cuda"), "--device cuda", "no CUDA device", "--device cpu")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(
    sweep: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(finished)

    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tokenmerge_bench.store.write_text", fail)
    assert_refused(sweep(), "'out' cannot be written (Permission denied)", "--out")
    assert contents(finished) == before


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, appended = ResultFolder.append, 0

    def full(folder: ResultFolder, batch: Any) -> None:
        nonlocal appended
        if appended:
            with folder.journal.open("a") as file:
                file.write('{"model":"ti')
            raise OSError(errno.ENOSPC, "No space left on device")
        appended += 1
        append(folder, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ResultFolder, "append", full)
        assert_refused(sweep(), "disk is full", "make room and give the same command again")
    assert sweep().code == 0
    assert sweep("--out", "undisturbed").code == 0
    pd.testing.assert_frame_equal(
        lasting(read_results(tmp_path / "out")), lasting(read_results(tmp_path / "undisturbed"))
    )


# --- other ends -------------------------------------------------------------------------------------------------------


def test_a_failed_point_ends_with_one_and_the_others_are_there(sweep: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.format(name="mine", body="raise RuntimeError('my mistake')"))
    done = sweep("--plugin", "mine.py", methods="mine,dhtm")
    assert done.code == 1
    assert "RuntimeError: my mistake" in done.err
    assert re.search(r"mine +[|] *k=6 +[|] *failed", done.out)
    assert read_results(tmp_path / "out")["status"].tolist() == ["ok", "failed", "ok"]
    assert "table   out/results.csv" in done.out


def test_a_method_of_ones_own_beside_the_others(sweep: Command, tmbench: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.format(name="mine", body="pass"))
    assert sweep("--plugin", "mine.py", methods="mine,dhtm").code == 0
    assert read_results(tmp_path / "out")["status"].tolist() == ["ok"] * 3
    assert "Keeps the first tokens" in tmbench("list", "methods", "--plugin", "mine.py").out


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(
    sweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, runs = SilentReporter.advance, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs == 6:  # in the second batch
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(SilentReporter, "advance", interrupted)
    done = sweep()
    assert done.code == 130
    assert done.err == "tmbench: interrupted; the same command goes on from here\n"
    assert done.out == ""
    assert sweep().code == 0
    assert runs == 6 + 4
    assert len(read_results(tmp_path / "out")) == 4


def test_an_unreachable_point_is_told_and_is_no_failure(sweep: Command, tmp_path: Path) -> None:
    done = sweep("--budgets", "0.4", methods="dhtm,tome:staged=on", k=None)
    assert done.code == 0
    assert re.search(r"tome:staged=true +[|] *0\.4 +[|] *unreachable", done.out)
    assert "tome:staged=true at 0.4: unreachable, the nearest that" in done.err


# --- listings ---------------------------------------------------------------------------------------------------------


def test_version(tmbench: Command) -> None:
    assert tmbench("--version") == Done(0, f"tokenmerge-bench {version()}\n", "")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (
            "methods",
            ["dhtm", "random", "tome", "lotm", "dpc_knn", "k_medoids", "connectivity=8", "--keep-rate", "3/6/10"],
        ),
        ("models", ["deit_micro_patch2_28", "embedded", "deit_tiny_patch16_224", "hub:"]),
        ("datasets", ["demo", "Fashion-MNIST", "WordNet"]),
        ("experiments", ["demo", "deit_micro_patch2_28"]),
    ],
)
def test_lists(tmbench: Command, what: str, words: list[str]) -> None:
    done = tmbench("list", what)
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    assert [word for word in words if word not in done.out] == []


def test_flops_of_the_three_deits(tmbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenmerge_bench import listings
    from tokenmerge_bench.budgets import Solver

    # Tracing DeiT-B takes seconds; that tracing agrees with the closed form is tested elsewhere.
    def closed(reduced: Any) -> Any:
        return Solver(reduced.detach()).cost.macs(reduced.schedule, reduced.reducer_macs())

    monkeypatch.setattr(listings, "count", closed)
    done = tmbench("flops", "--methods", "dhtm", "--k", "0,40")
    assert (done.code, done.err) == (0, "")
    for name, unreduced in (("tiny", "1.2584"), ("small", "4.6083"), ("base", "17.5827")):
        assert f"deit_{name}_patch16_224, GFLOPs of one image" in done.out
        assert unreduced in done.out
    assert "197x3 157x3 117x4 77x2" in done.out


def test_flops_counts_and_shows_what_is_out_of_reach(tmbench: Command) -> None:
    done = tmbench("flops", "--models", TINY, "--methods", "dhtm,tome:staged=on", "--budgets", "0.4")
    assert done.code == 0
    assert re.search(r"tome:staged=true +[|] 0\.4 +[|] unreachable +[|] the nearest", done.out)
    assert re.search(r"dhtm +[|] 0\.4 +[|] k=", done.out)


# --- as it is really called -------------------------------------------------------------------------------------------


def test_the_real_command_in_a_pipe(weights: Path, tmp_path: Path) -> None:
    """A plugin registers the tiny model too; nothing but the table comes out, on stdout, without colours."""
    (tmp_path / "mine.py").write_text("import sweeping\n" + PLUGIN.format(name="mine", body="pass"))
    here = str(Path(__file__).parent)
    command = [
        *(sys.executable, "-m", "tokenmerge_bench", "sweep", "--plugin", "mine.py", "--methods", "mine"),
        *("--models", TINY, "--weights", str(weights), "--limit", "2", "--k", "3", "--out", "out"),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "evaluating" not in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        "figure  out/fig1.png (also svg, pdf)",
        "next    tmbench report out -o report.html",
    ]
    assert read_results(tmp_path / "out")["method"].tolist() == ["none", "mine"]
