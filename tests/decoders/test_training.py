"""Training on a proxy: pairs give the cosines that decoding gives, and a fit is better than the plain inverse."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model, linear_gradients
from torch import Tensor

from r2f_hf.decoders import SpectralDecoder
from r2f_hf.decoders.training import FilterPairs, collect_pairs, fit, full_gradients, layer_of, proxy_modules
from r2f_hf.gradients import LoraSketch
from r2f_hf.probes import draw_probes


def sketch_of(G: Tensor, rank: int = 8) -> LoraSketch:
    A, B = draw_probes(0, 0, "module", *G.shape, rank)
    return LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_are_autograds(kind: str, batch: dict[str, Tensor]) -> None:
    truth = linear_gradients(build_model(kind), batch)
    model = build_model(kind).eval()
    found = full_gradients(model, batch, list(truth))
    assert found.keys() == truth.keys()
    for name, G in found.items():
        torch.testing.assert_close(G, truth[name], atol=1e-6, rtol=1e-4)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_a_pair_gives_the_cosine_that_decoding_would_have(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    decoder = SpectralDecoder()
    for G in linear_gradients(build_model(), batch).values():
        sketch = sketch_of(G)
        pair = FilterPairs.of(sketch, G)
        with torch.no_grad():
            found = decoder.decode(sketch)
            expected = torch.cosine_similarity((found.U @ found.V.T).flatten(), G.flatten(), dim=0)
            assert pair.cosine(decoder.gate_of(pair.features)).item() == pytest.approx(expected.item(), abs=1e-4)


def test_modules_of_a_proxy_leave_out_the_head() -> None:
    model = build_model()
    names = proxy_modules(model, 1000, seed=0)
    assert len(names) == 14 and "lm_head" not in names
    some = proxy_modules(model, 5, seed=1)
    assert len(some) == 5 and set(some) < set(names)
    assert [layer_of(name) for name in names] == [0] * 7 + [1] * 7


@pytest.fixture(scope="module")
def pairs(batch: dict[str, Tensor]) -> dict[tuple[int, str], FilterPairs]:
    model = build_model().eval()
    batches = [
        {key: value[index : index + 2] for key, value in batch.items()} for index in range(len(batch["labels"]) - 1)
    ]
    names = proxy_modules(model, 14, seed=0)
    return collect_pairs(model, batches, names, ranks=[4, 8], seed=0, disable_tqdm=True)


def test_a_fit_is_better_than_the_plain_inverse_and_the_same_every_time(
    pairs: dict[tuple[int, str], FilterPairs],
) -> None:
    decoders = []
    for _ in range(2):
        torch.manual_seed(0)
        decoder = SpectralDecoder(channels=8)
        results = fit(decoder, pairs, steps=60, learning_rate=0.01, seed=0, disable_tqdm=True)
        decoders.append(decoder)
    assert results.keys() == {4, 6, 8}
    for rank in (4, 8):
        gates = torch.ones_like(pairs[rank, "train"].inner)
        assert results[rank]["train"] > pairs[rank, "train"].cosine(gates).mean().item() + 0.05
    for mine, other in zip(decoders[0].parameters(), decoders[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)
