"""`r2f attack`: tries to bring back what a model has forgotten."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..attacks import ATTACKS, UNATTACKED, Target, chosen_attacks, compare, curves, remark_on_rows, run_attacks
from ..attacks.format_shift import COLUMNS
from ..attacks.registry import split_names
from ..config import parse_kwargs
from ..data.containers import Rows
from ..data.encoder import ExampleEncoder
from ..data.formats import RowFormat
from ..data.formatting import Encoded, answer_start
from ..data.loading import load_rows
from ..data.rendering import ChatOptions
from ..data.rows import check_overlap
from ..data.splits import encode_set
from ..models.loading import ModelArguments, asked_to_shard, load_model
from ..report import print_table
from ..report.run import ATTACK_SCHEMA
from ..runs.files import write_json
from ..runs.ledger import last_weights
from ..scoring import context_length
from ..scoring.completions import check_examples
from ..settings import check_counts
from .recipes import parse_recipe


SCHEMA = ATTACK_SCHEMA
ROLES = ("unlearned", "original", "gold")


@dataclass
class AttackArguments:
    r"""
    Which attacks `r2f attack` tries, and on what.

    The command tries to bring back what a model has forgotten. It prints what each attack got, next to what it gets
    from the model before unlearning (`original_model`) and from one that never saw the forget set (`gold_model`), and
    writes `report.json`. The report has no text of the rows. The unlearned model is chosen by the options of
    [`ModelArguments`].

    ```bash
    r2f attack --model_name_or_path unlearned --original_model before --gold_model retrained \
        --forget_data forget.jsonl --retain_data retain.jsonl --output_dir attacks
    ```

    Args:
        forget_data (`str`, *optional*):
            The rows that were forgotten, in any format that `r2f unlearn` takes. It must be given.
        retain_data (`str`, *optional*):
            Rows that the model may know: for harmless fine-tuning, and as examples in prompts.
        attacks (`list[str]`, *optional*, defaults to `["all"]`):
            Names of attacks, entries of [`ATTACKS`], or `all`. Attacks of `all` that do not fit are left out by name.
        original_model (`str`, *optional*):
            Folder or name of the model from before unlearning. Merging and reversed guidance need it.
        gold_model (`str`, *optional*):
            Folder or name of a model that was trained without the forget set. Without it nobody can tell how much of
            what an attack gets is knowledge that came back, and how much any model would say.
        output_dir (`str`, *optional*, defaults to `"attacks"`):
            Folder for `report.json` and the values of each row. A repeated command reads the values that are there
            instead of attacking again.
        prompt_column (`str`, *optional*):
            Column of the question, as in training.
        completion_column (`str`, *optional*):
            Column of the answer, as in training.
        max_length (`int`, *optional*):
            Tokens of an example, as in training.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest generated answer, in tokens.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all that the attacks draw.
        chat_template_kwargs (`str`, *optional*):
            Arguments of the chat template, in JSON, as in training.
        system_prompt (`str`, *optional*):
            System message of every question, as in training.
    """

    _argument_group_name: ClassVar[str] = "What is attacked"

    forget_data: str | None = field(default=None, metadata={"help": "The rows that were forgotten. Must be given."})
    retain_data: str | None = field(default=None, metadata={"help": "Rows that the model may know."})
    attacks: list[str] = field(
        default_factory=lambda: ["all"], metadata={"help": f"Names of attacks, or all: {', '.join(ATTACKS)}."}
    )
    original_model: str | None = field(default=None, metadata={"help": "The model from before unlearning."})
    gold_model: str | None = field(default=None, metadata={"help": "A model that never saw the forget set."})
    output_dir: str = field(default="attacks", metadata={"help": "Folder for report.json and the values of each row."})
    prompt_column: str | None = field(default=None, metadata={"help": "Column of the question, as in training."})
    completion_column: str | None = field(default=None, metadata={"help": "Column of the answer, as in training."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of an example, as in training."})
    batch_size: int = field(default=16, metadata={"help": "Rows per forward pass."})
    max_new_tokens: int = field(default=64, metadata={"help": "Longest generated answer, in tokens."})
    seed: int = field(default=0, metadata={"help": "Seed of all that the attacks draw."})
    chat_template_kwargs: str | None = field(
        default=None, metadata={"help": "Arguments of the chat template, in JSON, as in training."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message of every question, as in training."}
    )


# The dataclasses whose fields are the options.
OPTIONS = (AttackArguments, ModelArguments)


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments, the rows and the unlearned model of `r2f attack`, and check which attacks fit."""
    sharded = asked_to_shard()
    # Without an accelerator this has to be said here. Otherwise the processes would not find each other.
    PartialState(cpu=not torch.accelerator.is_available())
    args, model_arguments = parse_recipe("attack", OPTIONS, argv)
    check_counts(args, "batch_size", "max_new_tokens", "max_length")
    names = chosen_attacks(args.attacks)
    if args.forget_data is None:
        raise ValueError("No rows are named. Set `forget_data` to the rows that were forgotten.")
    sets = {"forget": load_rows(args.forget_data, "forget")}
    if args.retain_data is not None:
        sets["retain"] = load_rows(args.retain_data, "retain")
    model, tokenizer = load_model(model_arguments, sharded=sharded)
    options = ChatOptions(parse_kwargs("chat_template_kwargs", args.chat_template_kwargs), args.system_prompt)
    encoded, rows = encode(args, options, sets, tokenizer, context_length(model))
    target = Target(
        place(model),
        tokenizer,
        encoded["forget"],
        encoded.get("retain", ()),
        rows,
        options=options,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    others = {}
    for role, name in (("original", args.original_model), ("gold", args.gold_model)):
        if name is not None:
            others[role], its_tokenizer = load_model(model_arguments, name, sharded=sharded)
            check_tokenizer(tokenizer, its_tokenizer, name)
            check_takes(others[role], role, target)
    original = others.get("original")
    target = replace(target, original=None if original is None else place(original))
    models = {"unlearned": target.model, **others}
    left_out = {name: reason for name in names if (reason := why_not(name, target, models)) is not None}
    if left_out and "all" not in split_names(args.attacks):
        name, reason = next(iter(left_out.items()))
        raise ValueError(f"The attack {name!r} cannot be made: {reason}. Leave it out, or mend that.")
    if len(left_out) == len(names):
        raise ValueError(f"No attack can be made: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}.")
    command = shlex.join(("r2f", "attack", *argv))
    return partial(attack, args, model_arguments, target, others.get("gold"), left_out, command)


def attack(
    args: AttackArguments,
    model_arguments: ModelArguments,
    target: Target,
    gold: PreTrainedModel | None,
    left_out: dict[str, str],
    command: str | None = None,
) -> None:
    """Attack the models one after the other, print what came back, and write `report.json`."""
    folder, state = Path(args.output_dir), PartialState()
    names = [name for name in chosen_attacks(args.attacks) if name not in left_out]
    models = {"unlearned": target.model, "original": target.original, "gold": gold}
    results = {}
    for role in ROLES:
        model = models[role]
        if model is not None:
            results[role] = run_attacks(names, replace(target, model=place(model)), folder / role)
    lines, notes = compare(results), remark_on_rows(target.forget, names)
    followed = curves(results)
    if state.is_main_process:
        report = {
            "schema": SCHEMA,
            "command": command,
            "models": {
                "unlearned": model_arguments.model_name_or_path,
                "original": args.original_model,
                "gold": args.gold_model,
            },
            "weights": last_weights(model_arguments.model_name_or_path),
            "rows": {"forget": len(rows_of(target.forget)), "retain": len(rows_of(target.retain))},
            "seed": args.seed,
            "attacks": {
                name: {"meaning": ATTACKS[name].meaning, "quantity": ATTACKS[name].quantity, "results": lines[name]}
                | ({"curves": followed[name]} if name in followed else {})
                for name in names
            },
            "notes": notes,
            "left_out": left_out,
        }
        write_json(folder / "report.json", report)
        print_report(lines, left_out, notes, gold is not None)
        print(f"The report is {folder / 'report.json'}.")
    state.destroy_process_group()


def why_not(name: str, target: Target, models: Mapping[str, PreTrainedModel]) -> str | None:
    """Why an attack cannot be made on one of the models, or `None`. All of them are attacked in the same way."""
    for role, model in models.items():
        reason = ATTACKS[name].does_not_fit(replace(target, model=model))
        if reason is not None:
            return reason if role == "unlearned" else f"on the {role} model: {reason}"
    return None


def place(model: PreTrainedModel) -> PreTrainedModel:
    """A model on this process's device, in evaluation mode."""
    return model.to(PartialState().device).eval()


def rows_of(examples: Sequence[Encoded]) -> set[int]:
    """The rows of examples."""
    return {example["item"] for example in examples}


def encode(
    args: AttackArguments,
    options: ChatOptions,
    sets: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> tuple[dict[str, list[Encoded]], dict[str, list[dict[str, Any]]]]:
    """The encoded rows of each set, and the rows as questions and answers where they are."""
    encoder = ExampleEncoder(
        tokenizer, context, args.prompt_column, args.completion_column, max_length=args.max_length, options=options
    )
    encoded: dict[str, list[Encoded]] = {}
    asked: dict[str, list[dict[str, Any]]] = {}
    texts: dict[str, list[list[str]]] = {}
    for name, rows in sets.items():
        encoded[name] = encode_set(encoder, rows, name)
        row_format = encoder.format_of(rows, name)
        texts[name] = [row_format.texts(row) for row in rows]
        pairs = questions(row_format, rows, encoded[name])
        if pairs is not None:
            asked[name] = pairs
    if "retain" in texts:
        # Fine-tuning on retain rows is harmless only if none of them is to be forgotten.
        check_overlap(texts["forget"], texts["retain"], ("forget", "retain"))
    return encoded, asked


def questions(row_format: RowFormat, rows: Rows, examples: Sequence[Encoded]) -> list[dict[str, Any]] | None:
    """Rows as questions and answers, or `None` if they are none. A prompt that stands as it is comes as token ids."""
    if row_format.kind == "text" or any(row_format.answers(row) != 1 for row in rows):
        return None
    if row_format.kind == "question":
        pairs = [(row[row_format.prompt_column], row[row_format.completion_column]) for row in rows]
    else:
        pairs = [row_format.turn(row) for row in rows]
    if any(question is None for question, _ in pairs):
        return None
    if row_format.kind == "completion" and isinstance(rows[0][row_format.prompt_column], str):
        pairs = [
            (example["input_ids"][: answer_start(example)], answer.strip())
            for example, (_, answer) in zip(examples, pairs, strict=True)
        ]
    return [
        {"question": question, "answer": answer} | {column: row[column] for column in COLUMNS if row.get(column)}
        for row, (question, answer) in zip(rows, pairs, strict=True)
    ]


def check_tokenizer(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a model whose tokens are others: its numbers could not be compared."""
    if ours.get_vocab() != theirs.get_vocab():
        raise ValueError(
            f"The model {name} has another tokenizer than the unlearned one, so their probabilities cannot be "
            "compared. Name a model of the same family."
        )


def check_takes(model: PreTrainedModel, role: str, target: Target) -> None:
    """Refuse a model that reads less than the unlearned one, or has fewer embeddings."""
    try:
        check_examples(model, target.forget, [f"forget[{example['item']}]" for example in target.forget])
    except ValueError as error:
        raise ValueError(f"The {role} model does not take the forget rows: {error}") from error


def print_report(
    lines: dict[str, dict[str, dict[str, float]]], left_out: dict[str, str], notes: Sequence[str], has_gold: bool
) -> None:
    """Print a table per attack with its meaning, what was left out, and what rests on few rows."""
    for name, variants in lines.items():
        columns = list(dict.fromkeys(column for line in variants.values() for column in line))
        print_table(f"{name.replace('_', ' ')}: {ATTACKS[name].quantity}", variants, columns)
        print(ATTACKS[name].meaning)
    for name, reason in left_out.items():
        print(f"Left out: {name}: {reason}.")
    for note in notes:
        print(f"Note: {note}")
    worst = [
        (line["comeback"], name, variant)
        for name, variants in lines.items()
        for variant, line in variants.items()
        if "comeback" in line and not variant.startswith(UNATTACKED)
    ]
    if worst:
        comeback, name, variant = max(worst)
        _, colon, rows = variant.partition(": ")
        without = lines[name][f"{UNATTACKED}{colon}{rows}"].get("comeback")
        beside = "" if without is None else f" Without the attack it is {without:.2f}."
        print(f"The highest comeback is {comeback:.2f}, of {name.replace('_', ' ')} ({variant}).{beside}")
    if not has_gold:
        print(
            "Without `gold_model` compare each line with `no attack`. What fine-tuning and examples in the prompt add "
            "may be no memory: a model that never saw the rows learns too."
        )
