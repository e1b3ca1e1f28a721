"""
One run of a tiny model, on one process or several, which faults.py starts.

    python benchmarks/shared/faults_worker.py DIR [--steps 12] [--batch_size 4] [--kind ddp|fsdp2|zero3]

The model is in the folder `base` next to DIR, where `train_model` has saved it. The run goes on from the latest whole
checkpoint in DIR. At its end DIR has the model and `result.json`.
"""

from __future__ import annotations

import argparse
import json
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
from r2f_hf.models.loading import from_pretrained
from r2f_hf.runs.files import write_json
from r2f_hf.runs.ledger import read_ledger
from r2f_hf.training.forget_retain_trainer import ForgetRetainTrainer


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


def train_model(folder: Path) -> None:
    """
    Train the model on all rows, and save it with its tokenizer.

    Random weights would not do to compare numbers of processes: on them even steps along the exact gradient multiply a
    rounding error by hundreds.
    """
    data = build_data()
    args = build_args(
        folder,
        save_strategy="no",
        logging_strategy="no",
        max_steps=100,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        optim="adamw_torch",
        # Ascent on the forget loss with a negative weight is descent.
        forget_objective="ga",
        forget_weight=-1.0,
        retain_objective="none",
    )
    rows = data["forget_dataset"] + data["retain_dataset"]
    trainer = ForgetRetainTrainer(build_model(), args, forget_dataset=rows, processing_class=build_tokenizer())
    trainer.train()
    trainer.save_model()


def load_model(folder: Path, kind: str) -> PreTrainedModel:
    """The model: whole on every process, or with its rows sharded under FSDP2."""
    if kind != "fsdp2":
        return from_pretrained(str(folder))
    from transformers.distributed import DistributedConfig

    sharding = DistributedConfig(fsdp_size=PartialState().num_processes)
    return AutoModelForCausalLM.from_pretrained(folder, distributed_config=sharding)


def use_zero(folder: Path) -> None:
    """Ask for DeepSpeed's ZeRO-3, as `accelerate launch` does."""
    filled_in = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    config = {"zero_optimization": {"stage": 3}} | dict.fromkeys(filled_in, "auto")
    # Each process writes a file of its own.
    file = folder / f"zero{os.environ['RANK']}.json"
    file.write_text(json.dumps(config))
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}


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
    parser.add_argument("--kind", default="ddp", choices=("ddp", "fsdp2", "zero3"), help="what several processes hold")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    zero = options.kind == "zero3"
    if zero:
        use_zero(options.folder)
    # If accelerate were told that it is on a CPU, it would leave DeepSpeed out.
    state = PartialState(cpu=not zero, backend="gloo" if zero else None)
    (options.folder / f"rank{state.process_index}.pid").write_text(str(os.getpid()))
    args = build_args(
        options.folder,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size // state.num_processes,
        use_cpu=not zero,
        ddp_backend="gloo" if zero else None,
    )
    count = CountSteps()
    model = load_model(options.folder.parent / "base", options.kind)
    trainer = R2FTrainer(model, args, processing_class=build_tokenizer(), callbacks=[count], **build_data())
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
