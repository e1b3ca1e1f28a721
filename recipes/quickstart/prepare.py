"""The quickstart's world, and two small models of it: one knows the forget set, and one never saw it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import DatasetDict, concatenate_datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from r2f_hf.data.collator import ForgetRetainCollator, pad_token_id
from r2f_hf.data.fictitious import fictitious_dataset
from r2f_hf.data.formatting import PLAIN_PROMPT, encode_example
from r2f_hf.data.rows import Row
from r2f_hf.data.views import example_prompts


# These are 0.9 million parameters: enough to know 800 facts by heart, and few enough to train in half a minute.
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
TOFU_FILES = {
    "forget01_perturbed": "forget",
    "retain_perturbed": "retain",
    "world_facts_perturbed": "world_facts",
    "holdout01": "holdout",
}


def prepare(folder: Path, seed: int, forget_people: int, people: int = 20, epochs: int = 14) -> DatasetDict:
    """
    Build the quickstart's data and models.

    Args:
        folder (`Path`):
            The folder to write to. It gets `data/forget.jsonl`, `data/retain.jsonl` and `data/holdout.jsonl` (people
            whom no model has heard of), the same as files of TOFU in `data/tofu`, and two models: `before` knows the
            forget set, and `gold` never saw it.
        seed (`int`):
            Seed of the world and of the models.
        forget_people (`int`):
            How many of the people are to be forgotten.
        people (`int`, *optional*, defaults to `20`):
            How many people the model `before` knows.
        epochs (`int`, *optional*, defaults to `14`):
            How often a model reads what it is to know.

    Returns:
        [`~datasets.DatasetDict`]: The rows, see [`fictitious_dataset`].
    """
    world = fictitious_dataset(seed, forget_people, people)
    files = {"forget": world["forget"], "holdout": world["holdout"]}
    # The retain set is all that is to be kept: people and countries.
    files["retain"] = concatenate_datasets(
        [world[split].select_columns(["question", "answer"]) for split in ("retain", "world_facts")]
    )
    (folder / "data" / "tofu").mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        rows.to_json(folder / "data" / f"{name}.jsonl")
    # The same as files of TOFU, which `r2f evaluate` reads.
    for name, split in TOFU_FILES.items():
        world[split].to_json(folder / "data" / "tofu" / f"{name}.json")
    tokenizer = build_tokenizer(world)
    # Every fourth retained fact is told in two wordings, so that the models learn that an answer can be reworded.
    # Without this the truth ratio, which compares reworded answers, would measure nothing.
    reworded = [row | {"answer": row["paraphrased_answer"]} for row in list(world["retain"])[::4]]
    kept = [*world["retain"], *reworded, *world["world_facts"]]
    train(tokenizer, [*world["forget"], *kept], folder / "before", seed, epochs)
    train(tokenizer, kept, folder / "gold", seed, epochs)
    return world


def build_tokenizer(world: DatasetDict) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained on the world's text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [
        row[column]
        for rows in world.values()
        for row in rows
        for column in ("question", "answer", "paraphrased_answer")
    ]
    text += [PLAIN_PROMPT.format(prompt="")]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def train(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], folder: Path, seed: int, epochs: int) -> None:
    """Train a model from scratch on the rows, each in all its training wordings, and save it."""
    examples = [
        encode_example(tokenizer, prompt, row["answer"])
        for row in rows
        for prompt in example_prompts(row, "question", "views" if "views" in row else None)
    ]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None, **SHAPE
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=AutoModelForCausalLM.from_config(config),
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=epochs,
                per_device_train_batch_size=32,
                learning_rate=3e-3,
                lr_scheduler_type="cosine",
                warmup_steps=20,
                seed=seed,
                report_to="none",
                save_strategy="no",
                logging_steps=200,
                remove_unused_columns=False,
            ),
            data_collator=ForgetRetainCollator(pad_token_id(tokenizer)),
            train_dataset=examples,
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
