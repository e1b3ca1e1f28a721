"""All suites on their test folders, on any number of processes, for test_suites.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import PartialState
from evaluation.suites.conftest import DATA, MODELS
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2f_hf.data.loading import load_rows
from r2f_hf.distributed import is_sharded
from r2f_hf.evaluation import SUITES, load_own, load_suite, run_depth, run_suite, write_answers
from r2f_hf.evaluation.depth import summarise_depth


def metrics_of_all(sharded: bool = False) -> dict[str, dict[str, float]]:
    """The metrics of each suite, of written answers, and of the depth, in batches of three."""
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
    questions = str(DATA / "own" / "questions.jsonl")
    sets = write_answers(
        model,
        tokenizer,
        dict.fromkeys(("forget", "retain"), load_rows(questions)),
        2,
        True,
        max_new_tokens=8,
        batch_size=3,
    )
    found["written"] = run_suite("own", model, tokenizer, sets, **settings)[0]
    other = AutoModelForCausalLM.from_pretrained(MODELS / "model_a", **loading)
    rows = load_suite("tofu", str(DATA / "tofu"))
    rows["retain"] = [*rows["retain"], *rows["retain"]]
    inside = [run_depth("tofu", each, tokenizer, rows, None, model, 3) for each in (other, gold_model)]
    found["depth"] = summarise_depth(*inside)
    return found


if __name__ == "__main__":
    state = PartialState(cpu=True)
    metrics = metrics_of_all("--sharded" in sys.argv)
    Path(sys.argv[1], f"process{state.process_index}.json").write_text(json.dumps(metrics))
    state.destroy_process_group()
