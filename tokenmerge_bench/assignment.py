"""What a reducer answers: which tokens go together, and with what weight.

One object covers every method. A *hard* assignment puts each token into exactly one output token (DHTM, ToMe,
K-Medoids, ...); a *soft* one gives each output token a non-negative weight on every input token (SiT, Sinkhorn,
PatchMerger). Both merge features, add up sizes, spread outputs back over the inputs, and compose, so that
the composition of all assignments of a network is its source map from grid cells to final tokens.

Shapes: B batch, N tokens in, M tokens out, L tokens out of a later assignment, C channels. Prefix tokens never
appear here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenmerge_bench.paths import Path, path_for


class Assignment(ABC):
    """A map from N input tokens to M output tokens, for each image of a batch."""

    n_in: int
    n_out: int

    @abstractmethod
    def merge(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B M C"]:
        """Features of the output tokens, in the dtype of the input; sums run in float32 or better."""

    def merge_sequence(self, x: Float[Tensor, "B T C"], values: Float[Tensor, "B N C"]) -> Float[Tensor, "B S C"]:
        """The sequence after the reduction: the prefix tokens of `x`, unchanged, then what `values` merge to.

        T = P + N and S = P + M. `values` are the patch tokens x[:, P:] themselves unless a method says otherwise.
        """
        return torch.cat([x[:, : x.shape[1] - self.n_in], self.merge(values)], dim=1)

    @abstractmethod
    def merge_sizes(self, sizes: Float[Tensor, "B N"]) -> Float[Tensor, "B M"]:
        """Number of original patches behind each output token; the total over tokens is conserved."""

    @abstractmethod
    def unmerge(self, outputs: Float[Tensor, "B M C"]) -> Float[Tensor, "B N C"]:
        """Gives every input token the output token it went to (soft: the mix of those it went to)."""

    @abstractmethod
    def compose(self, later: Assignment) -> Assignment:
        """The single assignment that equals this one followed by `later` (whose N is this one's M)."""

    @abstractmethod
    def matrix(self) -> Float[Tensor, "B M N"]:
        """The merge as a dense matrix W, with merge(x) = W x."""

    @abstractmethod
    def owner(self) -> Int[Tensor, "B N"]:
        """The output token to which each input token contributes most; lowest index on ties."""

    def _check_follows(self, later: Assignment) -> None:
        if later.n_in != self.n_out:
            raise ValueError(f"cannot compose: {self.n_out} tokens come out, {later.n_in} are expected")


class HardAssignment(Assignment):
    """Every input token belongs to one output token, which is the weighted mean of its members or one of them.

    Args:
        labels: output token of every input token, int64 in [0, n_out).
        n_out: number of output tokens M; every one of them needs a member of positive weight (not checked
            here, as that would synchronise with the device; the tests check it for every method).
        weights: relative weight of each token within its output token, any positive scale. Equal if None.
        eps: added to the weight sum of every output token (DPC-KNN's reference does that).
        picks: instead of means, output token m is input token picks[m] (K-Medoids).
    """

    def __init__(
        self,
        labels: Int[Tensor, "B N"],
        n_out: int,
        weights: Float[Tensor, "B N"] | None = None,
        eps: float = 0.0,
        picks: Int[Tensor, "B M"] | None = None,
    ) -> None:
        self.labels = labels
        self.n_in, self.n_out = labels.shape[1], n_out
        self.weights, self.eps, self.picks = weights, eps, picks

    @cached_property
    def coefficients(self) -> Float[Tensor, "B N"]:
        """Share of every token in its output token."""
        weights = self._precise_weights()
        total = _segment_sum(weights, self.labels, self.n_out) + self.eps
        # Normalising first makes a token that stays alone keep its features to the last bit (s / s = 1).
        return weights / total.gather(1, self.labels)

    def _precise_weights(self) -> Float[Tensor, "B N"]:
        if self.weights is None:
            return torch.ones(self.labels.shape, device=self.labels.device)
        return self.weights.to(_score_dtype(self.weights))

    @classmethod
    def identity(cls, batch: int, n: int, device: torch.device | None = None) -> HardAssignment:
        """Every token stays what it is."""
        return cls(torch.arange(n, device=device).expand(batch, n), n)

    @classmethod
    def keep_first(cls, batch: int, n: int, n_out: int, device: torch.device | None = None) -> HardAssignment:
        """The first `n_out` tokens, by position alone: what dropping tokens costs when choosing them is free."""
        slots = torch.arange(n, device=device).expand(batch, n)
        return cls(slots.clamp(max=n_out - 1), n_out, picks=slots[:, :n_out])

    def merge(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B M C"]:
        """See `Assignment.merge`; tokens that stay alone keep their features bit for bit."""
        if self.picks is not None:
            return features.gather(1, self.picks.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
        path = self._path(features)
        if path != "torch":
            return self._merge_fast(features, path)
        weighted = features.to(_score_dtype(features)) * self.coefficients.unsqueeze(-1)
        return _segment_sum(weighted, self.labels, self.n_out).to(features.dtype)

    def merge_sequence(self, x: Float[Tensor, "B T C"], values: Float[Tensor, "B N C"]) -> Float[Tensor, "B S C"]:
        """See `Assignment.merge_sequence`; in one go where values are a part of x."""
        prefix, path = x.shape[1] - self.n_in, self._path(x)
        if path != "torch" and self.picks is None:
            patches = x[:, prefix:]
            same_memory = values.data_ptr() == patches.data_ptr() and values.stride() == patches.stride()
            if same_memory and values.requires_grad == patches.requires_grad:  # or the method has cut its gradients
                return self._merge_fast(x, path)
        return super().merge_sequence(x, values)

    def merge_sizes(self, sizes: Float[Tensor, "B N"]) -> Float[Tensor, "B M"]:
        """Sums of the members' sizes."""
        if self._path(None, sizes) != "triton":
            return _segment_sum(sizes, self.labels, self.n_out)
        if sizes is self.weights:
            return self._members[2]
        from tokenmerge_bench.kernels.merge import members

        return members(self.labels, sizes, self.n_out)[2]

    def _merge_fast(self, x: Float[Tensor, "B T C"], path: Path) -> Float[Tensor, "B S C"]:
        """The merged sequence, by numba or Triton; what stands before the last N tokens is copied."""
        if path == "numba":
            from tokenmerge_bench import _numba

            # Working out the coefficients raises where a label is out of range, which the compiled code would not.
            return _numba.merge_rows(x, self.labels, self.coefficients, self.n_out)
        from tokenmerge_bench.kernels.merge import differentiable_merge

        weights = self._precise_weights()
        weights = weights.to(torch.promote_types(weights.dtype, x.dtype))
        return differentiable_merge(x, weights, self.labels, self._members, self.eps)

    @cached_property
    def _members(self) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B bounds"], Float[Tensor, "B M"]]:
        """Tokens sorted by label, where those of each label begin, and the sums of the weights; for the kernels."""
        from tokenmerge_bench.kernels.merge import members

        return members(self.labels, self._precise_weights(), self.n_out)

    def _path(self, features: Tensor | None, sizes: Tensor | None = None) -> Path:
        """What suits the device, and plain torch for gradients: numba has none, the kernels those of features alone."""
        path = path_for(self.labels.device)
        constant = (self.weights, sizes) if path == "triton" else (self.weights, sizes, features)
        if torch.is_grad_enabled() and any(values is not None and values.requires_grad for values in constant):
            return "torch"
        if path == "triton":
            from tokenmerge_bench.kernels.merge import MOST_TOKENS

            return path if self.n_in < MOST_TOKENS else "torch"
        return path

    def unmerge(self, outputs: Float[Tensor, "B M C"]) -> Float[Tensor, "B N C"]:
        """Copies of the output tokens, one per member."""
        return outputs.gather(1, self.labels.unsqueeze(-1).expand(-1, -1, outputs.shape[-1]))

    def compose(self, later: Assignment) -> Assignment:
        """Hard if both are."""
        self._check_follows(later)
        if not isinstance(later, HardAssignment):
            return SoftAssignment(_product(later.matrix(), self.matrix()))
        return _Composed(self, later)

    def matrix(self) -> Float[Tensor, "B M N"]:
        """See `Assignment.matrix`."""
        if self.picks is not None:
            return torch.nn.functional.one_hot(self.picks, self.n_in).float()
        rows = torch.arange(self.n_out, device=self.labels.device)[:, None]
        return (self.labels[:, None, :] == rows) * self.coefficients[:, None, :]

    def owner(self) -> Int[Tensor, "B N"]:
        """The labels."""
        return self.labels


class _Composed(HardAssignment):
    """Two hard assignments, one after the other; features are merged in the same two stages."""

    def __init__(self, first: HardAssignment, later: HardAssignment) -> None:
        super().__init__(later.labels.gather(1, first.labels), later.n_out)
        self._stages = first, later

    def merge(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B M C"]:
        first, later = self._stages
        return later.merge(first.merge(features))

    def matrix(self) -> Float[Tensor, "B M N"]:
        first, later = self._stages
        return _product(later.matrix(), first.matrix())


class SoftAssignment(Assignment):
    """Every output token is a weighted sum over all input tokens.

    Args:
        weights: the merge matrix W, non-negative. Rows need not sum to one (Sinkhorn's do not).
    """

    def __init__(self, weights: Float[Tensor, "B M N"]) -> None:
        self.weights = weights
        self.n_out, self.n_in = weights.shape[1], weights.shape[2]

    def merge(self, features: Float[Tensor, "B N C"]) -> Float[Tensor, "B M C"]:
        dtype = torch.promote_types(self.weights.dtype, _score_dtype(features))
        return (self.weights.to(dtype) @ features.to(dtype)).to(features.dtype)

    def _shares(self) -> Float[Tensor, "B M N"]:
        """How each input token divides itself among the outputs; columns sum to one."""
        column = self.weights.sum(1, keepdim=True)
        return self.weights / column.clamp_min(torch.finfo(self.weights.dtype).tiny)

    def merge_sizes(self, sizes: Float[Tensor, "B N"]) -> Float[Tensor, "B M"]:
        return (self._shares() @ sizes.to(self.weights.dtype).unsqueeze(-1)).squeeze(-1)

    def unmerge(self, outputs: Float[Tensor, "B M C"]) -> Float[Tensor, "B N C"]:
        dtype = torch.promote_types(self.weights.dtype, _score_dtype(outputs))
        return (self._shares().transpose(1, 2).to(dtype) @ outputs.to(dtype)).to(outputs.dtype)

    def compose(self, later: Assignment) -> Assignment:
        self._check_follows(later)
        return SoftAssignment(_product(later.matrix(), self.weights))

    def matrix(self) -> Float[Tensor, "B M N"]:
        return self.weights

    def owner(self) -> Int[Tensor, "B N"]:
        return self.weights.argmax(1)


def _score_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 where the input is."""
    return torch.promote_types(x.dtype, torch.float32)


def _product(left: Float[Tensor, "B L M"], right: Float[Tensor, "B M N"]) -> Float[Tensor, "B L N"]:
    """Matrix product in the wider of the two dtypes: sizes may be float32 where features are float64."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype) @ right.to(dtype)


def _segment_sum(values: Tensor, labels: Int[Tensor, "B N"], n_out: int) -> Tensor:
    """Sums `values` (B, N) or (B, N, C) over the tokens of equal label, to (B, M) or (B, M, C)."""
    batch, n = labels.shape
    offsets = torch.arange(batch, device=labels.device)[:, None] * n_out
    rows = (labels + offsets).reshape(-1)
    out = values.new_zeros((batch * n_out, *values.shape[2:]))
    out = out.index_add(0, rows, values.reshape(batch * n, *values.shape[2:]))
    return out.reshape(batch, n_out, *values.shape[2:])
