"""Plain fine-tuning on question-answer rows. The results, which benchmarks start from, are cached by content."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from r2f_hf.data.collator import ForgetRetainCollator, pad_token_id
from r2f_hf.data.formatting import encode_example
from r2f_hf.data.rows import Row, content_hash
from shared.precision import computes_bf16
from shared.pypi_models import building, cache_folder


RECIPE = {
    "num_train_epochs": 6,
    "learning_rate": 3e-4,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "bf16": computes_bf16(),
    "seed": 0,
}


def finetuned_folder(base: Path, rows: Sequence[Row]) -> Path:
    """
    A model fine-tuned on rows (`question`, `answer`) with [`RECIPE`], trained on first use.

    Args:
        base (`Path`):
            Folder of the model to start from.
        rows (`Sequence[Mapping]`):
            Rows to learn.

    Returns:
        `Path`: A folder for `from_pretrained`.
    """
    pairs = [(row["question"], row["answer"]) for row in rows]
    folder = cache_folder() / f"{base.name}-{content_hash([base.name, pairs, RECIPE])}"
    with building(folder), tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        if (folder / "config.json").is_file():
            return folder
        tokenizer = AutoTokenizer.from_pretrained(base)
        examples = [encode_example(tokenizer, question, answer) for question, answer in pairs]
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(base),
            args=TrainingArguments(
                output_dir=scratch,
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                save_strategy="no",
                logging_steps=10,
                remove_unused_columns=False,
                train_sampling_strategy="group_by_length",
                **RECIPE,
            ),
            data_collator=ForgetRetainCollator(pad_token_id(tokenizer)),
            train_dataset=examples,
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.save_model(f"{scratch}/model")
        (Path(scratch) / "model" / "training_args.bin").unlink()
        # This is a rename within one file system: the folder is whole or not there.
        Path(f"{scratch}/model").rename(folder)
    return folder
