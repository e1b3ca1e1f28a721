"""Settings under which a run could not do, or not end, what it is there for: refused before anything else happens."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    get_scheduler,
)

from ..config import R2FConfig
from ..data.second_answers import check_second_answers, instructions
from ..data.splits import Splits


logger = logging.getLogger(__name__)

# A rate below this part of the default is one of another kind: those of fine-tuning recipes are no norms.
SMALLEST_RATE = 1e-2
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")


def check_config(args: Any) -> None:
    """
    Refuse arguments of another class, and processes that do not know of each other.

    Raises:
        `ValueError`: Naming R2FConfig, or the option that is missing.
    """
    if not isinstance(args, R2FConfig):
        raise ValueError(
            f"`args` is a {type(args).__name__}; an R2FConfig is needed, which takes all of TrainingArguments' "
            "options and R2F's own: `R2FConfig(output_dir=...)`."
        )
    # Some clusters set the number for a single process too, but only a launcher numbers the processes of a machine.
    launched = int(os.environ.get("WORLD_SIZE") or 1) if "LOCAL_RANK" in os.environ else 1
    if launched > 1 and args.world_size == 1:
        # Each would train by itself, and all would write to one folder.
        raise ValueError(
            f"{launched} processes were launched, but each would work by itself. Without a GPU add `--use_cpu` "
            "(`R2FConfig(use_cpu=True)`)."
        )
    if args.simulated_relearning:
        checkpointing = args.gradient_checkpointing_kwargs or {}
        refused = {
            "`gradient_checkpointing_kwargs` with `use_reentrant`": checkpointing.get("use_reentrant"),
            "`ddp_static_graph`": getattr(args, "ddp_static_graph", None),
        }
        for name, value in refused.items():
            if value:
                raise ValueError(f"`simulated_relearning` does not work with {name}. Leave one of them out.")


def tokenizer_for(model: PreTrainedModel, processing_class: Any) -> PreTrainedTokenizerBase:
    """
    The tokenizer that the caller passes, or otherwise the one that lies with the model.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, which knows where it was loaded from.
        processing_class (`Any`):
            What the caller passes.

    Raises:
        `ValueError`: If there is none, or if it is something else.
    """
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return processing_class
    if processing_class is not None:
        raise ValueError(
            f"`processing_class` is a {type(processing_class).__name__}; a tokenizer is needed, as "
            "`AutoTokenizer.from_pretrained` loads it. (A processor has one: `processor.tokenizer`.)"
        )
    name = model.config._name_or_path
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        where = f"none could be loaded from {name!r}" if name else "the model was not loaded from a folder with one"
        raise ValueError(f"No tokenizer was passed, and {where}. Pass it as `processing_class`.") from error


def check_optimizer_and_schedule(args: TrainingArguments, model: nn.Module, optimizers: Sequence[Any]) -> None:
    """
    Make the optimizer and the schedule once for nothing, to refuse options that they do not take.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The configuration.
        model (`nn.Module`):
            The model, which some optimizers look into.
        optimizers (`Sequence`):
            An optimizer and a schedule of the caller's own, or `None` in their place.

    Raises:
        `ValueError`: Naming the settings, with the error of what refused them.
    """
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=args.learning_rate)
    try:
        if optimizers[0] is None:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
            if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and "params" not in options:
                kind([weight], **options)
    except Exception as error:
        raise ValueError(
            f"No optimizer can be made of `optim={getattr(args.optim, 'value', args.optim)!r}` and "
            f'`optim_args={args.optim_args!r}`: {error} The default is "sgd", without `optim_args`.'
        ) from error
    try:
        if optimizers[1] is None:
            get_scheduler(
                args.lr_scheduler_type,
                optimizer=optimizer,
                num_warmup_steps=args.get_warmup_steps(100),
                num_training_steps=100,
                scheduler_specific_kwargs=args.lr_scheduler_kwargs,
            )
    except Exception as error:
        raise ValueError(
            f"No schedule can be made of `lr_scheduler_type={args.lr_scheduler_type.value!r}`, `lr_scheduler_kwargs="
            f"{args.lr_scheduler_kwargs!r}` and `warmup_steps={args.warmup_steps}`: {error}"
        ) from error


def check_batches(args: TrainingArguments) -> None:
    """
    Refuse settings under which a batch would lose rows, or its loss would be a mean over other rows.

    Raises:
        `ValueError`: Naming the setting.
    """
    if args.remove_unused_columns:
        raise ValueError(
            "`remove_unused_columns=True` keeps only what the model's forward pass takes, and an item of a batch here "
            "is a forget row with its retain rows. Leave it at False."
        )
    if args.label_names not in (None, ["labels"]):
        raise ValueError(
            f"`label_names={args.label_names}` names columns that batches here do not have, so that nothing would be "
            "evaluated. Leave it out."
        )
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            "`accelerator_config` has `dispatch_batches=True`: it deals single rows to the processes, and parts "
            "forget rows from their retain rows. Leave it out."
        )
    check_parallelism(args)
    if args.world_size == 1:
        return
    if not args.accelerator_config.even_batches:
        raise ValueError(
            "`accelerator_config` has `even_batches=False`: some processes would get a batch more than others, and "
            "wait for them without end. Leave it out. (Rows that fill up a batch do not count twice here.)"
        )
    if not args.average_tokens_across_devices:
        raise ValueError(
            "`average_tokens_across_devices=False` would take a mean per process, and the losses here are means over "
            "the global batch. Leave it at True."
        )
    if args.eval_use_gather_object:
        raise ValueError(
            "`eval_use_gather_object=True` gathers objects, and predictions here are tensors, of which Trainer would "
            "lose rows. Leave it at False."
        )


def check_parallelism(args: TrainingArguments) -> None:
    """
    Refuse parallelism that cuts sequences or layers into pieces.

    Raises:
        `ValueError`: Naming the sizes.
    """
    config = args.parallelism_config
    sizes = {name: getattr(config, name, 1) for name in ("tp_size", "cp_size", "sp_size", "dp_shard_size")}
    cut = [f"{name}={size}" for name, size in sizes.items() if size > 1]
    if cut:
        raise ValueError(
            f"`parallelism_config` has {', '.join(cut)}: a process would not see sequences, layers or probes whole. "
            "Leave it out. To shard the weights, load the model with `DistributedConfig(fsdp_size=...)`."
        )


def check_sampling(args: TrainingArguments, items: int) -> None:
    """
    Refuse settings of the data loader under which no step can be taken, or which look into single rows.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The configuration.
        items (`int`):
            Forget examples.

    Raises:
        `ValueError`: Naming the setting.
    """
    try:
        # Made for nothing: workers start when a loader is read.
        DataLoader(
            [0],
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
    except ValueError as error:
        raise ValueError(
            f"No data loader can be made with `dataloader_num_workers={args.dataloader_num_workers}`, "
            f"`dataloader_prefetch_factor={args.dataloader_prefetch_factor}`, `dataloader_persistent_workers="
            f"{args.dataloader_persistent_workers}` and `dataloader_multiprocessing_context="
            f"{args.dataloader_multiprocessing_context!r}`: {error}."
        ) from error
    strategy = str(args.train_sampling_strategy)
    if strategy not in ("random", "sequential"):
        raise ValueError(
            f"`train_sampling_strategy={strategy!r}` looks for the length of single rows, and an item of a batch here "
            "is a forget row with its retain rows. Set 'random' or 'sequential'."
        )
    size = args.train_batch_size * (1 if args.accelerator_config.split_batches else args.world_size)
    if args.dataloader_drop_last and items < size:
        raise ValueError(
            f"With `dataloader_drop_last` no step can be taken: the forget set has {items} examples, and a batch "
            f"takes {size} over all processes. Leave `dataloader_drop_last` out, or lower "
            "`per_device_train_batch_size`."
        )
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise ValueError(
            f"No step would be taken: `num_train_epochs` is {args.num_train_epochs:g} and `max_steps` is "
            f"{args.max_steps}. Set one of them above 0."
        )


def check_best_metric(args: TrainingArguments, sets: Collection[str] | None, own_metrics: bool) -> None:
    """
    Refuse a metric for the best model that no evaluation will give.

    Args:
        args ([`~transformers.TrainingArguments`]):
            The configuration.
        sets (`Collection[str]`, *optional*):
            Names of the sets that are evaluated; `None` if there is one without a name.
        own_metrics (`bool`):
            Whether the user computes metrics of his or her own.

    Raises:
        `ValueError`: Naming those that there are.
    """
    if args.metric_for_best_model is None:
        return
    metric = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    prefixes = ["eval_"] if sets is None else [f"eval_{name}_" for name in sets]
    names = ("loss",) if args.prediction_loss_only else ("loss", "probability")
    available = [f"{prefix}{name}" for prefix in prefixes for name in names]
    # What a user's own function computes is not known before it is called.
    computed = own_metrics and not args.prediction_loss_only
    if metric in available or (computed and metric.startswith(tuple(prefixes))):
        return
    suite = getattr(args, "eval_suite", None)
    if suite is not None and metric.startswith(f"eval_{suite}_"):
        # Which of a suite's metrics there are depends on its rows.
        return
    raise ValueError(
        f"`metric_for_best_model` is {metric!r} (the default with `load_best_model_at_end`), which no evaluation "
        f"gives. Choose one of {', '.join(available)}, with `greater_is_better` to match."
    )


def check_objectives(objectives: Sequence[Any], splits: Splits) -> None:
    """
    Refuse objectives that need a set which is not there.

    Args:
        objectives (`Sequence`):
            The forget and the retain objective, or `None` in the latter's place.
        splits ([`Splits`]):
            The encoded sets.

    Raises:
        `ValueError`: Naming the objective and the set.
    """
    forget = objectives[0]
    options = {"anchor": forget.needs_holdout_margin, "level": forget.needs_ignorance and forget.level is None}
    for option in (name for name, needed in options.items() if needed and not splits.holdout):
        raise ValueError(
            f"The forget objective {type(forget).__name__} takes its `{option}` from the holdout set, and there is "
            f"none. Pass a `holdout_dataset`, or set `{option}` in `forget_objective_kwargs` (-3, for example)."
        )
    if forget.answers is not None:
        check_second_answers(splits)
        if forget.answers == "model":
            # Only to refuse rows that nothing can be asked about: the model writes when training begins.
            instructions(splits, forget.instruction)


def warn_of_small_rate(args: R2FConfig) -> None:
    """Say so if the learning rate is one of a fine-tuning recipe, where it is no norm, or if warm-up never ends."""
    default = 0.6 if args.protect_retain else 0.15
    if args.learning_rate < SMALLEST_RATE * default:
        logger.warning(
            "`learning_rate=%g` will hardly change anything: it is the Frobenius norm of a step in each module, and "
            "its default is %g. Rates of fine-tuning recipes have another meaning.",
            args.learning_rate,
            default,
        )
        return
    # The number of steps is only known here if it is given.
    warmup = args.get_warmup_steps(args.max_steps) if args.max_steps > 0 else 0
    if warmup >= args.max_steps > 0 and args.lr_scheduler_type not in WITHOUT_WARMUP:
        logger.warning(
            "The run ends within the warm-up: `warmup_steps` makes it %d steps, and `max_steps` is %d. The rate of "
            "the last step is %.2g, and not `learning_rate=%g`. Lower `warmup_steps`.",
            warmup,
            args.max_steps,
            args.learning_rate * (args.max_steps - 1) / warmup,
            args.learning_rate,
        )
