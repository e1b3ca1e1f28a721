"""
A search for R2F's default: the objective and its options, the levers on a step, its size, and how many steps.

    python benchmarks/search_default.py [--trials 200] [--enqueue quickstart lasting]
    python benchmarks/search_default.py --setting smollm2-2 --data DIR [--trials 20] [--enqueue lasting]

A trial is a set of options. With them the quickstart's model forgets four people on each of the seeds 0 to 3. The
value of a trial is the mean over seeds of the score, which is that of the worst of four questions
(`shared/four_questions.py`). With SmolLM2 or Gemma a trial is one run, on the first of the model's twenty authors of
TOFU. No table reports these. Optuna proposes the trials. It ends a trial early if the mean, over the seeds so far, is
below the median of the other trials. `--enqueue` tries the options of recipes first: `quickstart` has today's default.
`--objectives` searches among some objectives only.

The space is [`SPACE`]: a new option is one line. A name with a dot is an option of one objective.

The output folder keeps the trials and the finished runs. The command goes on where it was interrupted, until there are
`--trials` in all. Several commands can work on one search at the same time. Delete the folder when the code has
changed. Prints the best trials, and writes trials.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import Trial, TrialState

from r2f_hf import R2FConfig
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.four_questions import QUESTIONS, answers, score
from shared.lasting_runs import Runs
from shared.lasting_worlds import SETTINGS, TUNING_SEED, make_world, read_recipe


SETTING, SEEDS = "quickstart-4", (0, 1, 2, 3)
OBJECTIVES = ("npo", "simnpo", "tnpo", "wga", "satimp", "undial", "margin", "bs_t", "ignorance")
SPACE: dict[str, BaseDistribution] = {
    "forget_objective": CategoricalDistribution(OBJECTIVES),
    "npo.beta": FloatDistribution(0.03, 3, log=True),
    "simnpo.beta": FloatDistribution(0.03, 3, log=True),
    "tnpo.beta": FloatDistribution(0.1, 3, log=True),
    "tnpo.mean_over": CategoricalDistribution(("rows", "tokens")),
    "wga.beta": FloatDistribution(0.2, 3, log=True),
    "wga.mean_over": CategoricalDistribution(("rows", "tokens")),
    "satimp.beta1": FloatDistribution(1, 8),
    "satimp.beta2": FloatDistribution(0.1, 2),
    "undial.beta": FloatDistribution(1, 30, log=True),
    "bs_t.weight": FloatDistribution(0.1, 0.9),
    "ignorance.lift_after": IntDistribution(8, 30),
    "spectrum_damping": FloatDistribution(0, 0.7),
    "simulated_relearning": FloatDistribution(0, 0.15),
    "learning_rate": FloatDistribution(0.15, 2, log=True),
    "rank": CategoricalDistribution((8, 16, 24, 32, 48)),
    "max_steps": IntDistribution(10, 60, step=5),
    "per_device_train_batch_size": CategoricalDistribution((4, 8, 16)),
    "retain_weight": FloatDistribution(0.5, 10, log=True),
}


def suggest(trial: Trial, name: str) -> Any:
    """A value of one option for a trial."""
    space = SPACE[name]
    if isinstance(space, CategoricalDistribution):
        return trial.suggest_categorical(name, space.choices)
    method = trial.suggest_int if isinstance(space, IntDistribution) else trial.suggest_float
    return method(name, space.low, space.high, step=space.step, log=space.log)


def options_of(trial: Trial) -> dict[str, Any]:
    """The options of a trial, as fields of the configuration."""
    options = {name: suggest(trial, name) for name in SPACE if "." not in name}
    prefix = f"{options.get('forget_objective')}."
    kwargs = {name.removeprefix(prefix): suggest(trial, name) for name in SPACE if name.startswith(prefix)}
    # This objective comes up to the holdout's level and may pass it between two checks.
    checks = {"stop_check_steps": 1} if options["forget_objective"] == "ignorance" else {}
    return options | checks | {"forget_objective_kwargs": kwargs}


def values_of(recipe: R2FConfig) -> dict[str, Any]:
    """The values in the space that a recipe has."""
    objective, _ = recipe.build_objectives()
    prefix = f"{recipe.forget_objective}."
    own = {f"{prefix}{option.name}": getattr(objective, option.name) for option in fields(objective)}
    return {name: own[name] for name in SPACE if name in own} | {
        name: getattr(recipe, name) for name in SPACE if "." not in name
    }


class Search:
    """
    The value of a trial.

    Args:
        options (`argparse.Namespace`):
            The command's options.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.runs: dict[int, Runs] = {}

    def of_seed(self, seed: int) -> Runs:
        """The runs on the world of a seed."""
        if seed not in self.runs:
            folder = self.options.output_dir
            options = self.options
            tuning = {"tuning": True, "overrides": options.set}
            world = make_world(options.setting, seed, folder / "worlds", options.data, **tuning)
            # The score needs only this attack.
            self.runs[seed] = Runs(world, folder / "runs", ("relearning",))
        return self.runs[seed]

    def __call__(self, trial: Trial) -> float:
        """Mean score over seeds."""
        options, scores, questions = options_of(trial), [], []
        for seed in self.options.seeds:
            result = self.of_seed(seed).run("r2f", options, seed)
            scores.append(score(result["figures"]))
            questions.append(answers(result["figures"]))
            means = {name: fmean(each[name] for each in questions if name in each) for name in QUESTIONS}
            trial.set_user_attr("questions", means)
            trial.report(fmean(scores), len(scores) - 1)
            if len(scores) < len(self.options.seeds) and trial.should_prune():
                raise optuna.TrialPruned
        return fmean(scores)


def rows_of(study: optuna.Study, count: int) -> dict[str, Mapping[str, Any]]:
    """The best finished trials, with their value, the mean of each question, and their options."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = sorted(finished, key=lambda trial: trial.value, reverse=True)[:count]
    return {
        f"trial {trial.number}": {"score": trial.value, **trial.user_attrs["questions"], **trial.params}
        for trial in best
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, help="trials in all, those of earlier commands included")
    parser.add_argument("--enqueue", nargs="+", default=[], help="recipes to try first, such as quickstart")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds 0 to 3 by default; the quickstart's alone")
    parser.add_argument("--setting", default=SETTING, choices=SETTINGS)
    parser.add_argument("--data", type=Path, help="folder with TOFU's JSON-lines files; the quickstart needs none")
    parser.add_argument("--set", nargs="+", default=[], help="options that override the recipe's, outside the space")
    parser.add_argument("--best", type=int, default=10, help="how many trials to print")
    parser.add_argument("--sampler_seed", type=int, help="makes the proposals repeatable if one command works alone")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/search_default"))
    options = parser.parse_args()

    if options.setting.startswith("quickstart"):
        options.seeds = options.seeds or list(SEEDS)
    elif options.seeds:
        parser.error(f"{options.setting} is tuned on the same authors with every seed: leave out --seeds")
    else:
        options.seeds = [TUNING_SEED]
    SPACE["forget_objective"] = CategoricalDistribution(options.objectives)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=f"{options.setting}, seeds {' '.join(map(str, options.seeds))}, {' '.join(options.objectives)}",
        # A trial whose command was killed is made again.
        storage=RDBStorage(
            f"sqlite:///{options.output_dir / 'trials.db'}",
            heartbeat_interval=60,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        ),
        sampler=optuna.samplers.TPESampler(seed=options.sampler_seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=8),
        direction="maximize",
        load_if_exists=True,
    )
    for recipe in options.enqueue:
        values = values_of(read_recipe(recipe, options.set))
        if values["forget_objective"] not in options.objectives:
            raise SystemExit(
                f"The recipe {recipe} has the objective {values['forget_objective']}: add it to --objectives."
            )
        study.enqueue_trial(values, skip_if_exists=True)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    if len(study.get_trials(deepcopy=False, states=ended)) < options.trials:
        study.optimize(Search(options), callbacks=[MaxTrialsCallback(options.trials, ended)])
    rows = rows_of(study, options.best)
    write_json(options.output_dir / "trials.json", rows_of(study, options.trials))
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    print_table(f"The best of {options.trials} trials", rows, list(columns))
    print(f"All finished trials are in {options.output_dir / 'trials.json'}.")


if __name__ == "__main__":
    main()
