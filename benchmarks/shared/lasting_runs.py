"""Runs that are judged by the four questions: made, measured, attacked and kept."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from r2f_hf.attacks import Target, compare, run_attacks
from r2f_hf.data.formatting import encode_example
from r2f_hf.data.rows import content_hash
from r2f_hf.evaluation import run_suite
from r2f_hf.evaluation.suites.tofu import summarise
from r2f_hf.runs.files import write_json
from shared.four_questions import RELEARNING
from shared.lasting_worlds import ROLES, World
from shared.peers import RUNS
from shared.pypi_models import building


METRICS = {
    "P(forget)": "forget_probability",
    "P(forget), paraphrase": "forget_paraphrase_probability",
    "forget quality": "forget_quality",
    "ES": "forget_extraction_strength",
    "EM": "forget_exact_memorisation",
    "PrivLeak": "privleak_loss",
}
# By column the attack and its variant, whose comeback is shown.
ATTACKED = {column: ("relearning", variant) for column, variant in RELEARNING.items()} | {
    "comeback, retain rows": ("relearning", "retain rows, rate 1e-4"),
    "comeback, NF4": ("quantisation", "NF4"),
    "comeback, 30% pruned": ("pruning", "30% of the weights"),
    "comeback, best of 16": ("sampling", "best of 16"),
}
ATTACKS = ("relearning", "quantisation", "pruning", "sampling")
# What only R2F reads: a change of it leaves the runs of its peers valid.
R2F_OPTIONS = (
    "adaptive",
    "decoder",
    "held_out",
    "min_fidelity",
    "normalize_update",
    "on_bad_gradient",
    "simulated_relearning",
    "spectrum_damping",
    "warm_probes",
)


@dataclass
class Runs:
    """
    The runs of one world. Each is kept in a file, and read again by a later command.

    Args:
        world ([`World`]):
            The models and the rows.
        folder (`Path`):
            Folder for the runs.
        attacks (`Sequence[str]`):
            Names of the attacks.
        batch_size (`int`):
            Rows per forward pass of an evaluation.
        stopping (`bool`):
            Whether the recipe's stopping rule may end a run.
    """

    world: World
    folder: Path
    attacks: Sequence[str] = ATTACKS
    batch_size: int = 64
    stopping: bool = True
    known: dict[tuple[str, int], Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The world's name for a folder."""
        return self.world.name.replace(",", "").replace(" ", "-")

    def file(self, trainer: str, options: Mapping[str, Any], seed: int) -> Path:
        """The file of a run: its name has a hash of all that the run depends on, except the package's code."""
        settings = replace(self.world.recipe, output_dir=".", seed=seed, **options).to_sanitized_dict()
        settings = {name: value or {} if name.endswith("_kwargs") else value for name, value in settings.items()}
        if trainer != "r2f":
            settings = {name: value for name, value in settings.items() if name not in R2F_OPTIONS}
        world = [self.world.name, self.world.rows, self.world.splits]
        depends = [trainer, settings, world, list(self.attacks), self.stopping]
        return self.folder / self.slug / f"{trainer}-{content_hash(depends)}.json"

    def run(self, trainer: str, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """
        Make, measure and attack one run, or read it if it was made before.

        Args:
            trainer (`str`):
                One of [`RUNS`](`shared.peers`).
            options (`Mapping[str, Any]`):
                Fields of the configuration that differ from the recipe's.
            seed (`int`):
                Seed of the run and of its attacks: with another one the attacker holds other rows.

        Returns:
            `dict`: What was run, its `metrics`, what the `attacks` brought back, and its [`figures`].
        """
        file = self.file(trainer, options, seed)
        with building(file):
            if not file.is_file():
                write_json(file, self.make(trainer, options, seed))
        result = json.loads(file.read_text())
        return result | {"figures": figures(result)}

    def make(self, trainer: str, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Make one run."""
        others = {role: self.measured(role, seed) for role in ROLES}
        rows = {name: rows for name, rows in self.world.rows.items() if self.stopping or name != "holdout"}
        if options.get("forget_objective", "").endswith("ignorance"):
            # The objective takes its level from these rows, and ends there.
            rows["holdout"] = list(self.world.splits["holdout"])
        with tempfile.TemporaryDirectory() as scratch:
            args = replace(self.world.recipe, output_dir=scratch, seed=seed, keep_original=False, **options)
            sets = {f"{name}_dataset": of_set for name, of_set in rows.items()}
            start, processor = time.perf_counter(), time.process_time()
            made = RUNS[trainer](self.world.load("before"), args, processing_class=self.world.tokenizer, **sets)
            made.train()
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            steps, reason, model = made.state.global_step, made.stop_reason, made.model
            del made
            if trainer not in ("full", "exact"):
                model = model.merge_and_unload() if trainer == "lora" else model.unload()
            # Trainers wrap the forward pass of a model. Saved and loaded, it is a plain one again.
            model.save_pretrained(f"{scratch}/model")
            unlearned = self.measure(self.world.load_from(Path(scratch) / "model"), seed, others["gold"]["statistics"])
        known = {"unlearned": unlearned, "original": others["before"], "gold": others["gold"]}
        return {
            "world": self.world.name,
            "trainer": trainer,
            "options": dict(options),
            "seed": seed,
            "steps": steps,
            "stop_reason": reason,
            "seconds": seconds,
            "processor_seconds": processor,
            "metrics": {role: measured["metrics"] for role, measured in known.items()},
            "utility": {role: self.world.utility(measured["metrics"]) for role, measured in known.items()},
            "attacks": compare({role: measured["attacks"] for role, measured in known.items()}),
        }

    def measured(self, role: str, seed: int) -> dict[str, Any]:
        """What the suite and the attacks say about a model that no run changes."""
        if (role, seed) not in self.known:
            gold = None if role == "gold" else self.measured("gold", seed)["statistics"]
            folder = self.folder / self.slug / role
            with building(folder):
                self.known[role, seed] = self.measure(self.world.load(role), seed, gold, folder)
        return self.known[role, seed]

    def measure(self, model: Any, seed: int, gold: Any, folder: Path | None = None) -> dict[str, Any]:
        """Evaluate and attack a model. With a folder, what was measured is kept there."""
        world, tokenizer = self.world, self.world.tokenizer
        suite = None if folder is None else folder / "suite"
        asked = {"batch_size": self.batch_size, "max_new_tokens": world.max_new_tokens}
        _, statistics = run_suite("tofu", model, tokenizer, world.splits, suite, **asked)
        # Gold is compared with itself.
        metrics = summarise(statistics, gold or statistics)
        encoded = {
            name: [
                encode_example(tokenizer, row["question"], row["answer"]) | {"item": item}
                for item, row in enumerate(world.rows[name])
            ]
            for name in ("forget", "retain")
        }
        target = Target(
            model,
            tokenizer,
            **encoded,
            rows={"forget": world.rows["forget"]},
            batch_size=self.batch_size,
            max_new_tokens=world.max_new_tokens,
            seed=seed,
        )
        attacks = run_attacks(self.attacks, target, None if folder is None else folder / f"attacks-{seed}")
        return {"metrics": metrics, "statistics": statistics, "attacks": attacks}


def figures(result: Mapping[str, Any], role: str = "unlearned") -> dict[str, float]:
    """
    The figures of a run, or of the `"original"` or `"gold"` model that it is compared with.

    Args:
        result (`Mapping`):
            What [`Runs.run`] has made.
        role (`str`, *optional*, defaults to `"unlearned"`):
            The model.

    Returns:
        `dict[str, float]`: By the name of a column. One that could not be measured is absent.
    """
    metrics, before = result["metrics"][role], result["metrics"]["original"]
    found = {column: metrics[name] for column, name in METRICS.items() if name in metrics}
    found["P(retain), kept"] = metrics["retain_probability"] / before["retain_probability"]
    found["utility, kept"] = result["utility"][role] / result["utility"]["original"]
    for column, (attack, variant) in ATTACKED.items():
        line = result["attacks"].get(attack, {}).get(variant, {})
        if "comeback" in line:
            gold, original = line["gold"], line["original"]
            found[column] = (line[role] - gold) / (original - gold)
    return found
