"""
What three of the four questions say on the way of one run of the recipe `lasting`, from its deepest point on.

    python benchmarks/on_the_way.py --data DIR [--setting smollm2-10] [--seed 5] [--every 4]

The run has the options of recipes/lasting, and those that `--set` names. From the step on at which tokens are lifted,
the model is measured every `--every` steps, and at the end: P of the forget, the holdout and the retain set, forget
quality, and the loss attack. PrivLeak compares this attack on the model with the same attack on gold. `log R` is the
logarithm of the truth ratio R of a row: the wrong answers' probability over that of the right answer in other words.

By default 200 rows are forgotten, ten authors of twenty, with batches of 16 and a higher learning rate than the
recipe's. Without `--seed` the run has the seed 5. Prints a table, and writes report.json after each measurement.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from transformers import PreTrainedModel, TrainerCallback

from lasting import R2F_RUNS
from r2f_hf.evaluation.suites.audit import forget_quality, truth_ratio
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from r2f_hf.scoring import score_completions
from shared.lasting_worlds import SETTINGS, World, make_world
from shared.peers import RUNS
from time_to_forget import spread


RETAIN_ROWS = 60
MANY = {
    "per_device_train_batch_size": 16,
    "learning_rate": 1.1,
    "max_steps": 80,
    "stop_check_steps": 8,
    "forget_objective_kwargs": {"lift_after": 26},
}


def scored(world: World, model: PreTrainedModel, batch_size: int) -> dict[str, Any]:
    """Mean log-probability per token of all answers: the suite's statistics, without what a model writes itself."""
    forget = world.splits["forget"]
    pairs = {
        "answer": [(row["question"], row["answer"]) for row in forget],
        "paraphrase": [(row["question"], row.get("paraphrased_answer") or row["answer"]) for row in forget],
        "wrong": [(row["question"], wrong) for row in forget for wrong in row["perturbed_answer"]],
    }
    for name, rows in (("holdout", world.splits["holdout"]), ("retain", spread(world.splits["retain"], RETAIN_ROWS))):
        pairs[name] = [(row["question"], row["answer"]) for row in rows]
    questions, answers = zip(*(pair for of_name in pairs.values() for pair in of_name), strict=True)
    with torch.no_grad():
        scores = score_completions(model, world.tokenizer, questions, answers, batch_size).tolist()
    found: dict[str, Any] = {}
    for name, of_name in pairs.items():
        found[name], scores = scores[: len(of_name)], scores[len(of_name) :]
    # A list per row. All rows have the same number of wrong answers.
    found["wrong"] = np.reshape(found["wrong"], (len(forget), -1)).tolist()
    return found


def auc(found: dict[str, Any]) -> float:
    """How often a forget row is less likely than a holdout row. Of gold it is what PrivLeak compares with."""
    count = len(found["answer"]) * len(found["holdout"])
    return float(1 - scipy.stats.mannwhitneyu(found["answer"], found["holdout"]).statistic / count)


def line(step: int, found: dict[str, Any], gold: dict[str, Any]) -> dict[str, float]:
    """One row of the table."""
    log_ratio, of_gold = (np.log(truth_ratio(each)["rows"]) for each in (found, gold))
    return {
        "step": step,
        **{f"P({name})": float(np.exp(found[key]).mean()) for name, key in (("forget", "answer"), ("holdout",) * 2)},
        "P(retain)": float(np.exp(found["retain"]).mean()),
        "forget quality": forget_quality(found, gold)["forget_quality"],
        "PrivLeak": 100 * (auc(found) - auc(gold)) / auc(gold),
        "mean of log R, less gold's": float(log_ratio.mean() - of_gold.mean()),
        "its standard deviation / gold's": float(log_ratio.std() / of_gold.std()),
    }


class Measuring(TrainerCallback):
    """Measures the model on the way."""

    def __init__(self, world: World, gold: dict[str, Any], options: argparse.Namespace, start: int):
        self.world, self.gold, self.options, self.start = world, gold, options, start
        self.rows: list[dict[str, float]] = []

    def measure(self, step: int, model: PreTrainedModel) -> None:
        """Add a row, and write all."""
        training = model.training
        self.rows.append(line(step, scored(self.world, model.eval(), self.options.eval_batch_size), self.gold))
        model.train(training)
        print(self.rows[-1], flush=True)
        write_json(self.options.output_dir / "report.json", self.rows)

    def on_step_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        late = state.global_step - self.start
        if late >= 0 and late % self.options.every == 0:
            self.measure(state.global_step, model)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with TOFU's JSON-lines files; the quickstart needs none")
    parser.add_argument("--setting", choices=SETTINGS, default="smollm2-10")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--set", type=json.loads, default=MANY, help="in JSON, in place of those for many rows")
    parser.add_argument("--eval_batch_size", type=int, default=64)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/on_the_way"))
    options = parser.parse_args(argv)

    world = make_world(options.setting, options.seed, options.output_dir / "worlds", options.data)
    settings = R2F_RUNS["r2f-ignorance"] | options.set
    gold = scored(world, world.load("gold"), options.eval_batch_size)
    start = settings["forget_objective_kwargs"]["lift_after"]
    measuring = Measuring(world, gold, options, start)
    sets = world.rows | {"holdout": list(world.splits["holdout"])}
    with tempfile.TemporaryDirectory() as scratch:
        args = replace(world.recipe, output_dir=scratch, seed=options.seed, keep_original=False, **settings)
        trainer = RUNS["r2f"](
            world.load("before"),
            args,
            processing_class=world.tokenizer,
            callbacks=[measuring],
            **{f"{name}_dataset": rows for name, rows in sets.items()},
        )
        trainer.train()
    last = trainer.state.global_step
    if not measuring.rows or measuring.rows[-1]["step"] != last:
        measuring.measure(last, trainer.model)
    rows = {"gold": line(0, gold, gold)} | {f"step {row['step']}": row for row in measuring.rows}
    print_table(world.name, rows, list(rows["gold"]))
    print(f"{trainer.stop_reason or 'All steps were taken.'} The report is {options.output_dir / 'report.json'}.")


if __name__ == "__main__":
    main()
