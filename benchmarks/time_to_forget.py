"""
How long it takes to forget: steps and seconds until TOFU authors are forgotten, by R2F and by its peers.

    python benchmarks/time_to_forget.py --data DIR [--forget forget01] [--authors 20] [--passes 1] [--peers lora]

SmolLM2-135M is fine-tuned on the last `--authors` authors of TOFU, and forgets the last of them. A run is checked
every `--every` steps. It has arrived at the first check at which forget quality is at least 0.05, and P(retain) and
utility are at least 95% of what they were before. A run that does not arrive counts as its whole budget.

Utility is here the plain mean of nine numbers. TOFU takes their harmonic mean. This model answers next to no question
about real authors, before as well as after: the harmonic mean would be zero throughout, and 95% of zero are always
kept. Utility is measured on at most `--utility_rows` rows per split.

All runs have the losses, the forget batches and the schedule of recipes/tofu. Their budget is `--passes`
passes over the forget set. LoRA and full AdamW do not protect the retain set, and have three retain examples per
forget example instead of one. R2F takes its own default learning rate. For each peer several rates are swept on the
first seed, and the best one is used on all seeds. The best one arrives first; if none arrives, it ends with the
highest forget quality among those that kept utility. The best peer is the quickest of those that arrive on the most
seeds. With `--tune` the model forgets the first of its authors instead: choices are made on these.

Forget quality compares truth ratios R with gold's. Two figures say why it is low. `log_ratio_shift` is the mean of log
R less that of gold's; it is below zero if the model prefers the true answer more than gold does. `log_ratio_spread` is
the standard deviation of log R, in units of gold's.

Seconds are those until the first step, references included, plus the number of steps times the median seconds per
step. They are measured at the end on the same batches, without checks.

Finished runs are kept in outputs/time_to_forget and loaded again, so that the command goes on where it was
interrupted. Delete them when the code has changed. Several shares of the runs can be made at once (`--share 0/4`):
once to sweep, and once more for the other seeds. Writes outputs/time_to_forget.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerControl, TrainerState

from r2f_hf import R2FConfig, metrics
from r2f_hf.cli.recipes import parse_recipe
from r2f_hf.cli.unlearn import UnlearnArguments
from r2f_hf.data.loading import load_rows
from r2f_hf.data.rows import Row, content_hash
from r2f_hf.evaluation.suites.base import Settings
from r2f_hf.evaluation.suites.tofu import UTILITY_SPLITS, split_statistics, summarise
from r2f_hf.models.loading import QuantisedModelArguments
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.finetune import finetuned_folder
from shared.peers import RUNS
from shared.precision import computes_bf16
from shared.pypi_models import building, smollm2_folder
from tofu_smollm2 import RECIPE, load_data


SWEEP = {
    "lora": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    "full": (1.5e-5, 3e-5, 6e-5, 1.2e-4),
    "exact": (0.15, 0.3, 0.6, 1.2),
}
FORGOTTEN, KEPT = 0.05, 0.95
KEPT_METRICS = ("retain_probability", "utility")
LOG_RATIO = ("log_ratio_shift", "log_ratio_spread")
FORGET_METRICS = ("forget_quality", "forget_probability", "truth_ratio", *LOG_RATIO)
UTILITY = ("probability", "rouge_l_recall", "truth_ratio")
# By the name of a model the rows that it is fine-tuned on.
MODELS = {"before": "train", "gold": "retain"}
# Steps that are timed, after two that are not.
TIMED_STEPS = 10


class Arrival(TrainerCallback):
    """Checks a run every `every` steps, and ends it once it has arrived. Without `every` it only checks the end."""

    def __init__(self, check: Any, every: int | None):
        self.check, self.every = check, every
        self.seen: list[dict[str, float]] = []
        self.arrived: int | None = None

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        last = state.global_step == state.max_steps
        if self.every is not None and (last or state.global_step % self.every == 0):
            self.look(state, last)
            if self.arrived is not None:
                control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        # Without `every` a stopping rule may end the run at any step.
        if self.every is None:
            self.look(state, last=True)

    def look(self, state: TrainerState, last: bool) -> None:
        figures, arrived = self.check(last)
        self.seen.append({"step": state.global_step, **figures})
        if arrived:
            self.arrived = state.global_step


class Clock(TrainerCallback):
    """Measures the seconds until the first step, and those of each step."""

    def __init__(self) -> None:
        self.start = 0.0
        self.until_first: float | None = None
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs) -> None:
        self.begin = now()
        if self.until_first is None:
            self.until_first = self.begin - self.start

    def on_step_end(self, *args, **kwargs) -> None:
        self.seconds.append(now() - self.begin)


def now() -> float:
    """The time in seconds, after the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def tuning_data(folder: Path, forget: str, authors: int) -> dict[str, Any]:
    """As [`load_data`], with the same number of authors to forget, which are the first of the model's."""
    data = load_data(folder, forget, authors)
    count = len(data["forget"])
    perturbed = {row["question"]: row for row in load_rows(str(folder / "forget10_perturbed.json"))}
    rows = data["train"][:count]
    missing = [row["question"] for row in rows if row["question"] not in perturbed]
    if missing:
        raise SystemExit("--tune needs the wrong answers of TOFU's forget10: use 20 --authors or fewer.")
    retain = data["train"][count:]
    kept = [perturbed[row["question"]] for row in retain]
    data["splits"] |= {"forget": [perturbed[row["question"]] for row in rows], "retain": kept[:: len(kept) // 60]}
    return data | {"forget": rows, "retain": retain}


def spread(rows: list[Row], count: int) -> list[Row]:
    """At most `count` of the rows, evenly spaced."""
    return rows[:: -(-len(rows) // count)]


def without_views(rows: list[Row]) -> list[Row]:
    """The rows without their paraphrased questions, which no metric here uses."""
    return [{name: value for name, value in row.items() if name != "paraphrased_question"} for row in rows]


def log_ratios(statistics: dict[str, Any]) -> np.ndarray:
    """Logarithm of each row's truth ratio R. Forget quality compares the distribution of R with gold's."""
    truth_ratio = metrics.load("truth_ratio")
    return np.log(truth_ratio.compute(predictions=statistics["paraphrase"], wrong=statistics["wrong"])["rows"])


class Benchmark:
    """
    The models, the data and the runs of one setting.

    Args:
        base (`Path`):
            The model that is fine-tuned.
        data (`dict[str, Any]`):
            See [`load_data`].
        options (`argparse.Namespace`):
            See [`add_arguments`].
        passes (`int`, *optional*):
            Passes over the forget set that a run may take. Without it a run may take the recipe's steps, or those of
            one pass if they are more.
        every (`int`, *optional*):
            Steps between checks, which end a run. Without it a run ends where the recipe ends it, by the stopping rule
            or after its last step, and is checked there.
    """

    def __init__(
        self, base: Path, data: dict[str, Any], options: argparse.Namespace, passes: int | None, every: int | None
    ):
        self.options, self.data, self.passes, self.every = options, data, passes, every
        self.datasets = ("forget", "retain", "holdout") if every is None else ("forget", "retain")
        self.folders = {name: finetuned_folder(base, self.data[rows]) for name, rows in MODELS.items()}
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        flags = ["--config", str(RECIPE), "--bf16", str(computes_bf16())]
        flags += ["--use_cpu"] * (self.device == "cpu")
        flags += [f"--{option}" for option in options.set]
        _, self.recipe, _ = parse_recipe("unlearn", (UnlearnArguments, R2FConfig, QuantisedModelArguments), flags)
        splits = {name: without_views(rows) for name, rows in self.data["splits"].items()}
        self.others = {
            name: spread(rows, options.utility_rows) for name, rows in splits.items() if name in UTILITY_SPLITS
        }
        self.forget = {"forget": splits["forget"]}
        # Runs are kept under a hash of all that they depend on, except the package's code.
        models = [folder.name for folder in self.folders.values()]
        settings = [self.recipe.to_sanitized_dict(), self.data, self.datasets, models]
        settings += [self.budget, every, options.utility_rows, FORGET_METRICS]
        self.folder = options.output.with_suffix("") / content_hash([SWEEP, *settings])

    def load(self, name: str) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(self.folders[name]).to(self.device)

    def measure(self, model: torch.nn.Module, splits: dict[str, list[Row]]) -> dict[str, Any]:
        """Statistics of the rows of some splits, by split."""
        training, statistics = model.training, {}
        model.eval()
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.recipe.bf16):
            for name, rows in splits.items():
                # Forget quality does not use generated answers.
                tokens = 1 if name == "forget" else 64
                settings = Settings(self.options.eval_batch_size, tokens)
                statistics[name] = split_statistics(model, self.tokenizer, name, rows, settings)
        model.train(training)
        return statistics

    @cached_property
    def gold(self) -> dict[str, Any]:
        """The gold model's statistics of the forget set, which forget quality compares with."""
        return self.measured_once("gold", self.forget)

    @cached_property
    def before(self) -> dict[str, float]:
        """Metrics of the model before unlearning."""
        return self.summarise(self.measured_once("before", self.forget | self.others))

    def measured_once(self, name: str, splits: dict[str, list[Row]]) -> dict[str, Any]:
        """Statistics of a model that no run changes. They are kept in the folder of the runs."""
        file = self.folder / f"{name}.json"
        with building(file):
            if not file.is_file():
                write_json(file, self.measure(self.load(name), splits))
        return json.loads(file.read_text())

    def summarise(self, statistics: dict[str, Any]) -> dict[str, float]:
        """Metrics of the splits that were measured, with `utility` if all were."""
        figures = summarise(statistics, self.gold)
        if self.others.keys() <= statistics.keys():
            figures["utility"] = fmean(figures[f"{split}_{name}"] for split in self.others for name in UTILITY)
        ratios, gold = log_ratios(statistics["forget"]), log_ratios(self.gold["forget"])
        return figures | {
            "log_ratio_shift": ratios.mean() - gold.mean(),
            "log_ratio_spread": ratios.std() / gold.std(),
        }

    def check(self, model: torch.nn.Module, last: bool) -> tuple[dict[str, float], bool]:
        """The metrics of a run, and whether it has arrived. Once it cannot have arrived, the rest is not measured."""
        statistics = self.measure(model, self.forget)
        figures = self.summarise(statistics)
        arrived = figures["forget_quality"] >= FORGOTTEN
        retain = {"retain": self.others["retain"]}
        for splits in (retain, {name: rows for name, rows in self.others.items() if name not in retain}):
            if arrived or last:
                statistics |= self.measure(model, splits)
                figures = self.summarise(statistics)
                arrived = arrived and self.kept(figures)
        return {name: figures[name] for name in (*FORGET_METRICS, *KEPT_METRICS) if name in figures}, arrived

    def kept(self, figures: dict[str, float]) -> bool:
        """Whether P(retain) and utility, as far as they were measured, are still high enough."""
        return all(figures[name] >= KEPT * self.before[name] for name in KEPT_METRICS if name in figures)

    def trainer(self, run: str, rate: float, seed: int, steps: int, scratch: str, callback: Any) -> Any:
        args = replace(
            self.recipe,
            output_dir=scratch,
            learning_rate=rate,
            seed=seed,
            max_steps=steps,
            disable_tqdm=True,
            keep_original=False,
        )
        rows = {f"{name}_dataset": self.data[name] for name in self.datasets}
        return RUNS[run](self.load("before"), args, processing_class=self.tokenizer, callbacks=[callback], **rows)

    @property
    def budget(self) -> int:
        """The most steps that a run may take."""
        steps = -(-(self.passes or 1) * len(self.data["forget"]) // self.recipe.per_device_train_batch_size)
        return steps if self.passes else max(self.recipe.max_steps, steps)

    def file(self, run: str, rate: float, seed: int) -> Path:
        """The file that a run is kept in."""
        return self.folder / f"{run}-{rate:g}-{seed}.json"

    def run(self, run: str, rate: float, seed: int) -> dict[str, Any]:
        """Make one run, or load it if it was made before."""
        file = self.file(run, rate, seed)
        if file.is_file():
            return json.loads(file.read_text())
        # These are measured first, so that there are never two models in memory.
        _ = self.gold, self.before
        with tempfile.TemporaryDirectory() as scratch:
            arrival = Arrival(lambda last: self.check(trainer.model, last), self.every)
            trainer = self.trainer(run, rate, seed, self.budget, scratch, arrival)
            trainer.train()
        last = arrival.seen[-1]
        result = {
            "run": run,
            "learning_rate": rate,
            "seed": seed,
            "arrived": arrival.arrived is not None,
            "steps": trainer.state.global_step,
            "stop_reason": trainer.stop_reason,
            "kept": self.kept(last),
            **{name: last[name] for name in (*FORGET_METRICS, *KEPT_METRICS)},
            "way": arrival.seen,
        }
        write_json(file, result)
        return result

    def seconds_of(self, run: str, rate: float) -> tuple[float, float]:
        """Seconds until a run's first step, and seconds per step."""
        with tempfile.TemporaryDirectory() as scratch:
            clock = Clock()
            trainer = self.trainer(run, rate, 0, TIMED_STEPS + 2, scratch, clock)
            clock.start = now()
            trainer.train()
        return clock.until_first, median(clock.seconds[2:])


def best(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The run that arrived first; if none did, the one with the highest forget quality of those that kept utility."""
    return min(results, key=lambda run: (not run["arrived"], run["steps"], not run["kept"], -run["forget_quality"]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that a [`Benchmark`] needs."""
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's JSON-lines files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--utility_rows", type=int, default=30)
    parser.add_argument("--eval_batch_size", type=int, default=64)
    parser.add_argument(
        "--set", nargs="+", default=[], help="options that override the recipe's, without dashes: learning_rate=0.3"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--forget", default="forget01", choices=("forget01", "forget05", "forget10"))
    parser.add_argument("--authors", type=int, default=20, help="authors that the model is fine-tuned on")
    parser.add_argument("--tune", action="store_true", help="forget the model's first authors instead of its last")
    parser.add_argument("--peers", nargs="+", choices=list(SWEEP), default=list(SWEEP), help="what to compare with")
    parser.add_argument("--passes", type=int, default=1, help="passes over the forget set")
    parser.add_argument("--every", type=int, default=2, help="steps between checks")
    parser.add_argument(
        "--share", default="0/1", help="make only every n-th run, without a report: 2/4 is the third share of four"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/time_to_forget.json"))
    options = parser.parse_args()
    first = options.seeds[0]
    part, parts = map(int, options.share.split("/"))

    data = (tuning_data if options.tune else load_data)(options.data, options.forget, options.authors)
    benchmark = Benchmark(smollm2_folder(), data, options, options.passes, options.every)
    default = benchmark.recipe.learning_rate
    swept = [(run, rate, first) for run in options.peers for rate in SWEEP[run]]
    runs = swept + [("r2f", default, seed) for seed in options.seeds]
    for settings in runs[part::parts]:
        benchmark.run(*settings)
    if not all(benchmark.file(*settings).is_file() for settings in runs):
        # The best rates are only known once all shares have swept theirs.
        return
    made = [benchmark.run(*settings) for settings in runs]
    chosen = {run: best([result for result in made if result["run"] == run])["learning_rate"] for run in options.peers}
    chosen["r2f"] = default
    repeated = [(run, rate, seed) for run, rate in chosen.items() for seed in options.seeds]
    for settings in repeated[part::parts]:
        benchmark.run(*settings)
    if parts > 1:
        return
    rows = [benchmark.run(*settings) for settings in repeated]

    seconds = {run: benchmark.seconds_of(run, rate) for run, rate in chosen.items()}
    for result in made + rows:
        until_first, per_step = seconds[result["run"]]
        result["seconds"] = until_first + result["steps"] * per_step
    means = {
        run: {
            "learning_rate": chosen[run],
            "arrived": sum(result["arrived"] for result in rows if result["run"] == run),
            **{name: fmean(result[name] for result in rows if result["run"] == run) for name in ("steps", "seconds")},
            **dict(zip(("seconds_until_first", "seconds_a_step"), seconds[run], strict=True)),
        }
        for run in chosen
    }
    # A peer that never arrives must not be the best for reaching the end of its budget soonest.
    most = max(means[run]["arrived"] for run in options.peers)
    best_peers = [run for run in options.peers if means[run]["arrived"] == most]
    peer = {name: min(means[run][name] for run in best_peers) for name in ("steps", "seconds")}
    ratios = {f"ratio_best_peer{'_steps' * (name == 'steps')}": means["r2f"][name] / peer[name] for name in peer}
    report = {
        "before": benchmark.before,
        "budget": benchmark.budget,
        "means": means,
        **ratios,
        "runs": rows,
        "sweep": made,
    }
    write_json(options.output, report)
    # The best runs of the first seed are in both lists.
    table = {f"{r['run']} lr {r['learning_rate']:g} seed {r['seed']}": r for r in made + rows}
    columns = ("arrived", "steps", "seconds", *FORGET_METRICS, *KEPT_METRICS)
    print_table("Runs", table, columns)
    print_table(f"Until forgotten, in at most {benchmark.budget} steps", means, list(means["r2f"]))
    print(*(f"{name} {value:.2f}" for name, value in ratios.items()))
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
