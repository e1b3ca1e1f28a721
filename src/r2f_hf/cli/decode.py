"""`r2f decode`: reads the adapters from before and after a LoRA step, and saves the direction of the full gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import torch

from ..decoders import GradientDecoder, load_decoder
from ..gradients import LoraSketch, check_min_fidelity, estimate_fidelity
from ..probes.saved_adapter import SavedAdapter, save_as_adapter
from ..probes.saved_step import adamw_gradients, check_step, read_sketches, rounding_part, sgd_gradients
from .recipes import parse_recipe


logger = logging.getLogger(__name__)

# If more than this part of the difference between the adapters is rounding, the user is warned.
MOST_ROUNDING = 0.05


@dataclass
class DecodeArguments:
    r"""
    What `r2f decode BEFORE AFTER --out DIR` reads and writes.

    The command reads the LoRA adapters from before and after one training step, and reconstructs the full gradient
    behind the step. It saves a LoRA adapter that moves the base model one step down this gradient.

    ```bash
    r2f decode adapter-before adapter-after --out direction
    ```

    The training step must be one of two kinds:

    - one step of plain SGD. Momentum makes no difference in a first step, and clipping only scales the gradient.
      Weight decay must be off, because it would be taken for a part of the gradient;
    - the first step of AdamW. Its optimizer state is then given as `optimizer_state`.

    The gradient is taken where the step began: at the weights of the base model with the adapter `before`.

    Args:
        before (`str`, *optional*):
            Folder of the adapter before the step. It is the first argument of the command.
        after (`str`, *optional*):
            Folder of the adapter after the step, the second argument. Both adapters must be saved in fp32: rounding to
            half precision would swallow their difference.
        out (`str`, *optional*, defaults to `"direction"`):
            Folder for the result, a LoRA adapter.
        base (`str`, *optional*):
            Folder or name of the base model. Defaults to the model that the adapters name. Only its configuration is
            read, and only with `optimizer_state`.
        optimizer_state (`str`, *optional*):
            `optimizer.pt` as [`~transformers.Trainer`] saves it after the first step of AdamW, with the parameters in
            the order of the model. Without it the step is taken for one of plain SGD.
        learning_rate (`float`, *optional*, defaults to `1.0`):
            Learning rate of the SGD step. Only the norm that is printed depends on it, not the direction.
        decoder (`str`, *optional*, defaults to `"spectral"`):
            The decoder: `"spectral"`, `"tikhonov"`, or a folder or Hub repository of a saved one.
        held_out (`int`, *optional*, defaults to `2`):
            The last rows of each `A`, which the decoder does not see, measure its error: at least 2 of them, or 0.
            The measurement is honest only if these rows are random, as those of Gaussian probes and of PEFT's fresh
            `A` are. For an `A` that has been trained choose 0: the decoder then uses all rows, and nothing is
            measured.
        step (`float`, *optional*, defaults to `1.0`):
            Frobenius norm of the result, over all modules together. If it is negative, the result goes up the
            gradient.
    """

    _argument_group_name: ClassVar[str] = "The step"

    before: str | None = field(default=None, metadata={"help": "Folder of the adapter before the step."})
    after: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the adapter after the step. Save both in fp32: half precision swallows the difference."
        },
    )
    out: str = field(default="direction", metadata={"help": "Folder for the result, a LoRA adapter."})
    base: str | None = field(
        default=None, metadata={"help": "The base model, if it is not the one that the adapters name."}
    )
    optimizer_state: str | None = field(
        default=None,
        metadata={
            "help": "optimizer.pt after AdamW's first step, as Trainer saves it. Without it the step is taken for one "
            "of plain SGD without weight decay."
        },
    )
    learning_rate: float = field(
        default=1.0, metadata={"help": "Learning rate of the SGD step. Only the printed norm depends on it."}
    )
    decoder: str = field(default="spectral", metadata={"help": "The decoder: a name, a folder or a repository."})
    held_out: int = field(
        default=2,
        metadata={
            "help": "Rows of each A that measure the error, 2 or more. Honest only if A is random (Gaussian probes, "
            "PEFT's fresh A). For an A that has been trained choose 0: all rows decode, and nothing is measured."
        },
    )
    step: float = field(
        default=1.0, metadata={"help": "Frobenius norm of the result. A negative one goes up the gradient."}
    )

    def __post_init__(self):
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}.")
        if self.step == 0:
            raise ValueError("`step` must not be 0: the direction would be empty.")
        if self.held_out < 0:
            raise ValueError(f"`held_out` must be 2 or more, or 0; got {self.held_out}.")
        check_min_fidelity(None, self.held_out)


# The dataclasses whose fields are the options.
OPTIONS = (DecodeArguments,)


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments and both adapters of `r2f decode`, and check that the step between them can be decoded."""
    folders = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    if len(folders) == 2:
        argv = ["--before", folders[0], "--after", folders[1], *argv[2:]]
    (args,) = parse_recipe("decode", OPTIONS, argv)
    if args.before is None or args.after is None or len(folders) not in (0, 2):
        raise ValueError("Two adapters are needed: r2f decode BEFORE AFTER --out DIR.")
    if Path(args.out).resolve() in (Path(args.before).resolve(), Path(args.after).resolve()):
        raise ValueError(f"`out` is {args.out}, whose adapter would be overwritten. Choose another folder.")
    decoder = load_decoder(args.decoder)
    before, after = SavedAdapter.load(args.before), SavedAdapter.load(args.after)
    check_step(before, after, args.base)
    base = args.base or before.config.base_model_name_or_path
    if args.optimizer_state is None:
        gradients = sgd_gradients(before, after, args.learning_rate)
        rounding = rounding_part(before, after)
        if rounding > MOST_ROUNDING:
            logger.warning(
                "About %.0f%% of the difference between the adapters is rounding, and the direction is as wrong. Save "
                "both in fp32, take the step with a larger learning rate, or give AdamW's state (--optimizer_state).",
                min(100, 100 * rounding),
            )
    else:
        gradients = adamw_gradients(args.optimizer_state, before, after, base)
    sketches = read_sketches(before, gradients, args.held_out)
    blind = [name for name, (_, B) in before.pairs.items() if not B.any()]
    if blind:
        logger.warning(
            "B is zero in %d of %d modules (first: %s). Their steps only show the projection of the gradient onto the "
            "rows of A. Draw B at random before the step to see more.",
            len(blind),
            len(sketches),
            blind[0],
        )
    return partial(decode, args, before, base, sketches, decoder)


def decode(
    args: DecodeArguments,
    before: SavedAdapter,
    base: str | None,
    sketches: dict[str, LoraSketch],
    decoder: GradientDecoder,
) -> None:
    """Decode, save the direction, and print how faithful the reconstruction is."""
    gradients = dict(zip(sketches, decoder.decode_all(list(sketches.values())), strict=True))
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    save_as_adapter(gradients, -args.step / norm, args.out, before.config, base)
    source = "a step of plain SGD" if args.optimizer_state is None else "AdamW's first step"
    print(f"Decoded {len(gradients)} modules from {source}; the reconstructed gradient has norm {norm:.3g}.")
    if args.held_out:
        fidelities = estimate_fidelity(list(sketches.values()), list(gradients.values()))
        cosines = dict(zip(gradients, (fidelity.cosine for fidelity in fidelities), strict=True))
        worst = min(cosines, key=cosines.__getitem__)
        print(
            f"Estimated cosine to the full gradient, over modules: mean {fmean(cosines.values()):.3f}, minimum "
            f"{cosines[worst]:.3f} ({worst}). It is honest only if the rows of A are random."
        )
    print(
        f"The direction, of norm {abs(args.step):g}, is in {args.out}: PeftModel.from_pretrained(base, {args.out!r})."
    )
