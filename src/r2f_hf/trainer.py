"""R2FTrainer: forget and retain data in, an unlearned model out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate.utils import broadcast
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from .callback import R2FCallback
from .config import R2FConfig
from .data.rows import Row
from .distributed.deepspeed import check_precision, check_zero
from .models import from_pretrained
from .models.checks import check_arguments, check_fsdp, check_model, weights_size
from .models.wrapping import wrap
from .probes import find_probes
from .probes.lora_probe import PROBE
from .runs.folder import check_output_folder
from .training.recorded_trainer import RecordedTrainer
from .training.references import reference_inputs
from .updates.retained_inputs import from_state, to_state
from .updates.targets import TARGETS


class R2FTrainer(RecordedTrainer):
    r"""
    Trainer for Recover-to-Forget (R2F, arXiv 2512.07374): unlearns a forget set while holding a retain set.

    The model is wrapped in a LoRA adapter that serves as a probe of the full gradient; [`R2FCallback`] decodes the
    probe's gradients after each step and writes the model's own weights. What is saved is the plain model; in memory
    `trainer.model.unload()` is. (With `update_target="adapter"` what is saved is the adapter, to be loaded onto the
    model; unloading would throw it away.)

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
            A causal language model, or where to load it from. Its weights are changed in place; with
            `update_target="adapter"` they are not, and it may be quantised or a [`~peft.PeftModel`].
        args ([`R2FConfig`], *optional*):
            Configuration. Defaults to `R2FConfig(f"{model_name}-R2F")`.
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
            As in [`~transformers.Trainer`]. The optimizer moves the probes, which are drawn anew after each step; its
            learning rate is the norm of a step in each module.
        preprocess_logits_for_metrics (`Callable`, *optional*):
            As in [`~transformers.Trainer`]; used with `compute_metrics`.

    Raises:
        `ValueError`: For data, a model or a configuration that cannot work, before any weight changes.
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
        if isinstance(model, str):
            model = from_pretrained(model)
        if args is None:
            args = R2FConfig(f"{model.config._name_or_path.split('/')[-1]}-R2F")
        check_model(model, args)
        check_arguments(args)
        self.target = TARGETS[args.update_target]()
        own_weights = self.target.adapter is None
        check_output_folder(args.output_dir, weights_size(model) * (1 + args.keep_original) if own_weights else 0)
        # Trainer refuses to save the optimizer of a model that is sharded; the probes' own is whole on every process.
        self._sharded = getattr(model, "is_distributed_loading_by_transformers", False)
        save_only_model, args.save_only_model = args.save_only_model, args.save_only_model or self._sharded
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
        finally:
            args.save_only_model = save_only_model
        check_fsdp(args, self.is_fsdp_enabled)
        if self.is_deepspeed_enabled:
            check_zero(self.accelerator.state.deepspeed_plugin.deepspeed_config, to_adapter=not own_weights)
            check_precision(model)
            self._sharded = True
        self.r2f_callback = R2FCallback(
            decoder=args.decoder,
            seed=args.seed,
            held_out=args.held_out,
            warm_probes=args.warm_probes,
            min_fidelity=args.min_fidelity,
            on_bad_gradient=args.on_bad_gradient,
            adaptive=args.adaptive,
            normalize=args.normalize_update,
            target=self.target,
            save_full_model=False,
        )
        self.add_callback(self.r2f_callback)
        self.begin_record(model.config._name_or_path, forget_dataset)

    def _prepare_model(self, model: PreTrainedModel, args: R2FConfig) -> PeftModel:
        return wrap(model, args)

    def _compute_references(self) -> dict[str, Tensor]:
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
            for each in inputs.values():
                # Devices may round otherwise, and all processes write one update.
                each.directions, each.damped = broadcast([each.directions.contiguous(), each.damped])
            tensors |= to_state(inputs)
        return tensors

    def _set_references(self, tensors: dict[str, Tensor]) -> None:
        # What the callback has is held there only.
        inputs, others = from_state(tensors)
        super()._set_references(others)
        self.r2f_callback.retained_inputs = inputs or None

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """The optimizer of the probes, and of nothing else: PEFT makes what it enables trainable at many a turn."""
        for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
            parameter.requires_grad_(f".{PROBE}." in name)
        return super().create_optimizer(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`; training logs also carry the losses' parts and the reconstruction's fidelity."""
        if "loss" in logs:
            # Here and not in the callback's `on_log`, which the trackers' own may precede.
            logs |= self.r2f_callback.pop_logs()
        super().log(logs, start_time)
