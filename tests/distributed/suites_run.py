"""All suites on their test folders, on any number of processes, for test_suites.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import PartialState
from evaluation.suites.conftest import DATA, MODELS
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2f_hf.distributed import is_sharded
from r2f_hf.evaluation import SUITES, load_own, load_suite, run_suite


def metrics_of_all(sharded: bool = False) -> dict[str, dict[str, float]]:
    """The metrics of each suite, with gold and the original model, in batches of three."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "model_a")
    loading = {}
    if sharded:
        from transformers.distributed import DistributedConfig

        loading["distributed_config"] = DistributedConfig(fsdp_size=PartialState().num_processes)
    models = [AutoModelForCausalLM.from_pretrained(MODELS / name, **loading) for name in ("model_c", "model_b")]
    assert all(is_sharded(parameter) == sharded for each in models for parameter in each.parameters())
    model, gold_model = models
    found = {}
    for name, suite in SUITES.items():
        files = [str(DATA / "own" / f"{file}.jsonl") for file in ("forget", "questions", "holdout")]
        splits = load_own(*files) if suite.hub is None else load_suite(name, str(DATA / name))
        settings = {"batch_size": 3, "max_new_tokens": 8}
        compared = {split: rows for split, rows in splits.items() if split in suite.gold}
        gold = run_suite(name, gold_model, tokenizer, compared, **settings)[1] if compared else None
        kept = {split: rows for split, rows in splits.items() if split in suite.original}
        original = run_suite(name, model, tokenizer, kept, **settings)[1] if kept else None
        found[name] = run_suite(name, model, tokenizer, splits, None, gold, original=original, **settings)[0]
    return found


if __name__ == "__main__":
    state = PartialState(cpu=True)
    metrics = metrics_of_all("--sharded" in sys.argv)
    Path(sys.argv[1], f"process{state.process_index}.json").write_text(json.dumps(metrics))
    state.destroy_process_group()
