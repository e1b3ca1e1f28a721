"""The estimate of a reconstruction's error, and its interval, against its true error."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model, linear_gradients
from torch import Tensor

from r2f_hf.decoders import TikhonovDecoder
from r2f_hf.gradients import LoraSketch, LowRankGradient, check_min_fidelity, estimate_fidelity
from r2f_hf.gradients.fidelity import error_moments
from r2f_hf.probes import GradientSubspace, draw_probes


DRAWS = 60


@pytest.fixture(scope="module")
def gradients(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return linear_gradients(build_model(), batch)


def sketch_of(
    G: Tensor, rank: int, held_out: int, step: int = 0, subspace: GradientSubspace | None = None
) -> LoraSketch:
    A, B = draw_probes(0, step, "module", *G.shape, rank)
    if subspace is not None:
        A, B = subspace.probes(A, B, held_out)
    return LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B, held_out=held_out)


def truth(G: Tensor, reconstruction: LowRankGradient) -> tuple[float, float]:
    guess = reconstruction.U @ reconstruction.V.T
    return torch.cosine_similarity(G.flatten(), guess.flatten(), dim=0).item(), ((G - guess).norm() / G.norm()).item()


def test_estimates_approach_the_true_error_and_cosine(gradients: dict[str, Tensor]) -> None:
    for name, G in gradients.items():
        for rank in (4, 8):
            reconstruction = TikhonovDecoder().decode(sketch_of(G, rank, held_out=0))
            [estimate] = estimate_fidelity([sketch_of(G, 1000, held_out=1000, step=1)], [reconstruction])
            cosine, error = truth(G, reconstruction)
            assert estimate.cosine == pytest.approx(cosine, abs=0.06), name
            assert estimate.relative_error == pytest.approx(error, rel=0.1), name
            assert estimate.cosine_high - estimate.cosine_low < 0.2


@pytest.mark.parametrize("held_out", [2, 4])
@pytest.mark.parametrize("warm", [False, True])
def test_ninety_percent_intervals_cover_the_truth_nine_times_in_ten_and_nothing_is_biased(
    held_out: int, warm: bool, gradients: dict[str, Tensor]
) -> None:
    """On the gradients of a real model: 14 modules and 60 draws."""
    covered, bias = [], []
    subspaces = {
        name: GradientSubspace.after(sketch_of(G, 8, 0, step=DRAWS), None) if warm else None
        for name, G in gradients.items()
    }
    for step in range(DRAWS):
        sketches = [sketch_of(G, 8, held_out, step, subspaces[name]) for name, G in gradients.items()]
        reconstructions = TikhonovDecoder().decode_all(sketches)
        estimates = estimate_fidelity(sketches, reconstructions)
        for G, reconstruction, found in zip(gradients.values(), reconstructions, estimates, strict=True):
            cosine, error = truth(G, reconstruction)
            covered.append(
                [
                    found.cosine_low <= cosine <= found.cosine_high,
                    found.relative_error_low <= error <= found.relative_error_high,
                ]
            )
            bias.append(found.cosine - cosine)
    cosine_coverage, error_coverage = torch.tensor(covered, dtype=torch.float).mean(0).tolist()
    assert 0.85 <= cosine_coverage <= 0.95
    assert 0.85 <= error_coverage <= 0.95
    assert abs(sum(bias) / len(bias)) < 0.01


def test_the_rows_that_were_decoded_flatter_the_reconstruction(gradients: dict[str, Tensor]) -> None:
    """Only rows that the decoder has not seen measure its error: it fits the rows that it has seen."""
    G = gradients["model.layers.0.self_attn.q_proj"]
    sketch = sketch_of(G, 8, held_out=0)
    reconstruction = TikhonovDecoder().decode(sketch)
    fitted = (sketch.Y - reconstruction.matmul(sketch.A.T)).norm() / sketch.Y.norm()
    [honest] = estimate_fidelity([sketch_of(G, 100, held_out=100, step=1)], [reconstruction])
    assert fitted < 1e-3 < 0.1 < honest.relative_error


def test_zeros() -> None:
    G = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    zero = LowRankGradient(torch.zeros(6, 2), torch.zeros(5, 2))
    other = LowRankGradient(G[:, :2], G[:5, :2])
    sketches = [sketch_of(0 * G, 4, held_out=2), sketch_of(G, 4, held_out=2), sketch_of(0 * G, 4, held_out=2)]
    exact, nothing, wrong = estimate_fidelity(sketches, [zero, zero, other])
    assert (exact.cosine, exact.relative_error) == (1.0, 0.0)
    assert (nothing.cosine, nothing.relative_error) == (0.0, 1.0)
    assert wrong.cosine < 0.9


def test_settings_that_cannot_be_measured_are_refused() -> None:
    check_min_fidelity(0.5, 2)
    check_min_fidelity(None, 0)
    for nonsense in (95.0, 1.0, 0.0, -3.0, float("nan")):
        with pytest.raises(ValueError, match="`min_fidelity` is a cosine, above 0 and below 1"):
            check_min_fidelity(nonsense, 2)
    with pytest.raises(ValueError, match="Hold out at least 2 rows, or 0"):
        check_min_fidelity(None, 1)
    with pytest.raises(ValueError, match=r"min_fidelity=0.5 needs rows that measure .* Set `held_out` to 2 or more"):
        check_min_fidelity(0.5, 0)


def test_groups_together_are_measured_as_each_module_alone(gradients: dict[str, Tensor]) -> None:
    decoder, groups = TikhonovDecoder(), {}
    for G in gradients.values():
        groups.setdefault(G.shape, []).append(sketch_of(G, 8, held_out=2))
    assert len(groups) > 1
    stacks = [LoraSketch.stack(sketches) for sketches in groups.values()]
    together = error_moments(stacks, [decoder.decode(stack) for stack in stacks])
    single = [sketch for sketches in groups.values() for sketch in sketches]
    alone = [error_moments([sketch], [decoder.decode(sketch)]) for sketch in single]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-6 * together.abs().max().item())
