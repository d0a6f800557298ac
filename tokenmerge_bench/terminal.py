"""Where a command writes: tables to stdout, all else to stderr, with colours and lines where they can be shown."""

from __future__ import annotations

import sys

from rich.console import Console

PIPE_WIDTH = 250
"""A pipe has no width of its own; tables are then as wide as they need."""


def decorated(console: Console) -> bool:
    """Whether colours and box-drawing lines are wanted: in a terminal, unless NO_COLOR or TERM=dumb say otherwise.

    FORCE_COLOR makes a pipe a terminal.
    """
    return console.is_terminal and not console.no_color and not console.is_dumb_terminal


def stdout() -> Console:
    """Where tables go; without a trace of a terminal's codes if it is not `decorated`."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    return console if decorated(console) else Console(width=console.width, color_system=None)


def stderr() -> Console:
    """Where progress and notes go."""
    console = Console(stderr=True)
    return console if decorated(console) else Console(stderr=True, color_system=None)


def say(sentence: str, console: Console | None = None) -> None:
    """Tells something on stderr: in one line, which a terminal breaks between words."""
    console = console or stderr()
    console.print(f"tmbench: {sentence}", markup=False, highlight=False, soft_wrap=not console.is_terminal)


def redrawn(console: Console) -> bool:
    """Whether a console is a screen on which something can be drawn over, with colours or without."""
    return console.file.isatty() and not console.is_dumb_terminal
