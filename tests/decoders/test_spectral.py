"""The learned filter: bounded, blind to scale, and on other models nearly as good as fixed thresholds in hindsight."""

from __future__ import annotations

import pytest
import torch
from conftest import CONFIGS, build_model, linear_gradients
from torch import Tensor

from r2f_hf.decoders import SketchCore, SpectralDecoder, TikhonovDecoder, load_decoder
from r2f_hf.decoders.spectral import spectral_features
from r2f_hf.gradients import LoraSketch
from r2f_hf.probes import draw_probes


def sketch_of(G: Tensor, rank: int = 8, seed: int = 0) -> LoraSketch:
    A, B = draw_probes(seed, 0, "module", *G.shape, rank)
    return LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B)


def core_of(sigma: Tensor, generator: torch.Generator) -> SketchCore:
    """A core with given singular values between random sketches."""
    *batch, k = sigma.shape
    left_basis, right_basis = torch.eye(24, k).expand(*batch, 24, k), torch.eye(20, k).expand(*batch, 20, k)
    eye = torch.eye(k).expand(*batch, k, k)
    scale = sigma[..., :1, None]
    right = left_basis * sigma.unsqueeze(-2) + scale * torch.randn(*batch, 24, k, generator=generator)
    left = right_basis * sigma.unsqueeze(-2) + scale * torch.randn(*batch, 20, k, generator=generator)
    grams = (side.double().mT @ side.double() for side in (right, left))
    return SketchCore(right, left, right_basis, left_basis, eye, sigma, eye, *grams)


def test_a_million_random_spectra_give_no_nan_and_no_gain_above_the_inverse() -> None:
    decoder = load_decoder("spectral")
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        exponents = 60 * torch.rand(20_000, 4, generator=generator) - 30
        sigma = (10**exponents).sort(-1, descending=True).values
        sigma[:100] = 0
        sigma[100:200, 2:] = 0
        with torch.no_grad():
            core = core_of(sigma, generator)
            gate = decoder.gate(core)
            phi = gate * core.inverse_sigma
        assert gate.isfinite().all() and ((gate >= 0) & (gate <= 1)).all()
        assert phi.isfinite().all() and (phi * sigma <= 1 + 1e-5).all()


def test_the_features_do_not_know_the_scale_of_the_loss() -> None:
    G = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    plain, scaled = spectral_features([SketchCore.of(sketch_of(factor * G)) for factor in (1.0, 1e-6)])
    torch.testing.assert_close(plain, scaled, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("kind", CONFIGS)
def test_keeps_up_with_the_best_fixed_threshold_on_models_it_never_saw(kind: str, batch: dict[str, Tensor]) -> None:
    """The shipped decoder, trained on SmolLM2, on four tiny architectures. The thresholds are chosen in hindsight."""
    taus = (0.01, 0.03, 0.05, 0.1, 0.2, 0.3)
    decoders = {"spectral": load_decoder("spectral")} | {f"tau {tau}": TikhonovDecoder(tau) for tau in taus}
    cosines: dict[str, list[Tensor]] = {name: [] for name in decoders}
    for G in linear_gradients(build_model(kind), batch).values():
        for seed in range(4):
            sketch = sketch_of(G, seed=seed)
            for name, decoder in decoders.items():
                with torch.no_grad():
                    found = decoder.decode(sketch)
                cosines[name].append(torch.cosine_similarity((found.U @ found.V.T).flatten(), G.flatten(), dim=0))
    means = {name: torch.stack(found).mean().item() for name, found in cosines.items()}
    learned = means.pop("spectral")
    assert learned > max(means.values()) - 0.005


def test_any_rank_and_any_precision_is_decoded_in_fp32() -> None:
    G = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    decoder = load_decoder("spectral")
    for rank in (1, 3, 20):
        assert decoder.decode(sketch_of(G, rank)).U.isfinite().all()
    exact = decoder.decode(sketch_of(G))
    for dtype in (torch.bfloat16, torch.float16):
        A, B = (probe.to(dtype) for probe in draw_probes(0, 0, "module", 30, 20, 8))
        sketch = LoraSketch.from_lora_gradients(
            (B.T.float() @ G).to(dtype), (G @ A.T.float()).to(dtype), A, B, scaling=1.0
        )
        found = decoder.decode(sketch)
        assert found.U.dtype == torch.float32
        pair = [(x.U @ x.V.T).flatten() for x in (exact, found)]
        assert torch.cosine_similarity(*pair, dim=0) > 0.98


def test_a_zero_gradient_decodes_to_zero() -> None:
    found = load_decoder("spectral").decode(sketch_of(torch.zeros(30, 20)))
    assert torch.equal(found.U @ found.V.T, torch.zeros(30, 20))


def test_its_size_is_that_of_a_filter() -> None:
    assert sum(parameter.numel() for parameter in SpectralDecoder().parameters()) < 2000
