"""Gradient decoders: from a sketch to a factored full gradient. Chosen by name from `DECODERS`, or by path."""

from .base import FilterDecoder, GradientDecoder
from .core import SketchCore
from .loading import DECODERS, check_decoder, load_decoder
from .mlp import MlpDecoder
from .spectral import SpectralDecoder
from .tikhonov import TikhonovDecoder


__all__ = [
    "DECODERS",
    "FilterDecoder",
    "GradientDecoder",
    "MlpDecoder",
    "SketchCore",
    "SpectralDecoder",
    "TikhonovDecoder",
    "check_decoder",
    "load_decoder",
]
