"""`r2f evaluate`: a suite of metrics on a saved model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import PartialState

from ..config import parse_kwargs
from ..data.rendering import ChatOptions, check_template_arguments
from ..evaluation.runner import run_suite
from ..evaluation.suites.base import Rows
from ..evaluation.suites.registry import load_suite
from ..models.loading import ModelArguments, asked_to_shard, load_model
from ..report import print_table
from ..runs.files import write_json
from .recipes import parse_recipe


@dataclass
class EvaluateArguments:
    r"""
    What `r2f evaluate` measures, and where it writes the results.

    The command runs a suite of metrics on a saved model, prints them as a table, and writes them to `report.json`. The
    model is chosen by the options of [`ModelArguments`].

    ```bash
    r2f evaluate --model_name_or_path unlearned --gold_model retrained --data tofu-folder --output_dir evaluation
    ```

    Args:
        data (`str`, *optional*, defaults to `"locuslab/TOFU"`):
            The rows of the suite: a folder with one JSON-lines file per split, or a Hub dataset.
        suite (`str`, *optional*, defaults to `"tofu"`):
            Name of the suite, an entry of [`SUITES`].
        forget_split (`str`, *optional*, defaults to `"forget01"`):
            Name of the forget set. TOFU has `"forget01"`, `"forget05"` and `"forget10"`.
        gold_model (`str`, *optional*):
            Folder or name of a model that was trained without the forget set. With it, the report has the forget
            quality: whether the two models can be told apart.
        output_dir (`str`, *optional*, defaults to `"evaluation"`):
            Folder for `report.json` and the statistics of each split. If the command is repeated, it reads the
            statistics that are there instead of computing them again.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest generated answer, in tokens.
        chat_template_kwargs (`str`, *optional*):
            Arguments of the chat template, in JSON, as in training.
        system_prompt (`str`, *optional*):
            System message of every question, as in training.
    """

    _argument_group_name: ClassVar[str] = "What is measured"

    data: str = field(
        default="locuslab/TOFU", metadata={"help": "A folder with a JSON-lines file per split, or a Hub dataset."}
    )
    suite: str = field(default="tofu", metadata={"help": "Name of the suite."})
    forget_split: str = field(default="forget01", metadata={"help": "Name of the forget set, as the suite has it."})
    gold_model: str | None = field(
        default=None, metadata={"help": "A model that never saw the forget set, to measure forget quality."}
    )
    output_dir: str = field(default="evaluation", metadata={"help": "Folder for report.json and the statistics."})
    batch_size: int = field(default=16, metadata={"help": "Rows per forward pass."})
    max_new_tokens: int = field(default=64, metadata={"help": "Longest generated answer, in tokens."})
    chat_template_kwargs: str | None = field(
        default=None, metadata={"help": "Arguments of the chat template, in JSON, as in training."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message of every question, as in training."}
    )


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments and the rows of `r2f evaluate`."""
    sharded = asked_to_shard()
    # Without an accelerator this has to be said here. Otherwise the processes would not find each other.
    PartialState(cpu=not torch.accelerator.is_available())
    args, model_arguments = parse_recipe("evaluate", (EvaluateArguments, ModelArguments), argv)
    splits = load_suite(args.suite, args.data, args.forget_split)
    return partial(evaluate, args, model_arguments, splits, sharded)


def evaluate(
    args: EvaluateArguments, model_arguments: ModelArguments, splits: dict[str, Rows], sharded: bool = False
) -> None:
    """Evaluate the model (and the gold model first), print the metrics, and write `report.json`."""
    folder = Path(args.output_dir)
    options = ChatOptions(parse_kwargs("chat_template_kwargs", args.chat_template_kwargs), args.system_prompt)
    settings = {"batch_size": args.batch_size, "max_new_tokens": args.max_new_tokens, "options": options}
    state = PartialState()
    gold = None
    if args.gold_model is not None:
        model, tokenizer = load_model(model_arguments, args.gold_model, sharded=sharded)
        forget = {"forget": splits["forget"]}
        _, gold = run_suite(args.suite, model.to(state.device), tokenizer, forget, folder / "gold", **settings)
    model, tokenizer = load_model(model_arguments, sharded=sharded)
    check_template_arguments(tokenizer, options)
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
