"""Settings under which a run could not do, or not end, what it is there for: refused before anything else happens."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from transformers import TrainingArguments

from ..config import R2FConfig


logger = logging.getLogger(__name__)

# A rate below this part of the default is one of another kind: those of fine-tuning recipes are no norms.
SMALLEST_RATE = 1e-2


def check_config(args: Any) -> None:
    """
    Refuse arguments of another class.

    Raises:
        `ValueError`: Naming R2FConfig.
    """
    if not isinstance(args, R2FConfig):
        raise ValueError(
            f"`args` is a {type(args).__name__}; an R2FConfig is needed, which takes all of TrainingArguments' "
            "options and R2F's own: `R2FConfig(output_dir=...)`."
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
    strategy = str(args.train_sampling_strategy)
    if strategy not in ("random", "sequential"):
        raise ValueError(
            f"`train_sampling_strategy={strategy!r}` looks for the length of single rows, and an item of a batch here "
            "is a forget row with its retain rows. Set 'random' or 'sequential'."
        )
    size = args.train_batch_size * args.world_size
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
    available = [f"{prefix}{name}" for prefix in prefixes for name in ("loss", "probability")]
    # What a user's own function computes is not known before it is called.
    if metric in available or (own_metrics and metric.startswith(tuple(prefixes))):
        return
    raise ValueError(
        f"`metric_for_best_model` is {metric!r} (the default with `load_best_model_at_end`), which no evaluation "
        f"gives. Choose one of {', '.join(available)}, with `greater_is_better` to match."
    )


def warn_of_small_rate(args: R2FConfig) -> None:
    """Say so if the learning rate is one of a fine-tuning recipe, where it is no norm."""
    default = 0.6 if args.protect_retain else 0.15
    if args.learning_rate < SMALLEST_RATE * default:
        logger.warning(
            "`learning_rate=%g` will hardly change anything: it is the Frobenius norm of a step in each module, and "
            "its default is %g. Rates of fine-tuning recipes have another meaning.",
            args.learning_rate,
            default,
        )
