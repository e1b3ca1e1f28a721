"""
The memory that a book takes as a forget document, by the tokens of the book.

    apt-get download bible-kjv bible-kjv-text && for package in *.deb; do dpkg-deb -x $package book; done
    book/usr/bin/bible -f -p book/usr/lib "gen1:1-rev22:21" < /dev/null > book.txt
    python benchmarks/book.py --text book.txt --retain DIR/world_facts.json [--model tiny]

Each share of the text is one row to forget in a process of its own, in windows of 512 tokens. The process takes four
steps of four windows, two at a time, and saves the model. Only the first 20,000 characters are evaluated, as the whole
book would take hours on a CPU. So would the references of the default objective: with SmolLM2 the objective is SimNPO,
which needs none. The tiny model has the default objective, with the references of all windows.

`peak` is the highest resident memory of the process, in GiB. `bytes per token` is what a share's peak has more than
that of the smallest share, by the tokens that it has more.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.data.loading import load_rows
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.faults_worker import build_model, build_tokenizer
from shared.precision import computes_bf16
from shared.pypi_models import smollm2_folder


EXCERPT = 20_000
WINDOW, OVERLAP = 512, 64
# A step has four windows, in two batches: the activations of a batch take more memory than anything else.
STEPS, BATCH_SIZE, ACCUMULATION = 4, 2, 2


def unlearn(model_name: str, text: str, retain: list[dict], folder: Path) -> dict[str, float]:
    """Make a model forget a text, and tell what that took."""
    start = time.perf_counter()
    tiny = model_name == "tiny"
    args = R2FConfig(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=ACCUMULATION,
        per_device_eval_batch_size=BATCH_SIZE,
        max_length=256 if tiny else WINDOW,
        window_overlap=OVERLAP,
        forget_objective="npo" if tiny else "simnpo",
        bf16=not tiny and computes_bf16(),
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    base = None if tiny else smollm2_folder()
    trainer = R2FTrainer(
        AutoModelForCausalLM.from_pretrained(base) if base else build_model(),
        args,
        forget_dataset=[text],
        retain_dataset=retain,
        eval_dataset={"forget": [text[:EXCERPT]], "retain": retain},
        processing_class=AutoTokenizer.from_pretrained(base) if base else build_tokenizer(),
    )
    metrics = trainer.unlearn()
    tokens = sum(sum(label >= 0 for label in example["labels"]) for example in trainer.splits.originals)
    return {
        "tokens": tokens,
        "windows": len(trainer.splits.originals),
        "P(excerpt) before": metrics["before"]["eval_forget_probability"],
        "P(excerpt) after": metrics["after"]["eval_forget_probability"],
        "seconds": time.perf_counter() - start,
        # Linux counts KiB.
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the book, as a text file")
    parser.add_argument("--retain", type=Path, required=True, help="rows to keep: question, answer")
    parser.add_argument("--model", default="smollm2", choices=("smollm2", "tiny"))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0625, 0.25, 0.5, 1.0])
    parser.add_argument("--output", type=Path, default=Path("outputs/book.json"))
    # What a process of one share is told.
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result is not None:
        text = options.text.read_text(encoding="utf-8")
        text = text[: int(len(text) * options.shares[0])]
        retain = [{key: row[key] for key in ("question", "answer")} for row in load_rows(str(options.retain))]
        with tempfile.TemporaryDirectory() as scratch:
            write_json(options.result, unlearn(options.model, text, retain, Path(scratch)))
        return
    table: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for share in sorted(options.shares):
            result = Path(scratch) / f"{share}.json"
            process = subprocess.run([sys.executable, *sys.argv, "--shares", str(share), "--result", str(result)])
            if process.returncode:
                raise SystemExit(f"The process of share {share} failed.")
            table[f"{share:g} of the book"] = json.loads(result.read_text())
    first, *others = table.values()
    for row in others:
        row["bytes per token"] = (row["peak"] - first["peak"]) * 2**30 / (row["tokens"] - first["tokens"])
    write_json(options.output, table)
    print_table(f"A book as a forget document ({options.model}, {torch.get_num_threads()} threads)", table, list(row))


if __name__ == "__main__":
    main()
