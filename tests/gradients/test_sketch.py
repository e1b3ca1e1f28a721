"""Sketches: what LoRA gradients say about the full gradient, and where the probes come from."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, build_model, linear_gradients, read_sketches
from torch import Tensor

from r2f_hf import R2FConfig
from r2f_hf.gradients import LoraSketch, named_generator
from r2f_hf.models.wrapping import wrap
from r2f_hf.probes import draw_probes, find_probes, group_probes


@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_gradients_are_both_sketches_of_autograds_gradient(
    kind: str, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    original = build_model(kind)
    truth = linear_gradients(original, batch)
    model = wrap(copy.deepcopy(original), R2FConfig(str(tmp_path), rank=8, use_cpu=True)).eval()
    for group in group_probes(find_probes(model)):
        group.draw(seed=3, step=7)
    model(**batch).loss.backward()

    sketches = read_sketches(model, held_out=2)
    assert sketches.keys() == truth.keys()
    for name, sketch in sketches.items():
        G = truth[name]
        A, B = draw_probes(3, 7, name, *G.shape, rank=8)
        assert torch.equal(sketch.A, A) and torch.equal(sketch.B, B)
        close = {"atol": 1e-4 * G.norm().item(), "rtol": 0}
        torch.testing.assert_close(sketch.Y, G @ A.T, **close)
        torch.testing.assert_close(sketch.Z, B.T @ G, **close)
        torch.testing.assert_close(sketch.right, (G @ A.T)[:, :6], **close)
        torch.testing.assert_close(sketch.right_probe, A[:6])
        # Both sketches hold the core.
        torch.testing.assert_close(B.T @ sketch.right, sketch.Z @ sketch.right_probe.T, **close)


@pytest.mark.parametrize("kind", CONFIGS)
def test_probes_do_not_disturb_the_forward_pass(kind: str, batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = build_model(kind).eval()
    with torch.no_grad():
        expected = model(**batch).logits
    wrapped = wrap(model, R2FConfig(str(tmp_path), rank=8, use_cpu=True)).eval()
    for group in group_probes(find_probes(wrapped)):
        group.draw(seed=0, step=0)
    for probe in find_probes(wrapped):
        assert probe.A.norm() > 1 and probe.B.norm() > 1
    with torch.no_grad():
        torch.testing.assert_close(wrapped(**batch).logits, expected, atol=1e-4, rtol=0)


def test_draws_depend_on_seed_step_and_name_alone() -> None:
    arguments = {"seed": 1, "step": 2, "module_name": "model.layers.0.up_proj"}
    sizes = {"out_features": 48, "in_features": 32, "rank": 8}
    torch.manual_seed(0)
    A, B = draw_probes(**arguments, **sizes)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = draw_probes(**arguments, **sizes)
    assert torch.equal(A, again[0]) and torch.equal(B, again[1])
    assert torch.equal(state, torch.get_rng_state())
    for change in ({"seed": 2}, {"step": 1}, {"module_name": "model.layers.1.up_proj"}):
        other = draw_probes(**arguments | change, **sizes)
        for draw, changed in zip((A, B), other, strict=True):
            assert torch.corrcoef(torch.stack([draw.flatten(), changed.flatten()]))[0, 1].abs() < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_do_not_depend_on_the_order_of_modules(dtype: torch.dtype, tmp_path: Path) -> None:
    model = wrap(build_model(dtype=dtype), R2FConfig(str(tmp_path), rank=8, use_cpu=True))
    probes = find_probes(model)
    for group in group_probes(probes[::-1]):
        group.draw(seed=5, step=0)
    for probe in probes:
        A, B = draw_probes(5, 0, probe.name, probe.layer.out_features, probe.layer.in_features, 8)
        assert torch.equal(probe.A, A.to(probe.A.dtype)) and torch.equal(probe.B, B.to(probe.B.dtype))


def test_draws_are_gaussian_with_the_variances_that_make_the_estimate_unbiased() -> None:
    A, B = draw_probes(0, 0, "module", out_features=512, in_features=128, rank=256)
    assert A.dtype == B.dtype == torch.float32 and A.shape == (256, 128) and B.shape == (512, 256)
    for draw, size in ((A, 128), (B, 512)):
        standard = draw * size**0.5
        assert standard.mean().item() == pytest.approx(0, abs=0.03)
        assert standard.var().item() == pytest.approx(1, abs=0.05)
        assert standard.pow(4).mean().item() == pytest.approx(3, abs=0.2)
    A, B = draw_probes(0, 0, "module", out_features=128, in_features=128, rank=256)
    assert (torch.corrcoef(torch.stack([A.flatten(), B.T.flatten()]))[0, 1]).abs() < 0.03


def test_purposes_are_independent_streams() -> None:
    first, again, other = (
        torch.rand(100, generator=named_generator(0, 0, "module", purpose))
        for purpose in ("probes", "probes", "rounding")
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_sketch_knows_whether_it_is_finite() -> None:
    sketch = LoraSketch.from_lora_gradients(
        torch.ones(2, 4, dtype=torch.float16),
        torch.ones(3, 2, dtype=torch.float16),
        torch.ones(2, 4),
        torch.ones(3, 2),
        0.5,
    )
    assert sketch.Y.dtype == torch.float32 and sketch.Y[0, 0] == 2 and sketch.isfinite()
    sketch.Z[0, 0] = torch.nan
    assert not sketch.isfinite()
