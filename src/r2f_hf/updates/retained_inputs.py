"""What the retain set puts into a module, and updates that leave alone what the module makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..gradients import LowRankGradient, eigh, named_generator


# Directions that are known of a module's inputs, where it has so many.
DIRECTIONS = 256

# Along a direction whose mean square is this part of the mean over directions, half of an update is left.
DAMPING = 0.03

# Directions are widened from fp16 so many numbers at a time: on a CPU as many as stay in its cache.
_BLOCK_ELEMENTS, _BLOCK_ELEMENTS_ON_ACCELERATOR = 2**20, 2**24

# Directions of less than this part of the strongest one's mean square are rounding.
_SMALLEST = 1e-5


class RetainedInputs:
    r"""
    The directions in which a module's inputs lie on the retain set, and how much of an update each of them is damped.

    An update `ΔW` changes what a module makes of an input `x` by `ΔW x`: on the retain set by `tr(ΔW C ΔWᵀ)` in the
    mean square, where `C` is the mean of `x xᵀ`. Of all updates that follow a gradient `Ĝ` as far for as little of
    that, and of their own square, the direction is

        D = Ĝ · (C / c + μ)⁻¹ · μ = Ĝ · (I − Q · diag(λ / (λ + μ)) · Qᵀ),    c = tr(C) / in_features

    with the eigenvectors `Q` and eigenvalues `λ` of `C / c`: what lies along `Q` is damped, all else stays. That is
    the input side of K-FAC (Martens and Grosse 2015, arXiv 1503.05671), taken on what is to be kept; with `μ = 0` it
    is the projection onto the null space of those inputs, as in Adam-NSCL (Wang et al. 2021, arXiv 2103.07113).

    Args:
        directions (`torch.Tensor` of shape `(in_features, k)`):
            `Q`, orthonormal columns, kept in fp16: of what lies along them some ten-thousandths can stay.
        damped (`torch.Tensor` of shape `(k,)`):
            `λ / (λ + μ)`, from 0 to 1; 0 for columns that stand for nothing.
    """

    def __init__(self, directions: Tensor, damped: Tensor):
        self.directions, self.damped = directions, damped

    def to(self, device: torch.device) -> RetainedInputs:
        """The same on a device."""
        return RetainedInputs(self.directions.to(device), self.damped.to(device))

    def equals(self, other: RetainedInputs) -> bool:
        """Whether all numbers are the same."""
        return torch.equal(self.directions, other.directions) and torch.equal(self.damped, other.damped)


def protect(gradient: LowRankGradient, inputs: Sequence[RetainedInputs]) -> LowRankGradient:
    """
    Gradients without what the retain set would notice.

    Args:
        gradient ([`LowRankGradient`]):
            Of modules of one shape, which are its first dimension.
        inputs (`Sequence[RetainedInputs]`):
            Of each of them.
    """
    # Neighbours that read the same are one, with the columns of all of them.
    runs = [list(run) for _, run in groupby(inputs, key=id)]
    count = len(runs[0]) if len({len(run) for run in runs}) == 1 else 1
    distinct = inputs[::count]
    rank = gradient.V.shape[-1]
    V = gradient.V.unflatten(0, (-1, count)).transpose(1, 2).flatten(2)
    elements = _BLOCK_ELEMENTS if V.device.type == "cpu" else _BLOCK_ELEMENTS_ON_ACCELERATOR
    size = max(1, elements // distinct[0].directions.numel())
    # They are not widened for good.
    widened = V.new_empty(min(size, len(distinct)), *distinct[0].directions.shape)
    found = []
    for start, columns in zip(range(0, len(distinct), size), V.split(size), strict=True):
        block = distinct[start : start + size]
        Q = widened[: len(block)]
        torch._foreach_copy_(list(Q), [each.directions for each in block])
        damped = torch.stack([each.damped for each in block]).unsqueeze(-1)
        found.append(torch.baddbmm(columns, Q, (Q.mT @ columns).mul_(damped), alpha=-1))
    protected_V = torch.cat(found).unflatten(2, (count, rank)).transpose(1, 2).flatten(0, 1)
    return LowRankGradient(U=gradient.U, V=protected_V)


def share(inputs: Mapping[str, RetainedInputs]) -> dict[str, RetainedInputs]:
    """The same by the same names, those of neighbours that are equal, as of query, key and value, held once."""
    found: dict[str, RetainedInputs] = {}
    last: dict[Any, RetainedInputs] = {}
    for name, each in inputs.items():
        key = each.directions.shape, each.directions.device
        if key not in last or not each.equals(last[key]):
            last[key] = each
        found[name] = last[key]
    return found


# What each module's retained inputs are called in a checkpoint.
_DIRECTIONS, _DAMPED = "retained_inputs.directions.", "retained_inputs.damped."


def to_state(inputs: Mapping[str, RetainedInputs]) -> dict[str, Tensor]:
    """The tensors of all modules' inputs, on the CPU, as a checkpoint holds them."""
    found = {}
    for name, each in inputs.items():
        found |= {f"{_DIRECTIONS}{name}": each.directions.cpu(), f"{_DAMPED}{name}": each.damped.cpu()}
    return found


def from_state(state: Mapping[str, Tensor]) -> tuple[dict[str, RetainedInputs], dict[str, Tensor]]:
    """What [`to_state`] gave, and the tensors that are something else."""
    names = [key.removeprefix(_DIRECTIONS) for key in state if key.startswith(_DIRECTIONS)]
    inputs = {name: RetainedInputs(state[f"{_DIRECTIONS}{name}"], state[f"{_DAMPED}{name}"]) for name in names}
    return inputs, {key: each for key, each in state.items() if not key.startswith((_DIRECTIONS, _DAMPED))}


class TestMatrix:
    """
    What inputs of a width are multiplied with.

    Args:
        columns (`torch.Tensor` of shape `(in_features, k)`):
            Orthonormal, fp32.
    """

    def __init__(self, columns: Tensor):
        self.columns = columns
        self._last: tuple[Any, ...] = (None, None)

    @torch.no_grad()
    def moments(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """`Xᵀ X Ω` of inputs `(..., in_features)`, and the sum of their squares."""
        # A query, a key and a value are made of one tensor, as are a gate and what it lets through.
        if self._last[0] is not inputs or self._last[1] != inputs._version:
            with torch.autocast(inputs.device.type, enabled=False):
                X = inputs.flatten(end_dim=-2).float()
                self._last = inputs, inputs._version, X.T @ (X @ self.columns), torch.linalg.vector_norm(X).square()
        return self._last[2:]

    def clear(self) -> None:
        """Let go of the last inputs."""
        self._last = (None, None)


class InputSketch:
    r"""
    A sketch `C Ω` of the inputs' second moments, taken while a model reads.

    `C` has as many entries as `in_features` squared; the sketch has `DIRECTIONS` columns, from which its leading
    eigenvectors are estimated as `C Ω (Ωᵀ C Ω)⁻¹ Ωᵀ C` (Nyström, as the decoders do with gradients).

    Args:
        test (`TestMatrix`):
            `Ω`. Modules that share it, and are given one tensor after the other, share the work.
    """

    def __init__(self, test: TestMatrix):
        self.test = test
        self.sketch = torch.zeros_like(test.columns)
        self.squares = test.columns.new_zeros(())

    def see(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook."""
        sketch, squares = self.test.moments(inputs[0])
        self.sketch += sketch
        self.squares += squares

    def result(self) -> RetainedInputs:
        """What was seen, of one module."""
        width = len(self.sketch)
        core = (self.test.columns.T @ self.sketch).double()
        values, vectors = eigh((core + core.T) / 2)
        kept = values > _SMALLEST * values[-1].clamp_min(torch.finfo(torch.float32).tiny)
        # The estimate is `root @ root.T`.
        root = self.sketch.double() @ (vectors * torch.where(kept, values, torch.inf).rsqrt())
        moments, vectors = eigh(root.T @ root)
        known = moments > _SMALLEST * moments[-1].clamp_min(torch.finfo(torch.float32).tiny)
        relative = torch.where(known, moments * width / self.squares.clamp_min(torch.finfo(torch.float32).tiny), 0)
        directions = root @ (vectors * torch.where(known, moments, torch.inf).rsqrt())
        return RetainedInputs(directions.half(), (relative / (relative + DAMPING)).float())


def all_results(sketches: Mapping[str, InputSketch]) -> dict[str, RetainedInputs]:
    """What was seen, by the same names. Neighbours that have read the same, as query, key and value do, share it."""
    found: dict[str, RetainedInputs] = {}
    last: dict[TestMatrix, tuple[Tensor, RetainedInputs]] = {}
    for name, sketch in sketches.items():
        seen, inputs = last.get(sketch.test, (None, None))
        if seen is None or not torch.equal(seen, sketch.sketch):
            inputs = sketch.result()
        last[sketch.test] = sketch.sketch, inputs
        found[name] = inputs
    return found


@contextmanager
def watch_inputs(modules: Mapping[str, nn.Module], seed: int) -> Iterator[dict[str, InputSketch]]:
    """
    Sketch the inputs of modules in all forward passes within.

    Args:
        modules (`dict[str, nn.Module]`):
            Linear layers, or PEFT's layers around them.
        seed (`int`):
            Seed of the sketches. Every process must have the same, and see the same.

    Returns:
        `dict[str, InputSketch]`: By the same names.
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
    """The same for all modules of a width."""
    generator = named_generator(seed, 0, str(width), "retained inputs", device)
    columns = torch.randn(width, min(width, DIRECTIONS), generator=generator, device=device)
    return TestMatrix(torch.linalg.qr(columns).Q)
