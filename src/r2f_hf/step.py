"""The method on a page: one step of Recover-to-Forget, in any training loop over a model with LoRA pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor
from torch.profiler import record_function

from .decoders import GradientDecoder, load_decoder
from .gradients import Fidelity, LoraSketch, check_min_fidelity, damp_spectra, on_cpu, together_on_cpu
from .gradients.fidelity import check_fidelity, fidelity_metrics, fidelity_of, local_moments, refuse_nonfinite
from .lookup import lookup
from .probes import find_probes, group_probes, update_subspaces
from .probes.lora_probe import check_ranks
from .updates import RetainedInputs, all_results, share, watch_inputs
from .updates.rule import UpdateRule, step_factors
from .updates.second_moments import SecondMoments
from .updates.targets import Target, WeightsTarget


class R2FStep:
    r"""
    Recover-to-Forget (R2F, arXiv 2512.07374): moves a model's full weights along gradients decoded from LoRA's.

    A LoRA pair `A`, `B` on a weight `W` adds `s·B·A` to it. If `G` is the gradient of the loss in `W`, the chain rule
    gives `dL/dB = s·G·Aᵀ` and `dL/dA = s·Bᵀ·G`: the pair's gradients are two sketches of `G`. With both `A` and `B`
    random, a decoder reconstructs `Ĝ = U·Vᵀ` from them. Here the pairs are probes only: they are drawn anew for each
    step, add nothing to the model, and are never trained. A step

    1. *reads* the pairs' gradients as the sketches `Y = G·Aᵀ` and `Z = Bᵀ·G`;
    2. *decodes* them into `Ĝ`, in factors: the dense matrix is never formed;
    3. *measures* how faithful `Ĝ` is, by rows of `A` that the decoder did not see;
    4. *rescales* `Ĝ`: its singular values, if `spectrum_damping` says so, and its rows and columns by their running
       mean squares, as Adafactor does;
    5. *protects* the retain set: takes away what the module would notice on the inputs that it has there;
    6. *writes* `W ← W - lr · D / ‖D‖`, where `D` is what is left: every module takes a step of norm `lr`;
    7. *updates the subspaces* that the module's gradients have lain in so far;
    8. *draws* the next probes along them.

    `docs/theory.md` derives each of these. It needs no optimizer and no Trainer:

    ```python
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=1.6e-5, target_modules="all-linear"))
    r2f = R2FStep(model)
    with r2f.protecting():
        model(**retain_batch)  # the inputs that updates leave alone; without them take lr=0.15
    r2f.begin()
    for batch in batches:
        forget_loss(model, batch).backward()
        r2f.step(lr=0.6)
    r2f.end()
    model = model.unload()  # a plain model
    ```

    Args:
        model ([`~peft.PeftModel`]):
            A model with one plain LoRA adapter of a small scaling (`lora_alpha=1e-6 * r`).
        decoder (`str` or [`GradientDecoder`], *optional*, defaults to `"spectral"`):
            Decoder (2): a name from [`DECODERS`], a folder, a repository on the Hub, or the decoder itself.
        target ([`WeightsTarget`] or [`AdapterTarget`], *optional*):
            What takes the updates (6). Defaults to the weights behind the pairs.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the probes. Every process must have the same.
        held_out (`int`, *optional*, defaults to `2`):
            Rows of each `A` that measure the error (3): at least 2, or 0 to measure nothing.
        warm_probes (`bool`, *optional*, defaults to `True`):
            Whether probes are drawn along past gradients' subspaces (7, 8). Otherwise they are random.
        adaptive (`bool`, *optional*, defaults to `True`):
            Whether gradients are rescaled (4). Without it, take a smaller learning rate.
        spectrum_damping (`float`, *optional*, defaults to `0.0`):
            `k` of (4): a singular value `S` of a gradient becomes `S^(1-2k)`. With 0.5 all directions weigh the same.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether every module takes a step of norm `lr`. Otherwise the update is `lr · D`.
        max_norm (`float`, *optional*):
            Without `normalize`: the largest norm of `D` over all modules together.
        min_fidelity (`float`, *optional*):
            Least estimated cosine between a module's reconstruction and its full gradient.
        on_bad_gradient (`str`, *optional*, defaults to `"skip"`):
            What happens if a gradient is NaN or infinite, or a module is below `min_fidelity`. `"skip"` leaves the
            weights of all modules, or of this one, as they are; `"stop"` raises an error before anything is written.
        retained_inputs (`dict[str, RetainedInputs]`, *optional*):
            The inputs to protect (5) by module name, as [`~R2FStep.protecting`] finds them.

    Raises:
        `ValueError`: For an adapter, a rank or a decoder that cannot work, before anything changes.
    """

    def __init__(
        self,
        model: PeftModel,
        decoder: str | GradientDecoder = "spectral",
        target: Target | None = None,
        seed: int = 0,
        held_out: int = 2,
        warm_probes: bool = True,
        adaptive: bool = True,
        spectrum_damping: float = 0.0,
        normalize: bool = True,
        max_norm: float | None = None,
        min_fidelity: float | None = None,
        on_bad_gradient: str = "skip",
        retained_inputs: dict[str, RetainedInputs] | None = None,
    ):
        self.model, self.target = model, target or WeightsTarget()
        self.decoder = decoder if isinstance(decoder, GradientDecoder) else load_decoder(decoder)
        self.decoder.check_fresh_probes()
        check_min_fidelity(min_fidelity, held_out)
        self.seed, self.held_out, self.warm_probes = seed, held_out, warm_probes
        self.normalize, self.max_norm, self.min_fidelity = normalize, max_norm, min_fidelity
        self.spectrum_damping = spectrum_damping
        self.stops = lookup({"skip": False, "stop": True}, on_bad_gradient, "on_bad_gradient")
        self.retained_inputs = retained_inputs
        probes = find_probes(model, writable=self.target.adapter is None)
        check_ranks(probes, held_out)
        self.modules = {probe.name: probe for probe in probes}
        # Modules of one shape are a group: their matrices are stacked, so that each operation is one call for all.
        self.groups = group_probes(probes)
        self.rules = [UpdateRule(adaptive) for _ in self.groups]
        self.number = 0  # of steps taken; with the seed and a module's name it seeds the draws
        self.fidelity: dict[str, Fidelity] = {}  # of the last reconstruction, by module name
        self.relearned = False  # whether the losses now see the model after `relearn`
        self._sketches: list[LoraSketch] = []

    @contextmanager
    def protecting(self) -> Iterator[None]:
        """Protect the inputs that the modules have in all forward passes within. To be used before `begin`."""
        layers = {name: probe.layer for name, probe in self.modules.items()}
        with watch_inputs(layers, self.seed) as sketches, torch.no_grad():
            yield
        self.retained_inputs = all_results(sketches)

    def begin(self) -> None:
        """Prepare the weights and draw the first probes. From here on a backward pass gives their gradients."""
        self.target.check(self.model)
        if self.retained_inputs is not None:
            known = {name: self.retained_inputs[name].to(probe.A.device) for name, probe in self.modules.items()}
            self.retained_inputs = share(known)
            for group, rule in zip(self.groups, self.rules, strict=True):
                rule.retained = [self.retained_inputs[probe.name] for probe in group.probes]
        self.draw()
        for probe in self.modules.values():
            probe.begin()

    def step(self, lr: float) -> dict[str, float]:
        """Take a step of norm `lr` along the gradients that backward passes left. All processes have to call it."""
        self.read()
        metrics = self.write(lr)
        self.number += 1
        self.draw()
        for probe in self.modules.values():
            probe.A.grad = probe.B.grad = None
        return metrics

    @torch.no_grad()
    def relearn(self, norm: float) -> None:
        """
        Let the next losses see the model as it is after a step of fine-tuning, until the next `read`.

        A backward pass of the loss that somebody would fine-tune with has to come first. The step goes along its
        decoded gradients. No weight is written: the probes add it to what their modules compute. All processes have
        to call this, with the same gradients.

        Args:
            norm (`float`):
                Frobenius norm of the step in each module.
        """
        sketches = [group.read(self.held_out) for group in self.groups]
        for probe in self.modules.values():
            probe.A.grad = probe.B.grad = None
        self.relearned = True
        # What is not finite has no direction. Nothing is relearned then.
        if not on_cpu([sketch.isfinite() for sketch in sketches]).all():
            return
        for group, gradient in zip(self.groups, self.decoder.decode_all(sketches), strict=True):
            for probe, step in zip(group.probes, gradient.unbind(), strict=True):
                size = step.norm()
                # Shared out between the factors, so that their products stay within the range of fp16.
                scale = torch.where(size.isfinite() & (size > 0), norm / size, 0.0).sqrt()
                probe.add((step.U * -scale, step.V * scale))

    def end_relearning(self) -> None:
        """Let losses see the model as it is again."""
        if self.relearned:
            for probe in self.modules.values():
                probe.add(None)
            self.relearned = False

    def end(self) -> None:
        """Empty the pairs. The result is the model behind them: `model.unload()`."""
        for probe in self.modules.values():
            probe.clear()

    def draw(self) -> None:
        """Draw the probes of the next step (8), the same on all processes."""
        # A step that a gradient scaler has skipped was not read.
        self.end_relearning()
        with record_function("r2f/draw"):
            for group in self.groups:
                group.draw(self.seed, self.number, self.held_out)

    def read(self) -> None:
        """Copy the pairs' gradients as sketches (1). A Trainer does so before its optimizer moves the pairs."""
        with record_function("r2f/read"):
            self._sketches = [group.read(self.held_out) for group in self.groups]
        self.end_relearning()

    @torch.no_grad()
    def write(self, lr: float) -> dict[str, float]:
        """
        From the sketches that were read to changed weights (2 to 7).

        Args:
            lr (`float`):
                Frobenius norm of the step in each module.

        Returns:
            `dict[str, float]`: `r2f/fidelity`, `r2f/fidelity_min` and `r2f/relative_error` over modules,
            `r2f/gradient_norm`, and where they apply `r2f/low_fidelity_modules`, `r2f/discarded_energy` (the part of
            the step's squared norm that an adapter's rank cut off) and `r2f/skipped_steps`. Empty if nothing was read.

        Raises:
            `RuntimeError`: With `on_bad_gradient="stop"`, before anything is written.
        """
        sketches, self._sketches = self._sketches, []
        if not sketches:
            return {}
        names = [probe.name for group in self.groups for probe in group.probes]
        # Decompositions cannot take what is not finite.
        finite = on_cpu([sketch.isfinite() for sketch in sketches])
        if not finite.all():
            refuse_nonfinite(names, finite, self.stops, self.number)
            return {"r2f/skipped_steps": 1.0}
        with record_function("r2f/decode"):
            gradients = self.decoder.decode_all(sketches)
            decoded = [gradient.norm() for gradient in gradients]
        with record_function("r2f/measure"):
            measured = local_moments(sketches, gradients) if self.held_out else []
        moments_before = [rule.moments for rule in self.rules]
        with record_function("r2f/rescale"):
            if self.spectrum_damping:
                gradients = damp_spectra(gradients, self.spectrum_damping)
            directions = [rule.rescale(each) for rule, each in zip(self.rules, gradients, strict=True)]
        with record_function("r2f/protect"):
            directions = [rule.protect(each) for rule, each in zip(self.rules, directions, strict=True)]
        # All that has to be decided waits for this one transfer. Nothing has been written so far.
        sizes = together_on_cpu([decoded, [direction.norm() for direction in directions], measured])
        try:
            metrics, faithful = self._judge(names, sizes[0], sizes[2].reshape(-1, 6))
        except RuntimeError:
            self._restore(moments_before)
            raise
        if faithful is None:
            self._restore(moments_before)
            return metrics
        norms = sizes[1].float()
        # A module whose gradient is zero has no direction, and is left alone.
        written = faithful & (norms > 0)
        alphas = torch.where(written, -lr * step_factors(norms, self.normalize, self.max_norm), 0.0)
        with record_function("r2f/write"):
            of_groups = alphas.split([len(group.probes) for group in self.groups])
            discarded = sum(
                self.target.write(group.probes, direction, own.tolist(), self.seed, self.number)
                for group, direction, own in zip(self.groups, directions, of_groups, strict=True)
            )
        if self.target.adapter is not None:
            energy = torch.where(written, alphas * norms, 0.0).square().sum().item()
            # While the rate warms up, a step can be of length zero.
            metrics |= {"r2f/discarded_energy": discarded / energy} if energy > 0 else {}
        if self.warm_probes:
            with record_function("r2f/update_subspaces"):
                update_subspaces(self.groups, sketches)
        return metrics

    def _judge(self, names: list[str], norms: Tensor, moments: Tensor) -> tuple[dict[str, float], Tensor | None]:
        """The metrics of what was decoded, and which modules may be written. `None` if the step has to be skipped."""
        finite = norms.isfinite()
        if not finite.all():
            refuse_nonfinite(names, finite, self.stops, self.number)
            return {"r2f/skipped_steps": 1.0}, None
        metrics, faithful = {"r2f/gradient_norm": norms.norm().item()}, torch.ones(len(names), dtype=torch.bool)
        if self.held_out:
            self.fidelity = dict(zip(names, fidelity_of(moments, self.held_out), strict=True))
            metrics |= fidelity_metrics(self.fidelity.values())
        if self.min_fidelity is not None:
            faithful = check_fidelity(self.fidelity, self.min_fidelity, self.stops, self.number)
            metrics |= {"r2f/low_fidelity_modules": float((~faithful).sum())}
            metrics |= {} if faithful.any() else {"r2f/skipped_steps": 1.0}
        return metrics, faithful

    def _restore(self, moments: list[SecondMoments | None]) -> None:
        """Take back what a step that is not taken has done to the running mean squares."""
        for rule, before in zip(self.rules, moments, strict=True):
            rule.moments = before

    def state_dict(self) -> dict[str, Tensor]:
        """What the next steps depend on, by module name: subspaces and mean squares, but no weights or probes."""
        state = {"number": torch.tensor(self.number)}
        for group, rule in zip(self.groups, self.rules, strict=True):
            names = [probe.name for probe in group.probes]
            state |= group.state_dict(names) | rule.state_dict(names)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """
        Go on where [`~R2FStep.state_dict`] was taken. To be called before `begin`.

        Raises:
            `ValueError`: If it is of probes of another rank.
        """
        self.number = int(state.get("number", 0))
        for group, rule in zip(self.groups, self.rules, strict=True):
            names, device = [probe.name for probe in group.probes], group.probes[0].A.device
            if self.warm_probes:
                group.load_state_dict(state, names, device)
            rule.load_state_dict(state, names, device)
