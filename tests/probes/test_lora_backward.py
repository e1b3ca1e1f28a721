"""A pair that adds nothing has the gradients that PEFT's own forward pass would have given."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from conftest import build_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from r2f_hf.probes import find_probes, group_probes


@pytest.fixture(params=["llama", "gpt2"])
def wrapped(request: pytest.FixtureRequest) -> PeftModel:
    config = LoraConfig(r=4, lora_alpha=4 * 2.0**-20, target_modules="all-linear")
    # Without dropout.
    model = get_peft_model(build_model(request.param), config).eval()
    for group in group_probes(find_probes(model)):
        group.draw(seed=0, step=0)
    return model


def gradients(model: PeftModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad}


def begin(model: PeftModel) -> None:
    for probe in find_probes(model):
        probe.begin()


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_pefts_own_forward_pass(
    autocast: bool, wrapped: PeftModel, batch: dict[str, Tensor]
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
        expected = gradients(wrapped, batch)
        begin(wrapped)
        found = gradients(wrapped, batch)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < (0.02 if autocast else 1e-4), name
        assert gradient.dtype == expected[name].dtype


@pytest.mark.parametrize("wrapped", ["llama"], indirect=True)
def test_gradients_accumulate_and_are_recomputed_with_checkpointing(
    wrapped: PeftModel, batch: dict[str, Tensor]
) -> None:
    begin(wrapped)
    once = gradients(wrapped, batch)
    wrapped.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped.train()
    torch.testing.assert_close(gradients(wrapped, batch), once)
    wrapped(**batch).loss.backward()
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, 2 * once[name])


def test_the_forward_pass_is_the_models_own_to_the_bit(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    expected = model(**batch).logits.detach().clone()
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=4e-6, target_modules="all-linear"))
    for group in group_probes(find_probes(wrapped)):
        group.draw(seed=0, step=0)
    assert not torch.equal(wrapped(**batch).logits, expected)
    begin(wrapped)
    assert torch.equal(wrapped(**batch).logits, expected)
    with torch.no_grad():
        assert torch.equal(wrapped(**batch).logits, expected)


def test_a_model_may_add_to_a_layers_output_in_place(wrapped: PeftModel, batch: dict[str, Tensor]) -> None:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.add_(0.3)

    layer = find_probes(wrapped)[0].layer
    handle = layer.register_forward_hook(add)
    expected = gradients(wrapped, batch)
    begin(wrapped)
    for name, gradient in gradients(wrapped, batch).items():
        assert (gradient - expected[name]).norm() < 1e-4 * expected[name].norm(), name
    handle.remove()


def test_merging_and_unmerging_changes_nothing(wrapped: PeftModel) -> None:
    begin(wrapped)
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    for safe in (False, True):
        wrapped.merge_adapter(safe_merge=safe)
        wrapped.unmerge_adapter()
    for name, tensor in wrapped.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_in_half_precision_inputs_are_kept_once_for_all_the_layers_that_they_go_into() -> None:
    model = build_model().to(torch.bfloat16)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=4e-6, target_modules=["q_proj", "k_proj", "v_proj"]))
    kept: list[Tensor] = []
    batch = {"input_ids": torch.arange(12).view(2, 6)}

    def count() -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
            wrapped(**batch)
        width = model.config.hidden_size
        inputs = {each.data_ptr() for each in kept if each.numel() == 12 * width and each.dtype == torch.float32}
        return len(inputs)

    before = count()
    begin(wrapped)
    # The inputs of norms are still kept. The copies that each of the pairs kept for itself are not.
    assert count() == before - 3 * model.config.num_hidden_layers


def test_peft_computes_as_ever_once_the_probes_are_cleared(wrapped: PeftModel, batch: dict[str, Tensor]) -> None:
    before = wrapped(**batch).logits.detach()
    probes = find_probes(wrapped)
    begin(wrapped)
    for probe in probes:
        probe.clear()
        assert not probe.layer.lora_variant and probe.layer.cast_input_dtype_enabled
        nn.init.constant_(probe.B, 0.1)
    with torch.no_grad():
        assert not torch.equal(wrapped(**batch).logits, before)


def test_another_adapter_beside_it_adds_what_it_adds(wrapped: PeftModel, batch: dict[str, Tensor]) -> None:
    wrapped.add_adapter("other", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    wrapped.base_model.set_adapter(["other", "default"])
    wrapped.set_requires_grad("other", False)
    expected = gradients(wrapped, batch)
    begin(wrapped)
    for name, gradient in gradients(wrapped, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-2, atol=1e-4 * expected[name].abs().max())
