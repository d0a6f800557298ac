"""How a test calls the command line (fixture `tmbench`), and what every refusal looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


def assert_refused(done: Done, *words: str) -> None:
    """Bad input ends with code 2 and one line on stderr, which has these words in it, and nothing on stdout."""
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert done.err.startswith("tmbench: ")
    assert done.err.endswith("\n")
    assert [word for word in words if word not in done.err] == [], done.err
