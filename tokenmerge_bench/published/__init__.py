"""The numbers and statements of the DHTM paper, to be shown beside our own and checked against each other.

K. Haroun et al., "Dynamic Hierarchical Token Merging for Vision Transformers", VISAPP 2025. The CSV files are
transcriptions: nothing in them was measured here, and every table carries `source` = `reported`. Models have the names
of timm, methods those of this package; accuracies are percent, `gflops` multiply-accumulates / 1e9 as printed.
"""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

__all__ = ["REPORTED", "TABLE1_METHOD", "claims", "methods", "quoted", "table1", "table2"]

REPORTED = "reported"
"""What `source` says of a number that was published; our own are `measured`."""
TABLE1_METHOD = "dhtm"
"""The method of Table 1."""


def table1() -> pd.DataFrame:
    """DHTM at k merges in each of three layers: columns model, k, top1, gflops, source."""
    return _read("table1")


def table2() -> pd.DataFrame:
    """All methods at about 30 % fewer FLOPs: columns model, method, trained (yes, no), top1, gflops, source."""
    return _read("table2")


def quoted() -> pd.DataFrame:
    """Numbers that stand in the text alone: columns figure, model, method, k, top1, gflops, where, source."""
    return _read("quoted")


def claims() -> pd.DataFrame:
    """Statements of the text that its own tables can be asked about, one row each.

    Columns id; kind, which decides how it is checked (see `audit_claims`); model; method; other and other_trained, what
    it is compared with; k; relation (`=`, `about`, `>`, `>=`, `<`) and value; where it stands; for kind `text`,
    the statement and what can be checked of it; source. Cells that do not apply are empty text, or missing numbers.
    """
    table = _read("claims")
    words = table.columns.difference(["k", "value"])
    table[words] = table[words].fillna("")
    return table.astype({"k": "Int64"})


def _read(name: str) -> pd.DataFrame:
    with (files(__package__) / f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file).assign(source=REPORTED)
