"""The full model behind the adapters, written and read as a plain model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, build_model, changed, weights
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from r2f_hf.runs.weights import full_state_dict, load_full_model_, save_full_model, save_whole, weights_hash


def wrap(model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_state_dict_is_the_plain_models(kind: str) -> None:
    plain = build_model(kind)
    wrapped = wrap(copy.deepcopy(plain))
    found, expected = full_state_dict(wrapped), plain.state_dict()
    assert list(found) == list(expected)
    assert not changed(expected, found)
    # References, not copies.
    weight = wrapped.get_base_model().get_input_embeddings().weight
    assert any(tensor.data_ptr() == weight.data_ptr() for tensor in found.values())


@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", torch.float32), ("llama", torch.bfloat16), ("gemma", torch.float32)]
)
def test_what_is_saved_loads_as_the_plain_model_and_in_place(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plain = build_model(kind, dtype)
    save_full_model(wrap(copy.deepcopy(plain)), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert not changed(weights(plain), weights(loaded))

    other = wrap(build_model(kind, dtype, seed=1))
    places = {name: tensor.data_ptr() for name, tensor in full_state_dict(other).items()}
    adapter = {name: tensor.clone() for name, tensor in other.state_dict().items() if "lora_" in name}
    assert changed(weights(plain), weights(other))
    load_full_model_(other, tmp_path)
    assert not changed(weights(plain), weights(other))
    assert {name: tensor.data_ptr() for name, tensor in full_state_dict(other).items()} == places
    assert adapter and all(torch.equal(other.state_dict()[name], tensor) for name, tensor in adapter.items())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    config = build_model().config
    config.tie_word_embeddings = True
    save_full_model(wrap(AutoModelForCausalLM.from_config(config)), tmp_path)
    model = wrap(AutoModelForCausalLM.from_config(config))
    load_full_model_(model, tmp_path)
    assert model.get_base_model().lm_head.weight is model.get_input_embeddings().weight
    assert not changed(weights(AutoModelForCausalLM.from_pretrained(tmp_path)), weights(model))


def test_refuses_another_models_folder(tmp_path: Path, model: PreTrainedModel) -> None:
    config = build_model().config
    config.intermediate_size = 48
    save_full_model(wrap(AutoModelForCausalLM.from_config(config)), tmp_path / "other")
    wrapped = wrap(model)
    before = weights(wrapped)
    with pytest.raises(ValueError, match=r"another model's: they differ in .*mlp.down_proj.weight"):
        load_full_model_(wrapped, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load_full_model_(wrapped, tmp_path)
    assert not changed(before, weights(wrapped))


def test_any_change_of_any_weight_changes_the_hash(model: PreTrainedModel) -> None:
    hashes = {weights_hash(model.state_dict()), weights_hash(model.state_dict())}
    assert len(hashes) == 1
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        hashes.add(weights_hash(model.state_dict()))
    assert len(hashes) == 1 + len(list(model.parameters()))
    assert weights_hash(model.bfloat16().state_dict()) not in hashes


def test_weights_in_fewer_files_leave_none_of_the_old(tmp_path: Path) -> None:
    one, two = build_model(), build_model(seed=1)
    one.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    save_whole(two, tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert not changed(weights(two), weights(AutoModelForCausalLM.from_pretrained(tmp_path)))
