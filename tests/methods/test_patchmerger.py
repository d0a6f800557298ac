"""PatchMerger: the golden cases M1 and M2, a naive reference, gradients, initial values, cost, and use in models."""

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
from tokenmerge_bench.methods.patchmerger import PatchMerger, PatchMergerOptions
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.tokens import Tokens

X = torch.tensor([[1, 2, 3, 4], [2, 0, 2, 0], [4, 3, 2, 1]], dtype=torch.float64)[None]
VARIANTS = [
    PatchMergerOptions(),
    PatchMergerOptions(scaled=True),
    PatchMergerOptions(values="raw"),
    PatchMergerOptions(scaled=True, values="raw"),
]
EVERY = pytest.mark.parametrize("options", VARIANTS, ids=str)


def golden(options: PatchMergerOptions) -> PatchMerger:
    """The parameters of the golden cases."""
    method = PatchMerger(options)
    method.build(3, 2, 4)
    method.double()
    with torch.no_grad():
        method.queries.copy_(torch.tensor([[1, 0, 0, 0], [0, 0, 0.5, 1]]))
    return method


def made(
    n_in: int,
    n_out: int,
    width: int,
    options: PatchMergerOptions | None = None,
    dtype: torch.dtype = torch.float64,
) -> PatchMerger:
    """Random parameters of all kinds."""
    torch.manual_seed(0)
    method = PatchMerger(options)
    method.build(n_in, n_out, width)
    with torch.no_grad():
        for parameter in method.norm.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return method.to(dtype)


def random_tokens(batch: int, n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- golden cases -----------------------------------------------------------------------------------------------------

M1_WEIGHTS = [[0.038416, 0.399453, 0.562132], [0.854347, 0.108321, 0.037332]]
M1_OUTPUT = [[1.102087, -0.165239, 0.165239, -1.102087], [-0.987816, -0.473699, 0.473699, 0.987816]]
M1_RAW = [[3.085847, 1.763226, 2.038416, 0.715794], [1.220317, 1.820690, 2.854347, 3.454720]]
M2_FIRST_WEIGHTS = [0.124225, 0.400578, 0.475197]
M2_OUTPUT = [[0.871453, -0.243617, 0.243617, -0.871453], [-0.450519, -0.453514, 0.453514, 0.450519]]


@pytest.mark.parametrize(
    ("options", "weights", "output"),
    [
        (PatchMergerOptions(), M1_WEIGHTS, M1_OUTPUT),
        (PatchMergerOptions(values="raw"), M1_WEIGHTS, M1_RAW),
        (PatchMergerOptions(scaled=True), [M2_FIRST_WEIGHTS], M2_OUTPUT),
    ],
    ids=["M1", "M1, raw values", "M2"],
)
def test_m1_and_m2(options: PatchMergerOptions, weights: list[list[float]], output: list[list[float]]) -> None:
    method = golden(options)
    assignment = method.assign(Tokens.of(X, (1, 3)), 2)
    assert isinstance(assignment, SoftAssignment)
    expected = torch.tensor(weights).double()
    torch.testing.assert_close(assignment.matrix()[0, : len(weights)], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(assignment.merge(method.values(X))[0], torch.tensor(output).double(), atol=1e-6, rtol=0)
    assert assignment.owner().tolist() == [[1, 0, 0]]


# --- a naive reference ------------------------------------------------------------------------------------------------


def naive(method: PatchMerger, x: Any) -> tuple[Any, Any]:
    """Weights (M, N) and outputs (M, C) of one image, in plain loops from the text of the specification."""
    weight, bias, queries = (
        parameter.detach().numpy() for parameter in (method.norm.weight, method.norm.bias, method.queries)
    )
    z = np.stack([(token - token.mean()) / math.sqrt(token.var() + 1e-5) * weight + bias for token in x])
    by = math.sqrt(x.shape[1]) if method.options.scaled else 1.0
    weights = np.array([[math.exp(query @ token / by) for token in z] for query in queries])
    weights /= weights.sum(axis=1, keepdims=True)
    return weights, weights @ (x if method.options.values == "raw" else z)


@EVERY
@pytest.mark.parametrize("shape", [(5, 3, 4), (12, 12, 6), (9, 1, 7)])
def test_equals_the_naive_reference(options: PatchMergerOptions, shape: tuple[int, int, int]) -> None:
    n, m, width = shape
    method, x = made(*shape, options), random_tokens(3, n, width)
    assignment = method.assign(Tokens.of(x, (1, n)), m)
    merged = assignment.merge(method.values(x))
    for image in range(3):
        weights, outputs = naive(method, x[image].numpy())
        np.testing.assert_allclose(assignment.matrix()[image].detach().numpy(), weights, atol=1e-12)
        np.testing.assert_allclose(merged[image].detach().numpy(), outputs, atol=1e-12)


@given(st.integers(0, 2**16), st.permutations(range(7)), st.permutations(range(4)))
def test_tokens_and_images_may_come_in_any_order(seed: int, tokens: list[int], images: list[int]) -> None:
    method, x = made(7, 3, 6), random_tokens(4, 7, 6, seed)
    plain = method.assign(Tokens.of(x, (1, 7)), 3).matrix()
    turned = method.assign(Tokens.of(x[images][:, tokens], (1, 7)), 3).matrix()
    torch.testing.assert_close(turned, plain[images][:, :, tokens])
    torch.testing.assert_close(plain.sum(2), torch.ones(4, 3).double())  # convex combinations


# --- gradients and precision ------------------------------------------------------------------------------------------


@EVERY
def test_gradients_of_all_parameters_and_of_the_tokens(options: PatchMergerOptions) -> None:
    method, x = made(5, 3, 4, options), random_tokens(2, 5, 4).requires_grad_()
    names = [name for name, _ in method.named_parameters()]
    module = _Merging(method)

    def merged(x: Tensor, *parameters: Tensor) -> Any:
        given = {f"method.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(module, given, (x,))

    assert torch.autograd.gradcheck(merged, (x, *method.parameters()))


class _Merging(nn.Module):
    """A reducer and its merge as one module."""

    def __init__(self, method: PatchMerger) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        assignment = self.method.assign(Tokens.of(x, (1, x.shape[1])), len(self.method.queries))
        return assignment.merge(self.method.values(x))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_the_precision_of_parameters_and_tokens(
    options: PatchMergerOptions, dtype: torch.dtype
) -> None:
    method = made(6, 3, 8, options, dtype)
    x = random_tokens(2, 6, 8).to(dtype)
    found = method.assign(Tokens.of(x, (2, 3)), 3)
    merged = found.merge(method.values(x))
    precise = method.float().assign(Tokens.of(x.float(), (2, 3)), 3)
    assert found.matrix().dtype == torch.float32
    assert torch.equal(found.matrix(), precise.matrix())
    assert merged.dtype == dtype
    by = torch.finfo(dtype).eps
    torch.testing.assert_close(merged.float(), precise.merge(method.values(x.float())), atol=2 * by, rtol=2 * by)


# --- contract ---------------------------------------------------------------------------------------------------------


def test_initial_values() -> None:
    torch.manual_seed(0)
    method = PatchMerger()
    method.build(196, 137, 192)
    shapes = {name: tuple(parameter.shape) for name, parameter in method.named_parameters()}
    assert shapes == {"norm.weight": (192,), "norm.bias": (192,), "queries": (137, 192)}
    assert method.norm.eps == 1e-5
    assert (method.norm.weight == 1).all()
    assert (method.norm.bias == 0).all()
    assert 0.98 < method.queries.std().item() < 1.02
    assert abs(method.queries.mean().item()) < 0.02
    assert method.learned
    assert not method.stochastic


def test_weights_start_almost_one_hot_unless_scaled() -> None:
    torch.manual_seed(0)
    x = random_tokens(2, 196, 192).float()
    most = {}
    for scaled in (False, True):
        method = PatchMerger(PatchMergerOptions(scaled=scaled))
        method.build(196, 137, 192)
        most[scaled] = method.assign(Tokens.of(x, (14, 14)), 137).matrix().amax(2).median().item()
    assert most[False] > 0.9
    assert most[True] < 0.1


@EVERY
def test_cost(options: PatchMergerOptions) -> None:
    assert PatchMerger(options).macs(196, 137, 192) == 2 * 196 * 137 * 192 + 5 * 196 * 192


def test_another_number_of_tokens_than_it_was_built_for() -> None:
    with pytest.raises(ValueError, match="patchmerger was built to leave 3 tokens and cannot leave 4"):
        made(6, 3, 4).assign(Tokens.of(random_tokens(1, 6, 4), (2, 3)), 4)


def test_options_as_they_are_typed() -> None:
    assert parse_method("patchmerger:scaled=on:values=raw").options == PatchMergerOptions(scaled=True, values="raw")
    with pytest.raises(tokenmerge_bench.InputError, match="method 'patchmerger': values=unit is not allowed"):
        parse_method("patchmerger:values=unit")
