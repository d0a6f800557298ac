"""What `--json` prints: one document on stdout, whose keys stay what they are. `docs/json.md` lists them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def write_json(document: Mapping[str, Any]) -> None:
    """Prints a document: frames as a list of their rows, paths as text, and null for every number that there is not."""
    sys.stdout.write(json.dumps(_plain(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, pd.DataFrame):
        # Text that is empty is missing as soon as it has been through a CSV file.
        return [
            _plain({key: None if str(held) == "" else held for key, held in row.items()})
            for row in value.to_dict("records")
        ]
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
