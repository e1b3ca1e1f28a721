"""
What batching by length and reading each question once are worth when a suite is scored.

    python benchmarks/evaluation_speed.py --data DIR [--rows 10] [--repeats 3] [--batch_size 16]

Scores the completions of TOFU rows (answer, paraphrase, wrong answers, answer to the paraphrased question) on
SmolLM2-135M in fp32 in three ways, one after the other in turn: as r2f_hf does; in batches of the same size in the
order of the file, each row whole; and row by row. The numbers have to be the same. Writes
outputs/evaluation_speed.json with the medians of the ratios of their times: `ratio_plain` (row by row) and
`ratio_batched` (same batch size), above 1 where r2f_hf is faster. Beside them stand the ratios of their work: the
multiplications that each way asks for, counted while it runs, and the least that there is to do, where every question
is read once, nothing is padded and logits are taken of completions alone. What time gains beyond work comes of larger
matrix products.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2f_hf.data.collator import ForgetRetainCollator, pad_token_id
from r2f_hf.data.formatting import encode_example
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from r2f_hf.scoring.completions import score_completions
from r2f_hf.scoring.log_probs import label_log_probs
from shared.pypi_models import smollm2_folder


def completions(rows: list[dict]) -> list[tuple[str, str]]:
    """The pairs that a suite scores, kind by kind."""
    return [
        *((row["question"], row["answer"]) for row in rows),
        *((row["question"], row["paraphrased_answer"]) for row in rows),
        *((row["question"], wrong) for row in rows for wrong in row["perturbed_answer"]),
        *((row["paraphrased_question"], row["answer"]) for row in rows),
    ]


@torch.inference_mode()
def score_plainly(model: torch.nn.Module, examples: list[dict], padding: int, batch_size: int) -> np.ndarray:
    """Mean log-probability per token of each row, in the order given, each row whole."""
    collator, found = ForgetRetainCollator(padding), []
    for start in range(0, len(examples), batch_size):
        batch = collator(examples[start : start + batch_size])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        log_probs, tokens = label_log_probs(logits, batch["labels"])
        found += (log_probs.double() / tokens).tolist()
    return np.array(found)


def least_work(model: torch.nn.Module, examples: list[dict]) -> int:
    """Floating-point operations of reading each prompt once and each completion once, attention aside."""
    starts = [example["labels"].count(-100) for example in examples]
    rows = [example["input_ids"] for example in examples]
    prompts = {tuple(row[:start]) for row, start in zip(rows, starts, strict=True)}
    scored = sum(len(row) - start for row, start in zip(rows, starts, strict=True))
    read = sum(map(len, prompts)) + scored - len(rows)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return 2 * (read * sum(module.weight.numel() for module in linear) + scored * head.weight.numel())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's JSON-lines files")
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path("outputs/evaluation_speed.json"))
    options = parser.parse_args()

    lines = (options.data / "forget01_perturbed.json").read_text().splitlines()
    pairs = completions([json.loads(line) for line in lines[: options.rows]])
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder()).eval()
    examples = [encode_example(tokenizer, *pair) for pair in pairs]
    padding = pad_token_id(tokenizer)
    ways = {
        "shared, sorted": lambda: score_completions(model, tokenizer, *zip(*pairs, strict=True), options.batch_size),
        "same batch size": lambda: score_plainly(model, examples, padding, options.batch_size),
        "row by row": lambda: score_plainly(model, examples, padding, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores, work = {}, {}
    for name, score in ways.items():
        with FlopCounterMode(display=False) as counter:
            scores[name] = score()
        work[name] = counter.get_total_flops()
    for _ in track(range(options.repeats), "Scoring"):
        for name, score in ways.items():
            start = time.perf_counter()
            score()
            seconds[name].append(time.perf_counter() - start)
    difference = max(float(np.abs(scores[name] - scores["shared, sorted"]).max()) for name in ways)
    ratios = {
        name: median(slow / fast for slow, fast in zip(seconds[name], seconds["shared, sorted"], strict=True))
        for name in ways
    }
    tokens = sum(len(example["input_ids"]) for example in examples)
    work_ratios = {name: work[name] / work["shared, sorted"] for name in ways}
    table = {
        name: {
            "tokens a second": tokens / median(seconds[name]),
            "time, ratio": ratios[name],
            "work, ratio": work_ratios[name],
        }
        for name in ways
    }
    least = least_work(model, examples)
    table["the least there is to do"] = {"work, ratio": least / work["shared, sorted"]}
    columns = ("tokens a second", "time, ratio", "work, ratio")
    print_table(f"Scoring {len(pairs)} completions of {options.rows} rows", table, columns)
    print(f"Row by row takes {work['row by row'] / least:.2f} times the least work.")
    print(f"The scores differ by {difference:.1e} at most.")
    report = {
        "ratio_plain": ratios["row by row"],
        "ratio_batched": ratios["same batch size"],
        "max_difference": difference,
        "completions": len(pairs),
        "tokens": tokens,
        "work": work | {"least": least},
        "seconds": seconds,
    }
    write_json(options.output, report)
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
