"""How long each of many pieces of work took, one after the other on one device."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import torch


class Laps(ABC):
    """Times of numbered pieces of work."""

    @abstractmethod
    def start(self) -> None:
        """Called before a piece."""

    @abstractmethod
    def stop(self, piece: int) -> None:
        """Called after it."""

    @abstractmethod
    def seconds(self) -> dict[int, float]:
        """Seconds by piece; asked for once the device has finished."""

    @staticmethod
    def on(device: torch.device) -> Laps:
        """The clock of a device."""
        return _DeviceLaps() if device.type == "cuda" else _HostLaps()


class NoLaps(Laps):
    """Takes no times."""

    def start(self) -> None:
        pass

    def stop(self, piece: int) -> None:
        pass

    def seconds(self) -> dict[int, float]:
        return {}


class _HostLaps(Laps):
    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, piece: int) -> None:
        self._seconds[piece] = time.perf_counter() - self._started

    def seconds(self) -> dict[int, float]:
        return self._seconds


class _DeviceLaps(Laps):
    """Events in the stream, so that nobody waits for anything: a piece's time is that since the piece before it."""

    def __init__(self) -> None:
        self._events: list[tuple[int, torch.cuda.Event]] = []

    def start(self) -> None:
        if not self._events:
            self.stop(-1)

    def stop(self, piece: int) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((piece, event))

    def seconds(self) -> dict[int, float]:
        pairs = zip(self._events, self._events[1:], strict=False)
        return {piece: before.elapsed_time(event) / 1000 for (_, before), (piece, event) in pairs}
