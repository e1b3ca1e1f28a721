"""`r2f evaluate`: a suite of metrics on a saved model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import PartialState

from ..evaluation.runner import run_suite
from ..evaluation.suites.base import Rows
from ..evaluation.suites.registry import load_suite
from ..models.loading import ModelArguments, asked_to_shard, load_model
from ..report import print_table
from ..runs.files import write_json
from .recipes import parse_recipe


@dataclass
class EvaluateArguments:
    """
    What `r2f evaluate` measures.

    Args:
        data (`str`, *optional*, defaults to `"locuslab/TOFU"`):
            A folder with one JSON-lines file a split, or a Hub dataset.
        suite (`str`, *optional*, defaults to `"tofu"`):
            The suite, by name.
        forget_split (`str`, *optional*, defaults to `"forget01"`):
            Which forget set of the suite.
        gold_model (`str`, *optional*):
            A model that never saw the forget set; with it forget quality is reported.
        output_dir (`str`, *optional*, defaults to `"evaluation"`):
            Where `report.json` and the statistics go. A rerun goes on where the last one ended.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows in a batch.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest generated answer, in tokens.
    """

    _argument_group_name: ClassVar[str] = "What is measured"

    data: str = field(default="locuslab/TOFU", metadata={"help": "A folder of JSON-lines files, or a Hub dataset."})
    suite: str = field(default="tofu", metadata={"help": "The suite, by name."})
    forget_split: str = field(default="forget01", metadata={"help": "Which forget set of the suite."})
    gold_model: str | None = field(default=None, metadata={"help": "A model that never saw the forget set."})
    output_dir: str = field(default="evaluation", metadata={"help": "Where report.json and the statistics go."})
    batch_size: int = field(default=16, metadata={"help": "Rows in a batch."})
    max_new_tokens: int = field(default=64, metadata={"help": "Longest generated answer, in tokens."})


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments of `r2f evaluate` and its rows."""
    sharded = asked_to_shard()
    # Processes without an accelerator would not know of each other.
    PartialState(cpu=not torch.accelerator.is_available())
    args, model_arguments = parse_recipe("evaluate", (EvaluateArguments, ModelArguments), argv)
    splits = load_suite(args.suite, args.data, args.forget_split)
    return partial(evaluate, args, model_arguments, splits, sharded)


def evaluate(
    args: EvaluateArguments, model_arguments: ModelArguments, splits: dict[str, Rows], sharded: bool = False
) -> None:
    """Evaluate, and write `report.json` to the output folder."""
    folder = Path(args.output_dir)
    settings = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens}
    state = PartialState()
    gold = None
    if args.gold_model is not None:
        model, tokenizer = load_model(model_arguments, args.gold_model, sharded=sharded)
        forget = {"forget": splits["forget"]}
        _, gold = run_suite(args.suite, model.to(state.device), tokenizer, forget, folder / "gold", **settings)
    model, tokenizer = load_model(model_arguments, sharded=sharded)
    metrics, _ = run_suite(args.suite, model.to(state.device), tokenizer, splits, folder, gold, **settings)
    if state.is_main_process:
        write_json(
            folder / "report.json",
            {
                "model": model_arguments.model_name_or_path,
                "gold_model": args.gold_model,
                "suite": args.suite,
                "forget_split": args.forget_split,
                "rows": {split: len(rows) for split, rows in splits.items()},
                "metrics": metrics,
            },
        )
        print_table(
            f"{args.suite} {args.forget_split}", {name: {"value": value} for name, value in metrics.items()}, ["value"]
        )
        print(f"The report is {folder / 'report.json'}.")
    state.destroy_process_group()
