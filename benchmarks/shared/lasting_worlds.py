"""What `lasting.py` and the search for a default start from: models that know, models that never did, and the rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed

from r2f_hf import R2FConfig
from r2f_hf.cli.recipes import parse_recipe
from r2f_hf.cli.unlearn import UnlearnArguments
from r2f_hf.data.loading import load_rows
from r2f_hf.evaluation.suites.tofu import UTILITY_SPLITS
from r2f_hf.models.loading import QuantisedModelArguments
from shared.finetune import finetuned_folder
from shared.precision import computes_bf16
from shared.pypi_models import building, gemma3_folder, smollm2_folder


RECIPES = Path(__file__).parents[2] / "recipes"
BASES = {"smollm2": smollm2_folder, "gemma": gemma3_folder}
SETTINGS = (
    *(f"quickstart-{people}" for people in (1, 2, 4, 10)),
    *(f"smollm2-{authors}" for authors in (1, 2, 10)),
    "gemma-2",
)
ROLES = ("before", "gold")
# The quickstart's seed, and the part of TOFU's authors, that peers are tuned on. No table reports them.
TUNING_SEED = 3


@dataclass
class World:
    """
    One set of models and rows.

    Args:
        name (`str`):
            The setting, and the seed of its models, or the first author that they forget.
        models (`dict[str, Path]`):
            By role, `"before"` and `"gold"`, a folder for `from_pretrained`.
        rows (`dict[str, Sequence[Mapping]]`):
            What a run trains on: `forget`, `retain` and, if a stopping rule may end it, `holdout`.
        splits (`dict[str, Sequence[Mapping]]`):
            What the TOFU suite evaluates.
        recipe ([`R2FConfig`]):
            How R2F forgets here by default.
        max_new_tokens (`int`):
            Longest generated answer.
    """

    name: str
    models: dict[str, Path]
    rows: dict[str, Any]
    splits: dict[str, Any]
    recipe: R2FConfig
    max_new_tokens: int

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.models["before"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def load(self, role: str) -> PreTrainedModel:
        """A model by its role, in evaluation mode."""
        return self.load_from(self.models[role])

    def load_from(self, folder: Path) -> PreTrainedModel:
        """A model on the device, in evaluation mode."""
        return AutoModelForCausalLM.from_pretrained(folder).to(self.device).eval()

    def utility(self, metrics: dict[str, float]) -> float:
        """
        Utility: TOFU's harmonic mean for the quickstart, and the plain mean of the same numbers for TOFU.

        These models answer next to no question about real authors, so that the harmonic mean would be zero throughout.
        """
        if self.name.startswith("quickstart"):
            return metrics["model_utility"]
        names = ("probability", "rouge_l_recall", "truth_ratio")
        return fmean(metrics[f"{split}_{name}"] for split in UTILITY_SPLITS for name in names)


def make_world(
    setting: str,
    seed: int,
    folder: Path,
    data: Path | None = None,
    tuning: bool = False,
    utility_rows: int = 30,
    overrides: Sequence[str] = (),
) -> World:
    """
    The models and rows of a setting. Models are trained on first use.

    Args:
        setting (`str`):
            One of [`SETTINGS`].
        seed (`int`):
            Seed of the quickstart's world and models. For TOFU it says which authors are to be forgotten.
        folder (`Path`):
            Folder for the quickstart's worlds.
        data (`Path`, *optional*):
            Folder with TOFU's files. The quickstart needs none.
        tuning (`bool`, *optional*, defaults to `False`):
            Whether the world is one to make choices on. For TOFU these are the first of the model's authors, whom no
            seed forgets.
        utility_rows (`int`, *optional*, defaults to `30`):
            Most rows of each split of TOFU that utility is measured on.
        overrides (`Sequence[str]`, *optional*):
            Options that override the recipe's, such as `rank=8`.

    Returns:
        [`World`]
    """
    base, _, count = setting.partition("-")
    if base == "quickstart":
        return quickstart_world(setting, seed, int(count), folder, read_recipe("quickstart", overrides))
    if data is None:
        raise SystemExit(f"The setting {setting} needs TOFU: name the folder of its files with --data.")
    recipe = read_recipe("tofu", overrides)
    return tofu_world(setting, seed, BASES[base](), int(count), data, tuning, utility_rows, recipe)


def quickstart_world(
    setting: str, seed: int, forget_people: int, folder: Path, recipe: R2FConfig, **size: int
) -> World:
    """The quickstart's own data and models, with its own recipe. `size` is what `prepare` takes in addition."""
    name = f"{setting}, seed {seed}"
    folder = folder / f"{setting}-{seed}"
    models = {role: folder / role for role in ROLES}
    with building(folder):
        if not all((model / "config.json").is_file() for model in models.values()):
            # The recipe's scripts are no package.
            sys.path.append(str(RECIPES / "quickstart"))
            from prepare import prepare

            set_seed(seed)
            prepare(folder, seed, forget_people, **size)

    def rows(name: str) -> list[dict[str, Any]]:
        return list(load_rows(str(folder / "data" / name)))

    files = {"forget": "forget01_perturbed", "retain": "retain_perturbed", "holdout": "holdout01"}
    files["world_facts"] = "world_facts_perturbed"
    splits = {split: rows(f"tofu/{file}.json") for split, file in files.items()}
    data = {split: rows(f"{split}.jsonl") for split in ("forget", "retain")}
    return World(name, models, data, splits, recipe, 32)


def tofu_world(
    setting: str, seed: int, base: Path, authors: int, data: Path, tuning: bool, utility_rows: int, recipe: R2FConfig
) -> World:
    """A model fine-tuned on the last twenty authors of TOFU. Which of them it forgets depends on the seed."""
    from default_rate import AUTHORS, few_authors
    from time_to_forget import spread

    first = first_author(seed, authors, AUTHORS, tuning)
    sets = few_authors(data, authors, first)
    models = {"before": finetuned_folder(base, sets["train"]), "gold": finetuned_folder(base, sets["retain"])}
    splits = {
        name: spread(rows, utility_rows) if name in UTILITY_SPLITS else rows for name, rows in sets["splits"].items()
    }
    # A forget set of more than 80 rows takes one pass, as the recipe says.
    recipe.max_steps = max(recipe.max_steps, -(-len(sets["forget"]) // recipe.per_device_train_batch_size))
    rows = {name: sets[name] for name in ("forget", "retain", "holdout")}
    return World(f"{setting}, from author {first}", models, rows, splits, recipe, 64)


def first_author(seed: int, authors: int, known: int, tuning: bool) -> int:
    """
    The first of the authors to forget, among those that the model knows.

    Tuning takes the first of all. A seed counts from the end: with two of twenty authors seed 0 forgets 19 and 20,
    seed 1 forgets 17 and 18, and seed 8 forgets 3 and 4. With ten of twenty there is no choice.

    Args:
        seed (`int`):
            The seed.
        authors (`int`):
            How many are to be forgotten.
        known (`int`):
            How many the model knows.
        tuning (`bool`):
            Whether choices are made on them.

    Returns:
        `int`: From 1.
    """
    if tuning:
        return 1
    choices = known // authors - 1
    if choices > 1 and seed >= choices:
        raise SystemExit(
            f"Seed {seed} would forget the same authors as another one: with {authors} of {known} authors there are "
            f"the seeds 0 to {choices - 1}."
        )
    return known + 1 - authors * (1 + (seed if choices > 1 else 0))


def read_recipe(name: str, overrides: Sequence[str] = ()) -> R2FConfig:
    """A recipe of `recipes/`, for training alone, with other options where they are named."""
    file = "forget01.yaml" if name == "tofu" else "unlearn.yaml"
    flags = ["--config", str(RECIPES / name / file), "--eval_strategy", "no", "--disable_tqdm", "True"]
    # Each of many runs would print its steps.
    flags += ["--logging_strategy", "no"]
    if not torch.cuda.is_available():
        flags.append("--use_cpu")
    if name == "tofu":
        flags += ["--bf16", str(computes_bf16())]
    flags += [f"--{option}" for option in overrides]
    _, recipe, _ = parse_recipe("unlearn", (UnlearnArguments, R2FConfig, QuantisedModelArguments), flags)
    return recipe
