"""Gradient decoders: from a sketch to a factored full gradient. Chosen by name from `DECODERS`."""

from .base import GradientDecoder
from .tikhonov import TikhonovDecoder


DECODERS: dict[str, type[GradientDecoder]] = {"tikhonov": TikhonovDecoder}

__all__ = ["DECODERS", "GradientDecoder", "TikhonovDecoder"]
