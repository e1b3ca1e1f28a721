"""What a gradient decoder is."""

from __future__ import annotations

from torch import nn

from ..gradients import LoraSketch, LowRankGradient


class GradientDecoder(nn.Module):
    """
    Turns the LoRA gradients of a module into an approximation of its full gradient.

    A subclass implements [`~GradientDecoder.decode`]. It may use `sketch.right` (the columns of `Y` that are not held
    out), `sketch.Z`, `sketch.A[: sketch.decodable]` and `sketch.B`; the held-out rows are for measuring its error.
    """

    def decode(self, sketch: LoraSketch) -> LowRankGradient:
        """
        Reconstruct a module's gradient.

        Args:
            sketch ([`LoraSketch`]):
                The module's sketch.

        Returns:
            [`LowRankGradient`]: The approximation, in factors. A zero sketch decodes to zero.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement decode")
