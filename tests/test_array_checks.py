"""The checks of type hints that all other tests run under refuse what they should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from array_checks import checked
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, Int
from torch import Tensor

from tokenmerge_bench.budgets import Budget
from tokenmerge_bench.contraction import gather_rows
from tokenmerge_bench.schedule import Schedule

X, INDEX = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)


def check(function: Any) -> Any:
    return checked(function, typechecker=beartype)


@check
def rows(x: Float[Tensor, "B N C"], index: Int[Tensor, "B K"] | None = None, *, n: int = 3) -> Float[Tensor, "B N"]:
    return x.sum(2)[:, :n]


@check
def halves(x: Float[Tensor, " N"]) -> Iterator[Float[Tensor, " M"]]:
    yield from x.chunk(2)


@check
def of_size(n: int) -> Float[Tensor, " {n}"]:
    return torch.zeros(2)


@check
@dataclass
class Pair:
    a: Float[Tensor, " N"]
    b: Float[Tensor, " N"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: gather_rows(X, INDEX[:1]),
        lambda: gather_rows(X, INDEX.float()),
        lambda: Budget("fraction", 0.5),  # type: ignore[arg-type]
        lambda: Schedule(4, 1, "12"),  # type: ignore[arg-type]
        lambda: rows(X[0]),
        lambda: rows(X, INDEX[:1]),
        lambda: rows(X, n=2),
        lambda: rows(X, n="3"),
        lambda: Pair(X[0, 0], X[0, :, 0]),
    ],
)
def test_what_a_hint_excludes_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(BeartypeCallHintViolation):
        call()


def test_what_only_jaxtyping_can_check_is_left_to_it() -> None:
    assert of_size(2).shape == (2,)
    with pytest.raises(jaxtyping.TypeCheckError):
        of_size(3)
    assert [len(half) for half in halves(torch.zeros(3))] == [2, 1]
    with pytest.raises(jaxtyping.TypeCheckError):
        next(halves(torch.zeros(3, 3)))


def test_dimensions_mean_another_thing_in_every_call() -> None:
    for batch, n in ((2, 3), (5, 1)):
        x = torch.zeros(batch, n, 4)
        assert rows(x).shape == (batch, n)
        assert gather_rows(x, torch.zeros(batch, 1, dtype=torch.int64)).shape == (batch, 1, 4)
    assert Pair(X[0, 0], X[0, 1]).b.shape == (4,)
    assert rows.__name__ == "rows"
