"""The results folder: what a sweep leaves behind, and what lets it go on after an interruption.

    sweep.json        format, the evaluation (data, subset, precision, ...) and the points the folder is for
    journal.jsonl     outcomes of each finished batch, appended as the sweep runs; gone when everything is done
    records/ID.json   one finished point: a row of results.csv
    outcomes/ID.csv.gz  its per-image outcomes: image, label, prediction, rank of the true class (0: top-1 right)
    results.csv       all points, made from the records
    provenance.json   versions, hardware, command, fingerprints
    examples/         merges on example images (ID.json) and these images as the model sees them, where asked for
    fig1.*, ...       tables and figures

Every file but the journal is written to a temporary name and renamed, so a file that is there is whole. The
journal's last line may be torn by a kill; it is then dropped and its batch evaluated again.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

import pandas as pd

from tokenmerge_bench.errors import InputError

UNREDUCED = "none"
"""The method of rows of the unreduced model."""
FORMAT = 2
"""1 had outcomes without compression, and no record of preprocessing and examples."""
COLUMNS = (
    "experiment", "model", "weights", "dataset", "n_images", "method", "options", "trained", "budget", "knob",
    "top1", "top1_low", "top1_high", "top5", "gflops", "gflops_reducer", "reduction", "tokens_per_block",
    "images_per_s", "latency_ms", "peak_memory_mb", "seed", "device", "dtype", "status", "reason", "point",
    "checkpoint",
)  # fmt: skip
"""Columns of results.csv: accuracies in percent, `reduction` the fraction of the unreduced MACs that is saved.
`checkpoint` is the fingerprint of the card of a trained point, empty off the shelf."""
LATER_COLUMNS = ("checkpoint",)
"""Columns that folders of earlier versions lack."""
NUMBERS = ("n_images", "top1", "top1_low", "top1_high", "top5", "gflops", "reduction")
"""Columns of numbers that tables and figures are made of; empty where a point gave none."""
MEASURED_TIMES = ("images_per_s", "latency_ms", "peak_memory_mb")
"""Columns that differ between two runs of the same sweep; all others are reproducible."""
_F = TypeVar("_F", bound="Folder")


@dataclass
class PointOutcomes:
    """What one point said about one batch."""

    prediction: list[int]
    rank: list[int]
    """Number of classes scored above the true one; 0 is a top-1 hit, below 5 a top-5 hit."""
    seconds: float
    peak_memory_mb: float | None = None
    merges: dict[str, list[dict[str, Any]]] | None = None
    """Of example images, by index: block, number of tokens and owner of every grid cell after each reduction."""


@dataclass
class BatchOutcomes:
    """One line of the journal: a batch, by its number within a model's evaluation, and what points said about it."""

    model: str
    chunk: int
    indices: list[int]
    unreadable: list[str]
    points: dict[str, PointOutcomes] = field(default_factory=dict)


class Folder:
    """A folder that one command fills piece by piece and goes on with after an interruption: of `sweep` or `profile`.

    Args:
        path: the folder; created if missing.
        evaluation: everything but the points that decides outcomes (data and subset fingerprints, precision, ...).
        points: identifier and description of each point, or of each piece that is recorded as a whole.
        fresh: throw away what an earlier command left in the folder.

    Raises:
        InputError: if the folder cannot be used, holds other files, is in use, or holds another experiment.
    """

    maker: ClassVar[str]
    """The command that fills it. Its manifest, `maker`.json, is what makes a folder one of these."""
    format: ClassVar[int]
    files: ClassVar[tuple[str, ...]]
    """Files and folders that `fresh` removes, but for the manifest, which is replaced and never missing."""
    products: ClassVar[tuple[str, ...]]
    """Patterns of tables and figures, which go with them."""

    def __init__(
        self, path: Path, evaluation: Mapping[str, Any], points: Mapping[str, str], fresh: bool = False
    ) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign_files()
            self._take_lock()
            self._claim(dict(evaluation), dict(points), fresh)
        except OSError as error:
            self.close()
            is_file = isinstance(error, (FileExistsError, NotADirectoryError))
            why = "it is a file, or lies in one" if is_file else error.strerror or error
            raise InputError(
                f"results folder '{path}' cannot be written ({why}); give another one with --out."
            ) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self: _F) -> _F:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others write to the folder."""
        if self._lock is not None:
            self._lock.close()

    def _refuse_foreign_files(self) -> None:
        """Called before anything is written. A kill can leave the two hidden names without a manifest."""
        manifest, passing = self.path / f"{self.maker}.json", {".lock", f".{self.maker}.json.tmp"}
        if not manifest.exists() and any(entry.name not in passing for entry in self.path.iterdir()):
            raise InputError(
                f"'{self.path}' holds files that no {self.maker} made; give an empty or new folder with --out."
            )

    def _take_lock(self) -> None:
        """Held until `close` or the end of the process, however it ends. Without flock, nothing is locked."""
        with contextlib.suppress(ImportError):
            import fcntl

            self._lock = (self.path / ".lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Processes that decode images, which outlive a killed command by some seconds, must not hold it.
                os.register_at_fork(after_in_child=self._lock.close)
            except BlockingIOError:
                raise InputError(
                    f"another {self.maker} is writing to '{self.path}'; wait for it or give another folder with --out."
                ) from None

    def _claim(self, evaluation: dict[str, Any], points: dict[str, str], fresh: bool) -> None:
        manifest = self.path / f"{self.maker}.json"
        if manifest.exists():
            held = self._read_manifest(manifest)
            if fresh:
                self._clear()
            else:
                self._check_same(held, evaluation, points)
        content = {"format": self.format, "evaluation": evaluation, "points": points}
        write_text(manifest, json.dumps(content, indent=1) + "\n")

    def _read_manifest(self, manifest: Path) -> dict[str, Any]:
        try:
            held = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError:
            held = None
        if not isinstance(held, dict) or "format" not in held:
            raise InputError(f"'{manifest}' was not written by a {self.maker}; give another folder with --out.")
        return held

    def _check_same(self, held: dict[str, Any], evaluation: dict[str, Any], points: dict[str, str]) -> None:
        if held.get("format") != self.format:
            raise InputError(
                f"'{self.path}' was written in format {held.get('format')}, this version writes {self.format}; give "
                "another folder with --out."
            )
        remedy = "give another folder with --out, or --fresh to replace what is there."
        for key, value in evaluation.items():
            added = key not in held["evaluation"] and key.startswith("code of ")  # a method that comes new
            if not added and held["evaluation"].get(key) != value:
                raise InputError(
                    f"'{self.path}' holds another experiment ({key} was {held['evaluation'].get(key)}, now {value}); "
                    f"{remedy}"
                )
        dropped = [text for point, text in held["points"].items() if point not in points]
        if dropped:
            more = f" and {len(dropped) - 1} more" if len(dropped) > 1 else ""
            raise InputError(
                f"'{self.path}' holds another experiment (it has {dropped[0]}{more}, which this command has not); "
                f"{remedy}"
            )

    def _clear(self) -> None:
        for file in [file for pattern in (*self.files, *self.products) for file in self.path.glob(pattern)]:
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink()

    def record(self, point: str) -> dict[str, Any]:
        """The record of a finished point."""
        content: dict[str, Any] = json.loads((self.path / "records" / f"{point}.json").read_text(encoding="utf-8"))
        return content

    def is_done(self, point: str) -> bool:
        """Whether a point has been evaluated on every image; a record that cannot be read is none."""
        try:
            return isinstance(self.record(point), dict)
        except (OSError, ValueError):
            return False


class ResultFolder(Folder):
    """A results folder opened for one sweep; see `Folder`."""

    maker = "sweep"
    format = FORMAT
    files = ("journal.jsonl", "results.csv", "provenance.json", "records", "outcomes", "examples")
    products = ("accuracy_flops.*", "fig[0-9].*", "table[0-9].*", "results_table.*")

    @property
    def journal(self) -> Path:
        """The file of what has been evaluated of points that are not finished."""
        return self.path / "journal.jsonl"

    def append(self, batch: BatchOutcomes) -> None:
        """Adds one batch to the journal and hands it to the operating system."""
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(batch), separators=(",", ":")) + "\n")

    def read_journal(self) -> Iterator[BatchOutcomes]:
        """All sound lines of the journal; a torn last line is cut off first. What is lost is evaluated again."""
        if not self.journal.exists():
            return
        content = self.journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            with self.journal.open("rb+") as file:
                file.truncate(len(whole))
        for line in whole.decode("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                values = json.loads(line)
                values["points"] = {key: PointOutcomes(**value) for key, value in values["points"].items()}
                yield BatchOutcomes(**values)

    def finish_point(
        self, point: str, record: Mapping[str, Any], outcomes: pd.DataFrame, examples: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Writes the per-image outcomes of a point, its examples, and then its record, which marks it as done."""
        text = outcomes.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogateescape")
        # Without a time stamp, the same outcomes are the same file.
        write_bytes(self.path / "outcomes" / f"{point}.csv.gz", gzip.compress(text, mtime=0))
        if examples:
            write_text(self.path / "examples" / f"{point}.json", json.dumps(list(examples)) + "\n")
        write_text(self.path / "records" / f"{point}.json", json.dumps(dict(record), indent=1) + "\n")

    def write_results(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Writes results.csv, one row per point in the order given, and returns it."""
        table = pd.DataFrame([{column: row.get(column) for column in COLUMNS} for row in rows], columns=list(COLUMNS))
        write_text(self.path / "results.csv", table.to_csv(index=False, lineterminator="\n"))
        return table

    def drop_journal(self) -> None:
        """Removes the journal, once every point is done."""
        self.journal.unlink(missing_ok=True)


def read_results(path: Path) -> pd.DataFrame:
    """The results table of a folder.

    Raises:
        InputError: if the folder holds no results, unfinished ones, or a table that no sweep wrote.
    """
    file = path / "results.csv"
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(f"results folder '{path}' {found}; give a folder that `tmbench sweep` or `tmbench run` wrote.")
    if not file.is_file() and (path / "sweep.json").is_file():
        raise InputError(f"the sweep in '{path}' is not finished; give its command again, it goes on where it was.")
    if not file.is_file():
        raise InputError(f"'{path}' holds no results.csv; give a folder that `tmbench sweep` or `tmbench run` wrote.")
    text_columns = ["budget", "knob", "options", "reason", "weights", "tokens_per_block", "checkpoint"]
    try:
        table = pd.read_csv(file, dtype=dict.fromkeys(text_columns, str), keep_default_na=False, na_values=[""])
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"'{file}' is no table that a sweep wrote ({error}); run the sweep again.") from error
    table = table.assign(**{column: None for column in LATER_COLUMNS if column not in table})
    lacking = [column for column in COLUMNS if column not in table]
    if lacking or table.empty:
        what = f"lacks the column '{lacking[0]}'" if lacking else "has no rows"
        raise InputError(f"'{file}' {what}; give a folder that `tmbench sweep` or `tmbench run` wrote.")
    words = [c for c in NUMBERS if c in table and not pd.api.types.is_numeric_dtype(table[c])]
    if words:
        raise InputError(f"'{file}' has something else than numbers in the column '{words[0]}'; run the sweep again.")
    return table


def outcomes_file(path: Path, point: str) -> Path | None:
    """The file of a point's per-image outcomes in a results folder; None if there is none."""
    files = (path / "outcomes" / f"{point}{suffix}" for suffix in (".csv.gz", ".csv"))  # .csv: format 1
    return next((file for file in files if file.is_file()), None)


def write_text(path: Path, text: str) -> None:
    """Writes a file that is either whole or not there."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
