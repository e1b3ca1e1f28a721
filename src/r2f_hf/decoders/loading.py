"""From a decoder's name, folder or repository to the decoder."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.constants import CONFIG_NAME
from huggingface_hub.errors import HfHubHTTPError

from ..lookup import lookup
from .base import GradientDecoder
from .mlp import MlpDecoder
from .spectral import SpectralDecoder
from .tikhonov import TikhonovDecoder


# Decoders that need no folder: closed forms, and the trained one that the package ships.
DECODERS: dict[str, type[GradientDecoder]] = {"spectral": SpectralDecoder, "tikhonov": TikhonovDecoder}

# The classes that a saved decoder can have.
CLASSES: dict[str, type[GradientDecoder]] = {
    cls.__name__: cls for cls in (MlpDecoder, SpectralDecoder, TikhonovDecoder)
}

# Trained by `r2f train-decoder --config recipes/decoder/smollm2.yaml`.
SPECTRAL_FOLDER = Path(__file__).parent / "spectral_smollm2"


def check_decoder(name: str) -> None:
    """
    Refuse a decoder that is neither a name, nor a folder, nor a repository's name.

    Raises:
        `ValueError`: With the nearest name.
    """
    if not Path(name).is_dir() and name.count("/") != 1:
        lookup(DECODERS, name, "decoder")


def load_decoder(name: str) -> GradientDecoder:
    """
    Load a decoder by name, from a folder, or from the Hub.

    Args:
        name (`str`):
            `"spectral"`, `"tikhonov"`, a folder that `save_pretrained` wrote, or a repository on the Hub.

    Returns:
        [`GradientDecoder`]: The decoder, in evaluation mode.

    Raises:
        `ValueError`: If there is no such decoder, or its files are damaged.
    """
    check_decoder(name)
    if name == "spectral":
        return SpectralDecoder.from_pretrained(SPECTRAL_FOLDER)
    if name in DECODERS:
        return DECODERS[name]()
    file = Path(name) / CONFIG_NAME
    if not Path(name).is_dir():
        try:
            file = Path(hf_hub_download(name, CONFIG_NAME))
        except (OSError, HfHubHTTPError) as error:
            raise ValueError(f"There is no folder {name}, and no decoder of that name on the Hub: {error}") from error
    if not file.is_file():
        raise ValueError(f"The folder {name} holds no decoder (no {CONFIG_NAME}).")
    try:
        kind = json.loads(file.read_text())["decoder"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} does not say which decoder it is. Was it saved by `save_pretrained`?") from error
    return lookup(CLASSES, kind, f"decoder in {file}").from_pretrained(name)
