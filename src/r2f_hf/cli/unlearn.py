"""`r2f unlearn`: reads a recipe, makes the model forget, and saves it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from ..config import R2FConfig
from ..data.loading import load_rows
from ..models.checks import check_sharding_versions
from ..models.loading import QuantisedModelArguments, asked_to_shard, load_model
from ..report import print_table
from ..runs.folder import check_other_runs
from ..trainer import R2FTrainer
from .recipes import parse_recipe


@dataclass
class UnlearnArguments:
    r"""
    The data of `r2f unlearn`, the command that makes a model forget rows.

    The command evaluates the model, unlearns, evaluates it again, and saves everything to `output_dir`, as
    [`~R2FTrainer.unlearn`] does. All its other options are fields of [`R2FConfig`] and of [`QuantisedModelArguments`].

    ```bash
    r2f unlearn --model_name_or_path my-finetuned-model --output_dir unlearned --max_steps 20 \
        --forget_data forget.jsonl --retain_data retain.jsonl
    ```

    Args:
        forget_data (`str`, *optional*):
            Rows to forget. They must be given, as a file (for example `.jsonl`, `.csv` or `.parquet`) or as a Hub
            dataset (`owner/name:config:split`).
        retain_data (`str`, *optional*):
            Rows to keep, given in the same way. They are needed unless `retain_objective` is `"none"`.
        holdout_data (`str`, *optional*):
            Rows of the same kind as the forget set, which the model never saw. With them, training stops once the
            model treats the forget set like rows that it never saw and still knows the retain set. Without them,
            training takes all its steps.
    """

    _argument_group_name: ClassVar[str] = "The data"

    forget_data: str | None = field(
        default=None, metadata={"help": "Rows to forget: a file, or a Hub dataset as owner/name:config:split."}
    )
    retain_data: str | None = field(default=None, metadata={"help": "Rows to keep, given in the same way."})
    holdout_data: str | None = field(
        default=None,
        metadata={"help": "Rows that the model never saw. With them, the run stops when it has forgotten enough."},
    )


# The dataclasses whose fields are the options.
OPTIONS = (UnlearnArguments, R2FConfig, QuantisedModelArguments)


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments, the rows and the model of `r2f unlearn`, and check all of them before any weight changes."""
    sharded = asked_to_shard()
    if sharded:
        check_sharding_versions()
    data, args, model_arguments = parse_recipe("unlearn", OPTIONS, argv)
    if args.update_target == "weights" and model_arguments.quantisation() is not None:
        raise ValueError(
            "A quantised model cannot take the updates: a step is far smaller than the distance between two quantised "
            "values. Leave out `load_in_8bit` and `load_in_4bit`, or let an adapter take the updates "
            '(`update_target="adapter"`).'
        )
    sources = {"forget": data.forget_data, "retain": data.retain_data, "holdout": data.holdout_data}
    rows = {name: load_rows(source, name) if source else None for name, source in sources.items()}
    model, tokenizer = load_model(model_arguments, sharded=sharded)
    trainer = R2FTrainer(
        model=model,
        args=args,
        forget_dataset=rows["forget"],
        retain_dataset=rows["retain"],
        holdout_dataset=rows["holdout"],
        processing_class=tokenizer,
    )
    trainer.record.details.command = shlex.join(("r2f", "unlearn", *argv))
    trainer.record.details.data = {name: source for name, source in sources.items() if source}
    # A command line only gives text here: `true`, `false`, or the folder of a checkpoint.
    args.resume_from_checkpoint = {"true": True, "false": False}.get(
        str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint
    )
    if not args.resume_from_checkpoint and not args.overwrite_output_dir:
        # Training checks this again, but only after the first evaluation.
        check_other_runs(args.output_dir, trainer.run_description, trainer.source)
    return partial(unlearn, trainer)


def unlearn(trainer: R2FTrainer) -> None:
    """Unlearn, save everything to the output folder, and print what has changed."""
    args = trainer.args
    metrics = trainer.unlearn(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        rows = {name: metrics[name] for name in ("before", "after")}
        columns = [name for name in rows["after"] if name.endswith("_probability")]
        print_table("Mean probability of the completions", rows, columns)
        left = trainer.state.max_steps - trainer.state.global_step
        # A callback of the user's may end a run without a reason in words.
        end = f"stopped with {left} steps left" if left else "all steps were taken"
        print(f"{trainer.state.global_step} steps; {trainer.stop_reason or end}.")
        result = "model" if args.update_target == "weights" else "adapter"
        print(f"The {result} is in {args.output_dir}. `r2f report {args.output_dir}` writes a report of the run.")
    trainer.end_training()
