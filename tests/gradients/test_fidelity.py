"""The estimate of a reconstruction's error against its true error."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model, linear_gradients
from torch import Tensor

from r2f_hf.decoders import TikhonovDecoder
from r2f_hf.gradients import LoraSketch, LowRankGradient, draw_probes, estimate_fidelity


MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture(scope="module")
def gradients(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return linear_gradients(build_model(), batch)


def sketch_of(G: Tensor, rank: int, held_out: int, step: int = 0) -> LoraSketch:
    A, B = draw_probes(0, step, "module", *G.shape, rank)
    return LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B, held_out=held_out)


@pytest.mark.parametrize("name", MODULES)
def test_estimates_approach_the_true_error_and_cosine(name: str, gradients: dict[str, Tensor]) -> None:
    G = gradients[name]
    for rank in (2, 4, 8):
        reconstruction = TikhonovDecoder().decode(sketch_of(G, rank, held_out=0))
        guess = reconstruction.U @ reconstruction.V.T
        estimate = estimate_fidelity(sketch_of(G, 16_000, held_out=8000, step=1), reconstruction)
        assert estimate.relative_error == pytest.approx(((G - guess).norm() / G.norm()).item(), rel=0.06)
        assert estimate.cosine == pytest.approx((G * guess).sum().item() / (G.norm() * guess.norm()).item(), rel=0.06)


@pytest.mark.parametrize("name", MODULES)
def test_two_held_out_rows_estimate_the_squared_error_without_bias(name: str, gradients: dict[str, Tensor]) -> None:
    G = gradients[name]
    found, true = [], []
    for step in range(500):
        sketch = sketch_of(G, 8, held_out=2, step=step)
        reconstruction = TikhonovDecoder().decode(sketch)
        norm = G.shape[1] / 2 * sketch.Y[:, 6:].square().sum()
        found.append(estimate_fidelity(sketch, reconstruction).relative_error ** 2 * norm)
        true.append((G - reconstruction.U @ reconstruction.V.T).square().sum())
    assert (sum(found) / sum(true)).item() == pytest.approx(1, abs=0.1)


def test_the_rows_that_were_decoded_flatter_the_reconstruction(gradients: dict[str, Tensor]) -> None:
    """Only rows that the decoder has not seen measure its error; with `tau` near zero it fits those that it has."""
    sketch = sketch_of(gradients[MODULES[0]], 8, held_out=0)
    reconstruction = TikhonovDecoder(tau=1e-6).decode(sketch)
    fitted = (sketch.Y - reconstruction.matmul(sketch.A.T)).norm() / sketch.Y.norm()
    honest = estimate_fidelity(sketch_of(gradients[MODULES[0]], 100, held_out=100, step=1), reconstruction)
    assert fitted < 1e-2 < 0.1 < honest.relative_error


def test_zeros() -> None:
    G = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    zero = LowRankGradient(torch.zeros(6, 2), torch.zeros(5, 2))
    assert estimate_fidelity(sketch_of(0 * G, 4, held_out=2), zero) == (0.0, 1.0)
    assert estimate_fidelity(sketch_of(G, 4, held_out=2), zero) == (1.0, 0.0)
    assert estimate_fidelity(sketch_of(0 * G, 4, held_out=2), LowRankGradient(G[:, :2], G[:5, :2])) == (1.0, 0.0)
