"""
One run of a tiny model, on one process or several, which faults.py starts.

    python benchmarks/shared/faults_worker.py DIR [--steps 12] [--batch_size 4]

The run goes on from the latest whole checkpoint in DIR. At its end DIR has the model and `result.json`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from accelerate import PartialState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.data.fictitious import fictitious_dataset
from r2f_hf.runs.files import write_json
from r2f_hf.runs.ledger import read_ledger


SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def build_model(seed: int = 0) -> PreTrainedModel:
    """A Llama of 0.9 million random parameters."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=257, bos_token_id=None, eos_token_id=256, **SHAPE))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def build_data() -> dict[str, list[dict]]:
    """A few rows to forget and to keep. Their number is no multiple of a batch."""
    world = fictitious_dataset(0)
    return {"forget_dataset": list(world["forget"])[:11], "retain_dataset": list(world["retain"])[:20]}


def build_args(folder: Path, **settings) -> R2FConfig:
    """The run's configuration: one checkpoint per step."""
    common = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "seed": 0,
    }
    return R2FConfig(str(folder), **common | settings)


class CountSteps(TrainerCallback):
    """Counts the steps that this process takes. Steps of an earlier process do not count."""

    steps = 0

    def on_step_end(self, *args, **kwargs) -> None:
        self.steps += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=4, help="forget rows per step, of all processes together")
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / f"rank{state.process_index}.pid").write_text(str(os.getpid()))
    args = build_args(
        options.folder,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size // state.num_processes,
    )
    count = CountSteps()
    trainer = R2FTrainer(build_model(), args, processing_class=build_tokenizer(), callbacks=[count], **build_data())
    trainer.train(resume_from_checkpoint=True)
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        probabilities = {name: value for name, value in metrics.items() if name.endswith("_probability")}
        weights = read_ledger(options.folder)[-1]["weights"]
        result = {"weights": weights, "metrics": probabilities}
        write_json(options.folder / "result.json", {"result": result, "steps": count.steps})
    trainer.end_training()


if __name__ == "__main__":
    main()
