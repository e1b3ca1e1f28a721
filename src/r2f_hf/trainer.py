"""R2FTrainer: forget and retain data in, an unlearned model out."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import TrainOutput

from .callback import R2FCallback, check_ranks
from .config import R2FConfig
from .data.rows import Row, content_hash
from .forget_retain_trainer import ForgetRetainTrainer
from .gradients import find_probes
from .saving import load_full_model_, save_full_model


logger = logging.getLogger(__name__)

RUN_FILE = "r2f_run.json"
REFERENCES_FILE = "r2f_references.safetensors"

# So small that the probes leave the forward pass as it is, yet a power of two, so that dividing by it is exact. In
# fp16, whose gradients would underflow, ten bits are invisible beside the format's own rounding.
PROBE_SCALING = 2.0**-20
PROBE_SCALING_FP16 = 2.0**-10

# What has to be the same for a checkpoint to be a part of the same run.
RUN_KEYS = (
    "seed",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "max_grad_norm",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "rank",
    "target_modules",
    "exclude_modules",
    "decoder",
    "held_out",
    "warm_probes",
    "min_fidelity",
    "on_low_fidelity",
    "forget_objective",
    "retain_objective",
    "beta",
    "gamma",
    "forget_weight",
    "retain_weight",
    "retain_per_forget",
    "num_views",
    "normalize_update",
)


class R2FTrainer(ForgetRetainTrainer):
    r"""
    Trainer for Recover-to-Forget (R2F, arXiv 2512.07374): unlearns a forget set while holding a retain set.

    The model is wrapped in a LoRA adapter that serves as a probe of the full gradient; [`R2FCallback`] decodes the
    probe's gradients after each step and writes the model's own weights. What is saved is the plain model; in memory
    `trainer.model.unload()` is.

    Example:

    ```python
    from r2f_hf import R2FConfig, R2FTrainer

    trainer = R2FTrainer(
        model="my-finetuned-model",
        args=R2FConfig(output_dir="unlearned", max_steps=40),
        forget_dataset=forget_rows,
        retain_dataset=retain_rows,
    )
    trainer.train()
    trainer.save_model()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            A causal language model without adapters and without quantisation, or where to load it from. Its weights
            are changed in place.
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
            learning rate is the length of the update.
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
            model = AutoModelForCausalLM.from_pretrained(model)
        check_model(model)
        if args is None:
            args = R2FConfig(f"{model.config._name_or_path.split('/')[-1]}-R2F")
        if args.weight_decay:
            raise ValueError(
                "`weight_decay` would act on the probes, which are drawn anew after each step, and not on the model's "
                "weights. Leave it at 0."
            )
        check_output_folder(args.output_dir, sum(p.numel() * p.element_size() for p in model.parameters()))
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
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError("R2FTrainer runs on one process or under DDP; DeepSpeed and FSDP are not supported yet.")
        self.r2f_callback = R2FCallback(
            decoder=args.decoder,
            seed=args.seed,
            held_out=args.held_out,
            warm_probes=args.warm_probes,
            min_fidelity=args.min_fidelity,
            on_low_fidelity=args.on_low_fidelity,
            normalize=args.normalize_update,
            on_nonfinite=args.on_nonfinite,
            save_full_model=False,
        )
        self.add_callback(self.r2f_callback)
        views = [view["input_ids"] for views in self.train_examples["forget"] for view in views]
        retain = [example["input_ids"] for example in self.train_examples["retain"]]
        holdout = [example["input_ids"] for example in self.reference_examples["holdout"]]
        self.run_description = {key: getattr(args, key) for key in RUN_KEYS} | {
            "data": content_hash([views, retain, holdout]),
            "processes": args.world_size,
        }

    def _prepare_model(self, model: PreTrainedModel, args: R2FConfig) -> PeftModel:
        return add_probes(model, args)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """
        Unlearn. See [`~transformers.Trainer.train`] for the arguments.

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]: Its `metrics` also hold `steps`, `skipped_steps` and, where
            rows are held out, `fidelity`: the estimated cosine to the full gradient, mean over modules and steps.
        """
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        output.metrics.update(self.r2f_callback.summary(), steps=self.state.global_step)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`; training logs also carry the losses' parts and the reconstruction's fidelity."""
        if "loss" in logs:
            # Here and not in the callback's `on_log`, which the trackers' own may precede.
            logs |= self.r2f_callback.pop_logs()
        super().log(logs, start_time)

    # Saving and loading

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save_full_model(self.accelerator.unwrap_model(self.model), folder)
        self.processing_class.save_pretrained(folder)
        (folder / RUN_FILE).write_text(json.dumps(self.run_description, indent=2) + "\n")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            self.r2f_callback.save_subspaces(folder)
            if self._references:
                save_file(self._references, folder / REFERENCES_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._check_same_run(folder)
        references = folder / REFERENCES_FILE
        self._set_references(load_file(references) if references.is_file() else {})
        load_full_model_(self.model, folder)
        self.r2f_callback.resume_folder = folder

    def _check_same_run(self, folder: Path) -> None:
        if not (folder / RUN_FILE).is_file():
            raise ValueError(f"{folder} is not a checkpoint of R2FTrainer (it has no {RUN_FILE}).")
        # Through JSON, so that what was written compares equal to what is held.
        now = json.loads(json.dumps(self.run_description))
        then = json.loads((folder / RUN_FILE).read_text())
        changed = [f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in now if now[key] != then.get(key)]
        if changed:
            raise ValueError(
                f"{folder} belongs to a run with another configuration: {'; '.join(changed)}. Resume with the old "
                "settings, or start a new run in another `output_dir`."
            )

    def _load_best_model(self) -> None:
        logger.info("Loading the best model from %s.", self.state.best_model_checkpoint)
        load_full_model_(self.model, self.state.best_model_checkpoint)


def check_output_folder(folder: str | os.PathLike, needed: int) -> None:
    """
    Refuse an output folder that the result could not be written to.

    Args:
        folder (`str` or `os.PathLike`):
            The folder; made where it is missing.
        needed (`int`):
            Bytes that the result takes.

    Raises:
        `ValueError`: If it cannot be written to, or its disk has less room.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"Nothing can be written to the output folder {os.fspath(folder)}: {error}.") from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"The disk of the output folder {os.fspath(folder)} has {free / 1e9:.2f} GB left and the model takes "
            f"{needed / 1e9:.2f} GB. Make room, or choose another `output_dir`."
        )


def check_model(model: nn.Module) -> None:
    """
    Refuse a model whose weights R2F cannot or must not write.

    Raises:
        `ValueError`: With what to do instead.
    """
    if isinstance(model, PeftModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "The model already carries an adapter. Merge it first (`model = model.merge_and_unload()`), or add "
            "R2FCallback to a Trainer over it to use that adapter as the probe."
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "The model is quantised: a step is far smaller than the distance between two quantised values, so the "
            "update would be lost. Load it without `quantization_config`, for example with `dtype=torch.bfloat16`."
        )


def add_probes(model: PreTrainedModel, args: R2FConfig) -> PeftModel:
    """
    Wrap a model in the LoRA adapter that serves as the probe.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model; its modules are wrapped in place, its weights are untouched.
        args ([`R2FConfig`]):
            Rank and modules.

    Returns:
        [`~peft.PeftModel`]

    Raises:
        `ValueError`: If no module matches, or the rank exceeds a dimension of one.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings = model.get_input_embeddings().weight
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    excluded = args.exclude_modules or []
    if isinstance(excluded, str):
        excluded = [name for name in linear if re.fullmatch(excluded, name)]
    fixed = [name for name, module in linear.items() if not module.weight.requires_grad or module.weight is embeddings]
    half = args.fp16 or model.dtype == torch.float16
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.rank,
        lora_alpha=args.rank * (PROBE_SCALING_FP16 if half else PROBE_SCALING),
        target_modules=args.target_modules,
        exclude_modules=[*excluded, *fixed] or None,
    )
    try:
        model = get_peft_model(model, config, adapter_name="r2f_probe")
    except ValueError as error:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in linear.keys() - set(fixed)})
        raise ValueError(
            f"No module to change: `target_modules={args.target_modules!r}` and "
            f"`exclude_modules={args.exclude_modules!r}` leave none of this model's. Linear modules that are neither "
            f"frozen nor tied: {', '.join(kinds) or 'none'}."
        ) from error
    try:
        check_ranks(find_probes(model), args.held_out)
    except ValueError:
        model.unload()
        for parameter in trainable:
            parameter.requires_grad_(True)
        raise
    return model
