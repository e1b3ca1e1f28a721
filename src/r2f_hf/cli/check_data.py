"""`r2f check-data`: what is wrong with a forget and a retain set, before a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch

from ..config import parse_kwargs
from ..data.collator import check_embedded, num_embeddings, pad_token_id
from ..data.containers import Rows
from ..data.duplicates import contained_rows, near_duplicates
from ..data.encoder import ExampleEncoder
from ..data.formats import RowFormat
from ..data.loading import load_rows
from ..data.rendering import ChatOptions
from ..metrics.words import WordTokenizer
from ..models.loading import ModelArguments, load_model
from ..report import print_table
from ..scoring import context_length, item_probabilities, score_examples
from .recipes import parse_recipe


# How many rows a finding names.
SHOWN = 10


@dataclass
class CheckDataArguments:
    """
    What `r2f check-data` reads and looks for.

    Args:
        forget_data (`str`, *optional*):
            Rows to forget: a file, a folder or a Hub dataset, as in `r2f unlearn`.
        retain_data (`str`, *optional*):
            Rows to keep.
        holdout_data (`str`, *optional*):
            Rows that the model never saw.
        prompt_column (`str`, *optional*):
            Column of the question, as in `r2f unlearn`.
        completion_column (`str`, *optional*):
            Column of the answer or the text.
        max_length (`int`, *optional*):
            Tokens of an example, as in `r2f unlearn`.
        chat_template_kwargs (`str`, *optional*):
            Arguments of the chat template, in JSON.
        system_prompt (`str`, *optional*):
            System message of every conversation.
        similarity (`float`, *optional*, defaults to `0.6`):
            Share of word pairs from which on two rows count as near-duplicates, and share of a text from which on a
            document contains it.
        known (`float`, *optional*, defaults to `0.1`):
            Probability of an answer below which the model does not know it: there is nothing to forget.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows in a batch.
    """

    _argument_group_name: ClassVar[str] = "What is checked"

    forget_data: str | None = field(default=None, metadata={"help": "Rows to forget, as in r2f unlearn."})
    retain_data: str | None = field(default=None, metadata={"help": "Rows to keep."})
    holdout_data: str | None = field(default=None, metadata={"help": "Rows that the model never saw."})
    prompt_column: str | None = field(default=None, metadata={"help": "Column of the question; none for plain text."})
    completion_column: str | None = field(default=None, metadata={"help": "Column of the answer or the text."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of an example, as in r2f unlearn."})
    chat_template_kwargs: str | None = field(default=None, metadata={"help": "Arguments of the chat template, JSON."})
    system_prompt: str | None = field(default=None, metadata={"help": "System message of every conversation."})
    similarity: float = field(default=0.6, metadata={"help": "Share of word pairs that near-duplicates have."})
    known: float = field(default=0.1, metadata={"help": "Probability below which an answer is not known."})
    batch_size: int = field(default=16, metadata={"help": "Rows in a batch."})

    def __post_init__(self):
        for name in ("similarity", "known"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be above 0 and below 1, got {getattr(self, name)}.")


# The dataclasses whose fields are the options.
OPTIONS = (CheckDataArguments, ModelArguments)


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments of `r2f check-data` and its rows."""
    args, model_arguments = parse_recipe("check-data", OPTIONS, argv)
    if args.forget_data is None:
        raise ValueError("No rows are named. Set `forget_data` to a file, and `retain_data` if there is one.")
    sources = {"forget": args.forget_data, "retain": args.retain_data, "holdout": args.holdout_data}
    sets = {name: load_rows(source, name) for name, source in sources.items() if source}
    return partial(check_data, args, model_arguments, sets)


def check_data(args: CheckDataArguments, model_arguments: ModelArguments, sets: dict[str, Rows]) -> None:
    """Print what was found, rows by their numbers; ends with status 1 if there is anything."""
    model, tokenizer, context = None, None, None
    if model_arguments.model_name_or_path is not None:
        model, tokenizer = load_model(model_arguments)
        context = context_length(model)
    options = ChatOptions(parse_kwargs("chat_template_kwargs", args.chat_template_kwargs), args.system_prompt)
    encoder = ExampleEncoder(
        tokenizer, context, args.prompt_column, args.completion_column, max_length=args.max_length, options=options
    )
    formats = {name: encoder.format_of(rows, name) for name, rows in sets.items()}
    texts = {name: [formats[name].texts(row) for row in rows] for name, rows in sets.items()}
    print_table(
        "Rows",
        {name: {"rows": str(len(rows)), "format": formats[name].kind} for name, rows in sets.items()},
        ["rows", "format"],
    )
    findings = []
    words = WordTokenizer().tokenize
    for first, second in (("forget", "retain"), ("forget", "holdout"), ("retain", "holdout")):
        if first in texts and second in texts:
            pairs = near_duplicates(texts[first], texts[second], args.similarity, words)
            named = [f"{first}[{one}] = {second}[{two}] ({similarity:.2f})" for one, two, similarity in pairs]
            if pairs:
                findings.append(f"Rows of the {first} and the {second} set nearly repeat each other: {listed(named)}")
            known = {(one, two) for one, two, _ in pairs}
            named = [
                f"{first}[{one}] contains {second}[{two}] ({share:.2f})"
                for one, two, share in contained_rows(texts[first], texts[second], args.similarity, words)
                if (one, two) not in known
            ] + [
                f"{second}[{two}] contains {first}[{one}] ({share:.2f})"
                for two, one, share in contained_rows(texts[second], texts[first], args.similarity, words)
                if (one, two) not in known
            ]
            if named:
                findings.append(f"Documents say what rows of another set say: {listed(named)}")
    if model is not None:
        for name, rows in sets.items():
            findings += _check_with_model(args, model, encoder, formats[name], rows, name)
    for finding in findings:
        print(f"- {finding}.")
    if findings:
        raise SystemExit(1)
    print("Nothing was found.")


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _check_with_model(
    args: CheckDataArguments,
    model: torch.nn.Module,
    encoder: ExampleEncoder,
    row_format: RowFormat,
    rows: Rows,
    name: str,
) -> list[str]:
    """What needs the model: rows that do not fit it, and rows that it does not know."""
    refused: dict[int, str] = {}
    examples, items, cut = [], [], []
    size = num_embeddings(model)
    for index, row in enumerate(rows):
        row_name = f"{name}[{index}]"
        try:
            windows = encoder.windows(row, row_format, row_name)
            for window in windows:
                check_embedded(window["input_ids"], size, row_name)
        except ValueError as error:
            refused[index] = str(error)
            continue
        examples += windows
        items += [index] * len(windows)
        if args.max_length is not None and row_format.kind != "text":
            # Encoded rows end where their last answer ends.
            whole = row_format.encode(encoder.tokenizer, row, encoder.options, name=row_name)
            cut += [row_name] if len(whole["input_ids"]) > args.max_length else []
    findings = []
    if refused:
        rows_named = listed([f"{name}[{index}]" for index in refused])
        findings.append(f"Rows of the {name} set do not fit the model: {rows_named}. {next(iter(refused.values()))}")
    if cut:
        findings.append(
            f"`max_length={args.max_length}` cuts off the end of the answer in {len(cut)} rows of the "
            f"{name} set, which is then neither forgotten nor kept: {listed(cut)}"
        )
    if name == "holdout" or not examples:
        return findings
    log_probs, tokens = score_examples(
        model.eval(), examples, pad_token_id(encoder.tokenizer, model), args.batch_size, name
    )
    probabilities = item_probabilities(log_probs, tokens, items)
    numbers = sorted(set(items))
    unknown = [number for number, known in zip(numbers, probabilities, strict=True) if known < args.known]
    if unknown:
        shown = listed([f"{name}[{number}]" for number in unknown])
        what = "there is nothing to forget" if name == "forget" else "there is nothing to keep"
        findings.append(
            f"The model does not know {len(unknown)} of {len(rows)} rows of the {name} set (probability below "
            f"{args.known:g}), so that {what}: {shown}"
        )
    return findings
