"""Retained inputs: what a module gets on the retain set, and updates that it hardly notices there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from r2f_hf.gradients import LowRankGradient
from r2f_hf.updates import InputSketch, RetainedInputs, all_results, share, watch_inputs
from r2f_hf.updates.retained_inputs import DAMPING, DIRECTIONS, draw_test, protect


OUT, INTO = 12, 320


def inputs_of(count: int, seed: int = 0) -> Tensor:
    """Rows with a few directions that are much longer than others, as a model's are."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(INTO, INTO, generator=generator)).Q
    return torch.randn(count, INTO, generator=generator) * 0.8 ** torch.arange(INTO) @ turn


def seen(*batches: Tensor) -> RetainedInputs:
    module = nn.Linear(INTO, OUT)
    with watch_inputs({"module": module}, seed=0) as sketches:
        for batch in batches:
            module(batch)
    return sketches["module"].result()


def gradient(rank: int = 3) -> LowRankGradient:
    generator = torch.Generator().manual_seed(1)
    return LowRankGradient(torch.randn(OUT, rank, generator=generator), torch.randn(INTO, rank, generator=generator))


def dense(found: LowRankGradient) -> Tensor:
    return found.U @ found.V.T


def protected_by(inputs: RetainedInputs) -> LowRankGradient:
    """The gradient of one module without what its retain set would notice."""
    stacked = LowRankGradient(*(getattr(gradient(), side)[None] for side in "UV"))
    return protect(stacked, [inputs]).unbind()[0]


def test_an_update_is_the_gradient_preconditioned_by_the_inputs_second_moments() -> None:
    X = inputs_of(300)
    moments = X.T @ X / (X.square().sum() / INTO)
    expected = dense(gradient()) @ torch.linalg.inv(moments.double() + DAMPING * torch.eye(INTO)).float() * DAMPING
    torch.testing.assert_close(dense(protected_by(seen(X))), expected, rtol=0.02, atol=0.02)


def test_of_fewer_inputs_than_directions_all_is_known() -> None:
    # With more inputs, the weakest directions would be as weak as what counts as rounding.
    X = inputs_of(DIRECTIONS // 16)
    moments = X.T @ X / (X.square().sum() / INTO)
    expected = dense(gradient()) @ torch.linalg.inv(moments.double() + DAMPING * torch.eye(INTO)).float() * DAMPING
    found = seen(X)
    torch.testing.assert_close(dense(protected_by(found)), expected, rtol=0, atol=0.01)
    kept = found.damped > 0
    columns = found.directions[:, kept].float()
    torch.testing.assert_close(columns.T @ columns, torch.eye(int(kept.sum())), rtol=0, atol=1e-3)


def test_it_does_not_matter_how_the_inputs_come() -> None:
    X = inputs_of(120)
    together, apart = seen(X), seen(X[:50].reshape(2, 25, INTO), X[50:])
    torch.testing.assert_close(dense(protected_by(together)), dense(protected_by(apart)), rtol=0, atol=1e-3)


def test_the_retain_set_notices_less_and_the_update_still_goes_along_the_gradient() -> None:
    X, plain = inputs_of(300), gradient()
    protected = protected_by(seen(X))
    # With the same length, and then with the same gain, to first order, along the gradient.
    for scale in (dense(plain).norm() / dense(protected).norm(), dense(plain).square().sum() / protected.inner(plain)):
        noticed = (dense(protected) * scale @ X.T).norm() / (dense(plain) @ X.T).norm()
        assert noticed < 0.4
    assert (dense(protected) * dense(plain)).sum() > 0


def test_a_module_that_was_given_nothing_protects_nothing() -> None:
    for found in (seen(), seen(torch.zeros(5, INTO))):
        torch.testing.assert_close(dense(protected_by(found)), dense(gradient()))


@pytest.mark.parametrize("neighbours", [(0, 1, 2), (0, 0, 1, 1, 2, 2), (0, 0, 1)])
@pytest.mark.parametrize("modules_a_block", [1, 2, 5])
def test_modules_of_one_shape_side_by_side(
    modules_a_block: int, neighbours: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    distinct = [seen(inputs_of(60, seed)) for seed in range(3)]
    found = [distinct[index] for index in neighbours]
    elements = found[0].directions.numel() * modules_a_block
    monkeypatch.setattr("r2f_hf.updates.retained_inputs._BLOCK_ELEMENTS", elements)
    factors = range(1, len(found) + 1)
    stacked = LowRankGradient(
        torch.stack([gradient().U] * len(found)), torch.stack([factor * gradient().V for factor in factors])
    )
    for each, inputs, factor in zip(protect(stacked, found).unbind(), found, factors, strict=True):
        torch.testing.assert_close(dense(each), factor * dense(protected_by(inputs)))


def test_equal_neighbours_are_held_once() -> None:
    inputs = seen(inputs_of(20))
    copies = {name: RetainedInputs(inputs.directions.clone(), inputs.damped.clone()) for name in ("query", "key")}
    other = seen(inputs_of(20, seed=1))
    narrow = RetainedInputs(inputs.directions[:, :5], inputs.damped[:5])
    found = share({**copies, "down": narrow, "value": inputs, "out": other, "gate": inputs})
    assert found["query"] is found["key"] is found["value"] is copies["query"]
    assert (found["down"], found["out"], found["gate"]) == (narrow, other, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sketches_are_taken_in_full_precision(dtype: torch.dtype) -> None:
    X = inputs_of(50)
    sketch, rounded = (InputSketch(draw_test(0, INTO, torch.device("cpu"))) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sketch.see(None, (X.to(dtype),))
    rounded.see(None, (X.to(dtype).float(),))
    torch.testing.assert_close(sketch.sketch, rounded.sketch, rtol=0, atol=0)


def test_modules_that_are_given_the_same() -> None:
    modules = {name: nn.Linear(INTO, OUT) for name in ("query", "key", "value")}
    X = inputs_of(50)
    with watch_inputs(modules, seed=0) as sketches:
        modules["query"](X)
        modules["key"](X)
        X *= 2  # the same tensor, with other numbers
        modules["value"](X)
    torch.testing.assert_close(sketches["key"].sketch, sketches["query"].sketch, rtol=0, atol=0)
    torch.testing.assert_close(sketches["value"].sketch, sketches["query"].sketch * 4)
    found = all_results(sketches)
    assert found["key"] is found["query"]
    assert found["value"] is not found["query"]
    for name, inputs in found.items():
        expected = sketches[name].result()
        torch.testing.assert_close(inputs.directions, expected.directions, rtol=0, atol=0)
        torch.testing.assert_close(inputs.damped, expected.damped, rtol=0, atol=0)


def test_nothing_is_watched_afterwards() -> None:
    module = nn.Linear(INTO, OUT)
    with watch_inputs({"module": module}, seed=0) as sketches:
        module(inputs_of(3))
    before = sketches["module"].squares.clone()
    module(inputs_of(3))
    assert sketches["module"].squares == before > 0
