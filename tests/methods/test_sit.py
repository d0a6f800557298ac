"""SiT: the golden cases S1 and S2, a naive reference, gradients, initial values, cost, and use in models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tokenmerge_bench
from tokenmerge_bench.assignment import SoftAssignment
from tokenmerge_bench.methods.sit import Sit
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.tokens import Tokens

X = torch.tensor([[1, 2, 3, 4], [2, 0, 2, 0], [4, 3, 2, 1]], dtype=torch.float64)[None]


def golden(scale: float = 1.0) -> Sit:
    """The parameters of the golden cases."""
    method = Sit()
    method.build(3, 2, 4)
    method.double()
    with torch.no_grad():
        method.hidden.weight.copy_(torch.tensor([[1, 0, 0, 0], [0, 0, 1, 1]]))
        method.hidden.bias.copy_(torch.tensor([0, 0.5]))
        method.logits.weight.copy_(torch.tensor([[1, -1], [0, 2]]))
        method.logits.bias.copy_(torch.tensor([0.1, -0.1]).double())
        method.scale.fill_(scale)
    return method


def made(n_in: int, n_out: int, width: int, dtype: torch.dtype = torch.float64) -> Sit:
    """Random parameters of all kinds, large enough for the weights to differ."""
    torch.manual_seed(0)
    method = Sit()
    method.build(n_in, n_out, width)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return method.to(dtype)


def random_tokens(batch: int, n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- golden cases -----------------------------------------------------------------------------------------------------

S1_WEIGHTS = [[0.016504, 0.293931, 0.689564], [0.970903, 0.020959, 0.008138]]
S1_OUTPUT = [[3.362625, 2.101702, 2.016504, 0.755581], [1.045374, 1.966221, 2.970903, 3.891750]]
S2_WEIGHTS = [[0.000485, 0.153683, 0.845832], [0.999464, 0.000466, 0.000070]]
S2_OUTPUT = [[3.691180, 2.538466, 2.000485, 0.847770], [1.000676, 1.999139, 2.999464, 3.997926]]


@pytest.mark.parametrize(
    ("scale", "weights", "output"), [(1.0, S1_WEIGHTS, S1_OUTPUT), (2.0, S2_WEIGHTS, S2_OUTPUT)], ids=["S1", "S2"]
)
def test_s1_and_s2(scale: float, weights: list[list[float]], output: list[list[float]]) -> None:
    method = golden(scale)
    assignment = method.assign(Tokens.of(X, (1, 3)), 2)
    assert isinstance(assignment, SoftAssignment)
    assert assignment.matrix().dtype == torch.float64
    torch.testing.assert_close(assignment.matrix()[0], torch.tensor(weights).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(assignment.merge(method.values(X))[0], torch.tensor(output).double(), atol=1e-6, rtol=0)
    assert assignment.owner().tolist() == [[1, 0, 0]]


def test_s1_logits() -> None:
    expected = [[-2.284124, 4.427138], [0.595608, 0.591462], [1.448322, -0.354484]]
    torch.testing.assert_close(golden()._logits(X)[0], torch.tensor(expected).double(), atol=2e-6, rtol=0)


# --- a naive reference ------------------------------------------------------------------------------------------------


def naive(method: Sit, x: Any) -> Any:
    """The weights of one image, (M, N), in plain loops from the text of the specification."""
    given = {name: parameter.detach().double().numpy() for name, parameter in method.named_parameters()}
    logits = []
    for token in x:
        z = (token - token.mean()) / math.sqrt(token.var() + 1e-5) * given["norm.weight"] + given["norm.bias"]
        hidden = [w @ z + b for w, b in zip(given["hidden.weight"], given["hidden.bias"], strict=True)]
        active = np.array([h * (1 + math.erf(h / math.sqrt(2))) / 2 for h in hidden])
        logits.append(given["scale"] * (given["logits.weight"] @ active + given["logits.bias"]))
    weights = np.exp(np.array(logits).T)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(5, 3, 4), (12, 12, 6), (9, 1, 7)])
def test_equals_the_naive_reference(shape: tuple[int, int, int]) -> None:
    n, m, width = shape
    method, x = made(*shape), random_tokens(3, n, width)
    assignment = method.assign(Tokens.of(x, (1, n)), m)
    for image in range(3):
        expected = naive(method, x[image].numpy())
        np.testing.assert_allclose(assignment.matrix()[image].detach().numpy(), expected, atol=1e-12)
        merged = assignment.merge(x)[image].detach().numpy()
        np.testing.assert_allclose(merged, expected @ x[image].numpy(), atol=1e-12)


@given(st.integers(0, 2**16), st.permutations(range(7)), st.permutations(range(4)))
def test_tokens_and_images_may_come_in_any_order(seed: int, tokens: list[int], images: list[int]) -> None:
    method, x = made(7, 3, 6), random_tokens(4, 7, 6, seed)
    plain = method.assign(Tokens.of(x, (1, 7)), 3).matrix()
    turned = method.assign(Tokens.of(x[images][:, tokens], (1, 7)), 3).matrix()
    torch.testing.assert_close(turned, plain[images][:, :, tokens])
    torch.testing.assert_close(plain.sum(2), torch.ones(4, 3).double())  # convex combinations


# --- gradients and precision ------------------------------------------------------------------------------------------


def test_gradients_of_all_parameters_and_of_the_tokens() -> None:
    method, x = made(5, 3, 4), random_tokens(2, 5, 4).requires_grad_()
    names = [name for name, _ in method.named_parameters()]
    module = _Merging(method)

    def merged(x: Tensor, *parameters: Tensor) -> Any:
        given = {f"method.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(module, given, (x,))

    assert torch.autograd.gradcheck(merged, (x, *method.parameters()))


class _Merging(nn.Module):
    """A reducer and its merge as one module."""

    def __init__(self, method: Sit) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        assignment = self.method.assign(Tokens.of(x, (1, x.shape[1])), self.method.logits.out_features)
        return assignment.merge(self.method.values(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_the_precision_of_parameters_and_tokens(dtype: torch.dtype) -> None:
    method = made(6, 3, 8, dtype)
    x = random_tokens(2, 6, 8).to(dtype)
    found = method.assign(Tokens.of(x, (2, 3)), 3)
    precise = method.float().assign(Tokens.of(x.float(), (2, 3)), 3)
    assert found.matrix().dtype == torch.float32
    assert torch.equal(found.matrix(), precise.matrix())
    assert found.merge(x).dtype == dtype


# --- contract ---------------------------------------------------------------------------------------------------------


def test_initial_values_make_almost_equal_averages() -> None:
    torch.manual_seed(0)
    method = Sit()
    method.build(196, 137, 192)
    shapes = {name: tuple(parameter.shape) for name, parameter in method.named_parameters()}
    assert shapes == {
        "norm.weight": (192,), "norm.bias": (192,), "hidden.weight": (96, 192), "hidden.bias": (96,),
        "logits.weight": (137, 96), "logits.bias": (137,), "scale": (),
    }  # fmt: skip
    assert method.norm.eps == 1e-5
    assert (method.norm.weight == 1).all()
    assert method.scale.item() == 1
    for bias in (method.norm.bias, method.hidden.bias, method.logits.bias):
        assert (bias == 0).all()
    for layer in (method.hidden, method.logits):
        assert 0.0195 < layer.weight.std().item() < 0.0205
        assert abs(layer.weight.mean().item()) < 1e-3
    assert method.learned
    assert not method.stochastic
    x = random_tokens(2, 196, 192).float()
    merged = method.assign(Tokens.of(x, (14, 14)), 137).merge(x)
    assert (merged - x.mean(1, keepdim=True)).abs().max() < 0.05


def test_cost() -> None:
    assert Sit().macs(196, 137, 192) == 196 * 192 * 96 + 196 * 96 * 137 + 196 * 137 * 192 + 5 * 196 * 192


def test_another_number_of_tokens_than_it_was_built_for() -> None:
    with pytest.raises(ValueError, match="sit was built to leave 3 tokens and cannot leave 4"):
        made(6, 3, 4).assign(Tokens.of(random_tokens(1, 6, 4), (2, 3)), 4)


def test_it_has_no_options() -> None:
    with pytest.raises(tokenmerge_bench.InputError, match="no option 'distillation'"):
        parse_method("sit:distillation=on")
