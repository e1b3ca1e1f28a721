"""ForgetRetainTrainer: forget and retain losses in one step, whichever way the weights are moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..config import R2FConfig
from ..data.collator import ForgetRetainCollator, first_items, pad_token_id
from ..data.dataset import ForgetRetainDataset
from ..data.encoder import ExampleEncoder
from ..data.formatting import Encoded
from ..data.rendering import ChatOptions
from ..data.rows import Row
from ..data.second_answers import FILE as SECOND_ANSWERS_FILE
from ..data.second_answers import attach_answers, given_answers, write_answers
from ..data.splits import encode_splits, num_labels
from ..objectives import ForgetObjective
from ..runs.files import write_text
from ..scoring import context_length, item_probabilities
from .checks import (
    check_batches,
    check_best_metric,
    check_config,
    check_objectives,
    check_optimizer_and_schedule,
    check_sampling,
    tokenizer_for,
)
from .evaluating_trainer import EvaluatingTrainer, row_log_probs
from .loss import count_items, forget_retain_loss
from .objective_references import objective_references, written_answers
from .references import References, check_references, reference_log_probs
from .stopping import HoldoutStopping


# What the names of a forget objective's state begin with in a checkpoint.
STATE = "objective."


class ForgetRetainTrainer(EvaluatingTrainer):
    r"""
    Trainer on a forget and a retain set: the objectives, their references, evaluation and the stopping rule.

    It trains the trainable parameters of the model with the given optimizer, as any Trainer does. Over a
    [`~peft.PeftModel`] that is LoRA unlearning, and over a plain model it is full fine-tuning. [`R2FTrainer`] builds
    on this class, so that the methods can be compared under the same losses and batches.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal language model.
        args ([`R2FConfig`]):
            Configuration. The options about probes, decoders and updates only matter to [`R2FTrainer`].
        forget_dataset ([`~datasets.Dataset`] or `Sequence[Mapping]`):
            Rows to forget, with the columns that `args` names.
        retain_dataset ([`~datasets.Dataset`] or `Sequence[Mapping]`, *optional*):
            Rows to keep. Needed unless `retain_objective="none"`.
        holdout_dataset ([`~datasets.Dataset`] or `Sequence[Mapping]`, *optional*):
            Rows of the same kind as the forget set, which the model never saw. With them, training stops once the
            model treats the forget set like rows that it never saw and still knows the retain set. `stop_reason` then
            says which criterion was met.
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*):
            Rows to evaluate on instead of the forget, retain and holdout sets.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. Defaults to the model's own.
        compute_metrics (`Callable`, *optional*):
            As in [`~transformers.Trainer`]: computes metrics from logits. Defaults to the mean length-normalised
            probability of the completions, which is reported as `eval_forget_probability`, `eval_retain_probability`
            and `eval_holdout_probability`.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            As in [`~transformers.Trainer`].
        preprocess_logits_for_metrics (`Callable`, *optional*):
            As in [`~transformers.Trainer`]. It is only used together with `compute_metrics`.

    Raises:
        `ValueError`: If the data cannot work. No weight has changed then.
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
        check_config(args)
        check_batches(args)
        check_optimizer_and_schedule(args, model, optimizers)
        processing_class = tokenizer_for(model, processing_class)
        self.forget_objective, self.retain_objective = args.build_objectives()
        self.encoder = ExampleEncoder(
            processing_class,
            context_length(model),
            args.prompt_column,
            args.completion_column,
            args.views_column,
            args.view_templates,
            args.max_length,
            args.window_overlap,
            ChatOptions(args.chat_template_kwargs, args.system_prompt),
        )
        self.splits = encode_splits(
            self.encoder, forget_dataset, retain_dataset, holdout_dataset, self.retain_objective is not None
        )
        check_objectives((self.forget_objective, self.retain_objective), self.splits)
        for objective in filter(None, (self.forget_objective, self.retain_objective)):
            objective.prepare(model, processing_class)
        self._second_answers: list[list[str]] | None = None
        if self.forget_objective.answers not in (None, "model"):
            source, count = self.forget_objective.answers, self.forget_objective.num_answers
            answers = given_answers(self.splits, source, count, args.seed)
            # A part of what describes a run.
            self.splits.texts["second"] = answers
            self._use_second_answers(answers)
        if compute_metrics is None:
            compute_metrics, preprocess_logits_for_metrics = self._mean_probability, row_log_probs
        self._items: list[int] | None = None
        evaluated = self._encode_evaluation(eval_dataset)
        check_sampling(args, len(self.splits.forget))
        check_best_metric(
            args, evaluated if isinstance(evaluated, dict) else None, compute_metrics != self._mean_probability
        )
        data_seed = args.seed if args.data_seed is None else args.data_seed
        train_dataset = ForgetRetainDataset(
            self.splits.forget,
            self.splits.retain,
            args.num_views,
            args.retain_per_forget,
            data_seed,
            self.forget_objective.needs_answers,
        )

        super().__init__(
            model=self._prepare_model(model, args),
            args=args,
            data_collator=ForgetRetainCollator(pad_token_id(processing_class, model)),
            train_dataset=train_dataset,
            eval_dataset=evaluated,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # So that Trainer does not divide the loss by the number of micro-batches. `compute_loss` already returns a
        # share of the mean over the global batch.
        self.model_accepts_loss_kwargs = True
        self.add_callback(DatasetEpoch())
        self._keeps_state = type(self.forget_objective).after_step is not ForgetObjective.after_step
        if self._keeps_state:
            self.add_callback(StepLosses(self._end_step))
        self.stop_reason: str | None = None
        if self.splits.holdout:
            self.add_callback(
                HoldoutStopping(
                    self._stop_probabilities,
                    self.reference_probabilities,
                    self.log,
                    self._stop,
                    self.forget_objective,
                )
            )
        self.references = References({})
        self._loss_parts: dict[str, Tensor] = {}
        self._loss_steps = 0
        self._step_parts: dict[str, Tensor] = {}
        self._takes_a_step = False

    def _prepare_model(self, model: PreTrainedModel, args: R2FConfig) -> nn.Module:
        """Wrap the model for training. Called after the data has been checked, so that bad data changes no model."""
        return model

    # The loss

    def get_batch_samples(self, *args, **kwargs) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """The micro-batches of a step, and the numbers that the means of its losses are taken over."""
        # Trainer also counts batches during an evaluation, where no rows are to be removed. `model.training` does not
        # tell the two apart: an evaluation within training leaves it off until the next step.
        self._takes_a_step = True
        try:
            return super().get_batch_samples(*args, **kwargs)
        finally:
            self._takes_a_step = False

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """[`count_items`] of all micro-batches of a step on all processes, without rows that would count twice."""
        if not batch_samples or "is_forget" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        ends = self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last
        if ends and self._takes_a_step:
            # accelerate fills up an epoch's last batches with items from its beginning, so that all processes have
            # equally many. These items would count twice in this epoch. How many items of this process's last batch
            # are not such fillers follows from its place in the global batch. (accelerate's own count, `remainder`, is
            # lost when a resumed run skips batches.)
            processes = self.args.world_size
            size = self._train_batch_size // (processes if self.accelerator.split_batches else 1)
            remaining = len(self.train_dataset) % (size * processes) or size * processes
            genuine = min(max(remaining - size * self.args.process_index, 0), size)
            batch_samples[-1] = first_items(batch_samples[-1], genuine)
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
        Compute the weighted sum of the forget and the retain loss: the batch's share of the global batch's mean.

        Args:
            model (`nn.Module`):
                The model, wrapped as it is trained.
            inputs (`dict[str, torch.Tensor]`):
                A batch of [`ForgetRetainCollator`]. If it has no `is_forget`, Trainer's own loss is computed.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Whether to return the logits too, as a dictionary.
            num_items_in_batch (`torch.Tensor` of shape `(4,)`, *optional*):
                [`count_items`] of the global batch. Defaults to that of this batch.

        Returns:
            `torch.Tensor` of shape `()`, or a tuple of it and `{"logits": logits}`: The loss, multiplied by the number
            of processes.
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
            # `compute_metrics` gets logits and labels of the same length.
            all_logits=return_outputs,
        )
        loss = self.args.forget_weight * parts["forget_loss"]
        if "retain_loss" in parts:
            factor = self.args.retain_weight * self.forget_objective.retain_factor
            loss = loss + factor * parts["retain_loss"]
        for name, value in parts.items():
            for sums in (self._loss_parts, self._step_parts)[: 1 + self._keeps_state]:
                sums[name] = sums.get(name, 0.0) + value.detach()
        # `sync_gradients` is `True` at the last micro-batch of a step, so this counts steps.
        self._loss_steps += self.accelerator.sync_gradients
        # The processes' shares have to be summed, but DDP averages gradients over processes.
        loss = loss * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Train on the forget and retain losses. See [`~transformers.Trainer.train`] for the arguments.

        The references of the losses are computed first, while the model is as it was before unlearning. A resumed run
        does not compute them: [`R2FTrainer`] loads them from the checkpoint.

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]
        """
        if not resume_from_checkpoint:
            if self.forget_objective.answers == "model":
                self._write_second_answers()
            references = self._compute_references()
            check_references(references)
            self._set_references(references)
        if self.is_deepspeed_enabled:
            # Drop the engine of `_prepare_forward`: training makes its own, with the right number of steps.
            self.model_wrapped, self.deepspeed = self.model, None
        if self.model_wrapped is self.model:
            # An evaluation before training marks the model as prepared. accelerate would then not wrap it in DDP, and
            # every process would train on its own gradients only.
            self.model._is_accelerate_prepared = False
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _compute_references(self) -> dict[str, Tensor]:
        """The tensors of [`References`] that the objectives and the stopping rule need, under the model now."""
        self._prepare_forward()
        common = {"collator": self.data_collator, "batch_size": self.args.per_device_eval_batch_size}
        common["disable"] = self.args.disable_tqdm or not self.is_world_process_zero()
        self.model.eval()
        with self.accelerator.autocast():
            tensors = objective_references(
                self.model, self.forget_objective, self.retain_objective, self.splits, **common
            )
            for name, examples in self._stopping_examples().items():
                if examples:
                    tensors[f"{name}_log_probs"] = reference_log_probs(
                        self.model, examples, **common, desc=f"Reference of the {name} set"
                    )
        return tensors

    def _set_references(self, tensors: dict[str, Tensor]) -> None:
        """Use these tensors, which were just computed or come from a checkpoint."""
        state = {name.removeprefix(STATE): value for name, value in tensors.items() if name.startswith(STATE)}
        self.forget_objective.load_state(state)
        tensors = {name: value for name, value in tensors.items() if not name.startswith(STATE)}
        self.references = References(tensors, self.splits.views, self.splits.retain, self.splits.second)

    def objective_state(self) -> dict[str, Tensor]:
        """What the forget objective keeps from step to step, by the names that a checkpoint has it under."""
        return {f"{STATE}{name}": value for name, value in self.forget_objective.state().items()}

    def _end_step(self) -> None:
        """Tell the forget objective the losses of the step that ends."""
        parts = self.accelerator.reduce(torch.stack(list(self._step_parts.values())), "sum")
        self.forget_objective.after_step(dict(zip(self._step_parts, parts.tolist(), strict=True)))
        self._step_parts = {}

    # Second answers

    def _use_second_answers(self, answers: list[list[str]]) -> None:
        """Take these second answers, row by row. The training set has the same examples, and so has them too."""
        self._second_answers = answers
        attach_answers(self.encoder, self.splits, answers, self.forget_objective.teacher_prompt)

    def _write_second_answers(self) -> None:
        """Let the model write the second answers, and keep them in the output folder."""
        self._prepare_forward()
        self.model.eval()
        with self.accelerator.autocast():
            answers = written_answers(
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                self.forget_objective,
                self.splits,
                self.args.seed,
                self.args.per_device_eval_batch_size,
                self.encoder.options,
            )
        self._use_second_answers(answers)
        if self.args.should_save:
            write_text(Path(self.args.output_dir) / SECOND_ANSWERS_FILE, write_answers(self._second_answers))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Log metrics. Training logs also get the parts of the loss, each as the mean over the steps since the last log,
        and what the forget objective keeps from step to step.

        Args:
            logs (`dict[str, float]`):
                The metrics. They are training logs if `loss` is among them.
            start_time (`float`, *optional*):
                As in [`~transformers.Trainer.log`].
        """
        if "loss" in logs and self._loss_parts:
            parts = self.accelerator.reduce(torch.stack(list(self._loss_parts.values())), "sum") / self._loss_steps
            logs |= dict(zip(self._loss_parts, parts.tolist(), strict=True))
            self._loss_parts, self._loss_steps = {}, 0
            state = self.forget_objective.state()
            logs |= {name: value.item() for name, value in state.items() if value.numel() == 1}
        super().log(logs, start_time)

    def reference_probabilities(self, name: str) -> np.ndarray:
        """
        Length-normalised probabilities under the model before unlearning, of the rows that the stopping rule compares
        with. All processes have to call this, and get those of the first one.

        Args:
            name (`str`):
                `"holdout"` or `"retain"`.

        Returns:
            `np.ndarray` of shape `(rows,)`: From 0 to 1.
        """
        examples = self._stopping_examples()[name]
        log_probs = self.references.tensors[f"{name}_log_probs"].numpy()
        tokens = np.array([num_labels(example) for example in examples])
        found = item_probabilities(log_probs, tokens, [example["item"] for example in examples])
        # Devices may round differently, and all processes have to end at the same step.
        return broadcast_object_list([found])[0]

    # The stopping rule

    def _stopping_examples(self) -> dict[str, list[Encoded]]:
        """The rows that the stopping rule needs references of: the holdout set, and a part of the retain set."""
        return {"holdout": self.splits.holdout, "retain": self.splits.retain_sample}

    def _stop_probabilities(self, name: str) -> np.ndarray:
        """Probabilities of the `"forget"`, `"holdout"` or `"retain"` examples under the model now."""
        examples = {"forget": self.splits.originals, **self._stopping_examples()}
        return broadcast_object_list([self.completion_probabilities(examples[name])])[0]

    def _stop(self, reason: str) -> None:
        """Keep the reason for which [`HoldoutStopping`] ends the run."""
        self.stop_reason = reason


class StepLosses(TrainerCallback):
    """Calls a function at the end of each step, before a checkpoint is saved."""

    def __init__(self, end_step: Callable[[], None]):
        self.end_step = end_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.end_step()


class DatasetEpoch(TrainerCallback):
    """Tells the training set its epoch. accelerate does not do so if a loader is not the only one or skips batches."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader: Any, **kwargs
    ) -> None:
        train_dataloader.dataset.set_epoch(int(state.epoch))
