"""The device that networks run on, how precisely they run there, and how batches get to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenmerge_bench.data import Batch
from tokenmerge_bench.errors import InputError


@dataclass(frozen=True)
class Hardware:
    """Where and how networks run. Half precisions run under autocast; scores stay in float32."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    """Whether the halves of blocks are compiled."""
    graphs: bool = False
    """Whether full batches are replayed from a CUDA graph."""

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The context of a forward pass."""
        with torch.inference_mode(), self.precision(), self.exact():
            yield

    def precision(self) -> torch.autocast | nullcontext[None]:
        """Autocast, for half precisions."""
        if self.dtype in (torch.float16, torch.bfloat16):
            return torch.autocast(self.device.type, self.dtype)
        return nullcontext()

    def exact(self) -> AbstractContextManager[None]:
        """Within it, float32 means float32: cuDNN would otherwise round convolutions to TF32."""
        flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, allow_tf32=False
        )
        return flags


def open_device(name: str) -> torch.device:
    """A device by name, which becomes CUDA's current one; InputError if it is none or is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device '{name}' is no device; write cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name} was asked for but this machine has no CUDA device; use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name} does not exist; this machine has {torch.cuda.device_count()} CUDA devices.")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is not supported; write cpu or cuda.")
    if device.index is not None:
        torch.cuda.set_device(device)  # Triton launches its kernels on the current one
    return device


def compiler_switch() -> str | None:
    """The environment variable that keeps `torch.compile` from compiling; None if none does."""
    switches = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")
    return next((variable for variable in switches if os.environ.get(variable) == "1"), None)


def open_hardware(name: str, dtype: torch.dtype, compiled: bool, graphs: bool) -> Hardware:
    """A device by name, and how networks are to run there; InputError where that is not possible."""
    device = open_device(name)
    if graphs and device.type != "cuda":
        raise InputError(f"--cuda-graphs needs a CUDA device, not {name}; leave it out or give --device cuda.")
    switch = compiler_switch()
    if compiled and switch is not None:
        raise InputError(f"--compile would do nothing, as {switch}=1 is set; unset it or leave --compile out.")
    return Hardware(device, dtype, compiled, graphs)


@dataclass(frozen=True)
class OnDevice:
    """A batch that is, or will be by the time that it is worked on, on the device."""

    batch: Batch
    images: Float[Tensor, "B I height width"]
    labels: Int[Tensor, " B"]
    ids: Int[Tensor, " B"]


class Courier:
    """Copies batches to the device; on a GPU in a stream of its own, beside the work on earlier ones."""

    def __init__(self, hardware: Hardware) -> None:
        self.device, self.dtype = hardware.device, hardware.dtype
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def bring(self, batch: Batch) -> OnDevice:
        """The batch on the device. Work that is given to the current stream afterwards finds it there."""
        if self._stream is None:
            return self._copy(batch)
        with torch.cuda.stream(self._stream):
            there = self._copy(batch)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for tensor in (there.images, there.labels, there.ids):
            tensor.record_stream(current)  # its memory is not given away before that stream is done with it
        return there

    def _copy(self, batch: Batch) -> OnDevice:
        labels, ids = torch.from_numpy(batch.labels), torch.from_numpy(batch.ids)
        if self._stream is not None:
            labels, ids = labels.pin_memory(), ids.pin_memory()
        images, labels, ids = (x.to(self.device, non_blocking=True) for x in (batch.pixels, labels, ids))
        return OnDevice(batch, images.double() if self.dtype == torch.float64 else images, labels, ids)
