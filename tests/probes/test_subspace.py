"""Subspaces: probes along them see more of gradients that share their directions."""

from __future__ import annotations

import torch
from torch import Tensor

from r2f_hf.gradients import LoraSketch
from r2f_hf.probes import GradientSubspace, draw_probes


RANK = 8


def gradients(count: int) -> list[Tensor]:
    """Noisy gradients, orthogonal to each other on average, that share a column and a row space of dimension 5."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(60, 5, generator=generator), torch.randn(5, 40, generator=generator)
    noise = [0.3 * torch.randn(60, 40, generator=generator) for _ in range(count)]
    return [left @ torch.randn(5, 5, generator=generator) @ right + part for part in noise]


def sketch_of(G: Tensor, step: int, subspace: GradientSubspace | None, held_out: int = 2) -> LoraSketch:
    A, B = draw_probes(0, step, "module", *G.shape, RANK)
    if subspace is not None:
        A, B = subspace.probes(A, B, held_out)
    return LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B, held_out=held_out)


def energy_seen(G: Tensor, basis: Tensor) -> float:
    q, _ = torch.linalg.qr(basis)
    return ((q.T @ G).norm() / G.norm()).item()


def test_warm_probes_turn_to_the_gradients_subspaces() -> None:
    subspace = None
    for step, G in enumerate(gradients(6)):
        sketch = sketch_of(G, step, subspace)
        subspace = GradientSubspace.after(sketch, subspace)
    [*_, G] = gradients(7)
    A, B = draw_probes(0, 9, "module", *G.shape, RANK)
    warm_A, warm_B = subspace.probes(A, B, random_rows=2)
    assert energy_seen(G, B) < 0.7 and energy_seen(G.T, A[:6].T) < 0.7
    assert energy_seen(G, warm_B) > 0.9 and energy_seen(G.T, warm_A[:6].T) > 0.9


def test_held_out_rows_stay_random() -> None:
    G = gradients(1)[0]
    subspace = GradientSubspace.after(sketch_of(G, 0, None), None)
    A, B = draw_probes(0, 1, "module", *G.shape, RANK)
    warm, _ = subspace.probes(A, B, random_rows=3)
    assert torch.equal(warm[5:], A[5:])
    assert not torch.isclose(warm[:5], A[:5]).any(1).all()


def test_the_state_is_orthogonal_and_as_large_as_the_probes() -> None:
    subspace = None
    for step, G in enumerate(gradients(4)):
        subspace = GradientSubspace.after(sketch_of(G, step, subspace), subspace)
    assert subspace.left.shape == (60, RANK) and subspace.right.shape == (40, RANK)
    gram = subspace.left.T @ subspace.left
    torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-5, rtol=0)
    assert (gram.diagonal().diff() <= 1e-6).all()


def test_gradients_that_vanish_or_lack_rank_leave_usable_probes() -> None:
    zero, thin = torch.zeros(60, 40), torch.ones(60, 40)
    subspace = None
    for step, G in enumerate([zero, thin, zero, thin]):
        subspace = GradientSubspace.after(sketch_of(G, step, subspace), subspace)
        A, B = draw_probes(0, step + 9, "module", *G.shape, RANK)
        for probe in subspace.probes(A, B, random_rows=2):
            assert probe.isfinite().all()
            assert torch.linalg.matrix_rank(probe) == RANK
