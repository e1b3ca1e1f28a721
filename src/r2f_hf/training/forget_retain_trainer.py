"""ForgetRetainTrainer: forget and retain losses in one step, whatever moves the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import EvalLoopOutput

from ..config import R2FConfig
from ..data.collator import ForgetRetainCollator, first_items, pad_token_id
from ..data.dataset import Encoded, ForgetRetainDataset
from ..data.encoder import ExampleEncoder
from ..data.rows import Row
from ..data.splits import by_length, encode_evaluation, encode_splits, num_labels
from ..scoring import context_length, label_log_probs, score_examples
from .loss import count_items, forget_retain_loss
from .references import References, reference_log_probs, reference_token_log_probs, reference_top_tokens
from .stopping import HoldoutStopping


class ForgetRetainTrainer(Trainer):
    r"""
    Trainer on a forget and a retain set: the objectives, their references, evaluation and the stopping rule.

    It moves whatever parameters of the model are trainable with whatever optimizer it is given, which makes it the
    peer to measure [`R2FTrainer`] against: LoRA unlearning over a [`~peft.PeftModel`], full fine-tuning over a plain
    model, under the very same losses and batches.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model.
        args ([`R2FConfig`]):
            Configuration. What it says of probes and decoders is for [`R2FTrainer`].
        forget_dataset ([`~datasets.Dataset`] or `Sequence[Mapping]`):
            Rows to forget, with the columns that `args` names.
        retain_dataset ([`~datasets.Dataset`] or `Sequence[Mapping]`, *optional*):
            Rows to keep. Needed unless `retain_objective="none"`.
        holdout_dataset ([`~datasets.Dataset`] or `Sequence[Mapping]`, *optional*):
            Rows like the forget set's that the model never saw. With it, training stops when the forget set cannot be
            told from them and the retain set is kept; `stop_reason` then says by which criterion.
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*):
            Rows to evaluate on instead of the forget, retain and holdout sets.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Defaults to the model's own.
        compute_metrics (`Callable`, *optional*):
            As in [`~transformers.Trainer`], on logits. Defaults to the mean length-normalised probability of the
            completions, reported as `eval_forget_probability` and so on.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            As in [`~transformers.Trainer`].
        preprocess_logits_for_metrics (`Callable`, *optional*):
            As in [`~transformers.Trainer`]; used with `compute_metrics`.

    Raises:
        `ValueError`: For data that cannot work, before any weight changes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: R2FConfig,
        forget_dataset: Dataset | Sequence[Row] | None = None,
        retain_dataset: Dataset | Sequence[Row] | None = None,
        holdout_dataset: Dataset | Sequence[Row] | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(model.config._name_or_path)
        self.forget_objective, self.retain_objective = args.build_objectives()
        encoder = ExampleEncoder(
            processing_class,
            context_length(model),
            args.prompt_column,
            args.completion_column,
            args.views_column,
            args.view_templates,
            args.max_length,
        )
        self.splits = encode_splits(
            encoder, forget_dataset, retain_dataset, holdout_dataset, self.retain_objective is not None
        )
        evaluated = encode_evaluation(encoder, eval_dataset, self.splits)
        if compute_metrics is None:
            compute_metrics, preprocess_logits_for_metrics = mean_probability, row_log_probs
            # The mean of probabilities knows no order, and rows of like length need little padding. (Trainer's own
            # `eval_loss` is a mean of batches' means, and depends on which rows share one.)
            several = isinstance(evaluated, dict)
            evaluated = (
                {name: by_length(rows) for name, rows in evaluated.items()} if several else by_length(evaluated)
            )
        data_seed = args.seed if args.data_seed is None else args.data_seed
        train_dataset = ForgetRetainDataset(
            self.splits.forget, self.splits.retain, args.num_views, args.retain_per_forget, data_seed
        )

        super().__init__(
            model=self._prepare_model(model, args),
            args=args,
            data_collator=ForgetRetainCollator(pad_token_id(processing_class)),
            train_dataset=train_dataset,
            eval_dataset=evaluated,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # The loss is already a mean over the whole global batch, see `compute_loss`.
        self.model_accepts_loss_kwargs = True
        self.add_callback(DatasetEpoch())
        self.stop_reason: str | None = None
        if self.splits.holdout:
            self.add_callback(
                HoldoutStopping(self._stop_probabilities, self.reference_probabilities, self.log, self._stop)
            )
        self.references = References({})
        self._loss_parts: dict[str, Tensor] = {}
        self._loss_steps = 0
        self._takes_a_step = False

    def _prepare_model(self, model: PreTrainedModel, args: R2FConfig) -> nn.Module:
        """What is trained. Called once the data has been checked, so that a refusal leaves the model as it is."""
        return model

    # The loss

    def get_batch_samples(self, *args, **kwargs) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """The micro-batches of a training step, and what the means of its losses are taken over."""
        # The model's mode does not say so: an evaluation leaves it as it is until the next step.
        self._takes_a_step = True
        try:
            return super().get_batch_samples(*args, **kwargs)
        finally:
            self._takes_a_step = False

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        # Trainer calls this with all micro-batches of a step, so that each can be scaled by the whole batch's count.
        if not batch_samples or "is_forget" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        ends = self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last
        if ends and self._takes_a_step:
            # accelerate fills an epoch's last batches up with items of its first, so that all processes have as many.
            # Each would count twice; how many a process really has follows from its place in the global batch. (What
            # accelerate itself knows of this, `remainder`, is lost where a resumed run skips batches.)
            processes = self.args.world_size
            size = self._train_batch_size // (processes if self.accelerator.split_batches else 1)
            remaining = len(self.train_dataset) % (size * processes) or size * processes
            own = min(max(remaining - size * self.args.process_index, 0), size)
            batch_samples[-1] = first_items(batch_samples[-1], own)
        counts = torch.stack([count_items(batch) for batch in batch_samples]).sum(0).to(device)
        return self.accelerator.reduce(counts, "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """
        Forget and retain loss of a batch, as its share of the mean over the whole global batch.

        Args:
            model (`nn.Module`):
                The wrapped model.
            inputs (`dict[str, torch.Tensor]`):
                A batch of [`ForgetRetainCollator`]. Batches without `is_forget` are evaluated as in Trainer.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Whether to return the logits too, as a dictionary.
            num_items_in_batch (`torch.Tensor` of shape `(3,)`, *optional*):
                Forget rows, forget tokens and retain tokens of the global batch.
        """
        if "is_forget" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        counts = count_items(inputs) if num_items_in_batch is None else num_items_in_batch
        parts, logits = forget_retain_loss(
            model,
            inputs,
            self.forget_objective,
            self.retain_objective,
            self.references,
            counts,
            # Metrics compare with all labels.
            all_logits=return_outputs,
        )
        loss = self.args.forget_weight * parts["forget_loss"]
        if "retain_loss" in parts:
            loss = loss + self.args.retain_weight * parts["retain_loss"]
        for name, value in parts.items():
            self._loss_parts[name] = self._loss_parts.get(name, 0.0) + value.detach()
        self._loss_steps += self.accelerator.sync_gradients
        # DDP averages gradients over processes, but each process holds its share of one global mean.
        loss = loss * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Unlearn. See [`~transformers.Trainer.train`] for the arguments.

        Reference log-probabilities are computed here, before the first write; [`R2FTrainer`] keeps them in its
        checkpoints, where a resumed run finds them.
        """
        if not resume_from_checkpoint:
            self._set_references(self._compute_references())
        if self.is_deepspeed_enabled:
            # Training makes an engine of its own.
            self.model_wrapped, self.deepspeed = self.model, None
        if self.model_wrapped is self.model:
            # An evaluation before training marks the model as prepared, and accelerate would not wrap it in DDP any
            # more: every process would train on its own gradients.
            self.model._is_accelerate_prepared = False
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def end_training(self) -> None:
        """Say goodbye to the trackers and to the other processes. The last thing that a script does."""
        # DDP holds the process group. Were it the last to, the group would end with the interpreter in hand that its
        # own threads may be waiting for, and the process would hang (pytorch #56297).
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _prepare_forward(self) -> None:
        """Make the model one that can be called. Before training Trainer does so for ZeRO-3's evaluation alone."""
        if self.is_deepspeed_enabled and self.deepspeed is None:
            self.optimizer, self.lr_scheduler = deepspeed_init(self, num_training_steps=1)
            self.deepspeed, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
            self.model_wrapped = self.deepspeed

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """See [`~transformers.Trainer.evaluation_loop`]."""
        self._prepare_forward()
        return super().evaluation_loop(*args, **kwargs)

    def _compute_references(self) -> dict[str, Tensor]:
        self._prepare_forward()
        common = {"collator": self.data_collator, "batch_size": self.args.per_device_eval_batch_size}
        quiet = self.args.disable_tqdm or not self.is_world_process_zero()
        found: dict[str, Tensor] = {}
        self.model.eval()
        with self.accelerator.autocast():
            if self.forget_objective.needs_reference:
                found["forget_log_probs"] = reference_token_log_probs(
                    self.model, self.splits.views, **common, desc="Reference of the forget set", disable=quiet
                )
            if self.retain_objective is not None and self.retain_objective.needs_reference:
                found["retain_top_ids"], found["retain_top_log_probs"] = reference_top_tokens(
                    self.model,
                    self.splits.retain,
                    **common,
                    k=self.retain_objective.k,
                    desc="Reference of the retain set",
                    disable=quiet,
                )
            for name, examples in self._stopping_examples().items():
                if examples:
                    found[f"{name}_log_probs"] = reference_log_probs(
                        self.model, examples, **common, desc=f"Reference of the {name} set", disable=quiet
                    )
        return found

    def _set_references(self, tensors: dict[str, Tensor]) -> None:
        self.references = References(tensors, self.splits.views, self.splits.retain)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`; training logs also carry the losses' parts."""
        if "loss" in logs and self._loss_parts:
            parts = self.accelerator.reduce(torch.stack(list(self._loss_parts.values())), "sum") / self._loss_steps
            logs |= dict(zip(self._loss_parts, parts.tolist(), strict=True))
            self._loss_parts, self._loss_steps = {}, 0
        super().log(logs, start_time)

    # Evaluation

    def completion_probabilities(self, examples: Sequence[Encoded]) -> np.ndarray:
        """
        Length-normalised probability of each example's completion under the model now.

        Args:
            examples (`Sequence[dict]`):
                Encoded examples.

        Returns:
            `np.ndarray` of shape `(len(examples),)`.
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
        return np.exp(log_probs / tokens)

    def reference_probabilities(self, name: str) -> np.ndarray:
        """
        Length-normalised probabilities of examples that the stopping rule looks at, under the model before unlearning.

        Args:
            name (`str`):
                `"holdout"` or `"retain"`.

        Returns:
            `np.ndarray` of shape `(rows,)`.
        """
        tokens = [num_labels(row) for row in self._stopping_examples()[name]]
        return np.exp(self.references.tensors[f"{name}_log_probs"].numpy() / np.array(tokens))

    # The stopping rule

    def _stopping_examples(self) -> dict[str, list[Encoded]]:
        """What the stopping rule compares with: the holdout set, and a part of the retain set."""
        return {"holdout": self.splits.holdout, "retain": self.splits.retain_sample}

    def _stop_probabilities(self, name: str) -> np.ndarray:
        """Probabilities of the `"forget"` or the `"retain"` examples under the model now."""
        examples = {"forget": self.splits.originals, "retain": self.splits.retain_sample}
        return self.completion_probabilities(examples[name])

    def _stop(self, reason: str) -> None:
        self.stop_reason = reason


class DatasetEpoch(TrainerCallback):
    """Tells the training set its epoch. accelerate does not if its loader is one of several or skips batches."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader: Any, **kwargs
    ) -> None:
        train_dataloader.dataset.set_epoch(int(state.epoch))


def row_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Reduce a batch's logits to `(rows, 2)`: summed log-probability and number of labelled tokens."""
    return torch.stack(label_log_probs(logits, labels), dim=1)


def mean_probability(prediction: EvalPrediction) -> dict[str, float]:
    """Mean length-normalised probability, from [`row_log_probs`]."""
    return {"probability": float(np.exp(prediction.predictions[:, 0] / prediction.predictions[:, 1]).mean())}
