"""A suite beside Trainer's own evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import R2FConfig
from ..data.rendering import ChatOptions
from ..lookup import lookup
from .runner import run_suite
from .suites import SUITES, check_splits, load_suite
from .suites.base import Rows


@dataclass(frozen=True)
class TrainingSuite:
    """
    The suite that a configuration asks for, with its rows.

    Args:
        name (`str`):
            A name from [`SUITES`].
        splits (`Mapping[str, Dataset]`):
            Its rows.
    """

    name: str
    splits: Mapping[str, Rows]

    @classmethod
    def load(cls, args: R2FConfig) -> TrainingSuite:
        """
        Load and check the rows, before training begins.

        Args:
            args ([`R2FConfig`]):
                The configuration, with an `eval_suite`.

        Raises:
            `FileNotFoundError`: If there is no such folder or file.
            `ValueError`: If there is no such suite, if it has no rows of its own, or if the rows do not fit it.
        """
        suite = lookup(SUITES, args.eval_suite, "suite")
        if suite.hub is None:
            raise ValueError(
                f"`eval_suite={args.eval_suite!r}` has no rows of its own. Leave it out: the trainer's sets are "
                "evaluated anyway, and `r2f evaluate` measures more of them."
            )
        splits = load_suite(args.eval_suite, args.eval_suite_data, args.eval_forget_split)
        check_splits(args.eval_suite, splits)
        return cls(args.eval_suite, splits)

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: R2FConfig, prefix: str
    ) -> dict[str, float]:
        """
        Run the suite. On several processes, all of them have to call it.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                The model as it is now.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Its tokenizer.
            args ([`R2FConfig`]):
                The configuration.
            prefix (`str`):
                What the names of the metrics begin with.

        Returns:
            `dict[str, float]`: The metrics as `<prefix>_<suite>_<metric>`.
        """
        options = ChatOptions(args.chat_template_kwargs, args.system_prompt)
        metrics, _ = run_suite(
            self.name, model, tokenizer, self.splits, batch_size=args.per_device_eval_batch_size, options=options
        )
        return {f"{prefix}_{self.name}_{name}": value for name, value in metrics.items()}
