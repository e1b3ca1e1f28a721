"""`r2f evaluate`: a suite of metrics on a saved model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from transformers import AutoTokenizer

from ..config import parse_kwargs
from ..data.rendering import ChatOptions, check_template_arguments
from ..evaluation.lm_eval import check_lm_eval, run_lm_eval
from ..evaluation.runner import run_suite
from ..evaluation.suites import SUITES, check_splits, load_own, load_suite
from ..evaluation.suites.base import Rows, Statistics
from ..lookup import lookup
from ..models.loading import ModelArguments, asked_to_shard, load_model
from ..report import print_table
from ..runs.files import write_json
from .recipes import parse_recipe


# Of `report.json`. It rises when a field goes or means something else, and stays when one is added.
SCHEMA = "r2f-evaluate/1"


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
        suite (`str`, *optional*, defaults to `"tofu"`):
            Name of the suite, an entry of [`SUITES`].
        data (`str`, *optional*):
            The rows of the suite: a folder with the files of the benchmark, or a Hub dataset. Defaults to the
            benchmark's own name on the Hub.
        forget_split (`str`, *optional*):
            Name of the forget set. TOFU has `"forget01"` (the default), `"forget05"` and `"forget10"`.
        forget_data (`str`, *optional*):
            For the `"own"` suite: the rows to forget, as in `r2f unlearn`.
        retain_data (`str`, *optional*):
            For the `"own"` suite: rows to keep.
        holdout_data (`str`, *optional*):
            For the `"own"` suite: rows that the model never saw.
        prompt_column (`str`, *optional*):
            For the `"own"` suite: column of the question, as in `r2f unlearn`.
        completion_column (`str`, *optional*):
            For the `"own"` suite: column of the answer or the text.
        gold_model (`str`, *optional*):
            Folder or name of a model that was trained without the forget set. With it, the report says whether the two
            models can be told apart.
        original_model (`str`, *optional*):
            Folder or name of the model before unlearning. With it, the report says how much of its utility is kept.
        gradnorm (`bool`, *optional*, defaults to `False`):
            Whether to run the membership attack by gradient norms too, which takes a backward pass per row.
        lm_eval_tasks (`list[str]`, *optional*):
            Tasks of lm-evaluation-harness to run on the model, such as `mmlu`.
        lm_eval_include_path (`str`, *optional*):
            Folder with further tasks.
        output_dir (`str`, *optional*, defaults to `"evaluation"`):
            Folder for `report.json` and the statistics of each split. If the command is repeated, it reads the
            statistics that are there instead of computing them again.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.
        max_new_tokens (`int`, *optional*):
            Longest generated answer, in tokens. Defaults to what the suite takes: 64 for TOFU.
        max_length (`int`, *optional*):
            Tokens of an example. Longer texts are cut into windows. Defaults to what the model reads.
        chat_template_kwargs (`str`, *optional*):
            Arguments of the chat template, in JSON, as in training.
        system_prompt (`str`, *optional*):
            System message of every question, as in training.
    """

    _argument_group_name: ClassVar[str] = "What is measured"

    suite: str = field(default="tofu", metadata={"help": "Name of the suite."})
    data: str | None = field(default=None, metadata={"help": "A folder with the benchmark's files, or a Hub dataset."})
    forget_split: str | None = field(default=None, metadata={"help": "Name of the forget set, as the suite has it."})
    forget_data: str | None = field(default=None, metadata={"help": "Own suite: rows to forget, as in r2f unlearn."})
    retain_data: str | None = field(default=None, metadata={"help": "Own suite: rows to keep."})
    holdout_data: str | None = field(default=None, metadata={"help": "Own suite: rows that the model never saw."})
    prompt_column: str | None = field(default=None, metadata={"help": "Own suite: column of the question."})
    completion_column: str | None = field(default=None, metadata={"help": "Own suite: column of the answer or text."})
    gold_model: str | None = field(
        default=None, metadata={"help": "A model that never saw the forget set, to compare with."}
    )
    original_model: str | None = field(
        default=None, metadata={"help": "The model before unlearning, to compare its utility with."}
    )
    gradnorm: bool = field(default=False, metadata={"help": "Run the attack by gradient norms too."})
    lm_eval_tasks: list[str] | None = field(
        default=None, metadata={"help": "Tasks of lm-evaluation-harness to run, such as mmlu."}
    )
    lm_eval_include_path: str | None = field(default=None, metadata={"help": "Folder with further tasks."})
    output_dir: str = field(default="evaluation", metadata={"help": "Folder for report.json and the statistics."})
    batch_size: int = field(default=16, metadata={"help": "Rows per forward pass."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "Longest generated answer, in tokens."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of an example; longer texts are cut into windows."}
    )
    chat_template_kwargs: str | None = field(
        default=None, metadata={"help": "Arguments of the chat template, in JSON, as in training."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message of every question, as in training."}
    )


# The dataclasses whose fields are the options.
OPTIONS = (EvaluateArguments, ModelArguments)


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments and the rows of `r2f evaluate`."""
    sharded = asked_to_shard()
    # Without an accelerator this has to be said here. Otherwise the processes would not find each other.
    PartialState(cpu=not torch.accelerator.is_available())
    args, model_arguments = parse_recipe("evaluate", OPTIONS, argv)
    splits = load_splits(args)
    if args.lm_eval_tasks:
        check_lm_eval(args.lm_eval_tasks, args.lm_eval_include_path)
    if args.gold_model is not None and model_arguments.model_name_or_path is not None:
        check_tokenizers(model_arguments.model_name_or_path, args.gold_model)
    return partial(evaluate, args, model_arguments, splits, sharded)


def load_splits(args: EvaluateArguments) -> dict[str, Rows]:
    """
    Load and check the rows of the suite.

    Raises:
        `FileNotFoundError`: If there is no such folder or file.
        `ValueError`: If there is no such suite, if the data are named in a way that the suite does not take, or if the
            rows do not fit it.
    """
    suite = lookup(SUITES, args.suite, "suite")
    sets = (args.forget_data, args.retain_data, args.holdout_data)
    if suite.hub is None:
        if args.data is not None:
            raise ValueError(f"The {args.suite} suite takes no `data`. Set `forget_data` and `retain_data`.")
        splits = load_own(*sets, args.prompt_column, args.completion_column)
    else:
        if any(source is not None for source in sets):
            raise ValueError(
                f"The {args.suite} suite takes its rows from `data`. For rows of your own set `suite` to own."
            )
        splits = load_suite(args.suite, args.data, args.forget_split)
    check_splits(args.suite, splits)
    return splits


def check_tokenizers(name: str, gold: str) -> None:
    """
    Refuse a gold model with another tokenizer. Probabilities per token could not be compared.

    Args:
        name (`str`):
            Folder or name of the model.
        gold (`str`):
            Folder or name of the gold model.

    Raises:
        `ValueError`: If the two tokenizers have different tokens.
    """
    try:
        ours, theirs = (AutoTokenizer.from_pretrained(each).get_vocab() for each in (name, gold))
    except OSError:
        # It is told better where the model is loaded.
        return
    if ours != theirs:
        raise ValueError(
            f"The gold model {gold} has another tokenizer than {name} ({len(theirs)} and {len(ours)} tokens). "
            "Probabilities per token cannot be compared. Train gold from the same base model."
        )


def evaluate(
    args: EvaluateArguments, model_arguments: ModelArguments, splits: dict[str, Rows], sharded: bool = False
) -> None:
    """Evaluate the model (those that it is compared with first), print the metrics, and write `report.json`."""
    folder = Path(args.output_dir)
    state, suite = PartialState(), SUITES[args.suite]
    options = ChatOptions(parse_kwargs("chat_template_kwargs", args.chat_template_kwargs), args.system_prompt)
    settings = {
        "batch_size": args.batch_size,
        "max_new_tokens": args.max_new_tokens,
        "max_length": args.max_length,
        "options": options,
        "gradnorm": args.gradnorm,
    }

    def statistics(name: str | None, role: str, needed: Sequence[str]) -> dict[str, Statistics] | None:
        """Statistics of a model that the unlearned one is compared with."""
        chosen = {split: rows for split, rows in splits.items() if split in needed}
        if name is None or not chosen:
            return None
        model, tokenizer = load_model(model_arguments, name, sharded=sharded)
        return run_suite(args.suite, model.to(state.device), tokenizer, chosen, folder / role, **settings)[1]

    gold = statistics(args.gold_model, "gold", suite.gold)
    original = statistics(args.original_model, "original", suite.original)
    model, tokenizer = load_model(model_arguments, sharded=sharded)
    check_template_arguments(tokenizer, options)
    model = model.to(state.device)
    metrics, found = run_suite(args.suite, model, tokenizer, splits, folder, gold, original=original, **settings)
    notes, left_out = suite.remark(found, gold, original)
    for role, name, needed in (
        ("gold_model", args.gold_model, suite.gold),
        ("original_model", args.original_model, suite.original),
    ):
        if name is not None and not needed:
            notes.append(f"{role}: the {args.suite} suite compares with no such model. It was not read.")
    report = {
        "schema": SCHEMA,
        "model": model_arguments.model_name_or_path,
        "gold_model": args.gold_model,
        "original_model": args.original_model,
        "suite": args.suite,
        "forget_split": args.forget_split or suite.forget,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "metrics": metrics,
        "notes": notes,
        "left_out": left_out,
    }
    if args.lm_eval_tasks:
        report["lm_eval"] = run_lm_eval(
            model, tokenizer, args.lm_eval_tasks, args.lm_eval_include_path, args.batch_size
        )
    if state.is_main_process:
        write_json(folder / "report.json", report)
        print_report(report)
        print(f"The report is {folder / 'report.json'}.")
    state.destroy_process_group()


def print_report(report: dict[str, Any]) -> None:
    """Print the metrics as tables, and below them what a reader has to know."""
    title = " ".join(filter(None, (report["suite"], report["forget_split"])))
    print_table(title, {name: {"value": value} for name, value in report["metrics"].items()}, ["value"])
    for task, values in report.get("lm_eval", {}).items():
        print_table(f"lm-eval {task}", {name: {"value": value} for name, value in values.items()}, ["value"])
    for note in report["notes"]:
        print(f"Note: {note}")
    if report["left_out"]:
        print(f"Left out (the report says why): {', '.join(report['left_out'])}.")
