"""The contract of a reduction method, and the decorator that registers one.

A method is one file with one class:

    @dataclass(frozen=True)
    class HalvesOptions:
        averaging: Literal["size", "plain"] = "size"

    @reducer("halves")
    class Halves(TokenReducer):
        options_type = HalvesOptions
        def assign(self, tokens, n_out): return HardAssignment(labels, n_out, weights=tokens.sizes)
        def macs(self, n_in, n_out, width): return 0

See `methods/` for real ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from tokenmerge_bench.assignment import Assignment
from tokenmerge_bench.knobs import Knob, MergesPerLayer
from tokenmerge_bench.tokens import Tokens

Site = Literal["pre", "mid", "post"]
"""Where in a block tokens are reduced: before it, between attention and MLP, or after it."""
Need = Literal["keys", "attention", "received", "attn_out"]
"""Fields of `Tokens` that attention can hand over. `attention`, the whole matrix, is slow: no fused kernel holds it."""
Layers = tuple[int, ...] | Literal["all"]


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


class TokenReducer(nn.Module, ABC):
    """One way of reducing tokens. It knows nothing of models, data sets, budgets or files.

    A subclass sets the class attributes, or overwrites them per instance in `__init__` where an option decides.
    One instance serves one site of a model, so that methods with parameters keep them per site.
    """

    name: ClassVar[str]
    options_type: ClassVar[type] = NoOptions
    """A frozen dataclass; its fields are the method's options on the command line."""

    site: Site = "mid"
    needs: frozenset[Need] = frozenset()
    """What attention must hand over; nothing else is computed."""
    knob: Knob = MergesPerLayer()
    """The parameter by which the method's authors set its budget."""
    layers: Layers = (3, 6, 10)
    """Blocks at which it reduces by default, counted from 0."""
    proportional_attention: bool = False
    """Whether attention after a reduction adds the logarithm of the token sizes (ToMe, section 3)."""
    stochastic: bool = False
    """Whether it draws random numbers, so that several seeds must be reported."""
    learned: bool = False
    """Whether it has parameters that must be trained before its results mean anything."""

    prefix: int = 1
    """P of the model it is attached to; set by `attach`."""
    head_width: int = 64
    """D of the model it is attached to; set by `attach`."""

    def __init__(self, options: Any = None) -> None:
        super().__init__()
        self.options = self.options_type() if options is None else options

    def build(self, n_in: int, n_out: int, width: int) -> None:
        """Creates the learned parameters of one site; called once, before the first `assign`."""

    @abstractmethod
    def assign(self, tokens: Tokens, n_out: int) -> Assignment:
        """Which of the N tokens go together so that `n_out` are left.

        Runs on whole batches without a host synchronisation, gives the same answer for an image whatever else is
        in the batch, and computes scores in float32 or better.
        """

    def assign_each(self, tokens: Tokens, n_outs: Sequence[int]) -> list[Assignment]:
        """The answers of `assign` for several numbers of tokens, in their order: what settings of a sweep share.

        Override it where one run serves all of them. What it gives must equal separate calls bit for bit.
        """
        return [self.assign(tokens, n_out) for n_out in n_outs]

    @abstractmethod
    def macs(self, n_in: int, n_out: int, width: int) -> int:
        """Multiply-accumulates of `assign` and of the merge for one image at one site."""

    def values(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The features that the assignment merges; the tokens themselves unless a method says otherwise."""
        return features

    def fewest(self, n_in: int, grid: tuple[int, int]) -> int:
        """The smallest number of tokens that one reduction of `n_in` can leave."""
        return 1


R = TypeVar("R", bound=type[TokenReducer])
_registered: dict[str, type[TokenReducer]] = {}


def reducer(name: str) -> Callable[[R], R]:
    """Registers a `TokenReducer` under the name that `--methods` takes."""

    def register(cls: R) -> R:
        known = _registered.get(name)
        if known is not None and known.__module__ != cls.__module__:
            raise ValueError(f"method '{name}' is defined twice, in {known.__module__} and {cls.__module__}")
        cls.name = name
        _registered[name] = cls
        return cls

    return register
