"""R2FCallback: hands a Trainer's events to [`R2FStep`], and the step's metrics and state back to the Trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .decoders import GradientDecoder, load_decoder
from .distributed.deepspeed import BeforeStep, check_zero
from .gradients import Fidelity
from .lookup import lookup
from .models.checks import check_any_trainer, check_fsdp
from .models.plain import prepare_way_back
from .probes.lora_probe import PROBE
from .runs.resuming import check_schedule
from .runs.weights import load_full_model_, save_full_model
from .step import R2FStep
from .updates import RetainedInputs
from .updates.targets import Target, WeightsTarget


logger = logging.getLogger(__name__)

# A rate below this part of the usual one is one of another kind.
SMALLEST_RATE = 1e-2

FULL_MODEL_FOLDER = "full_model"
STEP_FILE = "r2f_step.safetensors"


class R2FCallback(TrainerCallback):
    r"""
    Recover-to-Forget (arXiv 2512.07374) as a callback: steps the full weights along gradients decoded from LoRA's.

    It works in any [`~transformers.Trainer`] over a [`~peft.PeftModel`] with one plain LoRA adapter. It steps along
    the loss of that Trainer, so the model forgets only if the loss asks for it, as that of [`R2FTrainer`] does. The
    adapter is a probe, see [`R2FStep`]: its pairs are drawn anew for every step, and the optimizer's step on them is
    overwritten. The learning rate that the Trainer's scheduler sets is the Frobenius norm of a step in each module.

    After training the adapter is empty, and the result is the model behind it. `trainer.save_model(folder)` saves that
    model as a plain one. So does `save_pretrained` of `trainer.model`, and of the model that the adapter was put on.
    In memory the plain model is `trainer.model.unload()`. Under ZeRO-3 call
    [`~r2f_hf.runs.weights.save_full_model`] on all processes instead.

    The model behind the adapter cannot be a loss's reference, because it changes. A step whose loss asks for it is
    refused before anything is written: see [`ReferenceGuard`].

    The gradients are read inside the optimizer's own `step`, through [`torch.optim.Optimizer.register_step_pre_hook`].
    At this point they are accumulated, averaged over processes, unscaled and clipped. A step that the gradient scaler
    skips writes nothing. DeepSpeed's optimizer has no hooks, so the gradients are read right before its step. The
    callback events of Trainer come too late: by then DeepSpeed and FSDP have released the gradients (transformers
    #31095).

    Args:
        decoder (`str` or [`GradientDecoder`], *optional*, defaults to `"spectral"`):
            What turns a sketch into a gradient: a name from [`DECODERS`], a folder or repository of a saved decoder,
            or the decoder itself.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the probes. Every process must have the same.
        held_out (`int`, *optional*, defaults to `2`):
            Number of rows of each `A` that the decoder does not see, and that measure its error: at least 2, or 0 to
            measure nothing.
        warm_probes (`bool`, *optional*, defaults to `True`):
            Whether to draw probes along the subspaces that a module's gradients have lain in so far. Otherwise all
            rows are random. Held-out rows are random in any case.
        min_fidelity (`float`, *optional*):
            Least estimated cosine between a module's reconstruction and its full gradient.
        on_bad_gradient (`str`, *optional*, defaults to `"skip"`):
            What to do if a gradient is NaN or infinite, or a module is below `min_fidelity`. `"skip"` leaves the
            weights of all modules, or of this one, as they are in this step; `"stop"` raises an error before anything
            is written.
        adaptive (`bool`, *optional*, defaults to `True`):
            Whether rows and columns of the reconstructions are rescaled by their running mean squares, as in Adafactor
            (see [`SecondMoments`]). Without it, take a smaller learning rate.
        spectrum_damping (`float`, *optional*, defaults to `0.0`):
            `k`, from 0 to 1: a singular value `S` of a reconstruction becomes `S^(1-2k)`. With 0.5 all directions
            weigh the same.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether only the learning rate sets the norm of a step. If `False`, `max_grad_norm` clips the norm of the
            update over all modules, before it is multiplied by the learning rate.
        target ([`WeightsTarget`] or [`AdapterTarget`], *optional*):
            What takes the updates. Defaults to the weights behind the pairs.
        save_full_model (`bool`, *optional*, defaults to `True`):
            Whether to save the full model in the folder `full_model` of every checkpoint, and to load it when training
            resumes. A Trainer over a PEFT model saves only the adapter into its checkpoints.

    Attributes:
        retained_inputs (`dict[str, RetainedInputs]`, *optional*):
            By module name the inputs on the retain set, to be protected from updates (see [`RetainedInputs`]). Set
            them before training, as [`R2FTrainer`] does.
        step ([`R2FStep`], *optional*):
            The step. It is there once training has begun.

    Raises:
        `ValueError`: For a decoder or an option that does not exist, or a decoder that needs its own probes.
    """

    def __init__(
        self,
        decoder: str | GradientDecoder = "spectral",
        seed: int = 0,
        held_out: int = 2,
        warm_probes: bool = True,
        min_fidelity: float | None = None,
        on_bad_gradient: str = "skip",
        adaptive: bool = True,
        spectrum_damping: float = 0.0,
        normalize: bool = True,
        target: Target | None = None,
        save_full_model: bool = True,
    ):
        decoder = decoder if isinstance(decoder, GradientDecoder) else load_decoder(decoder)
        decoder.check_fresh_probes()
        lookup(dict.fromkeys(("skip", "stop")), on_bad_gradient, "on_bad_gradient")
        self.target = target or WeightsTarget()
        self.options: dict[str, Any] = {
            "decoder": decoder,
            "target": self.target,
            "seed": seed,
            "held_out": held_out,
            "warm_probes": warm_probes,
            "min_fidelity": min_fidelity,
            "on_bad_gradient": on_bad_gradient,
            "adaptive": adaptive,
            "spectrum_damping": spectrum_damping,
            "normalize": normalize,
        }
        # An adapter is saved by the Trainer itself; the state of the step is not.
        self.saves_step = save_full_model
        self.save_full_model = save_full_model and self.target.adapter is None
        self.retained_inputs: dict[str, RetainedInputs] | None = None
        # The checkpoint to resume from, if it is not the one in the output folder.
        self.resume_folder: Path | None = None
        self.step: R2FStep | None = None
        self.skipped_steps = 0
        self.fidelities: list[float] = []
        self.module_fidelities: list[list[float]] = []
        self._pending_logs: list[dict[str, float]] = []
        self._handles: list[Any] = []

    @property
    def module_fidelity(self) -> dict[str, Fidelity]:
        """How faithful the last reconstruction of each module was, by module name."""
        return {} if self.step is None else self.step.fidelity

    # A Trainer's events

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """
        Refuse settings before the Trainer evaluates with them.

        Raises:
            `ValueError`: Naming the setting.
        """
        check_any_trainer(args)
        self._check_hub(args)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **kwargs,
    ) -> None:
        """
        Build the step, load the state of a run that is resumed, and hook the step into the optimizer.

        The step is built anew for each run. Where a run is resumed, its number of steps is the Trainer's, so that it
        draws the same probes as a run that was not interrupted. The hooks read the gradients before the optimizer's
        step and write the weights after it. Under DeepSpeed both happen before the step.

        Raises:
            `ValueError`: If the model's adapter, the options or DeepSpeed's configuration cannot work.
        """
        # A run that ended in an error may have left its hooks.
        self._remove_hooks()
        self._pending_logs = []
        check_any_trainer(args)
        check_fsdp(args, AcceleratorState().distributed_type == DistributedType.FSDP)
        self.step = R2FStep(model, **self.options, max_norm=args.max_grad_norm, retained_inputs=self.retained_inputs)
        # R2FTrainer has checked its own settings, and prepared its model.
        own_trainer = PROBE not in model.peft_config
        if own_trainer:
            self._check_hub(args)
            check_rate(optimizer, self.retained_inputs is not None)
        if self.save_full_model and args.load_best_model_at_end:
            raise ValueError(
                "`load_best_model_at_end` reloads only the adapter, and not the weights that R2F changed. Use "
                "R2FTrainer, which reloads the full model."
            )
        if state.global_step > 0:
            folder = self.resume_folder or checkpoint_folder(args, state)
            check_schedule(folder)
            if self.save_full_model:
                load_full_model_(model, folder / FULL_MODEL_FOLDER)
            # A checkpoint that was saved before the first step has no such file.
            self.step.load_state_dict(load_file(folder / STEP_FILE) if (folder / STEP_FILE).is_file() else {})
        else:
            self.skipped_steps, self.fidelities, self.module_fidelities = 0, [], []
        self.step.number = state.global_step
        self.step.begin()
        if self.target.adapter is None:
            # Where an adapter takes the updates, the model behind it stays as it is.
            self._handles = [
                probe.layer.register_forward_pre_hook(ReferenceGuard(self._end, probe.adapter, args))
                for probe in self.step.modules.values()
            ]
        if own_trainer and self.target.adapter is None:
            prepare_way_back(model, {}, names=args.deepspeed_plugin is None)
            model.r2f_checkpoints = Path(args.output_dir).resolve()
        # accelerate's wrapper calls the step of the optimizer inside it, so the hooks go there.
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if isinstance(optimizer, torch.optim.Optimizer):
            self._handles += [
                optimizer.register_step_pre_hook(lambda *_: self.step.read()),
                optimizer.register_step_post_hook(lambda *_: self._write(optimizer)),
            ]
        else:
            check_zero(AcceleratorState().deepspeed_plugin.deepspeed_config, self.target.adapter is not None)
            self._handles += [BeforeStep(optimizer, lambda: self._read_and_write(optimizer))]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Draw the probes of the next step."""
        self.step.number = state.global_step
        self.step.draw()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs
    ) -> None:
        """Add the metrics of the steps since the last log to the Trainer's log."""
        if "loss" in logs:
            metrics = self.pop_logs()
            logs.update(metrics)
            state.log_history[-1].update(metrics)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        """
        With `save_full_model`, save into a checkpoint what a resumed run needs: the model, unless an adapter takes the
        updates, and the state of the step.

        Where weights are sharded, all processes have to call this. Only the first process writes. [`R2FTrainer`] turns
        `save_full_model` off, and saves both itself.
        """
        write = state.is_world_process_zero
        if self.save_full_model:
            save_full_model(model, checkpoint_folder(args, state) / FULL_MODEL_FOLDER, write)
        if self.saves_step and write:
            self.save_step(checkpoint_folder(args, state))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Empty the adapter. The result is the model behind it."""
        self._end()
        # No checkpoint is saved any more.
        vars(self.step.model).pop("r2f_checkpoints", None)

    # What happens in a step

    def _check_hub(self, args: TrainingArguments) -> None:
        """Refuse to upload checkpoints of an adapter that is only a probe."""
        if self.target.adapter is None and args.push_to_hub and args.hub_strategy != "end":
            raise ValueError(
                f"`hub_strategy={args.hub_strategy.value!r}` uploads the adapter of each checkpoint, which is only a "
                'probe, and not the model behind it. Set "end".'
            )

    def _write(self, optimizer: torch.optim.Optimizer) -> None:
        """Write what was read, and keep the metrics for the next log."""
        try:
            metrics = self.step.write(optimizer.param_groups[0]["lr"])
        except RuntimeError:
            self._end()
            raise
        if not metrics:
            # An optimizer that extends another's `step` runs the hooks twice. The inner step has done the work.
            return
        self._pending_logs.append(metrics)
        self.skipped_steps += "r2f/skipped_steps" in metrics
        if "r2f/fidelity" in metrics:
            self.fidelities.append(metrics["r2f/fidelity"])
            # Four digits are more than an estimate has.
            self.module_fidelities.append([round(float(each.cosine), 4) for each in self.module_fidelity.values()])

    def _read_and_write(self, optimizer: Any) -> None:
        """Read and write before the step of DeepSpeed's optimizer, which gathers small weights again at its end."""
        self.step.read()
        self._write(optimizer)

    def _end(self) -> None:
        """Take the hooks off the optimizer, and empty the pairs."""
        self._remove_hooks()
        self.step.end()

    def _remove_hooks(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # What is kept

    def save_step(self, folder: Path) -> None:
        """Save into a checkpoint what the next steps start from: see [`R2FStep.state_dict`]."""
        save_file(self.step.state_dict(), folder / STEP_FILE)

    def pop_logs(self) -> dict[str, float]:
        """
        The metrics of the steps since the last call: their means, and the number of skipped steps.

        Returns:
            `dict[str, float]`: The metrics of [`R2FStep.write`]. `r2f/fidelity_min` is that of the worst module in all
            these steps, and `r2f/skipped_steps` is a number of steps.
        """
        pending, self._pending_logs = self._pending_logs, []
        keys = dict.fromkeys(key for metrics in pending for key in metrics)
        values = {key: [metrics[key] for metrics in pending if key in metrics] for key in keys}
        reduce = {"r2f/skipped_steps": sum, "r2f/fidelity_min": min}
        return {key: reduce.get(key, fmean)(numbers) for key, numbers in values.items()}

    def summary(self) -> dict[str, float]:
        """
        A summary of the run since training began. With only the callback, it begins where the run was resumed.

        Returns:
            `dict[str, float]`: `skipped_steps`, and if rows are held out also `fidelity`: the mean over modules and
            steps of the estimated cosine to the full gradient.
        """
        summary: dict[str, float] = {"skipped_steps": self.skipped_steps}
        if self.fidelities:
            summary["fidelity"] = sum(self.fidelities) / len(self.fidelities)
        return summary


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the checkpoint of the current step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


class ReferenceGuard:
    """
    Refuses a loss whose reference is the model behind the adapter: R2F changes that model.

    Whether it is depends on the Trainer, its settings, and what it was given. So the forward pass is looked at: while
    the model trains, only a reference leaves the probes out. A copy of the model does not change, and may be one.

    Args:
        end (`Callable`):
            Leaves nothing of the run on the model.
        adapter (`str`):
            Name of the probe.
        args ([`~transformers.TrainingArguments`]):
            The settings, of which some Trainers have one for this.
    """

    def __init__(self, end: Callable[[], None], adapter: str, args: TrainingArguments):
        self.end, self.adapter, self.args = end, adapter, args

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: a copy, also from a pickle, looks at nothing."""
        return {}

    def __call__(self, layer: LoraLayer, inputs: tuple[Any, ...]) -> None:
        """
        To be called before the forward pass of a probe's layer.

        Raises:
            `ValueError`: If the layer trains, and its probe is off.
        """
        if not vars(self) or not layer.training:
            return
        if not layer.disable_adapters and self.adapter in layer.active_adapters:
            return
        self.end()
        remedies = {
            "precompute_ref_log_probs": "Set `precompute_ref_log_probs=True`, or pass a `ref_model`.",
            "teacher_model_kind": 'Set `teacher_model_kind="live"`.',
            "num_generations": "Set `beta=0.0`.",
        }
        remedy = next((remedies[name] for name in remedies if hasattr(self.args, name)), "Pass a `ref_model`.")
        raise ValueError(
            f"The loss of {type(self.args).__name__} compares with the model behind the adapter, whose weights "
            "R2FCallback changes: the reference would move along, and the loss would stay where it is. " + remedy
        )


def check_rate(optimizer: Any, retained: bool) -> None:
    """Say so if the rate is one of a fine-tuning recipe. The default of a Trainer is."""
    rate = max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    usual = 0.6 if retained else 0.15
    if rate < SMALLEST_RATE * usual:
        logger.warning(
            "A learning rate of %g will hardly change anything: it is the Frobenius norm of a step in each module. "
            "Set `learning_rate` to about %g. Rates of fine-tuning recipes have another meaning.",
            rate,
            usual,
        )
