"""The results folder: nothing is lost, nothing is mixed up, nothing of others is touched."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sweeping import contents

from tokenmerge_bench import store
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.store import COLUMNS, BatchOutcomes, PointOutcomes, ResultFolder, read_results, write_text

EVALUATION = {"version": "1", "dataset": "demo ab", "subset": "4 images cd", "batch size": 2, "dtype": "float32"}
POINTS = {"a": "point a", "b": "point b"}
OUTCOMES = pd.DataFrame({"image": ["x", "ü,\n"], "label": [1, 2], "prediction": [1, 3], "rank": [0, 4]})


def opened(path: Path, fresh: bool = False, points: dict[str, str] = POINTS, **changes: object) -> ResultFolder:
    return ResultFolder(path, {**EVALUATION, **changes}, points, fresh)


def batch(chunk: int) -> BatchOutcomes:
    said = PointOutcomes([1, 2], [0, 5], 0.25, None if chunk % 2 else 12.5)
    return BatchOutcomes("model", chunk, [2 * chunk, 2 * chunk + 1], [f"bäd{chunk}.png"], {"a": said, "b": said})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def used(path: Path) -> Path:
    """A folder with everything that a sweep leaves."""
    with opened(path) as folder:
        folder.append(batch(0))
        folder.finish_point("a", {"top1": 50.0}, OUTCOMES)
        folder.write_results([{"method": "dhtm"}])
    for name in ("provenance.json", "accuracy_flops.png", "fig1.png", "table1.tex", "results_table.md"):
        (path / name).write_text("x")
    return path


# --- journal ----------------------------------------------------------------------------------------------------------


def test_the_journal_gives_back_what_was_appended(path: Path) -> None:
    with opened(path) as folder:
        assert list(folder.read_journal()) == []
        for chunk in range(3):
            folder.append(batch(chunk))
        assert list(folder.read_journal()) == [batch(chunk) for chunk in range(3)]
    with opened(path) as again:
        assert list(again.read_journal()) == [batch(chunk) for chunk in range(3)]
        again.drop_journal()
        assert list(again.read_journal()) == []
        again.drop_journal()


def test_a_line_torn_at_any_byte_is_dropped_and_the_next_append_is_whole(path: Path) -> None:
    with opened(path) as folder:
        folder.append(batch(0))
        whole = folder.journal.read_bytes()
        folder.append(batch(1))
        both = folder.journal.read_bytes()
        for end in range(len(whole), len(both)):
            folder.journal.write_bytes(both[:end])
            assert list(folder.read_journal()) == [batch(0)], end
            assert folder.journal.read_bytes() == whole
        folder.journal.write_bytes(both[:-3])
        list(folder.read_journal())
        folder.append(batch(2))
        assert list(folder.read_journal()) == [batch(0), batch(2)]
        folder.journal.write_bytes(both[:5])
        assert list(folder.read_journal()) == []


# --- whole files ------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_text(file, "old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "new")
    assert contents(tmp_path) == {"file": b"old"}


def test_a_point_is_done_only_after_its_outcomes_are_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as folder:
        seen: list[tuple[str, bool]] = []
        write = store.write_bytes

        def watched(file: Path, content: bytes) -> None:
            seen.append((file.parent.name, folder.is_done("a")))
            write(file, content)

        monkeypatch.setattr(store, "write_bytes", watched)
        folder.finish_point("a", {"top1": 50.0}, OUTCOMES, [{"image": "x"}])
        assert seen == [("outcomes", False), ("examples", False), ("records", False)]
        assert folder.is_done("a")
        assert not folder.is_done("b")
        assert folder.record("a") == {"top1": 50.0}
        pd.testing.assert_frame_equal(pd.read_csv(path / "outcomes" / "a.csv.gz"), OUTCOMES)


def test_the_results_table_is_read_as_it_was_written(path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"method": "none", "budget": "1", "options": "", "top1": 50.0, "seed": 0, "tokens_per_block": "197 197"},
        {"method": "dhtm", "budget": "k=40", "knob": "k=40", "weights": "007", "reason": 'a, "b"', "status": "failed"},
    ]
    with opened(path) as folder:
        written = folder.write_results(rows)
    table = read_results(path)
    assert tuple(table.columns) == tuple(written.columns) == COLUMNS
    assert table["method"].tolist() == ["none", "dhtm"]  # and not a missing value
    assert table["budget"].tolist() == ["1", "k=40"]
    assert table["weights"][1] == "007"
    assert table["reason"][1] == 'a, "b"'
    assert table["top1"][0] == 50.0
    assert pd.isna(table["top1"][1])


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no results.csv; give a folder that `tmbench sweep`"):
        read_results(tmp_path)


# --- whose folder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", EVALUATION)
def test_another_experiment_is_refused_by_what_differs(used: Path, key: str) -> None:
    before = contents(used)
    with pytest.raises(InputError, match=rf"holds another experiment \({key} was .*, now other\); .*--out, or --fresh"):
        ResultFolder(used, {**EVALUATION, key: "other"}, POINTS)
    assert contents(used) == before


def test_an_experiment_without_an_earlier_point_is_refused(used: Path) -> None:
    before = contents(used)
    with pytest.raises(InputError, match="it has point b, which this command has not"):
        opened(used, points={"a": "point a"})
    with pytest.raises(InputError, match="it has point a and 1 more, which this command has not"):
        opened(used, points={"c": "point c"})
    assert contents(used) == before


def test_new_points_may_be_added(used: Path) -> None:
    with opened(used, points={**POINTS, "c": "point c"}) as folder:
        assert folder.is_done("a")
        assert list(folder.read_journal()) == [batch(0)]
    with pytest.raises(InputError, match="it has point c"):
        opened(used)


def test_a_newer_format_is_refused(used: Path) -> None:
    held = json.loads((used / "sweep.json").read_text())
    (used / "sweep.json").write_text(json.dumps({**held, "format": store.FORMAT + 1}))
    before = contents(used)
    with pytest.raises(
        InputError, match=f"was written in format {store.FORMAT + 1}, this version writes {store.FORMAT}"
    ):
        opened(used)
    assert contents(used) == before


@pytest.mark.parametrize("fresh", [False, True])
def test_foreign_files_are_left_alone(path: Path, fresh: bool) -> None:
    (path / "records").mkdir(parents=True)
    (path / "results.csv").write_text("mine")
    with pytest.raises(InputError, match="holds files that no sweep made; give an empty or new folder with --out"):
        opened(path, fresh)
    assert sorted(entry.name for entry in path.iterdir()) == ["records", "results.csv"]
    assert contents(path) == {"results.csv": b"mine"}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"method": "grid"}', "program: train.py"])
def test_a_manifest_of_another_tool_is_refused(path: Path, fresh: bool, manifest: str) -> None:
    write_text(path / "sweep.json", manifest)
    write_text(path / "results.csv", "mine")
    with pytest.raises(InputError, match=r"sweep.json' was not written by a sweep; give another folder with --out"):
        opened(path, fresh)
    assert contents(path) == {"results.csv": b"mine", "sweep.json": manifest.encode()}


def test_a_kill_while_the_manifest_is_written_does_not_lock_the_folder(path: Path) -> None:
    path.mkdir()
    (path / ".lock").touch()
    (path / ".sweep.json.tmp").write_text('{"form')
    with opened(path):
        assert (path / "sweep.json").exists()


def test_fresh_clears_what_a_sweep_made_and_nothing_else(used: Path) -> None:
    (used / "notes.md").write_text("mine")
    (used / "plots").mkdir()
    (used / "plots" / "records").write_text("mine")
    with opened(used, fresh=True, points={"c": "point c"}, dtype="float64") as folder:
        assert list(folder.read_journal()) == []
        assert not folder.is_done("a")
    assert set(contents(used)) == {"notes.md", "plots/records", "sweep.json"}


def test_fresh_on_a_new_folder_is_no_error(path: Path) -> None:
    with opened(path, fresh=True):
        assert (path / "sweep.json").exists()


# --- folders that cannot be written -----------------------------------------------------------------------------------


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match=r"cannot be written \(.+\); give another one with --out"):
            opened(path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_takes_no_files(used: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    before = contents(used)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store, "write_text", fail)
    with pytest.raises(InputError, match=rf"'{used}' cannot be written \({os.strerror(number)}\)"):
        opened(used)
    monkeypatch.undo()
    assert contents(used) == before
    opened(used).close()  # and the failed one holds no lock


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_two_sweeps_cannot_write_to_one_folder(used: Path) -> None:
    with opened(used), pytest.raises(InputError, match=r"another sweep is writing to .*; wait for it or give another"):
        opened(used)
    opened(used).close()


def test_the_lock_holds_between_processes_and_ends_with_them(used: Path) -> None:
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(used / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match="another sweep is writing"):
            opened(used)
        other.kill()
        other.wait()
    opened(used).close()


def test_a_refused_sweep_holds_no_lock(used: Path) -> None:
    with pytest.raises(InputError, match="another experiment") as caught:
        opened(used, dtype="float64")
    assert caught.value.__traceback__ is not None  # as a notebook keeps it
    opened(used).close()
