"""What the three learned methods share: use in models, budgets, and source maps after a hard reduction."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import tokenmerge_bench
from tokenmerge_bench.assignment import HardAssignment, SoftAssignment
from tokenmerge_bench.budgets import TOLERANCE, Budget, Solver
from tokenmerge_bench.counting import count
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.tokens import Tokens

PARAMETERS = {"sit": 7, "sinkhorn": 1, "patchmerger": 3}
"""Of one reduction, tensors."""
SMALL: dict[str, Any] = {
    "img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5,
}  # fmt: skip
SINKHORN = ("", ":iters=1", ":eps=0.25:iters=5", ":values=raw")
PATCHMERGER = ("", ":scaled=on", ":values=raw", ":scaled=on:values=raw")


@pytest.mark.parametrize(
    "text",
    ["sit"] + [f"sinkhorn{options}" for options in SINKHORN] + [f"patchmerger{options}" for options in PATCHMERGER],
)
def test_after_a_hard_reduction_the_sources_are_the_cells_of_its_tokens(text: str) -> None:
    cells = torch.tensor([[0, 0, 1, 2, 2, 3], [0, 1, 1, 1, 2, 3]])
    torch.manual_seed(0)
    method, x = parse_method(text).build(), torch.randn(2, 4, 8, dtype=torch.float64)
    method.build(4, 3, 8)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape))
    tokens = Tokens.of(x, (2, 3), cells=cells)
    later = method.double().assign(tokens, 3)
    source = tokens.source.compose(later)
    assert isinstance(source, SoftAssignment)
    torch.testing.assert_close(source.matrix(), later.matrix() @ HardAssignment(cells, 4).matrix().double())
    torch.testing.assert_close(later.merge_sizes(tokens.sizes).sum(1), torch.full((2,), 6.0).double())
    # Cells of one token go where most of it goes, divided by the number of cells, which changes no maximum.
    assert torch.equal(source.owner(), later.owner().gather(1, cells))


@pytest.mark.parametrize("method", PARAMETERS)
@pytest.mark.parametrize(
    "model",
    [VisionTransformer(**SMALL), VisionTransformer(**SMALL, reg_tokens=3), VisionTransformerDistilled(**SMALL)],
    ids=["deit", "registers", "distilled"],
)
def test_attached_by_a_budget(model: nn.Module, method: str) -> None:
    reduced = tokenmerge_bench.attach(model, f"{method}:layers=1/2", budget=0.7).eval()
    logits = reduced(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5)
    assert [a.n_out for a in reduced.assignments] == [step.n_out for step in reduced.schedule.steps]
    assert count(reduced).total == pytest.approx(0.7 * Solver(model).unreduced.total, rel=TOLERANCE)
    logits.sum().backward()
    gradients = [parameter.grad for parameter in reduced.reducers.parameters()]
    assert len(gradients) == 2 * PARAMETERS[method]
    for gradient in gradients:
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.parametrize("method", PARAMETERS)
def test_mild_and_strong_budgets_of_deit_tiny(method: str) -> None:
    solver, spec = Solver(timm.create_model("deit_tiny_patch16_224")), parse_method(method)
    for fraction in (0.9, 0.4):
        solution = solver.solve(spec, Budget("fraction", str(fraction)))
        assert [(step.block, step.site) for step in solution.schedule.steps] == [(3, "pre"), (6, "pre"), (9, "pre")]
        assert solution.macs.total == pytest.approx(fraction * solver.unreduced.total, rel=TOLERANCE)
