"""A captured step does what the plain one does, with gradients and learning rates that change."""

from __future__ import annotations

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from tokenmerge_bench.captured_step import CapturedStep, can_be_captured

NAMES = ["muon", "adamuon", "adamw"]


def made(name: str, **options: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 48), nn.LayerNorm(48), nn.Linear(48, 8)).cuda()
    model.register_parameter("unused", nn.Parameter(torch.ones(4, 4, device="cuda")))
    return model, create_optimizer_v2(model, name, 1e-2, weight_decay=0.1, **options)


@pytest.mark.parametrize(
    ("name", "capturable", "expected"), [("muon", True, True), ("muon", False, False), ("lookahead_muon", True, False)]
)
def test_what_counts_in_python_is_not_captured(name: str, capturable: bool, expected: bool) -> None:
    optimizer = create_optimizer_v2(nn.Linear(3, 3), name, 1e-2, capturable=capturable)
    assert can_be_captured(optimizer) is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stopped_after", [None, 1, 4])
def test_captured_steps_equal_plain_ones(name: str, stopped_after: int | None) -> None:
    (plain, plain_optimizer), (captured, optimizer) = made(name), made(name, capturable=True)
    assert can_be_captured(optimizer)
    assert not can_be_captured(plain_optimizer)
    step = CapturedStep(optimizer)
    pixels = torch.randn(9, 16, 24, device="cuda")
    for update, batch in enumerate(pixels):
        if update == stopped_after:  # and gone on with by another process
            state = optimizer.state_dict()
            weights = captured.state_dict()
            captured, optimizer = made(name, capturable=True)
            captured.load_state_dict(weights)
            optimizer.load_state_dict(state)
            step = CapturedStep(optimizer)
        for model, one in ((plain, plain_optimizer), (captured, optimizer)):
            for group in one.param_groups:
                group["lr"] = 1e-2 / (1 + update)
            one.zero_grad()  # so that gradients lie elsewhere each time
            model(batch).square().mean().backward()
        plain_optimizer.step()
        step()
        assert [group["lr"] for group in optimizer.param_groups] == [1e-2 / (1 + update)] * len(optimizer.param_groups)
    for expected, found in zip(plain.parameters(), captured.parameters(), strict=True):
        # Newton and Schulz's iteration is in bfloat16 and the rates are in float32 here, float64 there.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(captured.get_parameter("unused"), torch.ones(4, 4, device="cuda"))
