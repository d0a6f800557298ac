"""How a network is run: eagerly, compiled, replayed from a CUDA graph, or both of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from tokenmerge_bench.errors import InputError, nearest
from tokenmerge_bench.hardware import compiler_switch
from tokenmerge_bench.pieces import Choose, Halves, Merge, Piece, State, pieces_of
from tokenmerge_bench.reduced_vit import Pass, ReducedViT, geometry
from tokenmerge_bench.schedule import Schedule

Mode = Literal["eager", "compile", "graph", "compile-graph"]
MODES: tuple[Mode, ...] = get_args(Mode)
Run = Callable[[], Tensor]
"""One forward pass over a batch that lies on the device already."""


def check_modes(names: list[str], device: torch.device) -> list[Mode]:
    """The modes by name.

    Raises:
        InputError: for one that is unknown or that the device, or the environment, does not have.
    """
    for name in names:
        if name not in MODES:
            raise InputError(f"there is no mode '{name}'{nearest(name, list(MODES))}; there are {', '.join(MODES)}.")
        if name.endswith("graph") and device.type != "cuda":
            raise InputError(
                f"mode {name} replays CUDA graphs, which the CPU has not; leave it out or use --device cuda."
            )
        switch = compiler_switch()
        if name.startswith("compile") and switch is not None:
            raise InputError(f"mode {name} would run eagerly, as {switch}=1 is set; unset it or leave {name} out.")
    return cast(list[Mode], names)


@dataclass(frozen=True)
class Shared:
    """What networks that are timed against one another share."""

    halves: Halves | None = None
    """Compiled halves of blocks."""
    pool: Any = None
    """Memory of CUDA graphs, which are replayed one at a time."""


def shared_by(mode: Mode) -> Shared:
    """What the networks of a group share in a mode."""
    return Shared(
        Halves(compiled=True) if mode.startswith("compile") else None,
        torch.cuda.graph_pool_handle() if mode.endswith("graph") else None,
    )


def as_mode(network: nn.Module, images: Tensor, ids: Tensor, mode: Mode, shared: Shared | None = None) -> Run:
    """The forward pass of a network over one batch, in a mode; the first calls of `compile` compile.

    Args:
        network: a timm ViT, or one with tokens reduced, on the device of the images and in their precision.
        images: as the model takes them.
        ids: identifiers of the images, (B,).
        mode: `eager`; `compile`, in which `torch.compile` makes both halves of a block, attention and MLP, once for all
            blocks and token counts, and what lies between them, reducers above all, runs eagerly, for the unreduced
            model as for all others; `graph`, which captures the eager pass in a CUDA graph; or `compile-graph`, which
            captures the compiled one.
        shared: `shared_by(mode)`, for all networks of a group.

    Raises:
        Exception: whatever the network, the compiler or the capture raises.
    """
    shared = shared or shared_by(mode)
    if shared.halves is not None:
        pieces = _compiled(network, shared.halves)

        def run() -> Tensor:
            return _in_order(pieces, State(images, Pass(ids)))
    else:
        given = (images, ids) if isinstance(network, ReducedViT) else (images,)

        def run() -> Tensor:
            return cast(Tensor, network(*given))

    return _captured(run, images.device, shared.pool) if mode.endswith("graph") else run


class _Drop(Piece):
    """Drops patch tokens by position, as a `ReducedViT` with `drop` set does."""

    def __init__(self, left: int) -> None:
        self.key, self.left = ("drop", left), left

    def run(self, state: State) -> State:
        return replace(state, x=state.x[:, : self.left])


def _compiled(network: nn.Module, halves: Halves) -> list[Piece]:
    """The forward pass in pieces, of which the halves of blocks are compiled."""
    if not isinstance(network, ReducedViT):
        shape = geometry(network)
        network = ReducedViT(network, Schedule(shape.patches, shape.prefix, shape.depth), [])
    pieces = pieces_of(network, halves)
    if not network.drop:
        return pieces
    kept = [piece for piece in pieces if not isinstance(piece, Choose)]
    return [_Drop(network.geometry.prefix + piece.left) if isinstance(piece, Merge) else piece for piece in kept]


def _in_order(pieces: list[Piece], state: State) -> Tensor:
    for piece in pieces:
        state = piece.run(state)
    return state.x


@contextmanager
def compiling() -> Iterator[None]:
    """Within it, what would run eagerly after too many compilations is an error; at its end all is forgotten."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    wanted = {"recompile_limit": 64, "cache_size_limit": 64, "fail_on_recompile_limit_hit": True}  # old and new names
    try:
        with config.patch(**{name: value for name, value in wanted.items() if hasattr(config, name)}):
            yield
    finally:
        torch._dynamo.reset()


def _captured(run: Run, device: torch.device, pool: Any) -> Run:
    """The pass as a CUDA graph: the kernels of one pass, launched as one, always over the same input."""
    current = torch.cuda.current_stream(device)
    aside = torch.cuda.Stream(device)
    aside.wait_stream(current)
    mode = torch.cuda.get_sync_debug_mode()
    with torch.cuda.stream(aside):
        run()  # libraries allocate, kernels are built
        try:
            # What waits for the device cannot be captured, and a capture that fails leaves debris: ask beforehand.
            torch.cuda.set_sync_debug_mode("error")
            run()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    current.wait_stream(aside)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            logits = run()
    finally:
        torch.cuda.set_stream(current)  # torch leaves the capturing stream current where a capture fails

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay
