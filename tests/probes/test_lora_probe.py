"""Which LoRA pairs serve as probes, what they read and where they write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import CONFIGS, build_model, changed, weights
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from r2f_hf.gradients import LowRankGradient
from r2f_hf.probes import find_probes
from r2f_hf.updates.targets import WeightsTarget


def wrap(model: PreTrainedModel, **settings: Any) -> PeftModel:
    return get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 4e-6, "target_modules": "all-linear"} | settings))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_probe_writes_its_own_weight_and_no_other(kind: str) -> None:
    plain, model = build_model(kind), wrap(build_model(kind))
    before = weights(plain)
    probe = find_probes(model)[-1]
    out_features, in_features = probe.layer.out_features, probe.layer.in_features
    gradient = LowRankGradient(torch.randn(1, out_features, 2), torch.randn(1, in_features, 2))
    WeightsTarget().write([probe], gradient, [-0.5], seed=0, step=0)
    after = weights(model)
    assert changed(before, after) == {f"{probe.name}.weight"}
    step = after[f"{probe.name}.weight"] - before[f"{probe.name}.weight"]
    expected = -0.5 * gradient.U[0] @ gradient.V[0].T
    torch.testing.assert_close(step, expected.T if kind == "gpt2" else expected, atol=1e-5, rtol=1e-5)


def test_probes_come_in_the_models_order_under_the_names_of_the_plain_model(model: PreTrainedModel) -> None:
    names = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    probes = find_probes(wrap(model))
    assert [probe.name for probe in probes] == names
    assert all(probe.rank == 4 and probe.A.shape[0] == probe.B.shape[1] == 4 for probe in probes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "no DoRA"),
        ({"lora_dropout": 0.1}, "`lora_dropout=0.0`"),
        ({"lora_alpha": 16}, "The adapter's scaling is .*: its random probes would change what the model computes"),
        ({"bias": "lora_only"}, '`bias="none"`'),
        ({"lora_bias": True}, "`lora_bias=False`"),
        ({"modules_to_save": ["lm_head"]}, "no `modules_to_save`"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens is a Embedding"),
    ],
)
def test_refuses_adapters_that_are_not_plain_lora_on_linear_layers(
    settings: dict[str, Any], message: str, model: PreTrainedModel
) -> None:
    with pytest.raises(ValueError, match=message):
        find_probes(wrap(model, **settings))


def test_refuses_a_model_without_an_adapter(model: PreTrainedModel) -> None:
    with pytest.raises(TypeError, match="needs a PEFT model with a LoRA adapter, got LlamaForCausalLM"):
        find_probes(model)


def test_refuses_a_head_that_is_tied_to_the_embeddings() -> None:
    tied = AutoModelForCausalLM.from_config(
        LlamaConfig(**CONFIGS["llama"].to_diff_dict() | {"tie_word_embeddings": True})
    )
    with pytest.raises(ValueError, match="lm_head shares its weight with the input embeddings"):
        find_probes(wrap(tied, target_modules=["q_proj", "lm_head"]))
