"""What a terminal shows while a sweep runs: how far it is, and the accuracy of every point so far."""

from __future__ import annotations

from tokenmerge_bench.display import ProgressReporter, SilentReporter, errors


def reporter() -> SilentReporter:
    """A progress bar where stderr is a terminal, silence elsewhere."""
    return ProgressReporter() if errors.is_terminal else SilentReporter()
