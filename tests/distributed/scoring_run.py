"""What a model gives for the metrics, on any number of processes, for test_scoring.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from conftest import build_tokenizer, rows
from distributed.processes_run import load
from transformers import AutoModelForCausalLM, PreTrainedModel

from r2f_hf.data.formatting import encode_example
from r2f_hf.scoring import gradient_norms, hidden_states, key_words, patching_falls, score_choices, token_statistics


def score(model: PreTrainedModel, source: PreTrainedModel, sharded: bool = False) -> dict[str, Any]:
    """All of it on seven rows, in batches of two: a process has a batch more than another."""
    tokenizer, people = build_tokenizer(), rows("Orla", 7)
    pairs = [(str(row["question"]), str(row["answer"])) for row in people]
    examples = [encode_example(tokenizer, *pair) for pair in pairs]
    known = [key_words(tokenizer, each, pair[1].split()[-1]) for each, pair in zip(examples, pairs, strict=True)]
    questions, choices = [pair[0] for pair in pairs], [[pair[1], "gone"] for pair in pairs]
    found: dict[str, Any] = {
        "statistics": [list(row) for row in token_statistics(model, examples, 0, 2)],
        "falls": patching_falls(model, source, known, 0, 2),
        "states": hidden_states(model, examples, 0, batch_size=2).tolist(),
        "choices": score_choices(model, tokenizer, questions, choices, 2),
    }
    try:
        found["norms"] = gradient_norms(model, examples, 0)
    except ValueError as error:
        if not sharded:
            raise
        found["refused"] = str(error)
    return found


def run(folder: Path, sharded: bool) -> None:
    state = PartialState(cpu=True)
    models = [load("llama", folder / name, sharded, 0, state.num_processes) for name in ("one", "other")]
    if not sharded:
        models = [AutoModelForCausalLM.from_pretrained(folder / name / "base") for name in ("one", "other")]
    torch.save(score(*(model.eval() for model in models), sharded), folder / f"process{state.process_index}.pt")
    state.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sharded", action="store_true")
    run(**vars(parser.parse_args()))
