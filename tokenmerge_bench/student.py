"""The network that is trained: a timm ViT, the reducers in it, and what only distillation needs.

Shape legend: B batch, N0 patch tokens of the unreduced model, M those that leave a block, C width, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenmerge_bench.budgets import Solution, reduce_with
from tokenmerge_bench.distillation import FeatureRecalibration, distillation_loss
from tokenmerge_bench.options import MethodSpec
from tokenmerge_bench.pieces import Halves, Piece, State, pieces_of
from tokenmerge_bench.recipe import Recipe
from tokenmerge_bench.reduced_vit import Pass, ReducedViT, geometry
from tokenmerge_bench.schedule import Schedule

__all__ = ["Student"]


class Student(nn.Module):
    """A ViT with the reducers of one method, or none, attached; all parameters are its own and each is there once.

    Args:
        backbone: the timm model.
        method: the method it is trained with; None: unreduced.
        solution: the method's schedule; None: unreduced.
        recipe: whether there is a teacher (a frozen copy of the backbone as it is now), and how it teaches.
        seed: of methods that draw random numbers.
    """

    def __init__(
        self, backbone: nn.Module, method: MethodSpec | None, solution: Solution | None, recipe: Recipe, seed: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        if method is None or solution is None:
            shape = geometry(backbone)
            network = ReducedViT(backbone, Schedule(shape.patches, shape.prefix, shape.depth), [])
        else:
            network = reduce_with(backbone, method, solution, seed)
        self.reducers = network.reducers
        self._network = (network,)  # in a tuple, so that nn.Module does not list the weights twice
        self._pieces: list[Piece] | None = None
        self._teaching = _Teaching(network, backbone, recipe) if recipe.distills else None
        self.recalibration = self._teaching.recalibration if self._teaching else None

    @property
    def network(self) -> ReducedViT:
        """The model with its reducers."""
        return self._network[0]

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, K) of images (B, I, height, width) with identifiers (B,), and what distillation adds to the loss.

        The latter is None in evaluation, and without distillation.
        """
        if self._pieces is not None:
            state = State(images, Pass(ids))
            for piece in self._pieces:
                state = piece.run(state)
            return state.x, None
        if self._teaching is None or not self.training:
            return self.network(images, ids), None
        return self._teaching.taught(self.network, images, ids)

    def train(self, mode: bool = True) -> Student:
        """Sets the mode of the network too, which is around the same blocks."""
        super().train(mode)
        self.network.train(mode)
        return self

    def compile_halves(self) -> None:
        """From now on the forward pass runs compiled halves of blocks, and what lies between them eagerly."""
        if any(isinstance(module, DropPath) for module in self.backbone.modules()):
            for block in cast(VisionTransformer, self.backbone).blocks:
                device = next(block.parameters()).device
                for name in ("drop_path1", "drop_path2"):
                    setattr(block, name, _DropPath(getattr(getattr(block, name), "drop_prob", 0.0)).to(device))
        self._pieces = pieces_of(self.network, Halves(compiled=True))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm does not decay: class tokens and positions."""
        return {f"backbone.{name}" for name in cast(Any, self.backbone).no_weight_decay()}


class _DropPath(nn.Module):
    """timm's DropPath, with its probability in a tensor: for another number the compiler builds a block anew."""

    keep: Tensor

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.register_buffer("keep", torch.tensor(1 - probability), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Leaves out whole images of (B, T, C) in training, and scales the others up for it."""
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) < self.keep
        return x * (kept / self.keep).to(x.dtype)


class _Teaching:
    """The teacher of a student, and the tokens that leave its blocks and the student's."""

    def __init__(self, network: ReducedViT, backbone: nn.Module, recipe: Recipe) -> None:
        self.recipe, self.prefix = recipe, network.geometry.prefix
        shape = network.geometry
        self.teacher = copy.deepcopy(backbone).eval().requires_grad_(False)
        counts = [tokens - shape.prefix for tokens in network.schedule.mlp_tokens()]
        self.recalibration = FeatureRecalibration(counts, shape.patches, shape.width) if recipe.distill_tokens else None

    def taught(self, network: ReducedViT, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the student, and the loss of differing from its teacher."""
        theirs, logits = self._watched(cast(VisionTransformer, network.model), lambda: network(images, ids))
        self.teacher.eval()
        with torch.no_grad():
            wanted, teacher_logits = self._watched(cast(VisionTransformer, self.teacher), lambda: self.teacher(images))
        nothing = torch.zeros((), device=images.device)
        recalibration = self.recalibration
        loss = distillation_loss(
            logits,
            teacher_logits,
            nothing if recalibration is None else recalibration(theirs, wanted),
            lambda_token=self.recipe.distill_tokens,
            lambda_logits=self.recipe.distill_logits,
            tau=self.recipe.distill_temperature,
        )
        return logits, loss

    def _watched(self, model: VisionTransformer, run: Callable[[], Tensor]) -> tuple[list[Tensor], Tensor]:
        """The patch tokens that leave each block, and what `run` gives."""
        tokens: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _, __, x: tokens.append(x[:, self.prefix :])) for block in model.blocks
        ]
        try:
            return tokens, run()
        finally:
            for hook in hooks:
                hook.remove()
