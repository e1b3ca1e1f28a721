"""Subspaces: probes along them see more of gradients that share their directions."""

from __future__ import annotations

import torch
from torch import Tensor

from r2f_hf.gradients import LoraSketch
from r2f_hf.probes import GradientSubspace, draw_probes
from r2f_hf.probes.subspace import WEAKEST


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


def test_rounding_moves_no_direction_that_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, RANK, generator=generator, dtype=torch.float64) for size in (60, 40))
    weights = torch.logspace(0, -3, RANK, dtype=torch.float64)
    G = torch.linalg.qr(left).Q * weights @ torch.linalg.qr(right).Q.T
    A, B = draw_probes(0, 0, "module", *G.shape, RANK)
    exact = LoraSketch(Y=G @ A.double().T, Z=B.double().T @ G, A=A.double(), B=B.double())
    expected = GradientSubspace.after(exact, None)
    rounded = GradientSubspace.after(LoraSketch(exact.Y.float(), exact.Z.float(), A, B), None)
    for side in ("left", "right"):
        theirs, mine = getattr(expected, side), getattr(rounded, side).double()
        norms = theirs.norm(dim=0)
        cosines = ((mine * theirs).sum(0) / mine.norm(dim=0) / norms)[norms > WEAKEST * norms[0]]
        assert len(cosines) > 4
        assert (1 - cosines.square()).clamp_min(0).sqrt().max() < 1e-4


def test_gradients_that_vanish_or_lack_rank_leave_usable_probes() -> None:
    zero, thin = torch.zeros(60, 40), torch.ones(60, 40)
    subspace = None
    for step, G in enumerate([zero, thin, zero, thin]):
        subspace = GradientSubspace.after(sketch_of(G, step, subspace), subspace)
        A, B = draw_probes(0, step + 9, "module", *G.shape, RANK)
        for probe in subspace.probes(A, B, random_rows=2):
            assert probe.isfinite().all()
            assert torch.linalg.matrix_rank(probe) == RANK
