"""Saved adapters as sketches, and factored gradients as an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import build_model, linear_gradients
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from r2f_hf.decoders import load_decoder
from r2f_hf.gradients import LowRankGradient, estimate_fidelity
from r2f_hf.probes.saved_adapter import SavedAdapter, save_as_adapter
from r2f_hf.probes.saved_step import read_sketches, rounding_part


MODULES = ["q_proj", "down_proj"]


def layers(model: PeftModel) -> dict[str, LoraLayer]:
    return {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pairs_and_scalings_are_those_of_the_model(use_rslora: bool, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=MODULES,
        use_rslora=use_rslora,
        rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 3},
        alpha_pattern={"q_proj": 1, "layers.1.mlp.down_proj": 5},
    )
    model = get_peft_model(build_model(), config)
    model.save_pretrained(tmp_path)
    adapter = SavedAdapter.load(tmp_path)
    assert adapter.pairs.keys() == layers(model).keys()
    for name, layer in layers(model).items():
        A, B = adapter.pairs[name]
        assert torch.equal(A, layer.lora_A["default"].weight) and torch.equal(B, layer.lora_B["default"].weight)
        assert adapter.scaling(name) == pytest.approx(layer.scaling["default"])


def test_factored_gradients_of_different_widths_are_one_adapter(tmp_path: Path) -> None:
    model = build_model()
    shapes = {name: module.weight.shape for name, module in model.named_modules() if name.endswith(tuple(MODULES))}
    gradients = {
        # Factors of very different lengths, and one of zero: half precision holds neither 1e-9 nor its inverse.
        name: LowRankGradient(1e9 * torch.randn(shape[0], 3 + index), 1e-9 * torch.randn(shape[1], 3 + index))
        for index, (name, shape) in enumerate(shapes.items())
    }
    gradients["model.layers.0.mlp.down_proj"].U[:, 0] = 0
    save_as_adapter(gradients, -0.5, tmp_path, LoraConfig(task_type="CAUSAL_LM"), "base")
    loaded = layers(PeftModel.from_pretrained(model.half(), tmp_path, autocast_adapter_dtype=False))
    assert loaded.keys() == gradients.keys()
    for name, layer in loaded.items():
        assert layer.scaling["default"] == 1 and layer.r["default"] == 6
        added = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
        expected = -0.5 * gradients[name].U @ gradients[name].V.T
        assert (added - expected).norm() < 1e-3 * expected.norm()


def test_probes_of_any_variance_decode_and_measure_the_same(batch: dict[str, Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    truth = linear_gradients(build_model(), batch)
    probes = {name: (torch.randn(8, G.shape[1]), torch.randn(G.shape[0], 8)) for name, G in truth.items()}
    measured = []
    for a, b in ((1e-3, 1e2), (1.0, 1.0), (50.0, 1e-4)):
        pairs = {name: (a * A, b * B) for name, (A, B) in probes.items()}
        adapter = SavedAdapter(tmp_path, LoraConfig(r=8, lora_alpha=4), pairs)
        gradients = {name: (0.5 * B.T @ truth[name], 0.5 * truth[name] @ A.T) for name, (A, B) in pairs.items()}
        sketches = list(read_sketches(adapter, gradients, held_out=2).values())
        decoded = load_decoder("spectral").decode_all(sketches)
        error = [(U.U @ U.V.T - G).norm() / G.norm() for U, G in zip(decoded, truth.values(), strict=True)]
        found = [fidelity.relative_error for fidelity in estimate_fidelity(sketches, decoded)]
        measured.append(torch.tensor(found))
        assert measured[-1].mean().item() == pytest.approx(torch.stack(error).mean().item(), rel=0.1)
    for other in measured[1:]:
        torch.testing.assert_close(other, measured[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_part_of_a_difference_that_is_rounding(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    old = tuple(torch.randn(40, 40).to(dtype) for _ in "AB")
    step = tuple(30 * torch.finfo(dtype).eps * torch.randn(40, 40) for _ in "AB")
    exact = [x.double() - d.double() for x, d in zip(old, step, strict=True)]
    new = tuple(x.to(dtype) for x in exact)
    error = max(((x - y.double()).norm() / d.double().norm()).item() for x, y, d in zip(exact, new, step, strict=True))
    before, after = (SavedAdapter(tmp_path, LoraConfig(), {"module": pair}) for pair in (old, new))
    assert rounding_part(before, after) == pytest.approx(error, rel=0.2)
