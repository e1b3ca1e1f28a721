"""Updates reach the weight: exactly if it has enough bits for them, and otherwise on average."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model, changed, weights
from torch import Tensor

from r2f_hf.gradients import LowRankGradient
from r2f_hf.updates import add_low_rank_, add_low_rank_all_, align_, stochastic_round
from r2f_hf.updates.weights import draw_noise, fused_update


def draw(out_features: int, in_features: int, rank: int = 3) -> tuple[Tensor, LowRankGradient]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=generator)
    U, V = (torch.randn(size, rank, generator=generator) for size in (out_features, in_features))
    return weight, LowRankGradient(U, V)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_update_equals_the_dense_one(dtype: torch.dtype, transposed: bool) -> None:
    weight, gradient = draw(12, 7)
    weight = weight.to(dtype)
    expected = weight - 0.25 * (gradient.U @ gradient.V.T).to(dtype)
    stored = weight.T.contiguous() if transposed else weight
    before = stored.data_ptr()
    add_low_rank_(stored, gradient, -0.25, transposed=transposed)
    assert stored.data_ptr() == before
    torch.testing.assert_close(stored.T if transposed else stored, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_update_below_half_a_unit_survives_in_the_mean(dtype: torch.dtype, transposed: bool) -> None:
    # The weight is larger than one of the blocks of rows that are rounded at a time.
    weight, gradient = draw(384, 1024)
    weight = weight.to(dtype)
    alpha = 1e-4 if dtype == torch.bfloat16 else 1e-5
    update = alpha * gradient.U @ gradient.V.T
    stored = weight.T.contiguous() if transposed else weight.clone()
    add_low_rank_(stored, gradient, alpha, transposed=transposed, generator=torch.Generator().manual_seed(1))
    moved = (stored.T if transposed else stored).float() - weight.float()
    nearest = (weight.float() + update).to(dtype).float() - weight.float()

    def survives(step: Tensor) -> Tensor:
        """What part of each half of the update is in a step, by regression."""
        return torch.stack(
            [(s * u).sum() / u.square().sum() for s, u in zip(step.chunk(2), update.chunk(2), strict=True)]
        )

    assert survives(nearest).max() < 0.5
    torch.testing.assert_close(survives(moved), torch.ones(2), atol=0.08, rtol=0)


CASES = [
    *((torch.bfloat16, value) for value in (1.003, -1.003, 0.1, 255.3, 3e-39, -1e-40, 1e-36, 2e38)),
    *((torch.float16, value) for value in (1.0003, -0.1, 65503.0, 6.0e-5, 3e-8, -1e-6)),
]


def noise_of(count: int) -> Tensor:
    return draw_noise((1, count), torch.device("cpu"), torch.Generator().manual_seed(0))[0]


def test_noise_is_uniform_and_neighbours_are_not_alike() -> None:
    noise = draw_noise((333, 101), torch.device("cpu"), torch.Generator().manual_seed(0))
    assert noise.shape == (333, 101) and noise.dtype == torch.int32
    assert noise.min() >= 0 and noise.max() < 2**16
    counts = torch.histc(noise.float(), 16, 0, 2**16)
    expected = noise.numel() / 16
    assert ((counts - expected).square() / expected).sum() < 45
    entries = noise.flatten()[: noise.numel() // 4 * 4].view(-1, 4).double()
    correlation = torch.corrcoef(torch.cat([entries[1:], entries[:-1]], dim=1).T) - torch.eye(8)
    assert correlation.abs().max() < 0.05


@pytest.mark.parametrize("part", [0.02, 0.5])
@pytest.mark.parametrize("size", [(170, 1536), (18, 14336)])
def test_rounding_errors_add_up_in_no_direction(size: tuple[int, int], part: float) -> None:
    """The errors are as large as those of independent numbers, not only entry by entry but also as a matrix."""
    independent = size[0] ** 0.5 + size[1] ** 0.5
    for seed in range(5):
        noise = draw_noise(size, torch.device("cpu"), torch.Generator().manual_seed(seed))
        errors = ((noise < part * 2**16).double() - part) / (part * (1 - part)) ** 0.5
        assert torch.linalg.matrix_norm(errors, 2) < 1.2 * independent


def test_noise_has_rows_of_its_own_for_more_rows_than_places() -> None:
    noise = draw_noise((20_000, 3), torch.device("cpu"), torch.Generator().manual_seed(0))
    assert noise.shape == (20_000, 3)
    assert len(noise.unique(dim=0)) > 19_900


@pytest.mark.parametrize(("dtype", "value"), CASES)
def test_rounding_is_unbiased_between_the_two_neighbours(dtype: torch.dtype, value: float) -> None:
    draws = 20_000
    x = torch.full((draws,), value)
    rounded = stochastic_round(x, dtype, noise_of(draws))
    assert rounded.dtype == dtype
    low, high = rounded.double().aminmax()
    assert low < x[0] < high
    # Floats of one sign and neighbouring bit patterns have nothing between them.
    bits = rounded.view(torch.int16).int()
    assert bits.max() - bits.min() == 1
    assert rounded.double().mean().item() == pytest.approx(x[0].item(), abs=2.5 * (high - low).item() / draws**0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_the_format_are_left_as_they_are(dtype: torch.dtype) -> None:
    exact = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    exact = exact[exact.isfinite()]
    rounded = stochastic_round(exact.float(), dtype, noise_of(exact.numel()).view(exact.shape))
    assert torch.equal(rounded, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_generator_decides(dtype: torch.dtype) -> None:
    def update(seed: int) -> Tensor:
        weight, gradient = draw(64, 64)
        weight = weight.to(dtype)
        add_low_rank_(weight, gradient, 1e-3, generator=torch.Generator().manual_seed(seed))
        return weight

    assert torch.equal(update(0), update(0))
    assert not torch.equal(update(0), update(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_several_weights_are_written_as_each_is_alone(dtype: torch.dtype, transposed: bool) -> None:
    weight, gradient = draw(48, 32)
    pairs = [(factor * weight, LowRankGradient(factor * gradient.U, gradient.V)) for factor in (1, 2, 3)]
    stored = [(weight.T if transposed else weight).to(dtype).contiguous() for weight, _ in pairs]
    alone = [weight.clone() for weight in stored]
    gradients = LowRankGradient(*(torch.stack([getattr(found, side) for _, found in pairs]) for side in "UV"))
    alphas, seeds = [0.1, 0.0, -0.2], [3, 4, -5]
    add_low_rank_all_(stored, gradients, alphas, seeds, transposed)
    for weight, (_, gradient), alpha, seed in zip(alone, pairs, alphas, seeds, strict=True):
        if alpha:
            add_low_rank_(weight, gradient, alpha, transposed, torch.Generator().manual_seed(seed))
    for mine, theirs in zip(stored, alone, strict=True):
        assert torch.equal(mine, theirs)


def test_modules_that_share_a_weight_are_written_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one launch, one module would lose what the other adds."""
    weight, gradient = draw(8, 6)
    gradients = LowRankGradient(torch.stack([gradient.U] * 3), torch.stack([gradient.V] * 3))
    launches = []

    def add(values: list[Tensor], modules: list[int], left: Tensor, right: Tensor, alphas: list[float], *_) -> None:
        launches.append(len(values))
        assert len({each.data_ptr() for each in values}) == len(values)
        for each, module in zip(values, modules, strict=True):
            each.addmm_(left[module], right[module].T, alpha=alphas[module])

    monkeypatch.setattr("r2f_hf.updates.weights.fused_update", lambda *_: add)
    other, expected = weight.clone(), weight + (1 + 3) * gradient.U @ gradient.V.T
    add_low_rank_all_([weight, other, weight], gradients, [1.0, 2.0, 3.0], [0, 1, 2])
    torch.testing.assert_close(weight, expected)
    assert launches == [2, 1]


def test_only_half_precision_is_rounded_in_one_pass() -> None:
    assert fused_update(torch.device("cuda"), torch.float32) is None
    assert fused_update(torch.device("cpu"), torch.bfloat16) is None


def test_weights_are_moved_to_a_cache_lines_begin_and_stay_tied() -> None:
    model = build_model("tied llama")
    before = weights(model)
    for parameter in model.parameters():
        # One number after the beginning of a cache line.
        parameter.data = torch.empty(parameter.numel() + 1)[1:].view_as(parameter).copy_(parameter.data)
    assert all(parameter.data_ptr() % 64 for parameter in model.parameters())
    align_(model.parameters())
    assert not any(parameter.data_ptr() % 64 for parameter in model.parameters())
    assert not changed(before, weights(model))
    assert model.lm_head.weight is model.get_input_embeddings().weight
