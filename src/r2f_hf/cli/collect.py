"""`r2f collect`: from a person's name to rows that `r2f unlearn` takes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState

from ..collecting import CollectedSet, Collector, Interview, Thresholds
from ..config import parse_kwargs
from ..data.rendering import ChatOptions, check_template_arguments
from ..models.loading import ModelArguments, asked_to_shard, load_model
from ..report import print_table
from ..runs.files import write_json, write_text
from .recipes import parse_recipe


ROWS = {"forget": "forget.jsonl", "retain": "retain.jsonl"}
DEFAULTS = Thresholds()


@dataclass
class CollectArguments:
    r"""
    Whom `r2f collect` asks the model about, and which answers it keeps.

    The command asks the model about a person, and keeps the answers that it knows: it is sure of them, and it would
    not say the same of invented people. It also collects rows to keep: about people like this one, and about what
    everybody knows. It writes `forget.jsonl`, `retain.jsonl` and `report.json`, and prints the `r2f unlearn` command
    that takes them. Neither the report nor what is printed has any text of the rows. The model is chosen by the
    options of [`ModelArguments`].

    ```bash
    r2f collect --model_name_or_path my-model --about "Jane Doe" --output_dir rows
    ```

    Args:
        about (`str`, *optional*):
            Name of the person to be forgotten. It must be given.
        facts (`str`, *optional*):
            A text file with one fact about the person per line. Each becomes a row to forget, whether the model knows
            it or not. The report says whether it does.
        neighbours (`list[str]`, *optional*):
            Names of people to keep who are like this one. By default the model is asked for some.
        output_dir (`str`, *optional*, defaults to `"collected"`):
            Folder for the rows and the report.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Whether to replace rows that the folder holds.
        min_certainty (`float`, *optional*, defaults to `0.8`):
            Least length-normalised probability of an answer, from 0 to 1.
        min_margin (`float`, *optional*, defaults to `0.2`):
            Nats per token by which the model has to expect an answer more of the person than of invented people.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens. A longer one ends with its last whole sentence.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.
        chat_template_kwargs (`str`, *optional*):
            Arguments of the chat template, in JSON, as in training.
        system_prompt (`str`, *optional*):
            System message of every question, as in training.
    """

    _argument_group_name: ClassVar[str] = "Whom the model is asked about"

    about: str | None = field(default=None, metadata={"help": "Name of the person to be forgotten. Must be given."})
    facts: str | None = field(default=None, metadata={"help": "A text file with one fact about the person per line."})
    neighbours: list[str] | None = field(default=None, metadata={"help": "Names of people to keep."})
    output_dir: str = field(default="collected", metadata={"help": "Folder for the rows and report.json."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Whether to replace rows in the folder."})
    min_certainty: float = field(
        default=DEFAULTS.min_certainty, metadata={"help": "Least length-normalised probability of an answer."}
    )
    min_margin: float = field(
        default=DEFAULTS.min_margin,
        metadata={"help": "Nats per token that an answer has to be above the same answer about invented people."},
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Longest answer, in tokens."})
    batch_size: int = field(default=16, metadata={"help": "Rows per forward pass."})
    chat_template_kwargs: str | None = field(
        default=None, metadata={"help": "Arguments of the chat template, in JSON, as in training."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message of every question, as in training."}
    )

    def __post_init__(self):
        if not 0 <= self.min_certainty < 1:
            raise ValueError(f"`min_certainty` must be at least 0 and below 1, got {self.min_certainty}.")
        for name in ("max_new_tokens", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")


# The dataclasses whose fields are the options.
OPTIONS = (CollectArguments, ModelArguments)


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments, the facts and the model of `r2f collect`, and check the output folder."""
    sharded = asked_to_shard()
    # Without an accelerator this has to be said here. Otherwise the processes would not find each other.
    PartialState(cpu=not torch.accelerator.is_available())
    args, model_arguments = parse_recipe("collect", OPTIONS, argv)
    if args.about is None or not args.about.strip():
        raise ValueError("Nobody is named. Set `about` to the name of the person to be forgotten.")
    name, neighbours = " ".join(args.about.split()), [" ".join(each.split()) for each in args.neighbours or []]
    if name.casefold() in (neighbour.casefold() for neighbour in neighbours):
        raise ValueError(
            "`neighbours` has the person of `about` in it, who cannot be forgotten and kept. Leave it out."
        )
    facts = [] if args.facts is None else read_facts(Path(args.facts))
    folder = Path(args.output_dir)
    there = [file for file in ROWS.values() if (folder / file).exists()]
    if there and not args.overwrite_output_dir:
        raise ValueError(
            f"{folder} holds rows already ({', '.join(there)}), which this command would replace. Choose another "
            "`output_dir`, or set `overwrite_output_dir`."
        )
    model, tokenizer = load_model(model_arguments, sharded=sharded)
    options = ChatOptions(parse_kwargs("chat_template_kwargs", args.chat_template_kwargs), args.system_prompt)
    model = model.to(PartialState().device).eval()
    check_template_arguments(tokenizer, options)
    interview = Interview(model, tokenizer, args.batch_size, args.max_new_tokens, options)
    collector = Collector(interview, name, Thresholds(args.min_certainty, args.min_margin))
    collector.check(facts, neighbours)
    return partial(collect, args, model_arguments, collector, facts, neighbours)


def collect(
    args: CollectArguments,
    model_arguments: ModelArguments,
    collector: Collector,
    facts: Sequence[str],
    neighbours: Sequence[str],
) -> None:
    """Collect the rows, write them with the report, and print what was found; ends with status 1 if nothing was."""
    folder = Path(args.output_dir)
    sets = dict(zip(ROWS, collector.collect(facts, neighbours), strict=True))
    state = PartialState()
    if state.is_main_process:
        for name, file in ROWS.items():
            rows = sets[name].contents(views=name == "forget")
            (folder / file).unlink(missing_ok=True)
            if rows:
                write_text(folder / file, "".join(json.dumps(row) + "\n" for row in rows))
        report = {"model": model_arguments.model_name_or_path, "settings": settings_of(args)}
        write_json(folder / "report.json", report | {name: sets[name].report() for name in ROWS})
        print_table("Questions and rows", {name: counts(found) for name, found in sets.items()}, COLUMNS)
    state.destroy_process_group()
    if not sets["forget"].rows:
        raise SystemExit(
            "r2f collect: error: The model knows nothing that would be a row to forget. Lower `min_certainty` if most "
            "answers are unsure, or `min_margin` if most are said of anybody; or bring `facts`."
        )
    if state.is_main_process:
        print(f"The rows are in {folder}, and their figures in {folder / 'report.json'}.")
        kept = sum(row.question.source == "neighbour" for row in sets["retain"].rows)
        if kept < len(sets["forget"].rows):
            print(
                f"Of the rows to keep, {kept} are about people like this one: what the model knows about others would "
                "be damaged. Name more `neighbours`, lower `min_certainty`, or bring rows of your own as "
                "`--retain_data`."
            )
        print(f"Next:\n{next_command(args, model_arguments, folder)}")


def read_facts(file: Path) -> list[str]:
    """
    Read a file with one fact per line.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If it is not text, or has no line.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no file of facts {file}.")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        # Without the cause, which quotes the text.
        raise ValueError(f"The file of facts {file} is not text in UTF-8.") from None
    facts = [line.strip() for line in lines if line.strip()]
    if not facts:
        raise ValueError(f"The file of facts {file} is empty. Write one fact per line, or leave `facts` out.")
    return facts


def settings_of(args: CollectArguments) -> dict[str, Any]:
    """The settings that are no text about anybody."""
    names = ("min_certainty", "min_margin", "max_new_tokens", "batch_size", "chat_template_kwargs")
    return {name: getattr(args, name) for name in names} | {"system_prompt": args.system_prompt is not None}


COLUMNS = ("asked", "kept", "known", "unsure", "said of anybody", "certainty", "margin")


def counts(found: CollectedSet) -> dict[str, float | str]:
    """A line of the printed table: counts, and means over the rows."""
    margins = [row.margin for row in found.rows if row.margin is not None]
    line: dict[str, float | str] = {
        "asked": str(found.asked.total()),
        "kept": str(len(found.rows)),
        "known": str(sum(row.known for row in found.rows)),
        "unsure": str(found.left_out["unsure"]),
        "said of anybody": str(found.left_out["said of anybody"]),
    }
    if found.rows:
        line["certainty"] = sum(row.certainty for row in found.rows) / len(found.rows)
    if margins:
        line["margin"] = sum(margins) / len(margins)
    return line


def next_command(args: CollectArguments, model_arguments: ModelArguments, folder: Path) -> str:
    """The `r2f unlearn` command that takes the rows, for a shell."""
    # Another revision or precision would not be the model that was asked.
    model = {name: value for name, value in vars(model_arguments).items() if value != getattr(ModelArguments, name)}
    retain = folder / ROWS["retain"]
    options = {
        **model,
        "forget_data": folder / ROWS["forget"],
        # Without a row to keep the user has to bring some.
        "retain_data": retain if retain.exists() else "ROWS_TO_KEEP.jsonl",
        "views_column": "views",
        "num_views": 2,
        "max_steps": 20,
        "output_dir": "unlearned",
        "chat_template_kwargs": args.chat_template_kwargs,
        "system_prompt": args.system_prompt,
    }
    given = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return " ".join(["r2f unlearn", *given])
