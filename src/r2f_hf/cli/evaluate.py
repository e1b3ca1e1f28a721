"""`r2f evaluate`: a suite of metrics on a saved model."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..config import parse_kwargs
from ..data.formats import recognise_format
from ..data.rendering import ChatOptions, check_template_arguments
from ..evaluation.depth import check_depth, remark_on_depth, run_depth, summarise_depth
from ..evaluation.lm_eval import check_lm_eval, run_lm_eval
from ..evaluation.runner import run_suite
from ..evaluation.suites import SUITES, check_splits, load_own, load_suite
from ..evaluation.suites.audit import joined
from ..evaluation.suites.base import Rows, Statistics
from ..evaluation.writing import FILE, write_answers
from ..lookup import lookup
from ..models.loading import NO_MODEL, ModelArguments, asked_to_shard, load_model
from ..report import print_table
from ..report.run import EVALUATION_SCHEMA
from ..runs.files import write_json
from ..runs.ledger import last_weights
from ..scoring import seconds_by_part
from ..settings import check_counts
from .recipes import parse_recipe


SCHEMA = EVALUATION_SCHEMA

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass
class EvaluateArguments:
    r"""
    What `r2f evaluate` measures, and where it writes the results.

    The command runs a suite of metrics on a saved model and on those that it is compared with, prints them as a table,
    and writes them to `report.json`. The model is chosen by the options of [`ModelArguments`].

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
        depth (`bool`, *optional*, defaults to `False`):
            Whether to look for what is left inside the model: the unlearning depth, which needs gold and the original
            model, and a probe for truth. The depth takes one forward pass per layer of each forget row, and two
            models in memory. The suites `"tofu"` and `"own"` can do it.
        write_wrong_answers (`int`, *optional*, defaults to `0`):
            For the `"own"` suite: how many wrong answers per row the original model writes, where the rows have none.
            Without an original model the model itself writes them. They go into a file in `output_dir`, which holds
            texts.
        write_paraphrases (`bool`, *optional*, defaults to `False`):
            For the `"own"` suite: whether the same model also writes a paraphrase of each answer.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the texts that are written.
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
    depth: bool = field(default=False, metadata={"help": "Look for what is left inside the model."})
    write_wrong_answers: int = field(
        default=0, metadata={"help": "Own suite: wrong answers per row that the original model writes."}
    )
    write_paraphrases: bool = field(
        default=False, metadata={"help": "Own suite: let the original model write paraphrases of the answers."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the texts that are written."})
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
    check_counts(args, "batch_size", "max_new_tokens", "max_length")
    splits = load_splits(args)
    if model_arguments.model_name_or_path is None:
        raise ValueError(NO_MODEL)
    if args.lm_eval_tasks:
        check_lm_eval(args.lm_eval_tasks, args.lm_eval_include_path)
    for role, other in (("gold", args.gold_model), ("original", args.original_model)):
        if other is not None:
            check_tokenizers(model_arguments.model_name_or_path, other, role)
    return partial(evaluate, args, model_arguments, splits, sharded, shlex.join(("r2f", "evaluate", *argv)))


def load_splits(args: EvaluateArguments) -> dict[str, Rows]:
    """
    Load and check the rows of the suite.

    Raises:
        `FileNotFoundError`: If there is no such folder or file.
        `ValueError`: If there is no such suite, if the data are named in a way that the suite does not take, or if the
            rows do not fit it.
    """
    suite = lookup(SUITES, args.suite, "suite")
    if args.depth:
        check_depth(args.suite)
    check_writing(args)
    check_unused(args)
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
    check_written(args, splits)
    return splits


def check_writing(args: EvaluateArguments) -> None:
    """
    Refuse to let a model write for a suite with its own wrong answers.

    Raises:
        `ValueError`: If the suite is another one, or if the number of wrong answers means nothing.
    """
    if args.write_wrong_answers < 0:
        raise ValueError(f"`write_wrong_answers` is {args.write_wrong_answers}, and must be at least 0.")
    if args.suite != "own" and (args.write_wrong_answers or args.write_paraphrases):
        raise ValueError(
            f"A model writes answers only for the own suite. Leave out `write_wrong_answers` and `write_paraphrases`, "
            f"or set `suite` to own; it is {args.suite}."
        )


def check_unused(args: EvaluateArguments) -> None:
    """
    Refuse options that the suite does not use.

    Raises:
        `ValueError`: Naming the option.
    """
    own = SUITES[args.suite].hub is None
    if own and args.forget_split is not None:
        raise ValueError(f"The {args.suite} suite takes its forget set from `forget_data`. Leave out `forget_split`.")
    for name in ("prompt_column", "completion_column"):
        if not own and getattr(args, name) is not None:
            raise ValueError(f"The {args.suite} suite has columns of its own. Leave out `{name}`.")
    if args.gradnorm and "holdout" not in SUITES[args.suite].splits:
        raise ValueError(f"The {args.suite} suite has no holdout rows to compare with. Leave out `gradnorm`.")


def check_written(args: EvaluateArguments, splits: Mapping[str, Rows]) -> None:
    """
    Refuse to let a model write what no metric takes.

    Raises:
        `ValueError`: If all rows are texts, or if there are paraphrases to write and no wrong answers.
    """
    if not args.write_wrong_answers and not args.write_paraphrases:
        return
    rows = [row for split in ("forget", "retain") for row in splits[split]]
    if all(recognise_format(row, "forget").kind == "text" for row in rows):
        raise ValueError(
            "A model writes answers to questions, and all rows are texts. Leave out `write_wrong_answers`."
        )
    if not args.write_wrong_answers and not any(row.get("perturbed_answer") for row in rows):
        raise ValueError(
            "The truth ratio takes paraphrases together with wrong answers. Set `write_wrong_answers` too, or give "
            "the rows a column `perturbed_answer`."
        )


def check_tokenizers(name: str, other: str, role: str = "gold") -> None:
    """
    Refuse to compare with a model that has another tokenizer. Probabilities per token could not be compared.

    Args:
        name (`str`):
            Folder or name of the model.
        other (`str`):
            Folder or name of the model that it is compared with.
        role (`str`, *optional*, defaults to `"gold"`):
            `"gold"` or `"original"`, for the message.

    Raises:
        `ValueError`: If the two tokenizers have different tokens.
    """
    try:
        ours, theirs = (AutoTokenizer.from_pretrained(each).get_vocab() for each in (name, other))
    except OSError:
        # It is told better where the model is loaded.
        return
    if ours != theirs:
        advice = "Train gold from the same base model." if role == "gold" else "Name the model before unlearning."
        raise ValueError(
            f"The {role} model {other} has another tokenizer than {name} ({len(theirs)} and {len(ours)} tokens). "
            f"Probabilities per token cannot be compared. {advice}"
        )


def evaluate(
    args: EvaluateArguments,
    model_arguments: ModelArguments,
    splits: dict[str, Rows],
    sharded: bool = False,
    command: str | None = None,
) -> None:
    """Evaluate the model (those that it is compared with first), print the metrics, and write `report.json`."""
    folder = Path(args.output_dir)
    state, suite = PartialState(), SUITES[args.suite]
    options = ChatOptions(parse_kwargs("chat_template_kwargs", args.chat_template_kwargs), args.system_prompt)
    common = {"batch_size": args.batch_size, "options": options, "max_length": args.max_length}
    settings = common | {"max_new_tokens": args.max_new_tokens, "gradnorm": args.gradnorm}
    seconds: dict[str, dict[str, float]] = {}
    writes = args.write_wrong_answers > 0 or args.write_paraphrases

    def load(name: str | None = None) -> Loaded:
        model, tokenizer = load_model(model_arguments, name, sharded=sharded)
        check_template_arguments(tokenizer, options)
        return model.to(state.device), tokenizer

    def statistics(role: str, loaded: Loaded) -> dict[str, Statistics]:
        """Statistics of a model that the unlearned one is compared with: on all splits, to show both side by side."""
        return run_suite(args.suite, *loaded, splits, folder / role, **settings)[1]

    def depth(role: str, loaded: Loaded, knows: PreTrainedModel | None) -> Statistics | None:
        """What is left inside a model."""
        return run_depth(args.suite, *loaded, splits, folder / role, knows, **common) if args.depth else None

    original = original_depth = knows = gold = gold_depth = None
    notes: list[str] = []
    if args.original_model is not None or writes:
        loaded = load(args.original_model)
        if writes:
            amount = {"wrong_answers": args.write_wrong_answers, "paraphrases": args.write_paraphrases}
            amount |= {"seed": args.seed, "max_new_tokens": args.max_new_tokens or 64}
            with seconds_by_part() as seconds["writing"]:
                splits = write_answers(*loaded, splits, output_dir=folder, **amount, **common)
            notes.append(who_wrote(args, folder))
        if args.original_model is not None:
            original, original_depth = statistics("original", loaded), depth("original", loaded, None)
            seconds["original"] = parts(original, original_depth)
        # It stays in memory only where the hidden states of others are put into it.
        knows = loaded[0] if args.original_model is not None and args.gold_model is not None and args.depth else None
        del loaded
    if args.gold_model is not None:
        loaded = load(args.gold_model)
        gold, gold_depth = statistics("gold", loaded), depth("gold", loaded, knows)
        seconds["gold"] = parts(gold, gold_depth)
        del loaded
    model, tokenizer = load()
    metrics, found = run_suite(args.suite, model, tokenizer, splits, folder, gold, original=original, **settings)
    own_depth = depth("", (model, tokenizer), knows)
    seconds["model"] = parts(found, own_depth)
    remarks = suite.remark(found, gold, original)
    if suite.statements is not None:
        metrics |= {} if own_depth is None else summarise_depth(own_depth, gold_depth, original_depth)
        remarks = joined(remarks, remark_on_depth(own_depth, gold_depth, original_depth))
    notes += remarks.notes
    compared = {
        role: suite.summarise(of_role, gold)
        for role, of_role in (("original", original), ("gold", gold))
        if of_role is not None
    }
    report = {
        "schema": SCHEMA,
        "command": command,
        "model": model_arguments.model_name_or_path,
        "gold_model": args.gold_model,
        "original_model": args.original_model,
        "weights": last_weights(model_arguments.model_name_or_path),
        "suite": args.suite,
        "forget_split": args.forget_split or suite.forget,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "metrics": metrics,
        "compared": compared,
        "notes": notes,
        "left_out": remarks.left_out,
        "seconds": {role: of_role for role, of_role in seconds.items() if of_role},
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


def parts(found: Mapping[str, Statistics] | None, depth: Statistics | None) -> dict[str, float]:
    """Seconds of each part, when it was computed."""
    every = [*(found or {}).values(), depth or {}]
    return {part: seconds for each in every for part, seconds in each.get("seconds", {}).items()}


def who_wrote(args: EvaluateArguments, folder: Path) -> str:
    """A note on the texts that a model wrote."""
    writer = "the model itself" if args.original_model is None else "the original model"
    return (
        f"truth_ratio: {writer} wrote wrong answers or paraphrases (seed {args.seed}). Nobody checked them. They are "
        f"in {folder / FILE}, which holds texts."
    )


def print_report(report: dict[str, Any]) -> None:
    """Print the metrics as tables, and below them what a reader has to know."""
    title = " ".join(filter(None, (report["suite"], report["forget_split"])))
    compared = report["compared"]
    columns = {"original": compared.get("original"), "model": report["metrics"], "gold": compared.get("gold")}
    columns = {name: metrics for name, metrics in columns.items() if metrics is not None}
    rows = {
        name: {column: values[name] for column, values in columns.items() if name in values}
        for name in columns["model"]
    }
    print_table(title, rows, list(columns))
    for task, values in report.get("lm_eval", {}).items():
        print_table(f"lm-eval {task}", {name: {"value": value} for name, value in values.items()}, ["value"])
    for note in report["notes"]:
        print(f"Note: {note}")
    for role, parts_of_role in report["seconds"].items():
        longest = sorted(parts_of_role.items(), key=lambda part: -part[1])[:3]
        listed = ", ".join(f"{part} {seconds:.0f}" for part, seconds in longest)
        print(f"Seconds of {role}: {sum(parts_of_role.values()):.0f} ({listed}).")
    if report["left_out"]:
        print(f"Left out (the report says why): {', '.join(report['left_out'])}.")
