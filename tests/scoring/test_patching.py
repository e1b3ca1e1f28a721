"""Hidden states of another model replace a model's own where its answers are predicted, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from conftest import CONFIGS, build_model
from transformers import AutoModelForCausalLM, Gemma3nTextConfig, MixtralConfig, PreTrainedTokenizerFast

from r2f_hf.data.formatting import encode_example
from r2f_hf.scoring import key_words, patching_falls
from r2f_hf.scoring.patching import decoder_layers


def encoded(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, list[int]]]:
    return [
        key_words(
            tokenizer, encode_example(tokenizer, "Where does Orla1 live?", "Orla1 lives by the harbour."), "harbour"
        ),
        key_words(tokenizer, encode_example(tokenizer, "And Bram2?", "By the mountain."), "the mountain"),
    ]


def test_labels_stay_at_the_key_words_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    for example, words in zip(encoded(tokenizer), ("harbour", "the mountain"), strict=True):
        labels = [label for label in example["labels"] if label != -100]
        assert words in tokenizer.decode(labels) and len(tokenizer.decode(labels).strip()) <= len(words) + 1


def test_key_words_that_the_answer_lacks_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    example = encode_example(tokenizer, "Where does Orla1 live?", "By the harbour.")
    for words in ("desert", ""):
        with pytest.raises(ValueError, match=r"forget\[3\] has key words that its answer does not contain"):
            key_words(tokenizer, example, words, "forget[3]")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_models_own_states_change_nothing_and_anothers_do(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, other = build_model(kind).eval(), build_model(kind).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    examples = encoded(tokenizer)
    assert torch.tensor(patching_falls(model, model, examples, 0)).abs().max() < 1e-5
    falls = torch.tensor(patching_falls(model, other, examples, 0, batch_size=2))
    assert falls.shape == (2, len(decoder_layers(model))) and bool((falls.abs() > 1e-4).all())
    one_by_one = torch.tensor(patching_falls(model, other, examples, 0, batch_size=1))
    torch.testing.assert_close(falls, one_by_one, atol=1e-4, rtol=1e-4)
    # Nothing stays on the models.
    for layer in (*decoder_layers(model), *decoder_layers(other)):
        assert not layer._forward_hooks and "forward" not in vars(layer)


# Two that make more of their layers than hidden states: Gemma 3n shares keys and values, Mixtral asks its routers.
SMALL = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}
UNUSUAL = {
    "gemma3n": Gemma3nTextConfig(
        **SMALL,
        num_key_value_heads=2,
        head_dim=8,
        num_kv_shared_layers=1,
        layer_types=["full_attention"] * 3,
        activation_sparsity_pattern=[0.0] * 3,
        vocab_size_per_layer_input=160,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=2,
    ),
    "mixtral": MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2, output_router_logits=True),
}


@pytest.mark.parametrize("kind", [*CONFIGS, *UNUSUAL])
def test_layers_that_are_skipped_would_have_changed_nothing(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    if kind in UNUSUAL:
        model, other = (AutoModelForCausalLM.from_config(UNUSUAL[kind]).eval() for _ in range(2))
    else:
        model, other = build_model(kind).eval(), build_model(kind).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    example = encoded(tokenizer)[0]
    ids, labels = torch.tensor(example["input_ids"])[None], torch.tensor(example["labels"])
    places = (labels != -100).nonzero()[:, 0]

    def score() -> float:
        with torch.no_grad():
            log_probs = model(ids).logits[0].log_softmax(-1)
        return log_probs[places - 1, labels[places]].mean().item()

    def hidden(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        return output[0] if isinstance(output, tuple) else output

    # The whole model runs, and one layer's output is replaced in place.
    falls = []
    for own, theirs in zip(decoder_layers(model), decoder_layers(other), strict=True):
        states: list[torch.Tensor] = []
        with theirs.register_forward_hook(lambda *call, kept=states: kept.append(hidden(call[-1]))), torch.no_grad():
            other(ids)
        whole = score()

        def replace(_: object, __: object, output: Any, state: torch.Tensor = states[0]) -> None:
            hidden(output)[..., places - 1, :] = state[..., places - 1, :]

        with own.register_forward_hook(replace):
            falls.append(whole - score())
    assert patching_falls(model, other, [example], 0)[0] == pytest.approx(falls, abs=1e-5)


def test_a_layer_runs_only_above_the_patched_one(tokenizer: PreTrainedTokenizerFast) -> None:
    model, other = build_model("llama").eval(), build_model("llama").eval()
    runs: list[int] = []
    for index, layer in enumerate(decoder_layers(model)):
        layer.mlp.register_forward_hook(lambda *_, index=index: runs.append(index))
    patching_falls(model, other, encoded(tokenizer)[:1], 0)
    # Once in the whole model, and once for each layer below.
    assert [runs.count(index) for index in range(len(decoder_layers(model)))] == [
        1 + index for index in range(len(decoder_layers(model)))
    ]


def test_a_forward_method_of_accelerate_stays(tokenizer: PreTrainedTokenizerFast) -> None:
    model, other = build_model("llama").eval(), build_model("llama").eval()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight *= 2
    plain = patching_falls(model, other, encoded(tokenizer), 0)
    for layer in decoder_layers(model):
        add_hook_to_module(layer, ModelHook())
    forwards = [layer.forward for layer in decoder_layers(model)]
    assert patching_falls(model, other, encoded(tokenizer), 0) == plain
    assert [layer.forward for layer in decoder_layers(model)] == forwards


def test_the_last_layers_states_decide_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    model, other = build_model("llama").eval(), build_model("llama").eval()
    with torch.no_grad():
        for parameter in other.model.layers.parameters():
            parameter *= 1.5
    example = encoded(tokenizer)[0]
    fall = patching_falls(model, other, [example], 0)[0][-1]
    # The two share what comes after the layers: with the other's states the model says what the other says.
    ids, labels = torch.tensor(example["input_ids"]), torch.tensor(example["labels"])
    places = (labels != -100).nonzero()[:, 0]
    scores = []
    for each in (model, other):
        with torch.no_grad():
            log_probs = each(ids[None]).logits[0].log_softmax(-1)
        scores.append(log_probs[places - 1, labels[places]].mean().item())
    assert fall == pytest.approx(scores[0] - scores[1], abs=1e-4)


def test_models_of_other_shapes_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model, other = build_model("llama"), build_model("llama")
    other.config.hidden_size = 16
    with pytest.raises(ValueError, match="do not fit into one with"):
        patching_falls(model, other, encoded(tokenizer), 0)
