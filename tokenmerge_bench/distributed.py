"""Several processes training one model, as `torchrun` starts them; alone, everything here does nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokenmerge_bench.errors import InputError
from tokenmerge_bench.hardware import open_device

__all__ = ["Team", "open_team"]

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes of one training run, seen from one of them."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the team."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, [self.device] if self.device.type == "cuda" else None)

    def total(self, values: Tensor) -> Tensor:
        """Sums over the team; the given tensor is overwritten."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def union(self, names: set[str]) -> set[str]:
        """What any process of the team has in its set."""
        if self.size == 1:
            return names
        found: list[set[str]] = [set() for _ in range(self.size)]
        dist.all_gather_object(found, names)
        return set().union(*found)

    def first(self, action: Callable[[], T]) -> T:
        """What `action` gives in the leading process, for all of them; its InputError is raised in all of them."""
        if self.size == 1:
            return action()
        answer: list[object] = [None, None]
        if self.leads:
            try:
                answer[0] = action()
            except InputError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, device=self.device)
        if answer[1] is not None:
            raise InputError(str(answer[1]))
        return answer[0]  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the team; called once, at the end."""
        if self.size > 1:
            dist.destroy_process_group()


def open_team(device: str) -> Team:
    """The team that `torchrun` says this process is part of; `device` is cpu, or cuda, of which each takes one.

    Raises:
        InputError: for a device that is not there, more processes than GPUs, or one GPU for several processes.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        return Team(open_device(device))
    if device.startswith("cuda:"):
        raise InputError(f"--device {device} is one GPU for {size} processes; under torchrun write --device cuda.")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    own = open_device(f"cuda:{local}" if device == "cuda" else device)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    return Team(own, rank, size)
