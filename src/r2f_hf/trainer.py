"""R2FTrainer: takes forget and retain data, and returns a model that has forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from .callback import R2FCallback
from .config import R2FConfig
from .data.collator import num_embeddings
from .data.rows import Row
from .distributed.deepspeed import check_precision, check_zero
from .models import from_pretrained
from .models.checks import check_arguments, check_fsdp, check_model, weights_size
from .models.vocabulary import PaddingAsItWas, check_ids
from .models.wrapping import as_it_was, wrap
from .probes import find_probes
from .probes.lora_probe import PROBE
from .runs.folder import check_output_folder
from .runs.weights import check_can_be_saved
from .training.checks import check_config, warn_of_small_rate
from .training.recorded_trainer import RecordedTrainer
from .training.references import reference_inputs
from .training.simulated_relearning import backward_all, relearned_rows
from .training.trackers import TrackerCallback
from .training.upload_guard import UploadGuard
from .updates.retained_inputs import from_state, to_state
from .updates.targets import TARGETS


class R2FTrainer(RecordedTrainer):
    r"""
    Trainer for Recover-to-Forget (R2F, arXiv 2512.07374): makes a model forget a forget set and keep a retain set.

    The trainer wraps the model in a LoRA adapter, which serves as a probe of the full gradient. At each optimizer step
    [`R2FCallback`] decodes the probe's gradients and writes the update into the model's own weights. [`R2FStep`] is
    that step on a page.

    `save_model` saves the plain model, without the probe. So does `save_pretrained` of the variable that was passed,
    and of `trainer.model`. In memory the plain model is `trainer.model.unload()`.

    With `update_target="adapter"` a second LoRA adapter takes the updates, and `save_model` saves that adapter. Load
    it onto the model with PEFT. (`unload()` would discard it.)

    Example:

    ```python
    from r2f_hf import R2FConfig, R2FTrainer

    trainer = R2FTrainer(
        model="my-finetuned-model",
        args=R2FConfig(output_dir="unlearned", max_steps=20),
        forget_dataset=forget_rows,
        retain_dataset=retain_rows,
    )
    trainer.unlearn()  # metrics before, training, metrics after, and all of it saved
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            A causal language model, or its folder or its name on the Hub. The trainer changes its weights in place.
            With `update_target="adapter"` the weights stay as they are, and the model may be quantised or a
            [`~peft.PeftModel`].
        args ([`R2FConfig`], *optional*):
            Configuration. Defaults to `R2FConfig(f"{model_name}-R2F")`.
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
            As in [`~transformers.Trainer`]. The optimizer moves only the probes, which are drawn anew after each step.
            Its learning rate is the Frobenius norm of a step in each module.
        preprocess_logits_for_metrics (`Callable`, *optional*):
            As in [`~transformers.Trainer`]. It is only used together with `compute_metrics`.

    Raises:
        `ValueError`: If the data, the model or the configuration cannot work. No weight has changed then.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: R2FConfig | None = None,
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
        """
        Check what can be checked, let Trainer build itself around the wrapped model, and add the callback.

        The order of the lines is part of the behaviour:

        1. The checks that need neither data nor processes come first. The model is still as the caller passed it.
        2. [`ForgetRetainTrainer`] checks and encodes the data, and only then calls `_prepare_model`, which wraps the
           model. A mistake in the data leaves the model unwrapped.
        3. Trainer builds the accelerator. Only then is it known whether FSDP or DeepSpeed is on, so these checks come
           after it. The model is wrapped by now, but no weight has changed.
        4. The callback and the record come last, because they need the target, the encoded data and the wrapped model.
        """
        if isinstance(model, str):
            model = from_pretrained(model)
        if args is None:
            # The output folder is named after the model.
            args = R2FConfig(f"{model.config._name_or_path.split('/')[-1]}-R2F")
        check_config(args)
        check_model(model, args)
        check_arguments(args)
        warn_of_small_rate(args)
        self._suite = None
        if args.eval_suite is not None:
            # Here, as it imports the metrics' libraries, which few runs need.
            from .evaluation.in_training import TrainingSuite

            self._suite = TrainingSuite.load(args)
        self.target = TARGETS[args.update_target]()
        writes_weights = self.target.adapter is None
        # The result is as large as the model. The weights that `keep_original` keeps for `r2f undo` can take as much
        # again. An adapter's size is not checked, only whether its folder can be written to.
        check_output_folder(args.output_dir, weights_size(model) * (1 + args.keep_original) if writes_weights else 0)
        self._vocabulary = num_embeddings(model)
        # Whether the model's weights are spread over the processes. `save_model` has to gather them then.
        self._sharded = getattr(model, "is_distributed_loading_by_transformers", False)
        # Trainer refuses to save the optimizer of a sharded model. Here the optimizer moves only the probes, and every
        # process has them whole, so that saving it is safe. `save_only_model` avoids the refusal in `super().__init__`
        # and gets its value back right after.
        save_only_model, args.save_only_model = args.save_only_model, args.save_only_model or self._sharded
        # Set by `_prepare_model`, once the model is wrapped.
        self._unwrap: Callable[[], Any] | None = None
        try:
            super().__init__(
                model=model,
                args=args,
                forget_dataset=forget_dataset,
                retain_dataset=retain_dataset,
                holdout_dataset=holdout_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )
            # `args` is the caller's, who may use it again.
            args.save_only_model = save_only_model
            self._add_method(model, args)
        except Exception:
            # Trainer itself may refuse a setting too. The model is to be as it was.
            args.save_only_model = save_only_model
            if self._unwrap is not None:
                self._unwrap()
            raise

    def _add_method(self, model: PreTrainedModel, args: R2FConfig) -> None:
        """What needs the accelerator and the wrapped model: the last checks, the callbacks and the record."""
        writes_weights = self.target.adapter is None
        check_fsdp(args, self.is_fsdp_enabled)
        if self.is_deepspeed_enabled:
            check_zero(self.accelerator.state.deepspeed_plugin.deepspeed_config, to_adapter=not writes_weights)
            check_precision(model)
            if args.simulated_relearning:
                raise ValueError(
                    "`simulated_relearning` does not work under DeepSpeed, whose engine owns the backward pass. Leave "
                    "it out, or shard the weights with FSDP2."
                )
            # ZeRO-3 shards the weights, but sets no such attribute as is read above.
            self._sharded = True
        self.r2f_callback = R2FCallback(
            decoder=args.decoder,
            seed=args.seed,
            held_out=args.held_out,
            warm_probes=args.warm_probes,
            min_fidelity=args.min_fidelity,
            on_bad_gradient=args.on_bad_gradient,
            adaptive=args.adaptive,
            spectrum_damping=args.spectrum_damping,
            normalize=args.normalize_update,
            # The same object: the callback writes to the target, and the trainer saves and loads it.
            target=self.target,
            # The trainer's own checkpoints already hold the full model.
            save_full_model=False,
        )
        self.add_callback(self.r2f_callback)
        self.add_callback(PaddingAsItWas(model))
        self.add_callback(TrackerCallback(lambda: self.r2f_callback.module_fidelity, self.callback_handler, args))
        self.add_callback(UploadGuard(self.splits.texts["forget"]))
        self.begin_record(model.config._name_or_path)

    def _prepare_model(self, model: PreTrainedModel, args: R2FConfig) -> PeftModel:
        """Wrap the model in the probe and, with `update_target="adapter"`, in the adapter that takes the updates."""
        sets = {"forget": self.splits.views, "retain": self.splits.retain, "holdout": self.splits.holdout}
        sets["second answers"] = self.splits.second
        check_ids(sets, self._vocabulary)
        check_can_be_saved(args.output_dir, self.encoder.tokenizer, model if self.target.adapter is None else None)
        restore = as_it_was(model)
        wrapped = wrap(model, args)
        self._unwrap = restore
        return wrapped

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Evaluate the forget, retain and holdout sets and, with `eval_suite`, the suite. See
        [`~transformers.Trainer.evaluate`].

        Args:
            eval_dataset (`Any`, *optional*):
                Rows to evaluate instead, in any form that the trainer takes. The suite is left out then.
            ignore_keys (`list[str]`, *optional*):
                As in Trainer.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
                What the names of the metrics begin with.

        Returns:
            `dict[str, float]`
        """
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self._suite is None or eval_dataset is not None:
            return metrics
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            found = self._suite.run(model, self.encoder.tokenizer, self.args, metric_key_prefix)
        self.log(found)
        return metrics | found

    def _encode_evaluation(self, rows: Any) -> Any:
        """Encode what is evaluated, and refuse tokens that the model does not know."""
        encoded = super()._encode_evaluation(rows)
        check_ids(encoded if isinstance(encoded, dict) else {"evaluation": encoded}, self._vocabulary)
        return encoded

    def _compute_references(self) -> dict[str, Tensor]:
        """What the losses compare with and, with `protect_retain`, the retain set's inputs to each module."""
        tensors = super()._compute_references()
        if self.args.protect_retain:
            probes = find_probes(self.accelerator.unwrap_model(self.model), self.target.adapter is None)
            with self.accelerator.autocast():
                inputs = reference_inputs(
                    self.model,
                    {probe.name: probe.layer for probe in probes},
                    self.splits.retain,
                    self.data_collator,
                    self.args.per_device_eval_batch_size,
                    self.args.seed,
                    desc="Inputs of the retain set",
                    disable=self.args.disable_tqdm or not self.is_world_process_zero(),
                )
            for module_inputs in inputs.values():
                # Every process has computed the same inputs, but devices may round differently. All processes have to
                # write the same update, so they take the first process's numbers.
                module_inputs.directions, module_inputs.damped = broadcast(
                    [module_inputs.directions.contiguous(), module_inputs.damped]
                )
            tensors |= to_state(inputs)
        return tensors

    def _set_references(self, tensors: dict[str, Tensor]) -> None:
        """Give the retained inputs to the callback, and all other tensors to the losses."""
        inputs, loss_references = from_state(tensors)
        super()._set_references(loss_references)
        self.r2f_callback.retained_inputs = inputs or None

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args, **kwargs) -> Tensor:
        """
        The loss of a micro-batch, and its backward pass. See [`~transformers.Trainer.training_step`].

        With `simulated_relearning` the losses of a step are those of the model after a step of fine-tuning. Once the
        forget objective lifts the model back to the holdout's level, this goes for every second step: the others see
        the model itself, which would otherwise stay below that level.
        """
        step = self.r2f_callback.step
        as_it_is = self.forget_objective.ends == "level" and self.state.global_step % 2
        if self.args.simulated_relearning and not as_it_is and not step.relearned:
            processes = self.args.world_size
            size = self._train_batch_size // (processes if self.accelerator.split_batches else 1)
            count = size * processes * self.args.gradient_accumulation_steps
            rows = relearned_rows(self.splits.forget, count, self.args.seed, self.state.global_step)
            plain = self.accelerator.unwrap_model(model).train()
            backward_all(plain, rows, size, list(step.modules.values()), self.data_collator, self.accelerator)
            step.relearn(self.args.simulated_relearning)
        return super().training_step(model, inputs, *args, **kwargs)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """
        Create the optimizer of the probes, which moves nothing else. See [`~transformers.Trainer.create_optimizer`].

        Returns:
            [`~torch.optim.Optimizer`]
        """
        # PEFT makes an adapter trainable whenever it enables it, for example after `disable_adapter`. So the flags are
        # set here, where the optimizer reads them.
        for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
            parameter.requires_grad_(f".{PROBE}." in name)
        return super().create_optimizer(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """
        Log metrics. Training logs also get the parts of the loss and the metrics of [`R2FStep.write`].

        Args:
            logs (`dict[str, float]`):
                The metrics. They are training logs if `loss` is among them.
            start_time (`float`, *optional*):
                As in [`~transformers.Trainer.log`].
        """
        if "loss" in logs:
            # Not left to the callback's `on_log`: a tracker's `on_log` may run before it and miss these metrics.
            logs |= self.r2f_callback.pop_logs()
        super().log(logs, start_time)
