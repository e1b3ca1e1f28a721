"""What a gradient decoder is, and how it is saved and loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..gradients import LoraSketch, LowRankGradient
from .core import SketchCore


CARD = """---
{{ card_data }}
---

# A gradient decoder for Recover-to-Forget

Turns the gradients of LoRA probes into an approximation of a model's full gradient, module by module, for
[R2F](https://arxiv.org/abs/2512.07374) unlearning with r2f-hf.

```python
from r2f_hf import R2FConfig

args = R2FConfig("unlearned", decoder="THIS_FOLDER_OR_REPOSITORY")
```

{{ training | default("It was saved without a record of its training.", true) }}
"""


class GradientDecoder(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="r2f-hf",
    paper_url="https://arxiv.org/abs/2512.07374",
    tags=["machine-unlearning", "recover-to-forget"],
    model_card_template=CARD,
):
    """
    Turns the LoRA gradients of a module into an approximation of its full gradient.

    A subclass implements [`~GradientDecoder.decode`]. The arguments of its `__init__` must be values that JSON can
    hold; they are saved next to the weights. `decode` may use `sketch.right` (the columns of `Y` that are not held
    out), `sketch.right_probe`, `sketch.Z` and `sketch.B`. The held-out rows are for measuring its error.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of [`~huggingface_hub.PyTorchModelHubMixin`], with
    weights only in safetensors: a pickle is never read.

    Attributes:
        needs_fixed_probes (`bool`):
            Whether it can decode only sketches of the probes that it was trained with.
        training_record (`str`, *optional*):
            How it was trained and how well it did, for its card. It is saved with the decoder.
    """

    needs_fixed_probes = False
    training_record: str | None = None

    def check_fresh_probes(self) -> None:
        """
        Refuse a decoder that cannot be used in a run, where new probes are drawn for each step.

        Raises:
            `ValueError`: If the decoder needs the probes that it was trained with.
        """
        if self.needs_fixed_probes:
            raise ValueError(
                f"{type(self).__name__} knows only the probes that it was trained with, but a run draws new ones for "
                "every step. Use the spectral decoder."
            )

    def decode(self, sketch: LoraSketch) -> LowRankGradient:
        """
        Reconstruct the gradient of a module, or of several modules of one shape at once.

        Args:
            sketch ([`LoraSketch`]):
                The sketch, in fp32, with any leading dimensions.

        Returns:
            [`LowRankGradient`]: The approximation, in factors. A zero sketch is decoded to zero.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement decode")

    @torch.no_grad()
    def decode_all(self, sketches: Sequence[LoraSketch]) -> list[LowRankGradient]:
        """
        Reconstruct the gradients of many modules. Modules of one shape are decoded in one call.

        Args:
            sketches (`Sequence[LoraSketch]`):
                Sketches of one module, or of several modules of one shape, each.

        Returns:
            `list[LowRankGradient]`: The gradients, in the same order.
        """
        # A sketch of several modules is decoded as it is. Sketches of single modules are stacked first.
        decoded = {index: self.decode(sketch) for index, sketch in enumerate(sketches) if sketch.Y.ndim > 2}
        single = [index for index in range(len(sketches)) if index not in decoded]
        for indices, stack in LoraSketch.by_shape([sketches[index] for index in single]):
            places = [single[index] for index in indices]
            decoded |= dict(zip(places, self.decode(stack).unbind(), strict=True))
        return [decoded[index] for index in range(len(sketches))]

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        config = {"decoder": type(self).__name__, **(self._hub_mixin_config or {})}
        if self.training_record is not None:
            config["training_record"] = self.training_record
        (save_directory / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | os.PathLike | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        **kwargs,
    ) -> GradientDecoder:
        # The mixin's own method falls back to a pickle, and accepts files with missing keys.
        file = Path(model_id) / SAFETENSORS_SINGLE_FILE
        if not Path(model_id).is_dir():
            file = hf_hub_download(
                model_id,
                SAFETENSORS_SINGLE_FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        try:
            decoder = cls(**kwargs)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"The {CONFIG_NAME} of the decoder {model_id} does not describe one: {error}") from error
        decoder.training_record = (config or {}).get("training_record")
        try:
            decoder.load_state_dict(load_file(file))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{model_id} holds no {SAFETENSORS_SINGLE_FILE}. Decoders are loaded only from safetensors; a pickle "
                "(`.bin`, `.pt`) can run code and is refused."
            ) from error
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"The weights of the decoder {model_id} are damaged, or those of another decoder: {error}"
            ) from error
        if not all(tensor.isfinite().all() for tensor in decoder.state_dict().values()):
            raise ValueError(f"The weights of the decoder {model_id} are not finite: the file was edited or damaged.")
        return decoder.eval()

    def generate_model_card(self, **kwargs) -> ModelCard:
        """The card, with the training record."""
        return super().generate_model_card(training=self.training_record, **kwargs)


class FilterDecoder(GradientDecoder):
    """
    A decoder that filters the spectrum of the sketch's core, `φ(σ) = gate / σ`, whatever the width of the model.

    A subclass implements [`~FilterDecoder.gate`].
    """

    def gate(self, core: SketchCore) -> Tensor:
        """
        How much of each singular direction to trust.

        Args:
            core ([`SketchCore`]):
                The core of one or several modules.

        Returns:
            `torch.Tensor` of shape `(..., k)`: From 0 (noise) to 1 (the plain inverse).
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement gate")

    def decode(self, sketch: LoraSketch) -> LowRankGradient:
        core = SketchCore.of(sketch)
        return core.reconstruct(self.gate(core) * core.inverse_sigma)

    def gates(self, cores: Sequence[SketchCore]) -> list[Tensor]:
        """[`~FilterDecoder.gate`] for several cores."""
        return [self.gate(core) for core in cores]

    @torch.no_grad()
    def decode_all(self, sketches: Sequence[LoraSketch]) -> list[LowRankGradient]:
        if type(self).decode is not FilterDecoder.decode:
            # A subclass decodes in its own way.
            return super().decode_all(sketches)
        cores = SketchCore.of_all(sketches)
        return [
            core.reconstruct(gate * core.inverse_sigma) for core, gate in zip(cores, self.gates(cores), strict=True)
        ]
