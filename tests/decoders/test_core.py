"""The core of a sketch: what is known of a gradient is kept, and only the filter decides on the rest."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model, linear_gradients
from torch import Tensor

from r2f_hf.decoders import GradientDecoder, SketchCore, SpectralDecoder, TikhonovDecoder
from r2f_hf.decoders.core import orthonormalizers
from r2f_hf.gradients import LoraSketch, LowRankGradient
from r2f_hf.probes import draw_probes


# Rows of a module's gradient, and the rank that it is probed with.
SHAPES = [(30, 8), (24, 8), (30, 5)]


def sketch_of(G: Tensor, rank: int = 8, held_out: int = 0) -> LoraSketch:
    A, B = draw_probes(0, 0, "module", *G.shape, rank)
    return LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B, held_out=held_out)


@pytest.fixture
def G() -> Tensor:
    return torch.randn(30, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("held_out", [0, 3])
@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_every_reconstruction_agrees_with_both_sketches(held_out: int, phi: float, G: Tensor) -> None:
    sketch = sketch_of(G, held_out=held_out)
    core = SketchCore.of(sketch)
    gradient = core.reconstruct(phi * core.inverse_sigma)
    dense = gradient.U @ gradient.V.T
    torch.testing.assert_close(dense @ sketch.right_probe.T, sketch.right, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sketch.B.T @ dense, sketch.Z, atol=1e-4, rtol=1e-4)


def test_agreeing_with_the_sketches_pays(batch: dict[str, Tensor]) -> None:
    """Against the plain Nyström form `Y φ(C) Z`."""
    tau, gains = 0.1, []
    for G in linear_gradients(build_model(), batch).values():
        sketch = sketch_of(G)
        P, sigma, Qh = torch.linalg.svd(sketch.B.T @ sketch.Y)
        nystrom = sketch.Y @ (Qh.T * (sigma / (sigma**2 + (tau * sigma[0]) ** 2))) @ P.T @ sketch.Z
        found = TikhonovDecoder(tau).decode(sketch)
        cosines = [torch.cosine_similarity(G.flatten(), X.flatten(), dim=0) for X in (nystrom, found.U @ found.V.T)]
        gains.append((cosines[1] - cosines[0]).item())
    assert sum(gains) / len(gains) > 0.01


def test_the_missing_block_is_the_sum_of_its_terms(G: Tensor) -> None:
    core = SketchCore.of(sketch_of(G))
    phi = torch.linspace(0, 1, 8)
    whole, known = core.reconstruct(phi), core.reconstruct(torch.zeros(8))
    Y, Z = core.terms
    expected = (Y * phi) @ Z.T
    torch.testing.assert_close(whole.U @ whole.V.T - known.U @ known.V.T, expected, atol=1e-4, rtol=1e-4)
    # The missing block holds nothing that the sketches know.
    torch.testing.assert_close(core.left_basis.T @ expected, torch.zeros(8, 20), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kept", [0, 3])
def test_probes_that_lack_directions_only_lose_those(kept: int, G: Tensor) -> None:
    """PEFT starts with `B = 0`: there is no left sketch, and the projection onto `A` remains."""
    sketch = sketch_of(G)
    sketch.B[:, kept:] = 0
    sketch.Z[kept:] = 0
    core = SketchCore.of(sketch)
    gradient = core.reconstruct(core.inverse_sigma)
    assert gradient.U.isfinite().all() and gradient.V.isfinite().all()
    if kept == 0:
        basis, _ = torch.linalg.qr(sketch.A.T)
        torch.testing.assert_close(gradient.U @ gradient.V.T, G @ basis @ basis.T, atol=1e-4, rtol=1e-4)


def test_orthonormal_columns_or_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(2, 50, 6, generator=generator)
    basis[1, :, 4:] = basis[1, :, :2]
    columns = basis @ orthonormalizers([basis])[0]
    gram = columns.mT @ columns
    torch.testing.assert_close(gram[0], torch.eye(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(gram[1].diagonal(), torch.tensor([0.0, 0, 1, 1, 1, 1]), atol=1e-5, rtol=0)


def test_modules_of_one_shape_are_decoded_as_one_would_be(G: Tensor) -> None:
    sketches = [sketch_of(G, held_out=2), sketch_of(2 * G.flip(0), held_out=2), sketch_of(G[:24], held_out=2)]
    decoder = TikhonovDecoder()
    for sketch, together in zip(sketches, decoder.decode_all(sketches), strict=True):
        alone = decoder.decode(sketch)
        torch.testing.assert_close(together.U @ together.V.T, alone.U @ alone.V.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [TikhonovDecoder, SpectralDecoder])
def test_groups_of_modules_are_decoded_as_each_is_alone(kind: type[GradientDecoder], G: Tensor) -> None:
    torch.manual_seed(0)
    decoder = kind()
    shapes = [[sketch_of(factor * G[:rows], rank, held_out=2) for factor in (1, 3)] for rows, rank in SHAPES]
    decoded = decoder.decode_all([LoraSketch.stack(sketches) for sketches in shapes])
    for sketches, together in zip(shapes, decoded, strict=True):
        for sketch, one in zip(sketches, together.unbind(), strict=True):
            with torch.no_grad():
                alone = decoder.decode(sketch)
            torch.testing.assert_close(one.U @ one.V.T, alone.U @ alone.V.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", [GradientDecoder, TikhonovDecoder, SpectralDecoder])
def test_a_subclass_that_decodes_in_its_own_way_is_asked(base: type[GradientDecoder], G: Tensor) -> None:
    class RightSketchAlone(base):
        def decode(self, sketch: LoraSketch) -> LowRankGradient:
            # A group comes as it is, and a single sketch comes stacked.
            assert sketch.Y.ndim == 3
            return LowRankGradient(sketch.right, sketch.right_probe.mT)

    group, single = LoraSketch.stack([sketch_of(G), sketch_of(2 * G)]), sketch_of(3 * G)
    of_group, of_single = RightSketchAlone().decode_all([group, single])
    assert torch.equal(of_group.U, group.right) and torch.equal(of_single.U, single.right)
