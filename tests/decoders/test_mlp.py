"""The paper's decoder: it serves the shape and the probes that it was trained for, and no others."""

from __future__ import annotations

import pytest
import torch

from r2f_hf.decoders import MlpDecoder
from r2f_hf.gradients import LoraSketch
from r2f_hf.probes import draw_probes


def sketch_of(G: torch.Tensor, held_out: int = 0) -> LoraSketch:
    A, B = draw_probes(0, 0, "module", *G.shape, 4)
    return LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B, held_out=held_out)


def test_it_learns_gradients_of_low_rank_under_fixed_probes() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(12, 2, generator=generator), torch.randn(2, 10, generator=generator)
    gradients = [left @ torch.randn(2, 2, generator=generator) @ right for _ in range(80)]
    torch.manual_seed(0)
    decoder = MlpDecoder(12, 10, 4, hidden=32)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    training = LoraSketch.stack([sketch_of(G) for G in gradients[:64]])
    truth = torch.stack(gradients[:64]).flatten(1)
    for _ in range(200):
        found = decoder.decode(training)
        loss = 1 - torch.cosine_similarity((found.U @ found.V.mT).flatten(1), truth).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = decoder.decode(LoraSketch.stack([sketch_of(G) for G in gradients[64:]]))
    cosine = torch.cosine_similarity((found.U @ found.V.mT).flatten(1), torch.stack(gradients[64:]).flatten(1))
    assert cosine.mean() > 0.9


def test_held_out_rows_are_never_used_and_zero_decodes_to_zero() -> None:
    decoder = MlpDecoder(12, 10, 4)
    sketch = sketch_of(torch.randn(12, 10, generator=torch.Generator().manual_seed(0)), held_out=2)
    expected = decoder.decode(sketch).U
    sketch.Y[:, 2:] = 1e6
    assert torch.equal(decoder.decode(sketch).U, expected)
    assert not decoder.decode(sketch_of(torch.zeros(12, 10))).U.any()


def test_above_its_limit_it_refuses_and_names_the_limit() -> None:
    with pytest.raises(ValueError, match=r"would have 1,098,907,712 parameters; the limit is 100,000,000"):
        MlpDecoder(4096, 4096, 16)


def test_another_shape_or_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="for 12 x 10 modules at rank 4, the sketch is of a 10 x 12 module at rank 4"):
        MlpDecoder(12, 10, 4).decode(sketch_of(torch.zeros(10, 12)))
