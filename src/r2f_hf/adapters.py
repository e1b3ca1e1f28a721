"""Two saved LoRA adapters, before and after one step, read as sketches; factored gradients written as an adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM

from .gradients import LoraSketch, LowRankGradient


# How PEFT names the two halves of a pair in a saved adapter.
KEY = "base_model.model.{name}.lora_{side}.weight"
KEY_PATTERN = re.compile(r"base_model\.model\.(?P<name>.+)\.lora_(?P<side>[AB])\.weight")

# With any of these a module computes something other than `W x + s B A x`, and its gradients are no sketches of `G`.
VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "target_parameters",
)

# AdamW's first step goes against the sign of the gradient in all but the smallest entries; the gradient of another
# parameter has the right sign in half of them.
LEAST_AGREEMENT = 0.75

# From a module's name to the tensors of its `A` and `B`.
Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass
class SavedAdapter:
    """
    A plain LoRA adapter, as PEFT saves it.

    Args:
        folder (`Path`):
            Where it lies.
        config ([`~peft.LoraConfig`]):
            Its configuration.
        pairs (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
            `A` of shape `(r, in_features)` and `B` of shape `(out_features, r)` by module, in the precision of the
            file.
    """

    folder: Path
    config: LoraConfig
    pairs: Pairs

    def scaling(self, name: str) -> float:
        """`s` of a module, which computes `W x + s B A x`."""
        patterns = self.config.alpha_pattern
        alpha = patterns.get(get_pattern_key(patterns, name), self.config.lora_alpha)
        rank = self.pairs[name][0].shape[0]
        return alpha / (rank**0.5 if self.config.use_rslora else rank)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> SavedAdapter:
        """
        Read an adapter from a folder.

        Raises:
            `FileNotFoundError`: If there is no folder, or no adapter in safetensors in it.
            `ValueError`: If the adapter is not plain LoRA on linear layers, is damaged, or has weights that are not
                finite.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no adapter folder {folder}.")
        if not (folder / CONFIG_NAME).is_file():
            raise FileNotFoundError(
                f"{folder} holds no adapter (no {CONFIG_NAME}). Pass what `save_pretrained` of a PEFT model "
                "wrote, or a checkpoint of its Trainer."
            )
        file = folder / SAFETENSORS_WEIGHTS_NAME
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}. Adapters are read from safetensors alone; a pickle "
                "(`adapter_model.bin`) can run code and is refused. Save the adapter with PEFT's `save_pretrained`."
            )
        try:
            config = PeftConfig.from_pretrained(str(folder))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_NAME} is not a configuration that PEFT reads: {error!r}.") from error
        found = [f"peft_type={config.peft_type}"] if config.peft_type != "LORA" else []
        found += [name for name in VARIANTS if getattr(config, name, None)]
        if found:
            raise ValueError(
                f"The adapter in {folder} is not plain LoRA ({', '.join(found)}): its gradients are no sketches "
                "of the full gradient. Take the step with an ordinary `LoraConfig`."
            )
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}. Save the adapter again.") from error
        sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
        for key, tensor in tensors.items():
            match = KEY_PATTERN.fullmatch(key)
            if match is None or tensor.ndim != 2:
                raise ValueError(
                    f"{file} holds {key}, which is not half of the LoRA pair of a linear layer. Take the step with "
                    'linear `target_modules` alone, `bias="none"`, and no `modules_to_save` or new embeddings.'
                )
            if not tensor.isfinite().all():
                raise ValueError(
                    f"{key} in {file} is NaN or infinite: the training that wrote it has diverged. Take the step "
                    "anew, with a smaller learning rate."
                )
            sides[match["side"]][match["name"]] = tensor
        return cls(folder, config, {name: (A, sides["B"][name]) for name, A in sides["A"].items()})


def check_step(before: SavedAdapter, after: SavedAdapter, base: str | None = None) -> None:
    """
    Refuse two adapters that do not lie one step of one adapter apart.

    Args:
        before ([`SavedAdapter`]):
            The adapter before the step.
        after ([`SavedAdapter`]):
            The adapter after it.
        base (`str`, *optional*):
            The model that both belong to, if they name it differently.

    Raises:
        `ValueError`: If their base models, modules, ranks or scalings differ, or nothing else does.
    """
    where = f"{before.folder} and {after.folder}"
    bases = [adapter.config.base_model_name_or_path for adapter in (before, after)]
    if base is None and bases[0] != bases[1]:
        raise ValueError(
            f"{where} are adapters of different models, {bases[0]!r} and {bases[1]!r}. If these are two names of one "
            "model, name it with `--base`."
        )
    only = sorted(before.pairs.keys() ^ after.pairs.keys())
    if only:
        raise ValueError(
            f"{where} adapt different modules: {', '.join(only[:3])} (of {len(only)}) are in one of them alone. Both "
            "must be saved from the same adapter."
        )
    for name in before.pairs:
        shapes = [[tuple(tensor.shape) for tensor in adapter.pairs[name]] for adapter in (before, after)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{where} differ in the shapes (`A`, `B`) of {name}: {shapes[0]} and {shapes[1]}. Both must be saved "
                "from the same adapter."
            )
        if before.scaling(name) != after.scaling(name):
            raise ValueError(
                f"{where} differ in the scaling of {name}: {before.scaling(name):g} and {after.scaling(name):g}. "
                "`lora_alpha` and `use_rslora` must be the same in both."
            )
    if not any(tensor.any() for pair in difference(before, after).values() for tensor in pair):
        raise ValueError(
            f"{where} are identical: nothing was learned between them. Save the first before the optimizer's step and "
            "the second after it (a warm-up's first step may have learning rate 0)."
        )


def difference(before: SavedAdapter, after: SavedAdapter) -> Pairs:
    """The first adapter less the second: `A` and `B` by module, fp32."""
    return {
        name: tuple(old.float() - new.float() for old, new in zip(pair, after.pairs[name], strict=True))
        for name, pair in before.pairs.items()
    }


def sgd_gradients(before: SavedAdapter, after: SavedAdapter, learning_rate: float) -> Pairs:
    """
    The LoRA gradients behind a step of plain SGD, `(before - after) / learning_rate`.

    Args:
        before ([`SavedAdapter`]):
            The adapter before the step.
        after ([`SavedAdapter`]):
            The adapter after it.
        learning_rate (`float`):
            Of the step. A wrong one changes the length of all gradients alike, not their direction.

    Returns:
        `dict[str, tuple[torch.Tensor, torch.Tensor]]`: Gradients in `A` and `B` by module, fp32.
    """
    return {name: (A / learning_rate, B / learning_rate) for name, (A, B) in difference(before, after).items()}


def rounding_part(before: SavedAdapter, after: SavedAdapter) -> float:
    """
    How much of the difference between two adapters is the rounding of the second, by its precision and its size.

    Returns:
        `float`: The larger of the parts of all `A` and of all `B` together, as a ratio of norms. A side that has no
        gradient, because the other is zero, does not count.
    """
    moved = difference(before, after)
    parts = [0.0]
    for side in (0, 1):
        if any(pair[1 - side].any() for pair in before.pairs.values()):
            # Rounding to nearest is off by 1/√12 of a unit, which is between eps/2 and eps times the number.
            new = [pair[side] for pair in after.pairs.values()]
            rounding = torch.stack([0.2 * torch.finfo(tensor.dtype).eps * tensor.float().norm() for tensor in new])
            signal = torch.stack([pair[side].norm() for pair in moved.values()])
            parts.append((rounding.norm() / signal.norm()).item())
    return max(parts)


def adamw_gradients(file: str | os.PathLike, before: SavedAdapter, after: SavedAdapter, base: str | None) -> Pairs:
    """
    The LoRA gradients behind AdamW's first step, `exp_avg / (1 - beta1)`, from the optimizer's state after it.

    After a later step `exp_avg` mixes gradients that were taken at other values of the adapter, and no sketch can be
    read from it. The state knows its parameters by number alone. The numbers are taken to be those of
    [`~transformers.Trainer`], which goes through the model module by module, `A` before `B`; a saved adapter has lost
    this order, so it is that of the base model, of which the configuration alone is read. Shapes are checked, and that
    every parameter moved against the sign of the gradient that it is given.

    Args:
        file (`str` or `os.PathLike`):
            `optimizer.pt` of the checkpoint.
        before ([`SavedAdapter`]):
            The adapter before the step.
        after ([`SavedAdapter`]):
            The adapter after it.
        base (`str`, *optional*):
            Folder or name of the base model.

    Returns:
        `dict[str, tuple[torch.Tensor, torch.Tensor]]`: Gradients in `A` and `B` by module, fp32.

    Raises:
        `FileNotFoundError`: If there is no such file.
        `ValueError`: If it is not the state of AdamW after the first step of this adapter.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no optimizer state {file}.")
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        state, groups = saved["state"], saved["param_groups"]
    except Exception as error:  # The unpickler fails in a dozen ways on what torch has not written.
        raise ValueError(
            f"{file} is not an optimizer's state as Trainer saves it (`optimizer.pt`): {type(error).__name__}."
        ) from error
    numbers = [(number, group) for group in groups for number in group["params"]]
    keys = [(name, side) for name in module_order(base, before) for side in (0, 1)]
    if len(numbers) != len(keys):
        raise ValueError(
            f"{file} is of {len(numbers)} parameters, the adapter in {before.folder} has {len(keys)}. The step must "
            "train the adapter and nothing else."
        )
    moved = difference(before, after)
    gradients: dict[str, tuple[Tensor, ...]] = {}
    for (number, group), (name, side) in zip(numbers, keys, strict=True):
        entry = state.get(number, {})
        if "exp_avg" not in entry:
            raise ValueError(
                f"{file} holds no `exp_avg` of parameter {number}: it is not AdamW's. If the step was plain SGD, "
                "leave `--optimizer_state` out."
            )
        if entry["step"] != 1:
            raise ValueError(
                f"{file} was saved after step {int(entry['step'])}: its `exp_avg` mixes the gradients of all steps, "
                "which were taken at other values of the adapter and cannot be told apart. Save the state after the "
                "first step (`save_steps=1`), or take the step with plain SGD."
            )
        step = moved[name][side]
        gradient = entry["exp_avg"].float() / (1 - group["betas"][0])
        key = KEY.format(name=name, side="AB"[side])
        if gradient.shape != step.shape:
            raise ValueError(
                f"Parameter {number} in {file} is {tuple(gradient.shape)}, {key} in its place {tuple(step.shape)}: "
                "the state is another adapter's, or its order is not that of Trainer."
            )
        if not gradient.isfinite().all():
            raise ValueError(f"The gradient of {key} in {file} is NaN or infinite. Take the step anew.")
        both = (step != 0) & (gradient != 0)
        if both.any() and (step.sign() == gradient.sign())[both].float().mean() < LEAST_AGREEMENT:
            raise ValueError(
                f"{key} did not move against the sign of parameter {number} in {file}, as in AdamW's first step: the "
                f"state is not of the step from {before.folder} to {after.folder}, or its order is not that of "
                "Trainer."
            )
        gradients[name] = (*gradients.get(name, ()), gradient)
    return gradients


def module_order(base: str | None, adapter: SavedAdapter) -> list[str]:
    """
    The adapted modules in the order of the base model, of which no weight is read.

    Raises:
        `ValueError`: If the base model's configuration cannot be read, or it has no such modules.
    """
    why = "The order of an optimizer's state is that of the base model's modules"
    try:
        config = AutoConfig.from_pretrained(base or "")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise ValueError(f"{why}, and {base!r} cannot be read: {error} Name its folder with `--base`.") from error
    order = [name for name, _ in model.named_modules() if name in adapter.pairs]
    missing = sorted(adapter.pairs.keys() - set(order))
    if missing:
        raise ValueError(
            f"{why}, and {base!r} has no {missing[0]}, which the adapter in {adapter.folder} adapts. Name the right "
            "base model with `--base`."
        )
    return order


def read_sketches(before: SavedAdapter, gradients: Pairs, held_out: int) -> dict[str, LoraSketch]:
    r"""
    The sketches that the gradients of a saved adapter are.

    With `a A` and `b B` for `A` and `B`, the sketches are `a Y` and `b Z`. The factors here give rows of `A` and
    columns of `B` a norm near 1, as [`LoraSketch`] has them, so that held-out rows measure the error whatever the
    variance was that they were drawn with.

    Args:
        before ([`SavedAdapter`]):
            The adapter that the gradients were taken at.
        gradients (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
            Gradients in `A` and `B` by module.
        held_out (`int`):
            Rows of each `A` kept from the decoder.

    Returns:
        `dict[str, LoraSketch]`: By module.

    Raises:
        `ValueError`: If a rank leaves no row for the decoder.
    """
    sketches = {}
    for name, (A, B) in before.pairs.items():
        rank = A.shape[0]
        if held_out >= rank:
            raise ValueError(
                f"held_out={held_out} leaves no row of {name} for the decoder: the adapter in {before.folder} has "
                f"rank {rank}. Hold out fewer rows, or 0 to measure nothing."
            )
        A, B = A.float(), B.float()
        a, b = (rank**0.5 / probe.norm() if probe.any() else 1.0 for probe in (A, B))
        grad_A, grad_B = gradients[name]
        sketches[name] = LoraSketch.from_lora_gradients(
            b * grad_A, a * grad_B, a * A, b * B, before.scaling(name), held_out
        )
    return sketches


def save_as_adapter(
    gradients: Mapping[str, LowRankGradient],
    alpha: float,
    folder: str | os.PathLike,
    like: LoraConfig,
    base: str | None,
) -> None:
    """
    Save `alpha * U @ V.T` of every module as a LoRA adapter of scaling 1, which `PeftModel.from_pretrained` loads.

    Args:
        gradients (`Mapping[str, LowRankGradient]`):
            Factored gradients by module. The rank is that of the widest; narrower ones are filled up with zeros.
        alpha (`float`):
            Signed step.
        folder (`str` or `os.PathLike`):
            Where to.
        like ([`~peft.LoraConfig`]):
            Configuration of an adapter of the same modules.
        base (`str`, *optional*):
            Folder or name of the model that the adapter is for.
    """
    rank = max(gradient.U.shape[1] for gradient in gradients.values())
    tensors = {}
    for name, gradient in gradients.items():
        U, V = alpha * gradient.U, gradient.V
        # Each factor takes an even share of a column's length, or half precision could not hold the adapter.
        lengths = U.norm(dim=0), V.norm(dim=0)
        share = torch.where(lengths[0] * lengths[1] > 0, (lengths[1] / lengths[0]).sqrt(), 1.0)
        filling = (0, rank - U.shape[1])
        tensors[KEY.format(name=name, side="A")] = pad(V / share, filling).T.contiguous()
        tensors[KEY.format(name=name, side="B")] = pad(U * share, filling).contiguous()
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(gradients),
        fan_in_fan_out=like.fan_in_fan_out,
        task_type=like.task_type,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file(tensors, Path(folder) / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
