"""EvaluatingTrainer: a Trainer that evaluates rows in any format, by the probability of their answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from ..data.dataset import ForgetRetainDataset
from ..data.encoder import ExampleEncoder
from ..data.formatting import Encoded
from ..data.splits import Splits, by_length, encode_evaluation
from ..scoring import item_probabilities, label_log_probs, score_examples


logger = logging.getLogger(__name__)


class EvaluatingTrainer(Trainer):
    """
    The evaluation of [`ForgetRetainTrainer`], which sets what is declared here before it calls Trainer's constructor.

    Attributes:
        encoder ([`~r2f_hf.data.encoder.ExampleEncoder`]):
            Encodes rows.
        splits ([`~r2f_hf.data.splits.Splits`]):
            The encoded sets that the trainer was made with.
    """

    encoder: ExampleEncoder
    splits: Splits
    # Which row each example is of that is evaluated now; `None` where examples are rows.
    _items: list[int] | None = None
    # The probability of each row that was evaluated last.
    _rows: list[float] | None = None

    def _encode_evaluation(self, rows: Any) -> Any:
        """Encode what is evaluated, unless it is encoded already; the longest examples come first."""
        if isinstance(rows, ForgetRetainDataset) or is_encoded(rows):
            return rows
        # The mean probability does not depend on the order of the rows, and rows of similar length need little
        # padding. (Trainer's own `eval_loss` does depend on it, since it is a mean of the batches' means.)
        evaluated = encode_evaluation(self.encoder, rows, self.splits)
        if isinstance(evaluated, dict):
            return {name: by_length(examples) for name, examples in evaluated.items()}
        return by_length(evaluated)

    def _prepare_forward(self) -> None:
        """Make an engine under DeepSpeed. Before training Trainer itself makes one only to evaluate under ZeRO-3."""
        if self.is_deepspeed_enabled and self.deepspeed is None:
            self.optimizer, self.lr_scheduler = deepspeed_init(self, num_training_steps=1)
            self.deepspeed, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
            self.model_wrapped = self.deepspeed

    def evaluate(self, eval_dataset: Any = None, *args, **kwargs) -> dict[str, float]:
        """
        Evaluate. See [`~transformers.Trainer.evaluate`].

        Args:
            eval_dataset (`Any`, *optional*):
                Rows in any format and container that the constructor takes, or a dictionary of such sets. Defaults to
                the sets that the trainer was made with.
        """
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._encode_evaluation(eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset: Any, *args, **kwargs) -> PredictionOutput:
        """
        Predict on one set of rows in any format that the constructor takes. See [`~transformers.Trainer.predict`].

        Raises:
            `ValueError`: If these are several sets by name, as [`~EvaluatingTrainer.evaluate`] takes them.
        """
        encoded = self._encode_evaluation(test_dataset)
        if isinstance(encoded, dict):
            raise ValueError(
                f"`predict` takes one set of rows, and got sets by name ({', '.join(map(repr, encoded))}). Call it "
                "once for each."
            )
        return super().predict(encoded, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """See [`~transformers.Trainer.get_eval_dataloader`]. All rows count, whatever `dataloader_drop_last` says."""
        args = self.args
        drop_last, persistent = args.dataloader_drop_last, args.dataloader_persistent_workers
        # Trainer keeps persistent workers by the name of their set. Sets of the caller's have none: the second would
        # get the workers of the first, and its rows.
        own = eval_dataset is None or isinstance(eval_dataset, str) or eval_dataset is self.eval_dataset
        args.dataloader_drop_last, args.dataloader_persistent_workers = False, persistent and own
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            args.dataloader_drop_last, args.dataloader_persistent_workers = drop_last, persistent

    def evaluation_loop(self, dataloader: DataLoader, *args, **kwargs) -> EvalLoopOutput:
        """See [`~transformers.Trainer.evaluation_loop`]. Under DeepSpeed it works before training with ZeRO-2 too."""
        self._prepare_forward()
        examples = dataloader.dataset
        self._items = [example["item"] for example in examples] if is_encoded(examples) else None
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def completion_probabilities(self, examples: Sequence[Encoded]) -> np.ndarray:
        """
        Compute the length-normalised probability `P(a|q)^(1/|a|)` of each row's completion under the model now.

        Args:
            examples (`Sequence[dict]`):
                Encoded examples. The windows of one text are one row.

        Returns:
            `np.ndarray` of shape `(rows,)`: From 0 to 1, fp64.
        """
        training = self.model.training
        self.model.eval()
        with self.accelerator.autocast():
            log_probs, tokens = score_examples(
                self.model,
                examples,
                self.data_collator.pad_token_id,
                self.args.per_device_eval_batch_size,
                disable=True,
            )
        self.model.train(training)
        return item_probabilities(log_probs, tokens, [example["item"] for example in examples])

    def _mean_probability(self, prediction: EvalPrediction) -> dict[str, float]:
        """The mean over rows of the length-normalised probability, from [`row_log_probs`]."""
        # With `eval_do_concat_batches=False` they are a list of batches.
        rows = prediction.predictions
        log_probs, tokens = (np.concatenate(rows) if isinstance(rows, list) else rows).T
        probabilities = item_probabilities(log_probs, tokens, self._items)
        self._rows = probabilities.tolist()
        probability = float(probabilities.mean())
        if not math.isfinite(probability):
            logger.warning(
                "The model's predictions are NaN: its weights or activations are too large to compute with. After "
                "training this means that `learning_rate` was far too large: it is the norm of a step in each module."
            )
        return {"probability": probability}

    def end_training(self) -> None:
        """End the trackers and the process group. Call it last in a script that several processes run."""
        # DDP holds a reference to the process group. If it were the last one, the group would be destroyed while
        # Python holds a lock that the group's own threads may wait for. The process would hang (pytorch #56297).
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        self.accelerator.end_training()


def row_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Reduce a batch's logits to `(rows, 2)`: each row's summed log-probability and number of labelled tokens."""
    return torch.stack(label_log_probs(logits, labels), dim=1)


def is_encoded(examples: Any) -> bool:
    """Whether these are encoded examples, and not rows."""
    listed = isinstance(examples, Sequence) and not isinstance(examples, str) and len(examples) > 0
    return listed and isinstance(examples[0], Mapping) and "input_ids" in examples[0]
