"""R2FTrainer: forget and retain data in, an unlearned model out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)
from transformers.pytorch_utils import Conv1D

from .callback import R2FCallback, check_ranks
from .config import R2FConfig
from .data.collator import ForgetRetainCollator, pad_token_id
from .data.forget_retain import Encoded, ForgetRetainDataset
from .data.formatting import IGNORE_INDEX, encode_example
from .data.rows import Row, check_overlap, check_rows, content_hash
from .data.views import example_prompts
from .gradients import find_probes
from .objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES, label_log_probs
from .references import reference_log_probs, reference_top_tokens
from .saving import load_full_model_, save_full_model
from .stopping import HoldoutStopping


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
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "rank",
    "target_modules",
    "exclude_modules",
    "decoder",
    "held_out",
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


class R2FTrainer(Trainer):
    r"""
    Trainer for Recover-to-Forget (R2F, arXiv 2512.07374): unlearns a forget set while holding a retain set.

    The model is wrapped in a LoRA adapter that serves as a probe of the full gradient; [`R2FCallback`] decodes the
    probe's gradients after each step and writes the model's own weights. What is saved is the plain model.

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
            Rows like the forget set's that the model never saw. With it, training stops as soon as the forget set
            cannot be told from them; `stop_reason` then says by which criterion.
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
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(model.config._name_or_path)
        self.forget_objective = FORGET_OBJECTIVES[args.forget_objective]
        self.retain_objective = RETAIN_OBJECTIVES.get(args.retain_objective)

        # Data
        columns = [column for column in (args.prompt_column, args.completion_column) if column is not None]
        check_rows(forget_dataset, "forget", [*columns, args.views_column])
        if self.retain_objective is not None:
            check_rows(retain_dataset, "retain", columns)
            check_overlap(forget_dataset, retain_dataset, columns)
        else:
            retain_dataset = []
        if holdout_dataset is not None:
            check_rows(holdout_dataset, "holdout", columns)
        context = model.config.get_text_config().max_position_embeddings
        encoder = ExampleEncoder(processing_class, args, context)
        forget_views = [encoder.views(row, f"forget[{index}]") for index, row in enumerate(forget_dataset)]
        retain = [encoder.original(row, f"retain[{index}]") for index, row in enumerate(retain_dataset)]
        holdout = [encoder.original(row, f"holdout[{index}]") for index, row in enumerate(holdout_dataset or [])]
        self.holdout_examples = holdout
        self.train_examples = {"forget": forget_views, "retain": retain}
        train_dataset = ForgetRetainDataset(forget_views, retain, args.num_views, args.retain_per_forget, args.seed)

        # Evaluation
        if eval_dataset is None:
            evaluated = {"forget": [views[0] for views in forget_views], "retain": retain, "holdout": holdout}
            eval_dataset = {name: examples for name, examples in evaluated.items() if examples}
        else:
            named = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
            for name, rows in named.items():
                check_rows(rows, f"{name} evaluation".strip(), columns)
            named = {
                name: [encoder.original(row, f"evaluation[{index}]") for index, row in enumerate(rows)]
                for name, rows in named.items()
            }
            eval_dataset = named if isinstance(eval_dataset, dict) else named[""]
        if compute_metrics is None:
            compute_metrics = mean_probability
            preprocess_logits_for_metrics = row_log_probs

        # Model
        model = add_probes(model, args)
        super().__init__(
            model=model,
            args=args,
            data_collator=ForgetRetainCollator(pad_token_id(processing_class)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # The loss is already a mean over the whole global batch, see `compute_loss`.
        self.model_accepts_loss_kwargs = True
        self.r2f_callback = R2FCallback(
            decoder=args.decoder,
            seed=args.seed,
            held_out=args.held_out,
            normalize=args.normalize_update,
            on_nonfinite=args.on_nonfinite,
            save_full_model=False,
        )
        self.add_callback(self.r2f_callback)
        self.stop_reason: str | None = None
        if holdout:
            self.add_callback(HoldoutStopping(self))
        self.run_description = {key: getattr(args, key) for key in RUN_KEYS} | {
            "data": content_hash([[view["input_ids"] for views in forget_views for view in views],
                                  [example["input_ids"] for example in retain]]),
            "processes": args.world_size,
        }
        self._references: dict[str, Tensor] = {}
        self._loss_parts: dict[str, Tensor] = {}
        self._logged_step = 0

    # The loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        # Trainer calls this with all micro-batches of a step, so that each can be scaled by the whole batch's count.
        if not batch_samples or "is_forget" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
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
                Whether to return the model's outputs too.
            num_items_in_batch (`torch.Tensor` of shape `(3,)`, *optional*):
                Forget rows, forget tokens and retain tokens of the global batch.
        """
        if "is_forget" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        args, is_forget, labels = self.args, inputs["is_forget"], inputs["labels"]
        counts = count_items(inputs) if num_items_in_batch is None else num_items_in_batch
        forget_rows, forget_tokens, retain_tokens = counts.unbind()
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])

        log_probs, num_tokens = label_log_probs(outputs.logits[is_forget], labels[is_forget])
        reference = inputs["reference_log_probs"][is_forget] if self.forget_objective.needs_reference else None
        forget = self.forget_objective.loss(log_probs, num_tokens, reference, args.beta, args.gamma)
        parts = {"forget_loss": forget.sum() / (forget_tokens if self.forget_objective.per_token else forget_rows)}
        loss = args.forget_weight * parts["forget_loss"]
        if self.retain_objective is not None:
            top = [None, None]
            if self.retain_objective.needs_reference:
                top = [inputs[key][~is_forget] for key in ("reference_top_ids", "reference_top_log_probs")]
            retain = self.retain_objective.loss(outputs.logits[~is_forget], labels[~is_forget], *top)
            parts["retain_loss"] = retain.sum() / retain_tokens
            loss = loss + args.retain_weight * parts["retain_loss"]
        for name, value in parts.items():
            self._loss_parts[name] = self._loss_parts.get(name, 0.0) + value.detach()
        # DDP averages gradients over processes, but each process holds its share of one global mean.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Unlearn. See [`~transformers.Trainer.train`] for the arguments.

        Reference log-probabilities are computed here, before the first write; a resumed run reads its checkpoint's.
        """
        if not resume_from_checkpoint:
            self._set_references(self._compute_references())
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _compute_references(self) -> dict[str, Tensor]:
        views = [view for views in self.train_examples["forget"] for view in views]
        retain = self.train_examples["retain"]
        common = {"collator": self.data_collator, "batch_size": self.args.per_device_eval_batch_size}
        quiet = self.args.disable_tqdm or not self.is_world_process_zero()
        references: dict[str, Tensor] = {}
        self.model.eval()
        with self.accelerator.autocast():
            if self.forget_objective.needs_reference:
                references["forget_log_probs"] = reference_log_probs(
                    self.model, views, **common, desc="Reference of the forget set", disable=quiet
                )
            if self.retain_objective is not None and self.retain_objective.needs_reference:
                ids, log_probs = reference_top_tokens(
                    self.model, retain, **common, desc="Reference of the retain set", disable=quiet
                )
                references |= {"retain_top_ids": ids, "retain_top_log_probs": log_probs}
            if self.holdout_examples:
                references["holdout_log_probs"] = reference_log_probs(
                    self.model, self.holdout_examples, **common, desc="Reference of the holdout set", disable=quiet
                )
        return references

    def _set_references(self, references: dict[str, Tensor]) -> None:
        self._references = references
        views = [view for views in self.train_examples["forget"] for view in views]
        if "forget_log_probs" in references:
            for view, value in zip(views, references["forget_log_probs"].tolist(), strict=True):
                view["reference_log_probs"] = value
        if "retain_top_ids" in references:
            lengths = [len(example["input_ids"]) for example in self.train_examples["retain"]]
            for key in ("top_ids", "top_log_probs"):
                pieces = references[f"retain_{key}"].split(lengths)
                for example, piece in zip(self.train_examples["retain"], pieces, strict=True):
                    example[f"reference_{key}"] = piece

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs`; training logs also carry the losses' parts and the reconstruction's fidelity."""
        if "loss" in logs and self._loss_parts:
            steps = max(1, self.state.global_step - self._logged_step)
            parts = self.accelerator.reduce(torch.stack(list(self._loss_parts.values())), "sum") / steps
            logs |= dict(zip(self._loss_parts, parts.tolist(), strict=True)) | self.r2f_callback.pop_logs()
            self._loss_parts, self._logged_step = {}, self.state.global_step
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
        loader = self.get_eval_dataloader(list(examples))
        preprocess, self.preprocess_logits_for_metrics = self.preprocess_logits_for_metrics, row_log_probs
        compute, self.compute_metrics = self.compute_metrics, mean_probability
        try:
            output = self.evaluation_loop(loader, "Probabilities", prediction_loss_only=False)
        finally:
            self.preprocess_logits_for_metrics, self.compute_metrics = preprocess, compute
        return np.exp(output.predictions[:, 0] / output.predictions[:, 1])

    @property
    def holdout_probabilities(self) -> np.ndarray:
        """Length-normalised probabilities of the holdout set under the model before unlearning, `(rows,)`."""
        tokens = [sum(label != IGNORE_INDEX for label in example["labels"][1:]) for example in self.holdout_examples]
        return np.exp(self._references["holdout_log_probs"].numpy() / np.array(tokens))

    # Saving and loading

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save_full_model(self.accelerator.unwrap_model(self.model), folder)
        self.processing_class.save_pretrained(folder)
        (folder / RUN_FILE).write_text(json.dumps(self.run_description, indent=2) + "\n")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save and self._references:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            save_file(self._references, folder / REFERENCES_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._check_same_run(folder)
        references = folder / REFERENCES_FILE
        self._set_references(load_file(references) if references.is_file() else {})
        load_full_model_(self.model, folder)

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


class ExampleEncoder:
    """
    Encodes rows and refuses those that do not fit the model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        args ([`R2FConfig`]):
            Names the columns, the views and `max_length`.
        context (`int`):
            The longest example that the model can read, in tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, args: R2FConfig, context: int):
        self.tokenizer = tokenizer
        self.args = args
        self.context = context

    def original(self, row: Row, name: str) -> Encoded:
        """The row in its own wording."""
        prompt = "" if self.args.prompt_column is None else row[self.args.prompt_column]
        return self._encode(prompt, row, name)

    def views(self, row: Row, name: str) -> list[Encoded]:
        """The row in all its wordings, its own first."""
        prompts = example_prompts(row, self.args.prompt_column, self.args.views_column, self.args.view_templates)
        return [self._encode(prompt, row, name) for prompt in prompts]

    def _encode(self, prompt: str, row: Row, name: str) -> Encoded:
        example = encode_example(self.tokenizer, prompt, row[self.args.completion_column], self.args.max_length)
        length = len(example["input_ids"])
        if length > self.context:
            raise ValueError(
                f"{name} has {length} tokens, the model reads at most {self.context}. Shorten it, or set `max_length` "
                f"to at most {self.context} to cut long examples."
            )
        # The first token has nothing before it that could predict it.
        if all(label == IGNORE_INDEX for label in example["labels"][1:]):
            raise ValueError(f"{name} has no token left to take the loss on. Is its completion empty, or cut off?")
        return example


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
            f"No module to change: `target_modules={args.target_modules!r}` and `exclude_modules={args.exclude_modules!r}`"
            f" leave none of this model's. Linear modules that are neither frozen nor tied: "
            f"{', '.join(kinds) or 'none'}."
        ) from error
    check_ranks(find_probes(model), args.held_out)
    return model


def count_items(batch: dict[str, Tensor]) -> Tensor:
    """
    What the means of a batch are taken over.

    Returns:
        `torch.Tensor` of shape `(3,)`: Forget rows, forget tokens, retain tokens.
    """
    tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(1)
    is_forget = batch["is_forget"]
    return torch.stack([is_forget.sum(), tokens[is_forget].sum(), tokens[~is_forget].sum()])


def row_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Reduce a batch's logits to `(rows, 2)`: summed log-probability and number of labelled tokens."""
    return torch.stack(label_log_probs(logits, labels), dim=1)


def mean_probability(prediction: EvalPrediction) -> dict[str, float]:
    """Mean length-normalised probability, from [`row_log_probs`]."""
    return {"probability": float(np.exp(prediction.predictions[:, 0] / prediction.predictions[:, 1]).mean())}
