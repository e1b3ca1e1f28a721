"""The inputs that modules get on the retain set, and updates that do not change what modules make of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients import LowRankGradient, eigh, named_generator


# How many directions of a module's inputs are estimated, if it has that many.
DIRECTIONS = 256

# A direction whose mean square is this fraction of the mean over directions takes away half of what lies along it.
DAMPING = 0.03

# How many numbers of the directions are widened from fp16 at a time. On a CPU these stay in its cache.
_BLOCK_ELEMENTS, _BLOCK_ELEMENTS_ON_ACCELERATOR = 2**20, 2**24

# A direction whose mean square is below this fraction of the strongest one's is rounding.
_SMALLEST = 1e-5


class RetainedInputs:
    r"""
    The directions in which a module's inputs lie on the retain set, and how much of an update each of them takes away.

    An update `ΔW` changes the module's output on an input `x` by `ΔW x`. Over the retain set, the mean square of this
    change is `tr(ΔW C ΔWᵀ)`, where `C` is the mean of `x xᵀ`. Among all updates with the same gain along a gradient
    `Ĝ`, one has the smallest `tr(ΔW C ΔWᵀ) / c + μ ‖ΔW‖²`. Its direction is

        D = Ĝ · (C / c + μ)⁻¹ · μ = Ĝ · (I − Q · diag(λ / (λ + μ)) · Qᵀ),    c = tr(C) / in_features

    with the eigenvectors `Q` and the eigenvalues `λ` of `C / c`. So each direction in `Q` takes away the part
    `λ / (λ + μ)` of what an update has along it. What an update has outside of `Q` stays whole. This is the input side
    of K-FAC (Martens and Grosse 2015, arXiv 1503.05671), taken on the inputs that are to be protected. With `μ = 0` it
    is the projection onto the null space of these inputs, as in Adam-NSCL (Wang et al. 2021, arXiv 2103.07113).

    Args:
        directions (`torch.Tensor` of shape `(in_features, k)`):
            `Q`: orthonormal columns, kept in fp16. A few ten-thousandths of what lies along them may stay.
        damped (`torch.Tensor` of shape `(k,)`):
            `λ / (λ + μ)`: how much of an update each direction takes away, from 0 to 1. It is 0 for unused columns.
    """

    def __init__(self, directions: Tensor, damped: Tensor):
        self.directions, self.damped = directions, damped

    def to(self, device: torch.device) -> RetainedInputs:
        """The same inputs on a device."""
        return RetainedInputs(self.directions.to(device), self.damped.to(device))

    def equals(self, other: RetainedInputs) -> bool:
        """Whether all numbers are the same."""
        return torch.equal(self.directions, other.directions) and torch.equal(self.damped, other.damped)


def protect(gradient: LowRankGradient, inputs: Sequence[RetainedInputs]) -> LowRankGradient:
    """
    Take away from gradients what the retain set would notice.

    Args:
        gradient ([`LowRankGradient`]):
            Gradients of modules of one shape, with the modules as the first dimension.
        inputs (`Sequence[RetainedInputs]`):
            The retained inputs of each module.

    Returns:
        [`LowRankGradient`]: The protected gradients, with the modules as the first dimension.
    """
    # Neighbouring modules that share their inputs are treated as one module, with the columns of all of them.
    runs = [list(run) for _, run in groupby(inputs, key=id)]
    count = len(runs[0]) if len({len(run) for run in runs}) == 1 else 1
    distinct = inputs[::count]
    rank = gradient.V.shape[-1]
    V = gradient.V.unflatten(0, (-1, count)).transpose(1, 2).flatten(2)
    elements = _BLOCK_ELEMENTS if V.device.type == "cpu" else _BLOCK_ELEMENTS_ON_ACCELERATOR
    size = max(1, elements // distinct[0].directions.numel())
    # One buffer holds the widened directions of a block, and is used for all blocks.
    widened = V.new_empty(min(size, len(distinct)), *distinct[0].directions.shape)
    protected = []
    for start, columns in zip(range(0, len(distinct), size), V.split(size), strict=True):
        block = distinct[start : start + size]
        Q = widened[: len(block)]
        torch._foreach_copy_(list(Q), [module.directions for module in block])
        damped = torch.stack([module.damped for module in block]).unsqueeze(-1)
        protected.append(torch.baddbmm(columns, Q, (Q.mT @ columns).mul_(damped), alpha=-1))
    protected_V = torch.cat(protected).unflatten(2, (count, rank)).transpose(1, 2).flatten(0, 1)
    return LowRankGradient(U=gradient.U, V=protected_V)


def share(inputs: Mapping[str, RetainedInputs]) -> dict[str, RetainedInputs]:
    """The same inputs by the same names. Equal neighbours, such as query, key and value, are held once."""
    shared: dict[str, RetainedInputs] = {}
    last: dict[Any, RetainedInputs] = {}
    for name, retained in inputs.items():
        key = retained.directions.shape, retained.directions.device
        if key not in last or not retained.equals(last[key]):
            last[key] = retained
        shared[name] = last[key]
    return shared


# Prefixes of the names that the tensors have in a checkpoint.
_DIRECTIONS, _DAMPED = "retained_inputs.directions.", "retained_inputs.damped."


def to_state(inputs: Mapping[str, RetainedInputs]) -> dict[str, Tensor]:
    """The tensors of all modules' inputs, on the CPU, as a checkpoint holds them."""
    state = {}
    for name, retained in inputs.items():
        state |= {f"{_DIRECTIONS}{name}": retained.directions.cpu(), f"{_DAMPED}{name}": retained.damped.cpu()}
    return state


def from_state(state: Mapping[str, Tensor]) -> tuple[dict[str, RetainedInputs], dict[str, Tensor]]:
    """The retained inputs that [`to_state`] stored, and all other tensors of the state."""
    names = [key.removeprefix(_DIRECTIONS) for key in state if key.startswith(_DIRECTIONS)]
    inputs = {name: RetainedInputs(state[f"{_DIRECTIONS}{name}"], state[f"{_DAMPED}{name}"]) for name in names}
    return inputs, {key: tensor for key, tensor in state.items() if not key.startswith((_DIRECTIONS, _DAMPED))}


class TestMatrix:
    """
    The random matrix `Ω` that inputs of one width are multiplied by.

    Args:
        columns (`torch.Tensor` of shape `(in_features, k)`):
            Orthonormal columns, fp32.
    """

    def __init__(self, columns: Tensor):
        self.columns = columns
        self._last: tuple[Any, ...] = (None, None)

    @torch.no_grad()
    def moments(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """`Xᵀ X Ω` of inputs `(..., in_features)`, and the sum of their squares."""
        # Query, key and value read one tensor, and so do the gate and up projections. It is multiplied once for all.
        if self._last[0] is not inputs or self._last[1] != inputs._version:
            with torch.autocast(inputs.device.type, enabled=False):
                X = inputs.flatten(end_dim=-2).float()
                self._last = inputs, inputs._version, X.T @ (X @ self.columns), torch.linalg.vector_norm(X).square()
        return self._last[2:]

    def clear(self) -> None:
        """Release the last inputs."""
        self._last = (None, None)


class InputSketch:
    r"""
    A sketch `C Ω` of the second moments of a module's inputs, taken during the model's forward passes.

    `C` has `in_features` squared entries, but the sketch has at most `DIRECTIONS` columns. The leading eigenvectors of
    `C` are estimated from it as those of `C Ω (Ωᵀ C Ω)⁻¹ Ωᵀ C` (Nyström, as the decoders do with gradients).

    Args:
        test (`TestMatrix`):
            `Ω`. Modules that share it, and get the same tensor one after the other, share the work.
    """

    def __init__(self, test: TestMatrix):
        self.test = test
        self.sketch = torch.zeros_like(test.columns)
        self.squares = test.columns.new_zeros(())

    def see(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        """Forward pre-hook: add the inputs of one forward pass to the sketch."""
        sketch, squares = self.test.moments(inputs[0])
        self.sketch += sketch
        self.squares += squares

    def result(self) -> RetainedInputs:
        """The retained inputs of this module, from all that it has seen."""
        width = len(self.sketch)
        core = (self.test.columns.T @ self.sketch).double()
        values, vectors = eigh((core + core.T) / 2)
        kept = values > _SMALLEST * values[-1].clamp_min(torch.finfo(torch.float32).tiny)
        # The Nyström estimate is `root @ root.T`.
        root = self.sketch.double() @ (vectors * torch.where(kept, values, torch.inf).rsqrt())
        moments, vectors = eigh(root.T @ root)
        known = moments > _SMALLEST * moments[-1].clamp_min(torch.finfo(torch.float32).tiny)
        relative = torch.where(known, moments * width / self.squares.clamp_min(torch.finfo(torch.float32).tiny), 0)
        directions = root @ (vectors * torch.where(known, moments, torch.inf).rsqrt())
        return RetainedInputs(directions.half(), (relative / (relative + DAMPING)).float())


def all_results(sketches: Mapping[str, InputSketch]) -> dict[str, RetainedInputs]:
    """The results of all sketches. Neighbours that have seen the same, such as query, key and value, share one."""
    results: dict[str, RetainedInputs] = {}
    last: dict[TestMatrix, tuple[Tensor, RetainedInputs]] = {}
    for name, sketch in sketches.items():
        seen, inputs = last.get(sketch.test, (None, None))
        if seen is None or not torch.equal(seen, sketch.sketch):
            inputs = sketch.result()
        last[sketch.test] = sketch.sketch, inputs
        results[name] = inputs
    return results


@contextmanager
def watch_inputs(modules: Mapping[str, nn.Module], seed: int) -> Iterator[dict[str, InputSketch]]:
    """
    Sketch the inputs of modules in all forward passes within the block.

    Args:
        modules (`dict[str, nn.Module]`):
            Linear layers, or PEFT's layers around them.
        seed (`int`):
            Seed of the sketches. Every process must have the same seed, and see the same inputs.

    Yields:
        `dict[str, InputSketch]`: The sketches, by the same names.
    """
    tests: dict[Any, TestMatrix] = {}
    sketches, handles = {}, []
    for name, module in modules.items():
        key = (module.in_features, next(module.parameters()).device)
        if key not in tests:
            tests[key] = draw_test(seed, *key)
        sketches[name] = InputSketch(tests[key])
        handles.append(module.register_forward_pre_hook(sketches[name].see))
    try:
        yield sketches
    finally:
        for handle in handles:
            handle.remove()
        for test in tests.values():
            test.clear()


def draw_test(seed: int, width: int, device: torch.device) -> TestMatrix:
    """The test matrix of all modules of one width on a device."""
    generator = named_generator(seed, 0, str(width), "retained inputs", device)
    columns = torch.randn(width, min(width, DIRECTIONS), generator=generator, device=device)
    return TestMatrix(torch.linalg.qr(columns).Q)
