"""
Forgetting that lasts and that nobody can see: R2F and its peers, judged by four questions.

    python benchmarks/lasting.py --data DIR [--settings quickstart-4 smollm2-2] [--methods r2f lora] [--seeds 4 5 6]
    python benchmarks/lasting.py --quick

The quickstart's model forgets 1, 2, 4 or 10 of the twenty people that it knows. Each seed is another world and
another model. SmolLM2-135M knows the last twenty authors of TOFU and forgets 1, 2 or 10 of them. Gemma 3 270M forgets
2 of the same twenty. Each seed forgets others, except with 10 authors. All seeds have the same model before, and the
same holdout rows. Seed 0 forgets the last authors. `r2f-ignorance` was partly chosen on these.

Runs have the batches, the step budget and the stopping rule of the setting's recipe in `recipes/`. `--all_steps`
leaves the stopping rule out. Only runs with `ignorance` in their name differ: they take at most 60 steps and end at
the holdout's level, also with `--all_steps`.

`r2f` is R2F with its defaults. `r2f-npo`, `r2f-tnpo` (beta 0.5) and `r2f-wga` have another forget objective, and those
with `-damped` also `spectrum_damping=0.5`. `r2f-ignorance` has the options of recipes/lasting/unlearn.yaml. All take
R2F's default learning rate. The peers are LoRA with AdamW, full AdamW, and the exact gradient under R2F's update rule.
A peer without a suffix has the objective and the learning rate that are best for it, among three objectives and at
least four rates. The best have the highest score. They are chosen where no table looks: on the quickstart's seed 3,
and on the first of the model's twenty authors. Those with `-open` are chosen by the worst of the other three
questions, without whether one can tell that it was there. Those with `-ignorance` have the objective, the rank, the
steps and the end of `r2f-ignorance`, and the best of the rates.

There is one table per setting: the median over seeds, and the range in parentheses. Columns with `kept` are parts of
what was there before. Columns with `comeback` say what an attack brings back: 0 is gold's level, and 1 is as if
nothing had been forgotten. `comeback` itself is the mean of the three attacks that relearn a tenth of the forget rows:
all weights at 2e-5 and at 1e-4, and LoRA at 1e-3. The score is that of the worst question, see
`shared/four_questions.py`. The picture has a point per run: what is kept, and what comes back.

`--quick` has the quickstart with 4 people only, the methods `r2f`, `r2f-ignorance`, `lora` and `exact`, and no attack
that samples answers.

Finished runs are kept in the output folder and read again, so that the command goes on where it was interrupted.
Delete the folder when the code has changed. Several shares of the runs can be made at once (`--share 0/2`): once to
choose for the peers, and once more for the runs of the tables. Writes report.json, tables.md and lasting.svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.four_questions import QUESTIONS, answers, comeback, kept, score
from shared.lasting_picture import draw
from shared.lasting_runs import ATTACKED, ATTACKS, METRICS, Runs, figures
from shared.lasting_worlds import SETTINGS, TUNING_SEED, make_world
from time_to_forget import SWEEP as TOFU_SWEEP


OBJECTIVES: dict[str, dict[str, Any]] = {"npo": {}, "tnpo": {"beta": 0.5}, "wga": {}}
SWEEP = {
    "quickstart": {
        "lora": (1e-3, 2e-3, 4e-3, 8e-3),
        "full": (2.5e-4, 5e-4, 1e-3, 2e-3),
        "exact": (0.0375, 0.075, 0.15, 0.3, 0.6),
    },
    "tofu": TOFU_SWEEP,
}
PEERS = ("lora", "full", "exact")
OPEN, IGNORANCE = "-open", "-ignorance"
SCORES = {question: f"score, {question}" for question in QUESTIONS}
COLUMNS = (*METRICS, "P(retain), kept", "utility, kept", *ATTACKED)
COLUMNS += ("kept", "comeback", *SCORES.values(), "score", "steps")
QUICK_SETTINGS, QUICK_ATTACKS = ("quickstart-4",), ("relearning", "quantisation", "pruning")
QUICK_METHODS = ("r2f", "r2f-ignorance", "lora", "exact")


class Job(NamedTuple):
    """One run: its trainer, the options that differ from the recipe's, and its seed."""

    trainer: str
    options: dict[str, Any]
    seed: int


def with_objective(name: str, **more: Any) -> dict[str, Any]:
    """Options of a run with a forget objective."""
    return {"forget_objective": name, "forget_objective_kwargs": OBJECTIVES[name], **more}


# R2F's runs by name. Peers are tuned first.
R2F_RUNS: dict[str, dict[str, Any]] = {"r2f": {}}
for objective in OBJECTIVES:
    R2F_RUNS[f"r2f-{objective}"] = with_objective(objective)
    R2F_RUNS[f"r2f-{objective}-damped"] = with_objective(objective, spectrum_damping=0.5)
# The options of recipes/lasting/unlearn.yaml. The run ends at the holdout's level.
R2F_RUNS["r2f-ignorance"] = {
    "forget_objective": "ignorance",
    "forget_objective_kwargs": {"lift_after": 21},
    "spectrum_damping": 0.5,
    "simulated_relearning": 0.06,
    "rank": 48,
    "max_steps": 60,
    "stop_check_steps": 1,
}
# Its options that peers can have too.
SHARED = ("forget_objective", "forget_objective_kwargs", "rank", "max_steps", "stop_check_steps")
METHODS = (*R2F_RUNS, *PEERS, *(peer + suffix for suffix in (OPEN, IGNORANCE) for peer in PEERS))


def trainer_of(method: str) -> str:
    """The trainer of a method, see [`RUNS`](`shared.peers`)."""
    return "r2f" if method in R2F_RUNS else method.removesuffix(OPEN).removesuffix(IGNORANCE)


def sweep(setting: str, method: str) -> list[Job]:
    """The runs that a peer's objective and learning rate are chosen from."""
    peer = trainer_of(method)
    rates = SWEEP["quickstart" if setting.startswith("quickstart") else "tofu"][peer]
    options = [with_objective(name) for name in OBJECTIVES]
    if method.endswith(IGNORANCE):
        options = [{name: R2F_RUNS["r2f-ignorance"][name] for name in SHARED}]
    return [Job(peer, each | {"learning_rate": rate}, TUNING_SEED) for each in options for rate in rates]


def merit(result: Mapping[str, Any], method: str) -> tuple[float, float]:
    """What the best run of a sweep has most of: its worst question, and where that is equal the mean over all."""
    found = answers(result["figures"])
    judged = [value for name, value in found.items() if name != "hidden" or not method.endswith(OPEN)]
    return min(judged), fmean(found.values())


def of_this_share(jobs: Sequence[Job], share: str) -> Sequence[Job]:
    """Every n-th job: "2/4" is the third share of four."""
    part, parts = map(int, share.split("/"))
    return jobs[part::parts]


class Setting:
    """
    The runs of one setting.

    Args:
        name (`str`):
            One of [`SETTINGS`].
        options (`argparse.Namespace`):
            The command's options.
    """

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.options = name, options
        self.runs_of: dict[int, Runs] = {}

    def runs(self, seed: int) -> Runs:
        """The runs on the world of a seed."""
        options = self.options
        if seed not in self.runs_of:
            tuning = seed == TUNING_SEED
            folder = options.output_dir
            sizes = (options.utility_rows, options.set)
            world = make_world(self.name, seed, folder / "worlds", options.data, tuning, *sizes)
            # Choices are made by the score, which needs only one of the attacks.
            attacks = ("relearning",) if tuning else options.attacks
            self.runs_of[seed] = Runs(world, folder / "runs", attacks, options.eval_batch_size, not options.all_steps)
        return self.runs_of[seed]

    def finished(self, job: Job) -> bool:
        """Whether a run is there."""
        return self.runs(job.seed).file(*job).is_file()

    def run(self, job: Job) -> dict[str, Any]:
        """Make one run, or read it."""
        new = not self.finished(job)
        result = self.runs(job.seed).run(*job)
        if new:
            print(f"{result['world']}: {job.trainer} {job.options}: score {score(result['figures']):.2f}", flush=True)
        return result

    def chosen(self, method: str) -> dict[str, Any]:
        """The options of a peer that did best where it was tuned."""
        swept = map(self.run, sweep(self.name, method))
        return max(swept, key=lambda result: merit(result, method))["options"]

    def results(self) -> dict[str, list[dict[str, Any]]] | None:
        """The runs of the table by method; `None` if other shares have to finish first."""
        options = self.options
        peers = [method for method in options.methods if method not in R2F_RUNS]
        # Those with `-open` choose among the same runs.
        swept = [
            job for peer in dict.fromkeys(peer.removesuffix(OPEN) for peer in peers) for job in sweep(self.name, peer)
        ]
        for job in of_this_share(swept, options.share):
            self.run(job)
        if not all(map(self.finished, swept)):
            return None
        chosen = {
            method: R2F_RUNS[method] if method in R2F_RUNS else self.chosen(method) for method in options.methods
        }
        jobs = {
            method: [Job(trainer_of(method), chosen[method], seed) for seed in options.seeds]
            for method in options.methods
        }
        every = [job for of_method in jobs.values() for job in of_method]
        for job in of_this_share(every, options.share):
            self.run(job)
        if not all(map(self.finished, every)):
            return None
        return {method: list(map(self.run, of_method)) for method, of_method in jobs.items()}


def all_figures(result: Mapping[str, Any], role: str = "unlearned") -> dict[str, float]:
    """The columns of the table for one run, or for a model that it is compared with."""
    found = figures(result, role)
    scores = {SCORES[question]: value for question, value in answers(found).items()}
    more = {"kept": kept(found), "comeback": comeback(found), **scores, "score": score(found)}
    more["P(retain)"] = result["metrics"][role]["retain_probability"]
    # Runs of older versions lack the second.
    spent = {"steps": "steps", "processor seconds": "processor_seconds"} if role == "unlearned" else {}
    return found | more | {column: result[name] for column, name in spent.items() if name in result}


def summary(
    results: Sequence[dict[str, Any]], role: str = "unlearned", columns: Sequence[str] = COLUMNS
) -> dict[str, str]:
    """By column the median over seeds, and the range."""
    rows = [all_figures(result, role) for result in results]
    cells = {}
    for column in columns:
        values = [row[column] for row in rows if column in row]
        if values:
            middle, low, high = (f"{value:.3g}" for value in (median(values), min(values), max(values)))
            cells[column] = middle if low == high else f"{middle} ({low} to {high})"
    return cells


def table(results: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, str]]:
    """One row per method, below those of the models before unlearning and of gold."""
    first = next(iter(results.values()))
    rows = {"before": summary(first, "original"), "gold": summary(first, "gold")}
    return rows | {label(method, made[0]): summary(made) for method, made in results.items()}


def label(method: str, result: Mapping[str, Any]) -> str:
    """The name of a method, and of what was chosen for a peer."""
    if method in R2F_RUNS:
        return method
    return f"{method} ({result['options']['forget_objective']}, {result['options']['learning_rate']:g})"


def markdown(rows: Mapping[str, Mapping[str, str]], columns: Sequence[str] = COLUMNS) -> Iterator[str]:
    """A table for a document: the columns go down, and the methods across."""
    yield f"| | {' | '.join(rows)} |"
    yield "|---" * (len(rows) + 1) + "|"
    for column in columns:
        if any(column in row for row in rows.values()):
            yield f"| {column} | {' | '.join(row.get(column, '') for row in rows.values())} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with TOFU's JSON-lines files; the quickstart needs none")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="all by default, four with --quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6], help=f"{TUNING_SEED} is for tuning")
    parser.add_argument(
        "--quick", action="store_true", help="the quickstart with 4 people, four methods, and no sampling"
    )
    parser.add_argument("--all_steps", action="store_true", help="without the recipe's stopping rule")
    parser.add_argument("--share", default="0/1", help="make only every n-th run: 2/4 is the third share of four")
    parser.add_argument("--set", nargs="+", default=[], help="options that override the recipe's: max_steps=40")
    parser.add_argument("--utility_rows", type=int, default=30, help="most rows of a split of TOFU for utility")
    parser.add_argument("--eval_batch_size", type=int, default=64)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/lasting"))
    parser.add_argument("--picture", type=Path, help="where the picture goes; defaults to the output folder")
    options = parser.parse_args()
    if TUNING_SEED in options.seeds:
        parser.error(f"seed {TUNING_SEED} is the one that peers are tuned on: leave it out")
    options.settings = options.settings or (QUICK_SETTINGS if options.quick else SETTINGS)
    options.methods = options.methods or (QUICK_METHODS if options.quick else METHODS)
    options.attacks = QUICK_ATTACKS if options.quick else ATTACKS

    made = {name: Setting(name, options).results() for name in options.settings}
    if any(results is None for results in made.values()):
        print("Other shares have to finish first. Then run the command again.")
        return
    write_json(options.output_dir / "report.json", made)
    documents = []
    for name, results in made.items():
        rows = table(results)
        print_table(name, rows, [column for column in COLUMNS if any(column in row for row in rows.values())])
        documents += [f"## {name}", "", *markdown(rows), ""]
    (options.output_dir / "tables.md").write_text("\n".join(documents), encoding="utf-8")
    points = [
        (setting, method, all_figures(result))
        for setting, results in made.items()
        for method, of_method in results.items()
        for result in of_method
    ]
    picture = options.picture or options.output_dir / "lasting.svg"
    draw(picture, [(setting, method, row["kept"], row["comeback"]) for setting, method, row in points])
    print(f"The report is {options.output_dir / 'report.json'}, and the picture {picture}.")


if __name__ == "__main__":
    main()
