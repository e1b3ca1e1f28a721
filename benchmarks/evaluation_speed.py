"""
How much faster a suite is scored if each question is read once and rows are batched by length.

    python benchmarks/evaluation_speed.py --data DIR [--rows 10] [--repeats 3] [--batch_size 16] [--quick]

Scores the completions of TOFU rows (answer, paraphrase, wrong answers, answer to the paraphrased question) with
SmolLM2-135M in fp32. It does so in four ways, in turns, which have to give the same scores:

- as r2f_hf does;
- as the TOFU suite does for forget rows, which takes more statistics of the answers' tokens in a pass of their own;
- in batches of the same size, in the order of the file, with the question in every row;
- row by row.

Writes outputs/evaluation_speed.json with the medians of the ratios of their times: `ratio_plain` (row by row) and
`ratio_batched` (same batch size). A ratio above 1 means that r2f_hf is faster. `share_of_statistics` is the share of
the time that the statistics cost. The table also shows the ratios of their work: the floating-point operations of the
matrix products that each way asks for, counted while it runs. The least work reads every question once, pads nothing,
and takes logits only of completions. If the ratio of the times is above the ratio of the work, the rest comes from
larger matrix products.
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
from r2f_hf.scoring.token_statistics import token_statistics
from shared.pypi_models import smollm2_folder


def completions(rows: list[dict]) -> list[tuple[str, str]]:
    """The pairs of a question and a completion that a suite scores, kind by kind."""
    return [
        *((row["question"], row["answer"]) for row in rows),
        *((row["question"], row["paraphrased_answer"]) for row in rows),
        *((row["question"], wrong) for row in rows for wrong in row["perturbed_answer"]),
        *((row["paraphrased_question"], row["answer"]) for row in rows),
    ]


@torch.inference_mode()
def score_plainly(model: torch.nn.Module, examples: list[dict], padding: int, batch_size: int) -> np.ndarray:
    """Mean log-probability per token of each row, in the order given, with the question in every row."""
    collator, scores = ForgetRetainCollator(padding), []
    for start in range(0, len(examples), batch_size):
        batch = collator(examples[start : start + batch_size])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        log_probs, tokens = label_log_probs(logits, batch["labels"])
        scores += (log_probs.double() / tokens).tolist()
    return np.array(scores)


def least_work(model: torch.nn.Module, examples: list[dict]) -> int:
    """Floating-point operations of reading each prompt once and each completion once, without attention."""
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
    parser.add_argument("--quick", action="store_true", help="two rows, in two turns")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.repeats = 2, 2

    lines = (options.data / "forget01_perturbed.json").read_text().splitlines()
    pairs = completions([json.loads(line) for line in lines[: options.rows]])
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder()).eval()
    examples = [encode_example(tokenizer, *pair) for pair in pairs]
    # The first completions are the rows' own answers.
    answers, others = examples[: options.rows], list(zip(*pairs[options.rows :], strict=True))
    padding = pad_token_id(tokenizer)
    ways = {
        "shared, sorted": lambda: score_completions(model, tokenizer, *zip(*pairs, strict=True), options.batch_size),
        "with statistics": lambda: np.concatenate(
            [
                [-row.loss for row in token_statistics(model, answers, padding, options.batch_size)],
                score_completions(model, tokenizer, *others, options.batch_size),
            ]
        ),
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
            "tokens per second": tokens / median(seconds[name]),
            "time, ratio": ratios[name],
            "work, ratio": work_ratios[name],
        }
        for name in ways
    }
    least = least_work(model, examples)
    table["least work"] = {"work, ratio": least / work["shared, sorted"]}
    columns = ("tokens per second", "time, ratio", "work, ratio")
    print_table(f"Scoring {len(pairs)} completions of {options.rows} rows", table, columns)
    print(f"Row by row takes {work['row by row'] / least:.2f} times the least work.")
    print(f"The scores differ by {difference:.1e} at most.")
    report = {
        "ratio_plain": ratios["row by row"],
        "ratio_batched": ratios["same batch size"],
        "share_of_statistics": 1 - 1 / ratios["with statistics"],
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
