"""Feature recalibration distillation: the golden case S3, the modules against a naive reference, gradients."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tokenmerge_bench import attach
from tokenmerge_bench.distillation import FeatureRecalibration, distillation_loss

N0, WIDTH, COUNTS = 6, 4, (6, 6, 4, 3)


def recalibration(counts: tuple[int, ...] = COUNTS) -> FeatureRecalibration:
    torch.manual_seed(0)
    return FeatureRecalibration(counts, N0, WIDTH).double()


def tokens(n: int, seed: int) -> Tensor:
    return torch.randn(2, n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_s3() -> None:
    student, teacher = torch.zeros(1, 2).double(), torch.tensor([[math.log(3), 0]]).double()
    blocks = FeatureRecalibration([N0, N0], N0, WIDTH)
    zeros = torch.zeros(1, N0, WIDTH).double()
    token_loss = blocks([zeros, zeros], [zeros + 1, zeros])
    assert token_loss.item() == 0.5
    added = distillation_loss(student, teacher, token_loss)
    assert added.item() == pytest.approx(1 + 0.261624, abs=1e-6)
    total = nn.functional.cross_entropy(student, torch.tensor([0])) + added
    assert total.item() == pytest.approx(1.954771, abs=1e-6)


@pytest.mark.parametrize(("token", "logits", "tau"), [(2.0, 2.0, 1.0), (0.0, 1.0, 3.0), (1.5, 0.0, 1.0)])
def test_equals_the_formula(token: float, logits: float, tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (np.exp(x / tau) / np.exp(x / tau).sum(1, keepdims=True) for x in (teacher.numpy(), student.numpy()))
    divergence = (p * np.log(p / q)).sum(1).mean()
    loss = torch.tensor(0.3, dtype=torch.float64)
    found = distillation_loss(student, teacher, loss, lambda_token=token, lambda_logits=logits, tau=tau)
    assert found.item() == pytest.approx(token * 0.3 + logits * tau**2 * divergence, abs=1e-12)


def test_gradients_of_the_loss_reach_the_student_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    loss = torch.tensor(0.3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: distillation_loss(s, teacher, t, tau=2.0), (student, loss))
    teacher.requires_grad_()
    distillation_loss(student, teacher, loss).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_equal_logits_and_tokens_cost_nothing() -> None:
    logits, same = torch.randn(3, 4), [torch.randn(2, N0, WIDTH)]
    token_loss = FeatureRecalibration([N0], N0, WIDTH)(same, same)
    assert distillation_loss(logits, logits, token_loss).item() == pytest.approx(0, abs=1e-7)


def test_half_precision_logits_are_compared_in_float32() -> None:
    student, teacher = torch.randn(8, 10).bfloat16(), torch.randn(8, 10).bfloat16()
    found = distillation_loss(student, teacher, torch.tensor(0.0))
    assert found.dtype == torch.float32
    assert torch.equal(found, distillation_loss(student.float(), teacher.float(), torch.tensor(0.0)))


# --- the modules ------------------------------------------------------------------------------------------------------


def naive(module: nn.Module, t: Any) -> Any:
    """RTSM of one image in numpy, from the text of the specification."""
    given = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}

    def norm(z: Any, name: str) -> Any:
        z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
        return z * given[f"{name}.weight"] + given[f"{name}.bias"]

    def mlp(z: Any, name: str) -> Any:
        hidden = z @ given[f"{name}.0.weight"].T + given[f"{name}.0.bias"]
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
        return hidden @ given[f"{name}.2.weight"].T + given[f"{name}.2.bias"]

    z = mlp(norm(t, "token_norm").T, "token_mlp").T
    return z + mlp(norm(z, "channel_norm"), "channel_mlp")


def test_equals_the_naive_reference() -> None:
    module = recalibration()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape))
    student, teacher = [tokens(m, i) for i, m in enumerate(COUNTS)], [tokens(N0, 10 + i) for i in range(4)]
    errors = [(student[i] - teacher[i]).square().mean().item() for i in range(2)]
    for i in (2, 3):
        recovered = np.stack([naive(module.recover[i], image.numpy()) for image in student[i]])
        torch.testing.assert_close(module.recover[i](student[i]).detach(), torch.from_numpy(recovered))
        errors.append(((recovered - teacher[i].numpy()) ** 2).mean())
    assert module(student, teacher).item() == pytest.approx(np.mean(errors), rel=1e-9)


def test_nothing_is_learned_where_nothing_was_dropped() -> None:
    assert list(recalibration((N0, N0)).parameters()) == []


def test_shapes_and_initial_values() -> None:
    module = FeatureRecalibration([50], 100, 64)
    shapes = {name.removeprefix("recover.0."): tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {
        "token_norm.weight": (64,), "token_norm.bias": (64,), "token_mlp.0.weight": (400, 50),
        "token_mlp.0.bias": (400,), "token_mlp.2.weight": (100, 400), "token_mlp.2.bias": (100,),
        "channel_norm.weight": (64,), "channel_norm.bias": (64,), "channel_mlp.0.weight": (256, 64),
        "channel_mlp.0.bias": (256,), "channel_mlp.2.weight": (64, 256), "channel_mlp.2.bias": (64,),
    }  # fmt: skip
    for name, parameter in module.named_parameters():
        if "mlp" in name and parameter.ndim == 2:
            assert 0.018 < parameter.std().item() < 0.022
        else:
            assert (parameter == (1 if "norm.weight" in name else 0)).all()


def test_gradients_of_tokens_and_parameters() -> None:
    module = recalibration()
    student, teacher = [tokens(m, i).requires_grad_() for i, m in enumerate(COUNTS)], [tokens(N0, 20) for _ in COUNTS]
    names = [name for name, _ in module.named_parameters()]

    def loss(*given: Tensor) -> Any:
        parameters = dict(zip(names, given[len(COUNTS) :], strict=True))
        return torch.func.functional_call(module, parameters, (list(given[: len(COUNTS)]), teacher))

    # One random direction of all, in place of each number of each of 41 tensors.
    assert torch.autograd.gradcheck(loss, (*student, *module.parameters()), fast_mode=True)


def test_no_gradient_reaches_the_tokens_of_the_teacher() -> None:
    student, teacher = [tokens(N0, 0).requires_grad_()], [tokens(N0, 1).requires_grad_()]
    recalibration((N0,))(student, teacher).backward()
    assert student[0].grad is not None
    assert teacher[0].grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_compared_in_float32(dtype: torch.dtype) -> None:
    student, teacher = [(300 * tokens(N0, 0)).to(dtype)], [(-300 * tokens(N0, 1)).to(dtype)]
    found = FeatureRecalibration([N0], N0, WIDTH)(student, teacher)
    assert found.dtype == torch.float32
    assert found.isfinite()
    torch.testing.assert_close(found, (student[0].float() - teacher[0].float()).square().mean())


def test_as_many_blocks_of_the_student_and_of_the_teacher() -> None:
    with pytest.raises(ValueError, match="zip"):
        recalibration((N0, N0))([tokens(N0, 0)], [tokens(N0, 1)])


def test_with_the_blocks_of_a_reduced_model_and_its_teacher() -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
    model = VisionTransformer(**sizes, reg_tokens=2)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    reduced = attach(model, "sit:layers=1/2", keep_rate=0.7).train()
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for name, blocks in (("student", reduced.model.blocks), ("teacher", teacher.blocks)):
        for block in blocks:
            block.register_forward_hook(lambda _, __, out, name=name: seen[name].append(out[:, 3:]))
    counts = [tokens - reduced.schedule.prefix for tokens in reduced.schedule.mlp_tokens()]
    assert counts == [16, 11, 7, 7]
    module = FeatureRecalibration(counts, 16, 32)
    images = torch.randn(3, 3, 32, 32)
    loss = distillation_loss(reduced(images), teacher(images), module(seen["student"], seen["teacher"]))
    loss.backward()
    assert loss.isfinite()
    for parameter in (*module.parameters(), *reduced.reducers.parameters(), *model.blocks.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert any(p.grad.abs().sum() > 0 for p in reduced.reducers.parameters() if p.grad is not None)
