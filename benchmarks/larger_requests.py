"""
Larger requests: the quickstart's world with 100 and with 200 people, of whom 5 and 20 are forgotten.

    python benchmarks/larger_requests.py [--people 100 200] [--forget 5 20] [--methods r2f lasting lora] [--seeds 0]

The model is the quickstart's, trained from scratch on more people. A run has the quickstart's batches of 8 forget
rows, and the four passes over the forget set that its 20 steps take. So 5 people take 25 steps, and 20 people 100.
There are not names enough: unlike in the quickstart, people to forget share a first or a last name with people to
keep.

`r2f` is R2F with its defaults, and takes all steps. `r2f-stopped` is the same with R2F's stopping rule: a holdout set
of 4 people that no model has heard of may end the run earlier. `lasting` has the options of
recipes/lasting/unlearn.yaml, among them its at most 60 steps and its end at the holdout's level. `lora` is LoRA with
AdamW and the same losses, and takes all steps. Its rate is the best of four by the score of `lasting.py`, on the world
of `--tuning_seed`. That seed may be one of `--seeds`, which is kinder to LoRA and takes less time.

The columns are those of `lasting.py`. P(retain) and utility are measured on `--utility_rows` of the kept people's
rows, evenly spaced. Processor seconds are those of the run, without its evaluation. A second table per size has LoRA
at each rate.

Finished runs are kept in the output folder and read again, so that the command goes on where it was interrupted.
Delete the folder when the code has changed. Writes report.json and tables.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lasting import R2F_RUNS, SWEEP, markdown, merit, summary
from r2f_hf.data.fictitious import ATTRIBUTES
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.four_questions import RELEARNING
from shared.lasting_runs import Runs
from shared.lasting_worlds import TUNING_SEED, World, quickstart_world, read_recipe
from time_to_forget import spread


PASSES = 4
RATES = SWEEP["quickstart"]["lora"]
# A model that knows less than this of what it was trained on says little about forgetting.
KNOWN = 0.9
COLUMNS = ("steps", "processor seconds", "P(forget)", "P(forget), paraphrase", "forget quality", "ES", "PrivLeak")
COLUMNS += ("P(retain)", "P(retain), kept", "utility, kept", *RELEARNING, "comeback", "score")


class Method(NamedTuple):
    """A trainer, the options that differ from the recipe's, and whether R2F's stopping rule may end a run."""

    trainer: str
    options: dict[str, Any]
    stopping: bool = False


METHODS = {
    "r2f": Method("r2f", {}),
    "r2f-stopped": Method("r2f", {}, stopping=True),
    "lasting": Method("r2f", R2F_RUNS["r2f-ignorance"]),
    "lora": Method("lora", {}),
}


class Request:
    """
    The runs of one size.

    Args:
        people (`int`):
            How many people the model knows.
        forget (`int`):
            How many of them it is to forget.
        options (`argparse.Namespace`):
            The command's options.
    """

    def __init__(self, people: int, forget: int, options: argparse.Namespace):
        self.people, self.forget, self.options = people, forget, options
        self.runs_of: dict[int, Runs] = {}

    @property
    def name(self) -> str:
        """The request in words."""
        return f"{self.forget} of {self.people} people"

    def world(self, seed: int) -> World:
        """The models and rows of a seed. Models are trained on first use."""
        options, start = self.options, time.process_time()
        recipe = read_recipe("quickstart", options.set)
        if not any(option.startswith("max_steps=") for option in options.set):
            recipe.max_steps = -(-PASSES * self.forget * len(ATTRIBUTES) // recipe.per_device_train_batch_size)
        name = f"quickstart-{self.forget}-of-{self.people}-{options.epochs}"
        size = {"people": self.people, "epochs": options.epochs}
        world = quickstart_world(name, seed, self.forget, options.output_dir / "worlds", recipe, **size)
        seconds = time.process_time() - start
        print(f"{world.name}: its models were there after {seconds:.0f} processor seconds", flush=True)
        world.rows["holdout"] = world.splits["holdout"]
        world.splits["retain"] = spread(world.splits["retain"], options.utility_rows)
        return world

    def runs(self, seed: int) -> Runs:
        """The runs on the world of a seed."""
        if seed not in self.runs_of:
            options = self.options
            runs = Runs(self.world(seed), options.output_dir / "runs", ("relearning",), options.eval_batch_size)
            before, gold = (runs.measured(role, seed)["metrics"] for role in ("before", "gold"))
            known = [before["forget_probability"], before["retain_probability"], gold["retain_probability"]]
            if min(known) < KNOWN:
                print(
                    f"{runs.world.name}: a model knows only {min(known):.2f}. Train it for more --epochs.", flush=True
                )
            self.runs_of[seed] = runs
        return self.runs_of[seed]

    def run(self, name: str, seed: int, **more: Any) -> dict[str, Any]:
        """Make one run, or read it."""
        method, options = METHODS[name], METHODS[name].options | more
        result = replace(self.runs(seed), stopping=method.stopping).run(method.trainer, options, seed)
        print(f"{result['world']}: {name} {more}: {summary([result], columns=COLUMNS)}", flush=True)
        return result

    def tables(self) -> dict[str, dict[str, dict[str, str]]]:
        """The table of the methods and, if LoRA is among them, that of its rates."""
        options = self.options
        names = [name for name in options.methods if name != "lora"]
        made = {name: [self.run(name, seed) for seed in options.seeds] for name in names}
        more = {}
        if "lora" in options.methods:
            swept = {rate: self.run("lora", options.tuning_seed, learning_rate=rate) for rate in RATES}
            best = max(swept, key=lambda rate: merit(swept[rate], "lora"))
            made[f"lora, {best:g}"] = [self.run("lora", seed, learning_rate=best) for seed in options.seeds]
            rates = {f"lora, {rate:g}": summary([result], columns=COLUMNS) for rate, result in swept.items()}
            more[f"{self.name}, LoRA's rates on seed {options.tuning_seed}"] = rates
        return {self.name: table(made)} | more


def table(made: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, str]]:
    """One row per method, below those of the models before unlearning and of gold."""
    first: Sequence[dict[str, Any]] = next(iter(made.values()))
    others = {name: summary(first, role, COLUMNS) for name, role in (("before", "original"), ("gold", "gold"))}
    return others | {name: summary(results, columns=COLUMNS) for name, results in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=[100, 200], help="how many a model knows")
    parser.add_argument("--forget", type=int, nargs="+", default=[5, 20], help="how many of each are forgotten")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tuning_seed", type=int, default=TUNING_SEED, help="where LoRA's rate is chosen")
    parser.add_argument("--epochs", type=int, default=14, help="how often a model reads what it is to know")
    parser.add_argument("--set", nargs="+", default=[], help="options that override the recipe's: max_steps=40")
    parser.add_argument("--utility_rows", type=int, default=160, help="most rows of kept people to evaluate")
    parser.add_argument("--eval_batch_size", type=int, default=64)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/larger_requests"))
    options = parser.parse_args()
    if len(options.people) != len(options.forget):
        parser.error("name as many numbers after --forget as after --people")

    tables = {}
    for people, forget in zip(options.people, options.forget, strict=True):
        tables |= Request(people, forget, options).tables()
        # Each size takes a while: what is there can be read.
        write_json(options.output_dir / "report.json", tables)
        documents = [
            line for name, rows in tables.items() for line in (f"## {name}", "", *markdown(rows, COLUMNS), "")
        ]
        (options.output_dir / "tables.md").write_text("\n".join(documents), encoding="utf-8")
    for name, rows in tables.items():
        print_table(name, rows, list(COLUMNS))


if __name__ == "__main__":
    main()
