"""`r2f unlearn`: a recipe in, an unlearned model out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from ..config import R2FConfig
from ..data.rows import load_rows
from ..models.checks import check_sharding_versions
from ..models.loading import QuantisedModelArguments, asked_to_shard, load_model
from ..report import print_table
from ..runs.folder import check_other_runs
from ..trainer import R2FTrainer
from .recipes import parse_recipe


@dataclass
class UnlearnArguments:
    """
    The data of `r2f unlearn`.

    Args:
        forget_data (`str`, *optional*):
            Rows to forget: a `.json`, `.jsonl`, `.csv` or `.parquet` file, or a Hub dataset as
            `owner/name:config:split`.
        retain_data (`str`, *optional*):
            Rows to keep.
        holdout_data (`str`, *optional*):
            Rows that the model never saw; training stops when the forget set cannot be told from them and the retain
            set is kept.
    """

    _argument_group_name: ClassVar[str] = "The data"

    forget_data: str | None = field(
        default=None, metadata={"help": "Rows to forget: a file or owner/name:config:split."}
    )
    retain_data: str | None = field(default=None, metadata={"help": "Rows to keep."})
    holdout_data: str | None = field(
        default=None, metadata={"help": "Rows that the model never saw; they say when to stop."}
    )


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments of `r2f unlearn`, and check all there is to check before any weight changes."""
    sharded = asked_to_shard()
    if sharded:
        check_sharding_versions()
    data, args, model_arguments = parse_recipe("unlearn", (UnlearnArguments, R2FConfig, QuantisedModelArguments), argv)
    if args.update_target == "weights" and model_arguments.quantisation() is not None:
        raise ValueError(
            "A quantised model cannot take the updates: a step is far smaller than the distance between two quantised "
            'values. Leave `load_in_8bit` and `load_in_4bit` out, or set `update_target="adapter"`.'
        )
    sources = {"forget": data.forget_data, "retain": data.retain_data, "holdout": data.holdout_data}
    rows = {name: load_rows(source) if source else None for name, source in sources.items()}
    model, tokenizer = load_model(model_arguments, sharded=sharded)
    trainer = R2FTrainer(
        model=model,
        args=args,
        forget_dataset=rows["forget"],
        retain_dataset=rows["retain"],
        holdout_dataset=rows["holdout"],
        processing_class=tokenizer,
    )
    # Trainer has this as text alone, which may also name a folder.
    args.resume_from_checkpoint = {"true": True, "false": False}.get(
        str(args.resume_from_checkpoint).lower(), args.resume_from_checkpoint
    )
    if not args.resume_from_checkpoint and not args.overwrite_output_dir:
        # As training will, but at once.
        check_other_runs(args.output_dir, trainer.run_description, trainer.source)
    return partial(unlearn, trainer)


def unlearn(trainer: R2FTrainer) -> None:
    """Unlearn, save the model and the metrics to the output folder, and say what has changed."""
    args = trainer.args
    metrics = trainer.unlearn(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        rows = {name: metrics[name] for name in ("before", "after")}
        columns = [name for name in rows["after"] if name.endswith("_probability")]
        print_table("Mean probability of the completions", rows, columns)
        left = trainer.state.max_steps - trainer.state.global_step
        end = f"stopped with {left} steps left" if left else "all steps were taken"
        print(f"{trainer.state.global_step} steps; {trainer.stop_reason or end}.")
        print(f"The {'model' if args.update_target == 'weights' else 'adapter'} is in {args.output_dir}.")
    trainer.end_training()
