"""An optimiser's step as one CUDA graph.

timm's Muon asks for some 15 matrix products per weight matrix, one by one: of 39 ms in which the host asks for a step
of DeiT-Tiny the GPU is idle for most. A graph asks for all of them at once.
"""

from __future__ import annotations

import torch
from timm.optim.lookahead import Lookahead
from torch import Tensor

__all__ = ["CapturedStep", "can_be_captured"]


def can_be_captured(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser was made with `capturable=True`: it keeps its state, and takes its rates, on the device.

    Lookahead counts its steps in Python, whatever the optimiser inside it does: a graph would never look ahead.
    """
    if isinstance(optimizer, Lookahead):
        return False
    return all(group.get("capturable", False) for group in optimizer.param_groups)


class CapturedStep:
    """Takes the place of `optimizer.step`: the first call takes a plain step, the second captures it, all later replay.

    What a graph was captured with stays in it, so that gradients are copied to fixed places and every group's `lr` is
    read from the device; both may change between calls as with a plain step. Other settings of a group, and what
    `load_state_dict` replaces, must not change after the first call. Parameters without a gradient at the first call
    are left out for good; all others need one at every call.

    Args:
        optimizer: one that can be captured (`can_be_captured`), with all parameters on one CUDA device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._rates: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def __call__(self) -> None:
        """One step, with the parameters' gradients and the groups' learning rates of now."""
        if not self._parameters:
            self._optimizer.step()  # which makes its state
            self._prepare()
            return
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_copy_(self._gradients, gradients)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        if self._graph is None:
            self._graph = self._captured()
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
        self._graph.replay()

    def _prepare(self) -> None:
        groups = self._optimizer.param_groups
        everything = [parameter for group in groups for parameter in group["params"]]
        self._parameters = [parameter for parameter in everything if parameter.grad is not None]
        self._gradients = [torch.empty_like(parameter) for parameter in self._parameters]
        self._rates = [torch.zeros((), device=self._parameters[0].device) for _ in groups]

    def _captured(self) -> torch.cuda.CUDAGraph:
        groups = self._optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may ask for memory meanwhile, which concerns them alone.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._optimizer.step()
        finally:
            for group, number in zip(groups, rates, strict=True):
                group["lr"] = number
        return graph
