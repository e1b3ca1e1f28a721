"""Attacks: each gets what it should from models that know, have forgotten or never knew, and restores the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BuildTrainer, weights
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast

from r2f_hf.attacks import ATTACKS, UNATTACKED, Target, chosen_attacks
from r2f_hf.attacks.base import linear_weights, mean, restored
from r2f_hf.attacks.format_shift import misspelled, with_prefix
from r2f_hf.attacks.logit_lens import decoder_layers
from r2f_hf.attacks.quantisation import rounded
from r2f_hf.attacks.relearning import batches_of, share_of_rows
from r2f_hf.attacks.sampling import best_of
from r2f_hf.data.formatting import encode_example
from r2f_hf.scoring import score_completions


BuildTarget = Callable[..., Target]


@pytest.fixture
def build_target(
    tokenizer: PreTrainedTokenizerFast, forget_rows: list[dict[str, Any]], retain_rows: list[dict[str, Any]]
) -> BuildTarget:
    def encode(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            encode_example(tokenizer, row["question"], row["answer"]) | {"item": index}
            for index, row in enumerate(rows)
        ]

    def build(model: PreTrainedModel, **settings: Any) -> Target:
        rows = {"forget": forget_rows, "retain": retain_rows}
        defaults = {"rows": rows, "batch_size": 4, "max_new_tokens": 8}
        return Target(model.eval(), tokenizer, encode(forget_rows), encode(retain_rows), **defaults | settings)

    return build


@pytest.fixture
def forgotten(memorised_model: PreTrainedModel, build_trainer: BuildTrainer) -> PreTrainedModel:
    trainer = build_trainer(memorised_model, max_steps=30, per_device_train_batch_size=6, learning_rate=0.4)
    trainer.train()
    return trainer.model.unload().eval()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_restores_the_model_and_can_be_repeated(
    name: str, memorised: PreTrainedModel, forgotten: PreTrainedModel, build_target: BuildTarget
) -> None:
    target = build_target(forgotten.train(), original=memorised)
    target.model.train()
    before, flags = weights(forgotten), [parameter.requires_grad for parameter in forgotten.parameters()]
    random = torch.random.get_rng_state()
    values = ATTACKS[name].run(target)
    after = weights(forgotten)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [parameter.requires_grad for parameter in forgotten.parameters()] == flags
    assert all(parameter.grad is None for parameter in forgotten.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert next(iter(values)) == UNATTACKED and len(values) > 1
    assert all(0 <= value <= 1 for rows in values.values() for value in rows)
    assert ATTACKS[name].run(target) == values


def test_relearning_brings_back_more_than_a_model_that_never_knew_learns(
    forgotten: PreTrainedModel, model: PreTrainedModel, build_target: BuildTarget, forget_rows: list[dict[str, Any]]
) -> None:
    from r2f_hf.attacks import relearning

    values = relearning.relearn(build_target(forgotten))
    never_knew = relearning.relearn(build_target(model))
    assert len(values[UNATTACKED]) == len(forget_rows) - 1
    assert len(values[f"{UNATTACKED}: all rows"]) == len(forget_rows)
    lora = "10% of the rows, LoRA, rate 1e-3"
    gains = [mean(each[lora]) - mean(each[UNATTACKED]) for each in (values, never_knew)]
    assert gains[0] > 2 * gains[1] > 0
    # Twenty steps are measured at five of them, and an epoch of two steps at both.
    curve = [values[f"{lora} @{step}"] for step in (4, 8, 12, 16, 20)]
    assert curve[-1] == values[lora] and mean(curve[0]) < mean(curve[-1])
    epoch = "one epoch over all rows, rate 2e-5: all rows"
    assert [name for name in values if name.startswith(epoch)] == [epoch, f"{epoch} @1", f"{epoch} @2"]


def test_the_attacker_has_a_tenth_of_the_rows_with_all_their_windows(build_target: BuildTarget) -> None:
    examples = [{"input_ids": [row, window], "item": row} for row in range(20) for window in range(3)]
    known, others = share_of_rows(examples, seed=0)
    rows = {example["item"] for example in known}
    assert len(rows) == 2 and len(known) == 6
    assert rows.isdisjoint(example["item"] for example in others) and len(others) == 54
    assert share_of_rows(examples, seed=1)[0] != known


def test_batches_are_one_epoch_or_as_many_as_there_are_steps() -> None:
    examples = [{"input_ids": [row]} for row in range(6)]
    epoch = batches_of(examples, None, seed=0)
    assert sorted(example["input_ids"][0] for batch in epoch for example in batch) == list(range(6))
    assert [len(batch) for batch in batches_of(examples, 5, seed=0)] == [4, 2, 4, 2, 4]


@pytest.mark.parametrize("bits", [3, 4])
def test_rounding_keeps_as_many_levels_as_there_are_bits_for(bits: int) -> None:
    weight = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    result = rounded(weight, bits)
    assert result.shape == weight.shape
    for row in result:
        assert len(row[:64].unique()) <= 2**bits - 1
    # The largest number of a group is its scale, and stays.
    assert torch.allclose(result[:, :64].abs().amax(1), weight[:, :64].abs().amax(1))
    step = weight[:, :64].abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((result - weight)[:, :64].abs() <= step / 2 + 1e-6).all()
    assert torch.equal(rounded(torch.zeros(2, 3), bits), torch.zeros(2, 3))


def test_coarser_weights_change_more(memorised_model: PreTrainedModel, build_target: BuildTarget) -> None:
    values = ATTACKS["quantisation"].run(build_target(memorised_model))
    changes = {name: abs(mean(values[name]) - mean(values[UNATTACKED])) for name in ("int8", "4 bits", "3 bits")}
    assert 0 < changes["int8"] < changes["4 bits"] < changes["3 bits"]


def test_the_head_and_the_embeddings_stay_in_full_precision(memorised_model: PreTrainedModel) -> None:
    names = linear_weights(memorised_model)
    assert len(names) == 14 and not any("lm_head" in name or "embed" in name for name in names)


def test_half_of_the_way_back_is_between_the_models_and_all_of_it_is_the_original(
    memorised: PreTrainedModel, forgotten: PreTrainedModel, build_target: BuildTarget
) -> None:
    target = build_target(forgotten, original=memorised)
    values = ATTACKS["merging"].run(target)
    assert mean(values[UNATTACKED]) < mean(values["50% of the way back"]) < target_probability(target, memorised)
    assert mean(values["150% of the way back"]) > 0.5


def target_probability(target: Target, model: PreTrainedModel) -> float:
    return mean(target.probabilities(model=model))


def test_reversed_guidance_goes_from_the_model_after_through_the_one_before(
    memorised: PreTrainedModel, forgotten: PreTrainedModel, build_target: BuildTarget
) -> None:
    target = build_target(forgotten, original=memorised)
    values = ATTACKS["reversed_guidance"].run(target)
    assert values[UNATTACKED] == pytest.approx(target.probabilities(model=memorised), rel=1e-4)
    assert mean(values["strength 1"]) > mean(values[UNATTACKED])


def test_the_best_of_several_samples_is_the_mean_over_all_choices() -> None:
    values = np.random.default_rng(0).random((3, 6))
    for k in (1, 2, 6):
        by_hand = [np.mean([max(choice) for choice in combinations(row, k)]) for row in values]
        assert best_of(values, k) == pytest.approx(by_hand)


def test_more_samples_get_more(memorised_model: PreTrainedModel, build_target: BuildTarget) -> None:
    values = ATTACKS["sampling"].run(build_target(memorised_model))
    assert mean(values[UNATTACKED]) > 0.95
    assert mean(values["best of 1"]) <= mean(values["best of 4"]) <= mean(values["best of 16"])


def test_only_the_answer_is_scored_after_a_prefix(build_target: BuildTarget, model: PreTrainedModel) -> None:
    target = build_target(model)
    example = with_prefix(target, "Where does Orla1 live?", "by the forest.", "Orla1 lives")
    scored = [label for label in example["labels"] if label >= 0]
    assert target.tokenizer.decode(scored, skip_special_tokens=True).strip() == "by the forest."


def test_a_misspelled_question_keeps_its_letters() -> None:
    import random

    text = "Where does Orla Nightwell live these days?"
    result = misspelled(text, random.Random(1))
    assert result != text and len(result) == len(text)
    assert sorted(result) == sorted(text)


def test_formats_that_rows_and_tokenizer_allow(
    build_target: BuildTarget, memorised_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    target = build_target(memorised_model)
    values = ATTACKS["format_shift"].run(target)
    assert "no chat template" not in values
    assert {"few-shot", "answer prefix 1", "misspelled question", "paraphrased question"} <= values.keys()
    questions = [row["paraphrased_question"][0] for row in target.rows["forget"]]
    answers = [row["answer"] for row in target.rows["forget"]]
    expected = np.exp(score_completions(memorised_model, tokenizer, questions, answers))
    assert values["paraphrased question"] == pytest.approx(expected.tolist(), rel=1e-4)


def test_formats_that_are_too_long_for_the_model_are_left_out(
    build_target: BuildTarget, memorised_model: PreTrainedModel
) -> None:
    target = build_target(memorised_model)
    longest = max(len(example["input_ids"]) for example in target.forget)
    memorised_model.config.max_position_embeddings = longest + 8
    values = ATTACKS["format_shift"].run(target)
    assert "few-shot" not in values and {UNATTACKED, "misspelled question"} <= values.keys()


def test_the_last_layer_reads_as_the_model_does(memorised_model: PreTrainedModel, build_target: BuildTarget) -> None:
    values = ATTACKS["logit_lens"].run(build_target(memorised_model))
    assert values["best layer"] == values["layer 1"]
    # Without its last layer this is a model of one layer.
    shorter = copy.deepcopy(memorised_model)
    layers = decoder_layers(shorter)
    del layers[-1]
    assert values["layer 1"] == pytest.approx(build_target(shorter).probabilities(), rel=1e-4)


def test_attacks_that_do_not_fit_say_why(
    build_target: BuildTarget, memorised_model: PreTrainedModel, saved: Any
) -> None:
    from transformers import AutoModelForCausalLM

    target = build_target(memorised_model, rows=None)
    reasons = {name: attack.does_not_fit(target) for name, attack in ATTACKS.items()}
    assert "no questions" in reasons["sampling"] and "no questions" in reasons["format_shift"]
    assert "`original_model`" in reasons["merging"] and "`original_model`" in reasons["reversed_guidance"]
    assert reasons["relearning"] is None and reasons["logit_lens"] is None
    quantised = AutoModelForCausalLM.from_pretrained(
        saved, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map="cpu"
    )
    target = build_target(quantised)
    for name in ("relearning", "quantisation", "pruning"):
        assert "quantised" in ATTACKS[name].does_not_fit(target)


def test_names_of_attacks() -> None:
    assert chosen_attacks(["all"]) == list(ATTACKS)
    assert chosen_attacks(["pruning,relearning"]) == ["relearning", "pruning"]
    with pytest.raises(ValueError, match=r"Unknown attack: 'relearn'. Did you mean 'relearning'\?"):
        chosen_attacks(["relearn"])
    with pytest.raises(ValueError, match="No attack is named"):
        chosen_attacks([""])


def test_what_was_changed_is_restored_after_an_error(memorised_model: PreTrainedModel) -> None:
    before = weights(memorised_model)
    with pytest.raises(RuntimeError, match="interrupted"), restored(memorised_model):
        with torch.no_grad():
            memorised_model.lm_head.weight.zero_()
        raise RuntimeError("interrupted")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(memorised_model).items())
