"""Two saved LoRA adapters, from before and after one step, read as sketches."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ..gradients import LoraSketch
from ..runs.weights import architecture
from .saved_adapter import KEY, Pairs, SavedAdapter


# AdamW's first step goes against the sign of the gradient in all but the smallest entries. The gradient of another
# parameter would have the right sign in only half of them.
LEAST_AGREEMENT = 0.75


def check_step(before: SavedAdapter, after: SavedAdapter, base: str | None = None) -> None:
    """
    Refuse two adapters that are not one adapter before and after a step.

    Args:
        before ([`SavedAdapter`]):
            The adapter before the step.
        after ([`SavedAdapter`]):
            The adapter after it.
        base (`str`, *optional*):
            The base model of both, if they name it differently.

    Raises:
        `ValueError`: If their base models, modules, ranks or scalings differ, or if they are identical.
    """
    where = f"{before.folder} and {after.folder}"
    bases = [adapter.config.base_model_name_or_path for adapter in (before, after)]
    if base is None and bases[0] != bases[1]:
        raise ValueError(
            f"{where} are adapters of different models, {bases[0]!r} and {bases[1]!r}. If these are two names of one "
            "model, name it with `--base`."
        )
    in_one = sorted(before.pairs.keys() ^ after.pairs.keys())
    if in_one:
        raise ValueError(
            f"{where} adapt different modules: {', '.join(in_one[:3])} (of {len(in_one)}) are in only one of them. "
            "Both must be saved from the same adapter."
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
    """The first adapter minus the second: `A` and `B` by module, fp32."""
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
            Learning rate of the step. A wrong one changes the length of all gradients alike, but not their direction.

    Returns:
        `dict[str, tuple[torch.Tensor, torch.Tensor]]`: Gradients in `A` and `B` by module, fp32.
    """
    return {name: (A / learning_rate, B / learning_rate) for name, (A, B) in difference(before, after).items()}


def rounding_part(before: SavedAdapter, after: SavedAdapter) -> float:
    """
    How much of the difference between two adapters is rounding of the second, judged by its dtype and its size.

    Returns:
        `float`: The norm of the rounding over the norm of the difference, for all `A` or for all `B` together,
        whichever is larger. A side that has no gradient, because the other side is zero, does not count.
    """
    moved = difference(before, after)
    parts = [0.0]
    for side in (0, 1):
        if any(pair[1 - side].any() for pair in before.pairs.values()):
            # Rounding to nearest is off by 1/√12 of a unit. A unit is between eps/2 and eps times the number.
            new = [pair[side] for pair in after.pairs.values()]
            rounding = torch.stack([0.2 * torch.finfo(tensor.dtype).eps * tensor.float().norm() for tensor in new])
            signal = torch.stack([pair[side].norm() for pair in moved.values()])
            parts.append((rounding.norm() / signal.norm()).item())
    return max(parts)


def adamw_gradients(file: str | os.PathLike, before: SavedAdapter, after: SavedAdapter, base: str | None) -> Pairs:
    """
    The LoRA gradients behind AdamW's first step, `exp_avg / (1 - beta1)`, from the optimizer's state after it.

    After a later step, `exp_avg` mixes gradients that were taken at other values of the adapter, and no sketch can be
    read from it.

    The state names its parameters only by number. These numbers are taken to be those of [`~transformers.Trainer`],
    which goes through the model module by module, `A` before `B`. A saved adapter has lost this order, so it is taken
    from the base model, whose configuration is read but not its weights. Two checks tell whether the order fits: the
    shapes must agree, and every parameter must have moved against the sign of its gradient.

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
    except Exception as error:  # On a file that torch has not written, the unpickler raises many kinds of errors.
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
            raise ValueError(f"The gradient of {key} in {file} is NaN or infinite. Take the step again.")
        both = (step != 0) & (gradient != 0)
        if both.any() and (step.sign() == gradient.sign())[both].float().mean() < LEAST_AGREEMENT:
            raise ValueError(
                f"{key} did not move against the sign of parameter {number} in {file}, as in AdamW's first step: the "
                f"state is not that of the step from {before.folder} to {after.folder}, or its order is not that of "
                "Trainer."
            )
        gradients[name] = (*gradients.get(name, ()), gradient)
    return gradients


def module_order(base: str | None, adapter: SavedAdapter) -> list[str]:
    """
    The adapted modules in the order of the base model, whose weights are not read.

    Raises:
        `ValueError`: If the base model's configuration cannot be read, or it has no such modules.
    """
    why = "The order of an optimizer's state is that of the base model's modules"
    try:
        config = AutoConfig.from_pretrained(base or "")
        model_class = architecture(config.architectures)
        with torch.device("meta"):
            model = model_class.from_config(config) if model_class is AutoModelForCausalLM else model_class(config)
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
    Turn the gradients of a saved adapter into sketches.

    If `A` and `B` are multiplied by `a` and `b`, the sketches become `a Y` and `b Z`. The factors here give the rows
    of `A` and the columns of `B` a norm near 1, as [`LoraSketch`] expects. So held-out rows measure the error whatever
    variance they were drawn with.

    Args:
        before ([`SavedAdapter`]):
            The adapter that the gradients were taken at.
        gradients (`dict[str, tuple[torch.Tensor, torch.Tensor]]`):
            Gradients in `A` and `B` by module.
        held_out (`int`):
            Number of the last rows of each `A` that the decoder does not see.

    Returns:
        `dict[str, LoraSketch]`: The sketches by module.

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
