"""Several processes training one model: the same as one process, and nothing is lost between them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args
from toy_training import ALONE, FINISHED, TINY, Silent, curve_of, files_of, save_textures, task

from tokenmerge_bench.checkpoints import CARD, WEIGHTS
from tokenmerge_bench.cli import main
from tokenmerge_bench.distributed import Team, open_team
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.models import DEMO_MODEL
from tokenmerge_bench.train import train
from tokenmerge_bench.training_images import open_training_set

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {"batch_size": 16, "holdout": 7, "ema_decay": 0.9, "lr": 3e-3}
"""Nothing is drawn at random, so that it does not matter who draws it."""


def team_of_two(tmp_path: Path, action: Callable[[Team], object]) -> list[int]:
    """Runs something in two copies of this process, a team; what each ends with, 0 where nothing is raised."""
    meeting = Path(tempfile.mkdtemp(dir=tmp_path), "meeting").as_uri()  # a new one, or they meet those of before
    children = []
    for rank in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                # Of images of one channel, and about speed alone.
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
                dist.init_process_group("gloo", meeting, timedelta(seconds=60), rank=rank, world_size=2)
                action(Team(CPU, rank, 2))
                dist.destroy_process_group()
                code = 0
            except InputError as error:
                (tmp_path / f"said{rank}").write_text(str(error))
                code = 2
            except Exception:
                traceback.print_exc()  # which pytest shows if the test fails
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def command_line(words: list[str], folder: Path) -> str | int:
    """`tmbench` in a process of torchrun's, with what it says in files; its exit code."""
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    os.chdir(folder)
    sys.argv = ["tmbench", *words]
    with (folder / f"out{os.environ['RANK']}").open("w") as out, (folder / f"err{os.environ['RANK']}").open("w") as err:
        sys.stdout, sys.stderr = out, err
        try:
            main()
        except SystemExit as ended:  # always
            return ended.code or 0
    raise AssertionError("main does not return")


def torchrun(words: list[str], folder: Path) -> list[str | int]:
    """Two processes of torchrun's own launcher; they are copies of this one, which spares them what is imported."""
    flags = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--nproc-per-node", "2"]
    config = config_from_args(parse_args([*flags, "-m", "tokenmerge_bench", *words]))[0]
    config.start_method = "fork"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        codes: dict[int, str | int] = elastic_launch(config, command_line)(words, folder)
    return list(codes.values())


def test_two_processes_of_torchrun_train_as_one_does(tmp_path: Path) -> None:
    """From PNGs that worker processes decode, with a method attached, gradients in parts, and images held out."""
    data = save_textures(tmp_path / "data" / "train", 48, side=66).parent
    lines = [f'model = "{DEMO_MODEL}"', "epochs = 2", "micro_batch_size = 4", *(f"{k} = {v}" for k, v in PLAIN.items())]
    shape = ", ".join(f"{key} = {value}" for key, value in TINY.items())
    (tmp_path / "r.toml").write_text("\n".join([*lines, f"model_kwargs = {{ {shape} }}"]))
    words = ["train", "--recipe", "r.toml", "--dataset", "data", "--out", "two"]
    words += ["--method", "sit:layers=1/2", "--budget", "0.8", "--workers", "1"]
    assert torchrun(words, tmp_path) == [0, 0]
    assert (tmp_path / "out0").read_text().splitlines() == [
        "weights two/weights.safetensors (moving average, last epoch; card.json says how they came)",
        "figure  two/curve.png (also svg)",
    ]
    assert (tmp_path / "err0").read_text().count("epoch 2/2") == 1
    assert (tmp_path / "out1").read_text() == (tmp_path / "err1").read_text() == ""
    one = task("sit:layers=1/2", micro_batch_size=4, **PLAIN)
    card = train(one, open_training_set(str(data)), tmp_path / "one", ALONE, reporter=Silent())
    two = json.loads((tmp_path / "two" / CARD).read_text())
    assert two["processes"] == 2
    assert two["command"].startswith("tmbench train --recipe r.toml")
    for own, theirs in zip(curve_of(tmp_path / "one"), curve_of(tmp_path / "two"), strict=True):
        assert float(own["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-4)
        assert own["lr"] == theirs["lr"]
        # Each of the 7 images is counted once, if all are seen by one of the two and none by both.
        assert own["holdout_top1"] == theirs["holdout_top1"]
    assert card.knob == two["knob"]
    both = [load_file(tmp_path / name / WEIGHTS) for name in ("one", "two")]
    torch.testing.assert_close(*both, rtol=1e-2, atol=1e-3)  # of half precision


def test_what_either_process_cannot_decode_is_recorded(tmp_path: Path) -> None:
    root = save_textures(tmp_path / "train", 32, side=66)
    broken = sorted(root.rglob("*.png"))[::9]
    for path in broken:
        path.write_bytes(b"no image")
    one = task(epochs=1, batch_size=32, holdout=0)

    def each(team: Team) -> None:
        train(one, open_training_set(str(root)), tmp_path / "out", team, reporter=Silent())

    assert team_of_two(tmp_path, each) == [0, 0]
    card = json.loads((tmp_path / "out" / CARD).read_text())
    assert card["metrics"]["unreadable"] == [path.relative_to(root).as_posix() for path in broken]
    assert len(broken) == 4
    assert files_of(tmp_path / "out") == FINISHED


def test_an_interrupted_team_goes_on_where_it_was(tmp_path: Path) -> None:
    root = save_textures(tmp_path / "train", 40)
    one = task("sinkhorn:layers=1/2", epochs=2, mixup=0.5, drop_path=0.1, pad=2, **PLAIN)

    def whole(team: Team) -> None:
        train(one, open_training_set(str(root)), tmp_path / "whole", team, reporter=Silent())

    def stopped(team: Team) -> None:
        def stop(update: int) -> None:
            if update == 4 and not team.leads:
                os._exit(7)

        told = Silent(stop)
        # Only the leading process tells anything; the other one is stopped by what it is asked to do.
        if not team.leads:
            from tokenmerge_bench import train as training

            update = training._Trainer.update

            def counted(self: training._Trainer, micros: object) -> torch.Tensor:
                stop(self.updates + 1)
                return update(self, micros)  # type: ignore[arg-type]

            training._Trainer.update = counted  # type: ignore[method-assign]
        train(one, open_training_set(str(root)), tmp_path / "stopped", team, reporter=told)

    def again(team: Team) -> None:
        train(one, open_training_set(str(root)), tmp_path / "stopped", team, reporter=Silent())

    assert team_of_two(tmp_path, whole) == [0, 0]
    codes = team_of_two(tmp_path, stopped)
    assert codes[1] == 7
    assert codes[0] != 0  # it hears that the other one is gone
    assert team_of_two(tmp_path, again) == [0, 0]
    assert curve_of(tmp_path / "stopped") == curve_of(tmp_path / "whole")
    assert (tmp_path / "stopped" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_what_the_leading_process_refuses_all_refuse(tmp_path: Path) -> None:
    root = save_textures(tmp_path / "train", 32)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()

    def each(team: Team) -> None:
        train(task(batch_size=8), open_training_set(str(root)), tmp_path / "out", team, reporter=Silent())

    assert team_of_two(tmp_path, each) == [2, 2]
    said = [(tmp_path / f"said{rank}").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert "holds files that no train made" in said[0]


def test_sums_and_unions_are_over_the_team(tmp_path: Path) -> None:
    def each(team: Team) -> None:
        total = team.total(torch.tensor([1.0, float(team.rank)])).tolist()
        union = sorted(team.union({"both", str(team.rank)}))
        (tmp_path / f"found{team.rank}").write_text(json.dumps([total, union, team.first(lambda: team.rank)]))

    assert team_of_two(tmp_path, each) == [0, 0]
    for rank in range(2):
        assert json.loads((tmp_path / f"found{rank}").read_text()) == [[2.0, 1.0], ["0", "1", "both"], 0]


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"cuda:1 is one GPU for 2 processes; under torchrun write --device cuda\."):
        open_team("cuda:1")


def test_alone_nothing_is_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = open_team("cpu")
    assert (team.device, team.size, team.leads) == (CPU, 1, True)
    model, values = torch.nn.Linear(1, 1), torch.tensor([3.0])
    assert team.wrapped(model) is model
    assert team.total(values) is values
    assert team.union({"a"}) == {"a"}
    assert team.first(lambda: 5) == 5
    team.close()
