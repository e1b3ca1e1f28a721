"""After each LoRA step: reconstruct the full gradients, write them into the weights, draw new probes."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn
from torch.profiler import record_function
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .decoders import GradientDecoder, load_decoder
from .distributed.deepspeed import BeforeStep, check_zero
from .gradients import Fidelity, LoraSketch, LowRankGradient, check_min_fidelity, estimate_fidelity, on_cpu
from .lookup import lookup
from .probes import GradientSubspace, LoraProbe, ProbeGroup, find_probes, follow_all, group_probes
from .probes.lora_probe import check_delta, check_ranks
from .runs.weights import load_full_model_, save_full_model
from .updates import RetainedInputs, SecondMoments, align_, share


logger = logging.getLogger(__name__)

FULL_MODEL_FOLDER = "full_model"
SUBSPACES_FILE = "r2f_subspaces.safetensors"


class R2FCallback(TrainerCallback):
    r"""
    Recover-to-Forget (arXiv 2512.07374) as a callback: steps the full weights along gradients decoded from LoRA's.

    It works in any [`~transformers.Trainer`] over a [`~peft.PeftModel`] with one plain LoRA adapter, and steps along
    that Trainer's own loss: what forgets is a loss that asks for it, as [`R2FTrainer`]'s does. The adapter is a probe:
    its pairs are drawn anew for every step, and its own optimizer step is overwritten. The weights behind it take

        W ← W - lr · D / ‖D‖

    where `D` is the module's reconstruction, its rows and columns evened out if it is `adaptive`, without what the
    retain set would notice if there are `retained_inputs`, `‖D‖` its Frobenius norm, and `lr` the learning rate that
    the Trainer's scheduler has set: the norm of a step in each module. A module whose gradient is zero is left alone.
    The pairs have no forward pass of their own ([`~r2f_hf.probes.lora_backward.Sketching`]), but under ZeRO-3: give
    the adapter a small scaling (`lora_alpha=1e-6 * r`), so that they leave the model as it is there too. After
    training the adapter is empty and the result is the model behind it:
    `trainer.model.unload().save_pretrained(folder)`. (Where weights are sharded, call
    [`~r2f_hf.runs.weights.save_full_model`] on all processes.)

    The gradients are read inside the optimizer's own `step`, through [`torch.optim.Optimizer.register_step_pre_hook`]:
    there they are accumulated, averaged over processes, unscaled and clipped, and a step that the gradient scaler
    skips writes nothing. DeepSpeed's optimizer has no hooks, and is read from right before its step. (Trainer's
    callback events come at a time when DeepSpeed and FSDP have already released the gradients, transformers #31095.)
    In `torch.profiler` the parts of a step are `r2f/read`, `r2f/decode`, `r2f/measure`, `r2f/scale`, `r2f/spare`,
    `r2f/write`, `r2f/follow` and `r2f/draw`.

    Args:
        decoder (`str` or [`GradientDecoder`], *optional*, defaults to `"spectral"`):
            What turns a sketch into a gradient: a name from [`DECODERS`], a folder or repository of a saved decoder,
            or a decoder.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the probes. Every process must have the same.
        held_out (`int`, *optional*, defaults to `2`):
            Rows of each `A` that the decoder does not see and that measure its error: at least 2, or 0 to measure
            nothing.
        warm_probes (`bool`, *optional*, defaults to `True`):
            Whether to draw probes along the subspaces that a module's gradients have lain in so far, and not blindly.
            Held-out rows are always blind.
        min_fidelity (`float`, *optional*):
            Least estimated cosine of a module's reconstruction to its full gradient. What to do below it is
            `on_low_fidelity`.
        on_low_fidelity (`str`, *optional*, defaults to `"skip"`):
            `"skip"` leaves the weights of the module as they are for this step, while all others take what they would
            have taken beside it; `"stop"` raises an error.
        adaptive (`bool`, *optional*, defaults to `True`):
            Whether rows and columns of the reconstructions are evened out by their running mean squares, as in
            Adafactor (see [`SecondMoments`]), before they become `D`. Without it, take a smaller learning rate.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether the norm of a step is set by `lr` alone. If `False` the update is `lr · D`, and `max_grad_norm`
            clips the norm of `D` over all modules.
        on_nonfinite (`str`, *optional*, defaults to `"skip"`):
            What to do when a gradient is NaN or infinite: `"skip"` leaves the weights as they are for this step,
            `"stop"` also ends the training.
        delta (`str`, *optional*):
            Name of a second adapter, active and not trained, that takes the updates in place of the weights: they are
            recompressed to its rank after each step, and the weights stay as they are.
        save_full_model (`bool`, *optional*, defaults to `True`):
            Whether to write the full model into a folder `full_model` of every checkpoint, and to read it when
            training resumes. A Trainer over a PEFT model saves the adapter alone.

    Attributes:
        retained_inputs (`dict[str, RetainedInputs]`, *optional*):
            What the retain set puts into each module, by its name, which updates are to leave alone (see
            [`RetainedInputs`]). To be set before training; [`R2FTrainer`] does so.
    """

    def __init__(
        self,
        decoder: str | GradientDecoder = "spectral",
        seed: int = 0,
        held_out: int = 2,
        warm_probes: bool = True,
        min_fidelity: float | None = None,
        on_low_fidelity: str = "skip",
        adaptive: bool = True,
        normalize: bool = True,
        on_nonfinite: str = "skip",
        delta: str | None = None,
        save_full_model: bool = True,
    ):
        self.decoder = decoder if isinstance(decoder, GradientDecoder) else load_decoder(decoder)
        if self.decoder.needs_fixed_probes:
            raise ValueError(
                f"{type(self.decoder).__name__} knows only the probes that it was trained with, and a run draws new "
                "ones at every step. Use the spectral decoder."
            )
        self.seed = seed
        self.held_out = held_out
        self.warm_probes = warm_probes
        self.min_fidelity = min_fidelity
        self.stop_on_low_fidelity = lookup({"skip": False, "stop": True}, on_low_fidelity, "on_low_fidelity")
        self.adaptive = adaptive
        self.normalize = normalize
        self.stop_on_nonfinite = lookup({"skip": False, "stop": True}, on_nonfinite, "on_nonfinite")
        self.delta = delta
        self.save_full_model = save_full_model and delta is None
        self.retained_inputs: dict[str, RetainedInputs] | None = None
        # Where to resume from, if it is not a checkpoint in the output folder.
        self.resume_folder: Path | None = None
        self.skipped_steps = 0
        # Whether gradients that are not finite have ended the training.
        self.stopped = False
        self.fidelities: list[float] = []
        self.module_fidelity: dict[str, Fidelity] = {}
        self._pending_logs: list[dict[str, float]] = []
        self._handles: list[Any] = []

    # Trainer events

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **kwargs,
    ) -> None:
        # What a run that ended in an error has left.
        self._remove_hooks()
        self._pending_logs, self.module_fidelity = [], {}
        probes = find_probes(model, self.delta)
        self.groups = group_probes(probes)
        if self.retained_inputs is not None:
            # In the model's order, in which those that read the same are neighbours.
            self.retained_inputs = share(
                {probe.name: self.retained_inputs[probe.name].to(probe.A.device) for probe in probes}
            )
            for group in self.groups:
                group.retained = [self.retained_inputs[probe.name] for probe in group.probes]
        if self.delta is not None:
            check_delta(model, self.delta)
        check_ranks(self.probes, self.held_out)
        check_min_fidelity(self.min_fidelity, self.held_out)
        if self.delta is None:
            align_(model.parameters())
        if self.save_full_model and args.load_best_model_at_end:
            raise ValueError(
                "`load_best_model_at_end` reloads the adapter alone, not the weights that R2F changed. Use "
                "R2FTrainer, which reloads the full model."
            )
        if state.global_step > 0:
            folder = self.resume_folder or checkpoint_folder(args, state)
            if self.save_full_model:
                load_full_model_(model, folder / FULL_MODEL_FOLDER)
            self.load_subspaces(folder)
        self._args, self._state, self.stopped = args, state, False
        if state.global_step == 0:
            self.skipped_steps, self.fidelities = 0, []
        self._draw(state.global_step)
        # accelerate's wrapper calls the step of the optimizer that it wraps.
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if isinstance(optimizer, torch.optim.Optimizer):
            self._handles = [
                optimizer.register_step_pre_hook(self._read),
                optimizer.register_step_post_hook(self._reconstruct),
            ]
        else:
            check_zero(AcceleratorState().deepspeed_plugin.deepspeed_config, to_adapter=self.delta is not None)
            self._handles = [BeforeStep(optimizer, partial(self._whole_step, optimizer))]
        for probe in self.probes:
            probe.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        with record_function("r2f/draw"):
            self._draw(state.global_step)
        if self.stopped:
            control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs
    ) -> None:
        if "loss" in logs:
            metrics = self.pop_logs()
            logs.update(metrics)
            state.log_history[-1].update(metrics)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs
    ) -> None:
        if self.save_full_model:
            write = state.is_world_process_zero
            save_full_model(model, checkpoint_folder(args, state) / FULL_MODEL_FOLDER, write)
            if write:
                self.save_subspaces(checkpoint_folder(args, state))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self._end()

    def _end(self) -> None:
        self._remove_hooks()
        for probe in self.probes:
            probe.clear()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # The step

    @property
    def probes(self) -> list[LoraProbe]:
        """All probes, group by group: the order of everything that has an entry a module."""
        return [probe for group in self.groups for probe in group.probes]

    def _draw(self, step: int) -> None:
        for group in self.groups:
            group.draw(self.seed, step, self.held_out)

    def _read(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with record_function("r2f/read"):
            self._sketches = [group.read(self.held_out) for group in self.groups]

    def _whole_step(self, optimizer: Any) -> None:
        # Before the step, at whose end DeepSpeed gathers small weights anew.
        self._read(optimizer, (), {})
        self._reconstruct(optimizer, (), {})

    @torch.no_grad()
    def _reconstruct(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        sketches, self._sketches = self._sketches, []
        if not sketches:
            # An optimizer that extends another's `step` runs the hooks twice; the inner step has done the work.
            return
        probes = self.probes
        finite = on_cpu([sketch.isfinite() for sketch in sketches]).tolist()
        if not all(finite):
            self._skip([probe.name for probe, each in zip(probes, finite, strict=True) if not each])
            return
        with record_function("r2f/decode"):
            gradients = self.decoder.decode_all(sketches)
            norms = all_norms(gradients)
        if not norms.isfinite().all():
            self._skip([probe.name for probe, each in zip(probes, norms.isfinite(), strict=True) if not each])
            return
        with record_function("r2f/measure"):
            faithful = self._measure(sketches, gradients)
        metrics = self._pending_logs[-1]
        metrics["r2f/gradient_norm"] = norms.norm().item()
        if self.adaptive:
            with record_function("r2f/scale"):
                gradients = [group.even_out(found) for group, found in zip(self.groups, gradients, strict=True)]
        if self.retained_inputs is not None:
            with record_function("r2f/spare"):
                gradients = [group.spare(found) for group, found in zip(self.groups, gradients, strict=True)]
        norms = all_norms(gradients)
        if not faithful.any():
            self.skipped_steps += 1
            metrics["r2f/skipped_steps"] = 1.0
            logger.warning(
                "Step %d: no module reaches min_fidelity=%g, so the weights were left alone. Raise `rank`, take more "
                "examples in a step, or lower `min_fidelity`.",
                self._state.global_step,
                self.min_fidelity,
            )
        written = faithful & (norms > 0)
        if written.any():
            alphas = torch.where(written, -optimizer.param_groups[0]["lr"] * self._scales(norms), 0.0)
            with record_function("r2f/write"):
                apart = alphas.split([len(group.probes) for group in self.groups])
                discarded = [
                    energy.item()
                    for group, found, own in zip(self.groups, gradients, apart, strict=True)
                    for energy in group.write(found, own.tolist(), self.seed, self._state.global_step)
                ]
            step = (alphas * norms)[written].square().sum().item()
            if self.delta is not None and step > 0:
                metrics["r2f/discarded_energy"] = sum(discarded) / step
        if self.warm_probes:
            with record_function("r2f/follow"):
                follow_all(self.groups, sketches)

    def _scales(self, norms: torch.Tensor) -> torch.Tensor:
        """Factors `(modules,)` from updates of these norms to the directions that the learning rate multiplies."""
        if self.normalize:
            return 1 / norms
        max_norm = self._args.max_grad_norm
        return torch.full_like(norms, min(1.0, max_norm / norms.norm().item()) if max_norm else 1.0)

    def _skip(self, names: list[str]) -> None:
        self.skipped_steps += 1
        self.stopped = self.stop_on_nonfinite
        logger.warning(
            "Step %d: the gradients of %d modules are NaN or infinite (first: %s); the weights were left alone%s.",
            self._state.global_step,
            len(names),
            names[0],
            ", and the training stops" if self.stopped else "",
        )
        self._pending_logs.append({"r2f/skipped_steps": 1.0})

    def _measure(self, sketches: list[LoraSketch], gradients: list[LowRankGradient]) -> torch.Tensor:
        """Log how faithful the reconstructions are, and say which of them may be written, `(modules,)` booleans."""
        if not self.held_out:
            self._pending_logs.append({})
            return torch.ones(len(self.probes), dtype=torch.bool)
        estimates = estimate_fidelity(sketches, gradients)
        self.module_fidelity = {probe.name: found for probe, found in zip(self.probes, estimates, strict=True)}
        cosines = torch.tensor([estimate.cosine for estimate in estimates])
        errors = torch.tensor([estimate.relative_error for estimate in estimates])
        metrics = {
            "r2f/fidelity": cosines.mean().item(),
            "r2f/fidelity_min": cosines.min().item(),
            "r2f/relative_error": errors.mean().item(),
        }
        self.fidelities.append(metrics["r2f/fidelity"])
        self._pending_logs.append(metrics)
        if self.min_fidelity is None:
            return torch.ones(len(estimates), dtype=torch.bool)
        faithful = cosines >= self.min_fidelity
        metrics["r2f/low_fidelity_modules"] = float((~faithful).sum())
        if self.stop_on_low_fidelity and not faithful.all():
            low = sorted(self.module_fidelity.items(), key=lambda item: item[1].cosine)[: int((~faithful).sum())]
            named = ", ".join(f"{name} ({found.cosine:.2f})" for name, found in low[:5])
            self._end()
            raise RuntimeError(
                f"Step {self._state.global_step}: the reconstructions of {len(low)} of {len(estimates)} modules have "
                f"an estimated cosine to the full gradient below min_fidelity={self.min_fidelity:g}: {named}. The "
                "weights were left as they were before this step. Raise `rank`, take more examples in a step "
                "(`per_device_train_batch_size`, `gradient_accumulation_steps`), leave these modules out "
                "(`exclude_modules`), or lower `min_fidelity`."
            )
        return faithful

    # What the probes have learned

    def save_subspaces(self, folder: Path) -> None:
        """Write what the next probes and updates follow into a checkpoint: the subspaces and the moments."""
        sides = {
            f"{probe.name}.{side}": value.contiguous()
            for group in self.groups
            for state, names in ((group.subspace, ("left", "right")), (group.moments, ("rows", "columns")))
            if state is not None
            for side in names
            for probe, value in zip(group.probes, getattr(state, side), strict=True)
        }
        if sides:
            save_file(sides, folder / SUBSPACES_FILE)

    def load_subspaces(self, folder: Path) -> None:
        """Read the subspaces and the moments back. A checkpoint that was written before the first step has none."""
        file = folder / SUBSPACES_FILE
        sides = load_file(file) if file.is_file() else {}

        def stacked(group: ProbeGroup, side: str) -> torch.Tensor:
            return torch.stack([sides[f"{probe.name}.{side}"] for probe in group.probes]).to(group.probes[0].A.device)

        # Of other modules, or of none: they begin together.
        if self.adaptive and all(f"{probe.name}.rows" in sides for probe in self.probes):
            for group in self.groups:
                group.moments = SecondMoments(stacked(group, "rows"), stacked(group, "columns"))
        if not self.warm_probes or not all(f"{probe.name}.left" in sides for probe in self.probes):
            return
        for probe in self.probes:
            rank = sides[f"{probe.name}.left"].shape[1]
            if rank != probe.rank:
                raise ValueError(
                    f"{file} is of probes of rank {rank}, {probe.name} has rank {probe.rank}. Resume with the old "
                    "rank, or start a new run."
                )
        for group in self.groups:
            group.subspace = GradientSubspace(stacked(group, "left"), stacked(group, "right"))

    def pop_logs(self) -> dict[str, float]:
        """
        What happened since the last call: means over steps, and the number of skipped steps.

        Returns:
            `dict[str, float]`: `r2f/fidelity` and `r2f/relative_error` (means over modules), `r2f/fidelity_min` (the
            worst module of all steps), `r2f/gradient_norm`, `r2f/low_fidelity_modules` (a step),
            `r2f/discarded_energy` (of a step's squared norm, the part that the adapter's rank cut off) and
            `r2f/skipped_steps`, each where there is something to report.
        """
        pending, self._pending_logs = self._pending_logs, []
        keys = dict.fromkeys(key for metrics in pending for key in metrics)
        values = {key: [metrics[key] for metrics in pending if key in metrics] for key in keys}
        reduce = {"r2f/skipped_steps": sum, "r2f/fidelity_min": min}
        return {key: reduce.get(key, fmean)(found) for key, found in values.items()}

    def summary(self) -> dict[str, float]:
        """
        What happened since training began; with the callback alone, since it was resumed.

        Returns:
            `dict[str, float]`: `skipped_steps` and, where rows are held out, `fidelity`: the estimated cosine to the
            full gradient, mean over modules and steps.
        """
        summary: dict[str, float] = {"skipped_steps": self.skipped_steps}
        if self.fidelities:
            summary["fidelity"] = sum(self.fidelities) / len(self.fidelities)
        return summary


def all_norms(gradients: list[LowRankGradient]) -> torch.Tensor:
    """Frobenius norms of all modules, which may lie on several devices: `(modules,)`, on the CPU."""
    return on_cpu([gradient.norm() for gradient in gradients])


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the checkpoint of the current step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
