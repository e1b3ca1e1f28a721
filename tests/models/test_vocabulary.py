"""Tokenizers with tokens that a model has no embedding for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BuildTrainer, build_model, changed, weights
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from r2f_hf import R2FTrainer
from r2f_hf.data.collator import num_embeddings
from r2f_hf.scoring import generate_answers, score_completions


def row(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer, "again": question.replace("?", ", please?")}


LONG = row("Where does Orla0 live?", "Orla0 lives by the harbour.")
SHORT = [row(f"{word}?", "Far.") for word in ("Who", "What", "When", "Whose", "Why")]


@pytest.fixture
def grown(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer, to which tokens can be added."""
    return copy.deepcopy(tokenizer)


def fitting(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A model with as many embeddings as the tokenizer has tokens."""
    config = copy.deepcopy(build_model().config)
    config.vocab_size = len(tokenizer)
    return build_model(config)


@pytest.mark.parametrize("settings", [{}, {"update_target": "adapter"}], ids=["weights", "adapter"])
def test_a_padding_token_needs_no_embedding(
    settings: dict[str, Any], grown: PreTrainedTokenizerFast, tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    model, twin = fitting(grown), fitting(grown)
    before = weights(model)
    plain, data = copy.deepcopy(grown), {"forget_dataset": [LONG, SHORT[0]]}
    grown.add_special_tokens({"pad_token": "[PAD]"})
    assert grown.pad_token_id == num_embeddings(model)
    settings = settings | {"save_strategy": "steps", "save_steps": 1}
    trainer = build_trainer(model, data=data | {"processing_class": grown}, **settings)
    batch = next(iter(trainer.get_train_dataloader()))
    assert not batch["attention_mask"].all() and batch["input_ids"].max() < num_embeddings(model)
    trainer.unlearn()
    # Padding takes no part: it is the run that the tokenizer makes without it.
    other = build_trainer(
        twin, data=data | {"processing_class": plain}, output_dir=str(tmp_path / "plain"), **settings
    )
    other.unlearn()
    if not settings.get("update_target"):
        assert changed(before, weights(model)) and not changed(weights(model), weights(twin))
        # What is saved can be loaded, and the run be resumed.
        assert not changed(weights(model), weights(AutoModelForCausalLM.from_pretrained(tmp_path / "output")))
        settings |= {"output_dir": str(tmp_path / "output"), "max_steps": 3}
        resumed = build_trainer(fitting(plain), data=data | {"processing_class": grown}, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-1"))
    assert model.config.pad_token_id is None

    prompts = ["Where does Orla0 live?", "Where does Orla1 live? Where does Bram1 live?"]
    answers = generate_answers(model, grown, prompts, max_new_tokens=4)
    assert answers == generate_answers(model, plain, prompts, max_new_tokens=4)
    scores = [score_completions(model, each, prompts, ["Far.", "By the harbour."]) for each in (grown, plain)]
    assert (scores[0] == scores[1]).all()


def test_a_token_without_an_embedding_is_refused_by_name(
    grown: PreTrainedTokenizerFast, build_trainer: BuildTrainer
) -> None:
    model = fitting(grown)
    before = weights(model)
    grown.add_tokens(["harbour."])

    def build(**data: Any) -> R2FTrainer:
        sets = {"forget_dataset": SHORT[:2], "retain_dataset": SHORT[2:4]} | data
        return build_trainer(model, data=sets | {"processing_class": grown}, views_column="again", num_views=2)

    message = r"^{}\[1\] has a token of id 160, and the model has embeddings for only 160 tokens"
    for name in ("forget", "retain", "holdout"):
        with pytest.raises(ValueError, match=message.format(name)):
            build(**{f"{name}_dataset": [SHORT[4], LONG]})
    with pytest.raises(ValueError, match=message.format("forget")):
        build(forget_dataset=[SHORT[0], SHORT[1] | {"again": "At which harbour. is it?"}])
    with pytest.raises(ValueError, match=message.format("evaluation")):
        build(eval_dataset=[SHORT[0], LONG])
    assert model.state_dict().keys() == before.keys() and not changed(before, weights(model))
    trainer = build()
    with pytest.raises(ValueError, match=message.format("evaluation")) as error:
        trainer.evaluate([SHORT[0], LONG])
    # As told.
    assert "`model.resize_token_embeddings(len(tokenizer))`" in str(error.value)
    trainer.model.unload().resize_token_embeddings(len(grown))
    build(forget_dataset=[SHORT[4], LONG]).train()


def test_a_token_that_ends_answers_needs_an_embedding(
    grown: PreTrainedTokenizerFast, build_trainer: BuildTrainer
) -> None:
    model = fitting(grown)
    grown.add_special_tokens({"eos_token": "<|end|>"})
    with pytest.raises(ValueError, match=r"forget\[\d\] has a token of id 160"):
        build_trainer(model, data={"processing_class": grown})


def test_tokens_that_no_row_has_need_none(grown: PreTrainedTokenizerFast, build_trainer: BuildTrainer) -> None:
    """As Gemma 3's token for pictures, which its smaller models have no embedding for."""
    model = fitting(grown)
    grown.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert len(grown) == num_embeddings(model) + 1
    build_trainer(model, data={"processing_class": grown}).train()
    assert torch.isfinite(model.lm_head.weight).all()
