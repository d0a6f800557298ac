"""Sinkhorn: the golden cases H1 to H3, a naive reference, marginals, written-back centres, gradients, cost, models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tokenmerge_bench.assignment import SoftAssignment
from tokenmerge_bench.errors import InputError
from tokenmerge_bench.methods.sinkhorn import (
    SMALLEST_EPS,
    Sinkhorn,
    SinkhornOptions,
    log_transport,
    transport,
    unit_rows,
)
from tokenmerge_bench.options import parse_method
from tokenmerge_bench.tokens import Tokens

X = torch.tensor([[3, 4], [1, 0], [0, 2]], dtype=torch.float64)[None]
VARIANTS = [
    SinkhornOptions(),
    SinkhornOptions(iters=1),
    SinkhornOptions(eps=0.25, iters=5),
    SinkhornOptions(values="raw"),
]
EVERY = pytest.mark.parametrize("options", VARIANTS, ids=str)


def golden(options: SinkhornOptions) -> Sinkhorn:
    """The centres of the golden cases, one of them not yet of unit length."""
    method = Sinkhorn(options)
    method.build(3, 2, 2)
    method.double()
    with torch.no_grad():
        method.centres.copy_(torch.tensor([[1, 0], [0, 5]]))
    return method


def made(
    n_in: int, n_out: int, width: int, options: SinkhornOptions | None = None, dtype: torch.dtype = torch.float64
) -> Sinkhorn:
    torch.manual_seed(0)
    method = Sinkhorn(options)
    method.build(n_in, n_out, width)
    return method.to(dtype)


def random_tokens(batch: int, n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- golden cases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "first_weights", "output"),
    [
        (
            SinkhornOptions(eps=1.0, iters=3),
            [0.469421, 0.746026, 0.284455],
            [[1.027679, 0.659991], [0.572321, 1.140009]],
        ),
        (
            SinkhornOptions(eps=1.0, iters=1),
            [0.467617, 0.744651, 0.282983],
            [[1.025221, 0.657076], [0.574779, 1.142924]],
        ),
        (
            SinkhornOptions(eps=0.25, iters=3),
            [0.424803, 0.988979, 0.029224],
            [[1.243861, 0.369067], [0.356139, 1.430933]],
        ),
    ],
    ids=["H1", "H2", "H3"],
)
def test_h1_to_h3(options: SinkhornOptions, first_weights: list[float], output: list[list[float]]) -> None:
    method = golden(options)
    assignment = method.assign(Tokens.of(X, (1, 3)), 2)
    assert isinstance(assignment, SoftAssignment)
    first = torch.tensor(first_weights).double()
    torch.testing.assert_close(assignment.matrix()[0], torch.stack([first, 1 - first]), atol=1e-6, rtol=0)
    torch.testing.assert_close(assignment.merge(method.values(X))[0], torch.tensor(output).double(), atol=1e-6, rtol=0)
    assert assignment.owner()[0, 1:].tolist() == [0, 1]
    assert method.centres.tolist() == [[1, 0], [0, 1]]


def test_raw_values_are_the_weighted_means_of_h1() -> None:
    method = golden(SinkhornOptions(values="raw"))
    weights = torch.tensor([[0.469421, 0.746026, 0.284455], [0.530579, 0.253974, 0.715545]]).double()
    merged = method.assign(Tokens.of(X, (1, 3)), 2).merge(method.values(X))[0]
    torch.testing.assert_close(merged, weights @ X[0] / weights.sum(1, keepdim=True), atol=2e-6, rtol=0)


# --- a naive reference ------------------------------------------------------------------------------------------------


def naive(method: Sinkhorn, x: Any) -> tuple[Any, Any]:
    """Weights (M, N) and outputs (M, C) of one image, in plain loops and without logarithms."""
    o: SinkhornOptions = method.options
    centres = [row / np.linalg.norm(row) for row in method.centres.detach().numpy()]
    units = np.stack([token / np.linalg.norm(token) for token in x])
    kernel = np.array([[math.exp(centre @ token / o.eps) for token in units] for centre in centres])
    m, n = kernel.shape
    v = np.ones(n)
    for _ in range(o.iters):
        u = [1 / (m + n) / sum(kernel[i, j] * v[j] for j in range(n)) for i in range(m)]
        v = np.array([1 / (m + n) / sum(kernel[i, j] * u[i] for i in range(m)) for j in range(n)])
    weights = (m + n) * np.array([[kernel[i, j] * u[i] * v[j] for j in range(n)] for i in range(m)])
    if o.values == "raw":
        weights = weights / weights.sum(axis=1, keepdims=True)
        return weights, weights @ x
    return weights, weights @ units


@EVERY
@pytest.mark.parametrize("shape", [(5, 3, 4), (12, 12, 6), (9, 1, 7)])
def test_equals_the_naive_reference(options: SinkhornOptions, shape: tuple[int, int, int]) -> None:
    n, m, width = shape
    method, x = made(*shape, options), random_tokens(3, n, width)
    expected = [naive(method, image.numpy()) for image in x]
    assignment = method.assign(Tokens.of(x, (1, n)), m)
    merged = assignment.merge(method.values(x))
    for image, (weights, outputs) in enumerate(expected):
        np.testing.assert_allclose(assignment.matrix()[image].detach().numpy(), weights, atol=1e-12)
        np.testing.assert_allclose(merged[image].detach().numpy(), outputs, atol=1e-12)


# --- marginals --------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**16), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1.0, 0.25, 1e-3]), st.integers(1, 8)
)
def test_every_token_is_shared_out_exactly(seed: int, n: int, m: int, eps: float, iters: int) -> None:
    scores = 2 * torch.rand(3, m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    weights = log_transport(scores, eps, iters).exp()
    torch.testing.assert_close(weights.sum(1), torch.ones(3, n).double())
    assert weights.min() >= 0


@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(1, 12))
def test_rows_approach_their_share_as_iterations_go_on(seed: int, n: int, m: int) -> None:
    scores = 2 * torch.rand(3, m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    share = torch.full((3, m), n / m).double()
    misses = [(transport(scores, 1.0, iters).sum(2) - share).abs().amax().item() for iters in (1, 3, 100)]
    assert misses[1] <= misses[0] + 1e-9
    assert misses[1] < 0.1 * n / m
    assert misses[2] < 1e-6 * n / m


@given(st.integers(0, 2**16), st.permutations(range(7)), st.permutations(range(4)))
def test_tokens_and_images_may_come_in_any_order(seed: int, tokens: list[int], images: list[int]) -> None:
    method, x = made(7, 3, 6), random_tokens(4, 7, 6, seed)
    plain = method.assign(Tokens.of(x, (1, 7)), 3).matrix()
    turned = method.assign(Tokens.of(x[images][:, tokens], (1, 7)), 3).matrix()
    torch.testing.assert_close(turned, plain[images][:, :, tokens])


@pytest.mark.parametrize("values", ["unit", "raw"])
def test_the_strongest_regularisation_and_the_weakest_stay_finite(values: Any) -> None:
    x = random_tokens(2, 9, 4).float()
    for eps in (1e-6, 1e6):
        method = made(9, 5, 4, SinkhornOptions(eps=eps, values=values), torch.float32)
        merged = method.assign(Tokens.of(x, (3, 3)), 5).merge(method.values(x))
        assert merged.isfinite().all()


def test_a_zero_token_is_shared_out_like_any_other() -> None:
    method, x = made(4, 2, 3), random_tokens(1, 4, 3)
    x[0, 2] = 0
    x.requires_grad_()
    assignment = method.assign(Tokens.of(x, (2, 2)), 2)
    assert assignment.matrix()[0, :, 2].sum().item() == pytest.approx(1)
    assert method.values(x)[0, 2].tolist() == [0, 0, 0]
    assignment.merge(method.values(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@given(
    st.integers(0, 2**16),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1e3, 1.0, 0.25, SMALLEST_EPS]),
    st.integers(1, 8),
    st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-4)]),
)
def test_products_with_vectors_give_the_weights_and_gradients_of_logarithms(
    seed: int, n: int, m: int, eps: float, iters: int, precision: tuple[torch.dtype, float]
) -> None:
    dtype, within = precision
    generator = torch.Generator().manual_seed(seed)
    scores = (2 * torch.rand(3, m, n, generator=generator, dtype=torch.float64) - 1).round(decimals=2)
    upstream = torch.randn(3, m, n, generator=generator, dtype=torch.float64)
    exact, found = scores.clone().requires_grad_(), scores.to(dtype).requires_grad_()
    expected, weights = log_transport(exact, eps, iters).exp(), transport(found, eps, iters)
    torch.testing.assert_close(weights.double(), expected, rtol=within, atol=1e-30)
    (gradient,) = torch.autograd.grad(expected, exact, upstream)
    (quick,) = torch.autograd.grad(weights, found, upstream.to(dtype))
    summands = float((upstream * expected).detach().abs().max()) / eps  # what is subtracted from each other
    torch.testing.assert_close(quick.double(), gradient, rtol=0, atol=within * summands)


@pytest.mark.parametrize("m", [1, 8, 137])
@pytest.mark.parametrize("iters", [3, 100, 400])
@pytest.mark.parametrize("eps", [1.0, SMALLEST_EPS])
def test_float32_holds_the_iterations_however_many(m: int, iters: int, eps: float) -> None:
    units = nn.functional.normalize(random_tokens(2, 196 + m, 16), dim=2)
    scores = units[:, :m] @ units[:, m:].mT
    found = scores.float().requires_grad_()
    weights = transport(found, eps, iters)
    torch.testing.assert_close(weights.double(), log_transport(scores, eps, iters).exp(), rtol=1e-4, atol=1e-9)
    weights.square().sum().backward()
    assert found.grad is not None
    assert found.grad.isfinite().all()


def test_precision_is_kept_under_autocast() -> None:
    scores = 2 * torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0)) - 1
    with torch.autocast("cpu", torch.bfloat16):
        weights = transport(scores, 1.0, 3)
    torch.testing.assert_close(weights, transport(scores, 1.0, 3), rtol=0, atol=0)


@pytest.mark.parametrize("values", ["unit", "raw"])
def test_little_changes_where_logarithms_take_over(values: Any) -> None:
    x = random_tokens(2, 9, 4)
    found = []
    for eps in (SMALLEST_EPS, SMALLEST_EPS * (1 - 1e-9)):
        method = made(9, 5, 4, SinkhornOptions(eps=eps, values=values))
        found.append(method.assign(Tokens.of(x, (3, 3)), 5).matrix())
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-12)


# --- the centres are written back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_centres_are_of_unit_length_after_the_first_pass(training: bool, mode: Any) -> None:
    method, x = made(6, 3, 8).train(training), random_tokens(2, 6, 8)
    before = method.centres.detach().clone()
    with mode():
        method.assign(Tokens.of(x, (2, 3)), 3)
    torch.testing.assert_close(method.centres.detach(), before / before.norm(dim=1, keepdim=True))
    assert method.centres.is_leaf
    assert method.centres.requires_grad


@given(
    st.integers(0, 2**16),
    st.integers(1, 400),
    st.floats(-3, 3),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_unit_rows_stay_what_they_are(seed: int, width: int, log_scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = (10**log_scale * torch.randn(20, width, generator=generator, dtype=torch.float64)).to(dtype)
    once = unit_rows(rows)
    assert once.dtype == dtype
    exact = rows.double() / rows.double().norm(dim=1, keepdim=True).clamp_min(1e-12)
    of = torch.finfo(dtype)
    torch.testing.assert_close(once.double(), exact, atol=of.eps * of.smallest_normal, rtol=16 * of.eps)
    assert torch.equal(unit_rows(once), once)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_further_passes_change_no_bit(dtype: torch.dtype) -> None:
    method, x = made(9, 5, 192, dtype=dtype), random_tokens(2, 9, 192).to(dtype)
    first = method.assign(Tokens.of(x, (3, 3)), 5).matrix()
    centres = method.centres.detach().clone()
    for _ in range(3):
        assert torch.equal(method.assign(Tokens.of(x, (3, 3)), 5).matrix(), first)
        assert torch.equal(method.centres, centres)


def test_a_pass_in_between_spoils_no_graph() -> None:
    """Accumulated gradients, checkpointing and evaluation during training all run passes before the backward pass."""
    method, x = made(6, 3, 8), random_tokens(4, 6, 8)

    def loss(part: Tensor) -> Tensor:
        return method.assign(Tokens.of(part, (2, 3)), 3).merge(method.values(part)).square().sum()

    waiting = loss(x[:2])
    with torch.no_grad():
        loss(x)
    (in_parts,) = torch.autograd.grad(waiting + loss(x[2:]), method.centres)
    (at_once,) = torch.autograd.grad(loss(x), method.centres)
    torch.testing.assert_close(in_parts, at_once)


# --- gradients and precision ------------------------------------------------------------------------------------------


@EVERY
def test_gradients_of_scores(options: SinkhornOptions) -> None:
    scores = random_tokens(2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: transport(s, options.eps, options.iters), (scores,))
    assert torch.autograd.gradcheck(lambda s: log_transport(s, options.eps, options.iters), (scores,))


@EVERY
def test_gradients_of_the_tokens(options: SinkhornOptions) -> None:
    method = made(5, 3, 4, options)

    def merged(x: Tensor) -> Tensor:
        return method.assign(Tokens.of(x, (1, 5)), 3).merge(method.values(x))

    assert torch.autograd.gradcheck(merged, (random_tokens(2, 5, 4).requires_grad_(),))


@EVERY
def test_gradients_of_the_centres_are_those_at_unit_length(options: SinkhornOptions) -> None:
    """Normalising them is no part of the graph: the gradient is that of whatever is multiplied with the tokens."""
    method, x = made(5, 3, 4, options), random_tokens(2, 5, 4)
    units = x / x.norm(dim=2, keepdim=True)

    def merged(centres: Tensor) -> Any:
        weights = log_transport(centres @ units.transpose(1, 2), options.eps, options.iters).exp()
        if options.values == "raw":
            return weights @ x / weights.sum(2, keepdim=True)
        return weights @ units

    centres = unit_rows(method.centres).requires_grad_()
    assert torch.autograd.gradcheck(merged, (centres,))
    merged(centres).square().sum().backward()
    method.assign(Tokens.of(x, (1, 5)), 3).merge(method.values(x)).square().sum().backward()
    assert centres.grad is not None
    assert method.centres.grad is not None
    torch.testing.assert_close(method.centres.grad, centres.grad)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_the_precision_of_parameters_and_tokens(
    options: SinkhornOptions, dtype: torch.dtype
) -> None:
    method = made(6, 3, 8, options, dtype)
    x = random_tokens(2, 6, 8).to(dtype)
    found = method.assign(Tokens.of(x, (2, 3)), 3)
    centres = method.centres.detach().float()
    units = nn.functional.normalize(x.float(), dim=2)
    weights = log_transport(centres @ units.transpose(1, 2), options.eps, options.iters)
    expected = weights.softmax(2) if options.values == "raw" else weights.exp()
    assert found.matrix().dtype == torch.float32
    torch.testing.assert_close(found.matrix(), expected, atol=1e-6, rtol=1e-5)
    assert found.merge(method.values(x)).dtype == dtype


# --- contract ---------------------------------------------------------------------------------------------------------


def test_initial_values() -> None:
    torch.manual_seed(0)
    method = Sinkhorn()
    method.build(196, 137, 192)
    assert {name: tuple(parameter.shape) for name, parameter in method.named_parameters()} == {"centres": (137, 192)}
    assert 0.98 < method.centres.std().item() < 1.02
    assert abs(method.centres.mean().item()) < 0.02
    assert method.learned
    assert not method.stochastic


def test_outputs_are_sums_of_unit_vectors_whatever_the_scale_of_the_tokens() -> None:
    method, x = made(196, 137, 192, dtype=torch.float32), random_tokens(2, 196, 192).float()
    merged = method.assign(Tokens.of(x, (14, 14)), 137).merge(method.values(x))
    assert merged.norm(dim=2).max() < 1.05 * 196 / 137
    larger = method.assign(Tokens.of(100 * x, (14, 14)), 137).merge(method.values(100 * x))
    torch.testing.assert_close(larger, merged, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("iters", [1, 3, 5])
def test_cost(iters: int) -> None:
    expected = 196 * 192 + 2 * 196 * 137 * 192 + iters * 2 * 196 * 137
    assert Sinkhorn(SinkhornOptions(iters=iters)).macs(196, 137, 192) == expected


def test_another_number_of_tokens_than_it_was_built_for() -> None:
    with pytest.raises(ValueError, match="sinkhorn was built to leave 3 tokens and cannot leave 4"):
        made(6, 3, 4).assign(Tokens.of(random_tokens(1, 6, 4), (2, 3)), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eps=0", r"sinkhorn: eps=0 is no regularisation; give a positive number such as 1 or 0\.25"),
        ("eps=-1", "eps=-1 is no regularisation"),
        ("eps=nan", "eps=nan is no regularisation"),
        ("eps=inf", "eps=inf is no regularisation"),
        ("iters=0", "sinkhorn: iters=0 leaves the weights unbalanced; give 1 or more"),
        ("values=norm", "method 'sinkhorn': values=norm is not allowed"),
    ],
)
def test_options_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_method(f"sinkhorn:{text}")
