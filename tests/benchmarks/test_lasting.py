"""The score of the four questions, and the two benchmarks that rest on it, on tiny models and a few rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.four_questions import QUESTIONS, RELEARNING, answers, score


MET = {
    "forget quality": 0.05,
    "PrivLeak": -15.0,
    "P(retain), kept": 1.02,
    "utility, kept": 0.95,
    **dict.fromkeys(RELEARNING, 0.05),
}


def test_a_run_that_meets_all_targets_has_the_highest_score() -> None:
    assert answers(MET) == pytest.approx(dict.fromkeys(QUESTIONS, 1.0)) and score(MET) == pytest.approx(1)


@pytest.mark.parametrize(
    ("question", "figures"),
    [
        ("gone", {"forget quality": 0.05**2}),
        ("hidden", {"PrivLeak": -30.0}),
        ("hidden", {"PrivLeak": 30.0}),
        ("kept", {"P(retain), kept": 0.9}),
        ("kept", {"utility, kept": 0.9}),
        # One far below 0 does not pay for the others.
        ("lasts", dict(zip(RELEARNING, (0.15, 0.15, -5.0), strict=True))),
    ],
)
def test_a_run_twice_as_far_off_as_allowed_has_half_of_the_score(question: str, figures: dict[str, float]) -> None:
    assert answers(MET | figures)[question] == pytest.approx(0.5)
    assert score(MET | figures) == pytest.approx(0.5)


def test_a_forget_quality_of_zero_can_be_scored() -> None:
    assert 0 < score(MET | {"forget quality": 0.0}) < 0.01


def test_peers_can_be_chosen_without_the_question_that_deep_runs_fail() -> None:
    import lasting

    shallow = {"figures": MET | {"PrivLeak": 30.0, "P(retain), kept": 0.8}}
    deep = {"figures": MET | {"PrivLeak": 90.0}}
    assert max((shallow, deep), key=lambda run: lasting.merit(run, "lora")) is shallow
    assert max((shallow, deep), key=lambda run: lasting.merit(run, "lora-open")) is deep


def test_peers_may_have_the_recipes_objective_and_their_own_rate() -> None:
    import lasting

    jobs = lasting.sweep("quickstart-4", "lora-ignorance")
    assert {job.trainer for job in jobs} == {"lora"}
    assert [job.options["learning_rate"] for job in jobs] == list(lasting.SWEEP["quickstart"]["lora"])
    assert all(job.options.items() >= {"forget_objective": "ignorance", "max_steps": 60}.items() for job in jobs)


def test_no_seed_forgets_the_authors_that_peers_are_tuned_on() -> None:
    from shared.lasting_worlds import first_author

    assert first_author(3, 2, 20, tuning=True) == 1
    assert [first_author(seed, 2, 20, tuning=False) for seed in range(9)] == [19, 17, 15, 13, 11, 9, 7, 5, 3]
    assert {first_author(seed, 10, 20, tuning=False) for seed in range(5)} == {11}


def test_a_seed_that_would_forget_the_same_authors_is_refused() -> None:
    from shared.lasting_worlds import first_author

    with pytest.raises(SystemExit, match="seeds 0 to 8"):
        first_author(9, 2, 20, tuning=False)


def test_authors_to_forget_come_from_anywhere_among_those_that_the_model_knows(tmp_path: Path) -> None:
    from default_rate import few_authors

    known = [{"question": f"author {author}, {row}?", "answer": "A."} for author in range(30) for row in range(20)]
    wrong = [row | {"perturbed_answer": ["B."]} for row in known]
    files = {"full": known, "forget01": known[-40:], "holdout01": known[:40]}
    files |= {"retain_perturbed": wrong[:-400:10], "forget10_perturbed": wrong[-400:]}
    files |= dict.fromkeys(("forget01_perturbed", "real_authors_perturbed", "world_facts_perturbed"), known[:2])
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))

    last, others = few_authors(tmp_path, 2), few_authors(tmp_path, 2, first=11)
    assert last["forget"] == known[-40:] and last["retain"] == known[-400:-40]
    assert last["splits"]["forget"] == wrong[-40:]
    assert others["forget"] == known[-200:-160] and others["splits"]["forget"] == wrong[-200:-160]
    assert others["retain"] == known[-400:-200] + known[-160:]
    assert others["splits"]["retain"] == (wrong[-400:-200] + wrong[-160:])[::6]


@pytest.fixture
def output(tmp_path: Path, write_world: Callable[[Path], None]) -> Path:
    """An output folder with worlds as the quickstart builds them, but of tiny models and a few rows."""
    for seed in (0, 3, 4):
        write_world(tmp_path / "worlds" / f"quickstart-1-{seed}")
    return tmp_path


def run(module: Any, monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: str) -> None:
    """Run a benchmark as its command does."""
    monkeypatch.setattr(sys, "argv", [module.__name__, "--output_dir", str(output), *arguments])
    module.main()


def kept_runs(output: Path) -> dict[Path, int]:
    """The files of finished runs, and when they were written."""
    return {file: file.stat().st_mtime_ns for file in (output / "runs").glob("*/*.json")}


def test_runs_are_judged_next_to_gold_and_read_again(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lasting

    monkeypatch.setattr(lasting, "SWEEP", {"quickstart": {"lora": (4e-3,)}})
    command = ("--quick", "--settings", "quickstart-1", "--methods", "r2f", "lora", "--seeds", "4")
    command += ("--set", "rank=8")
    run(lasting, monkeypatch, output, *command)
    runs = kept_runs(output)
    assert len(runs) == len(lasting.OBJECTIVES) + 2
    (table,) = [lasting.table(made) for made in json.loads((output / "report.json").read_text()).values()]
    before, gold, r2f, lora = table.values()
    assert (before["comeback"], before["kept"]) == ("1", "1")
    for row in (r2f, lora):
        assert float(row["kept"]) == min(float(row["P(retain), kept"]), float(row["utility, kept"]))
    assert (gold["comeback"], gold["forget quality"], gold["PrivLeak"]) == ("0", "1", "0")
    assert float(r2f["P(forget)"]) < float(before["P(forget)"]) and r2f["steps"] == lora["steps"] == "20"
    assert "| comeback | 1 | 0 |" in (output / "tables.md").read_text()
    assert (output / "lasting.svg").read_text().lstrip().startswith("<?xml")

    run(lasting, monkeypatch, output, *command)
    assert kept_runs(output) == runs


def test_the_search_starts_from_todays_default_and_goes_on(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    import search_default

    # The tiny model has no room for more.
    monkeypatch.setitem(search_default.SPACE, "rank", search_default.CategoricalDistribution((8,)))
    command = (
        "--set",
        "rank=8",
        "--setting",
        "quickstart-1",
        "--seeds",
        "0",
        "--enqueue",
        "quickstart",
        "--sampler_seed",
        "0",
        "--trials",
    )
    run(search_default, monkeypatch, output, *command, "1")
    (first,) = json.loads((output / "trials.json").read_text()).values()
    default = search_default.values_of(search_default.read_recipe("quickstart", ["rank=8"]))
    assert first.items() >= default.items() and first["score"] == min(first[name] for name in search_default.QUESTIONS)
    runs = kept_runs(output)
    run(search_default, monkeypatch, output, *command, "2")
    assert kept_runs(output).items() > runs.items()


def test_a_search_on_tofu_takes_the_authors_that_no_table_reports(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    import search_default
    from shared.lasting_worlds import first_author

    asked = []

    def asked_for(setting: str, seed: int, folder: Path, data: Path, tuning: bool, overrides: list[str]) -> None:
        asked.append((setting, first_author(seed, 2, 20, tuning), data))
        raise SystemExit

    monkeypatch.setattr(search_default, "make_world", asked_for)
    command = ("--setting", "smollm2-2", "--data", "tofu", "--trials", "1")
    with pytest.raises(SystemExit):
        run(search_default, monkeypatch, output, *command)
    assert asked == [("smollm2-2", 1, Path("tofu"))]
    with pytest.raises(SystemExit):
        run(search_default, monkeypatch, output, *command, "--seeds", "5")
    assert "leave out --seeds" in capsys.readouterr().err


def test_the_recipes_lie_within_the_space_of_the_search() -> None:
    pytest.importorskip("optuna")
    import search_default

    for recipe in ("quickstart", "lasting"):
        for name, value in search_default.values_of(search_default.read_recipe(recipe)).items():
            space = search_default.SPACE[name]
            assert space._contains(space.to_internal_repr(value)), name


def test_the_recipe_has_the_options_that_are_measured() -> None:
    import yaml

    import lasting
    from shared.lasting_worlds import RECIPES, read_recipe

    recipe = yaml.safe_load((RECIPES / "lasting" / "unlearn.yaml").read_text())
    measured = lasting.R2F_RUNS["r2f-ignorance"]
    assert {name: recipe[name] for name in measured} == measured
    # Where nothing is said, the run has what the quickstart's recipe says.
    others = read_recipe("quickstart")
    for name in ("per_device_train_batch_size", "num_views", "views_column"):
        assert recipe[name] == getattr(others, name)
    assert set(recipe) <= {*measured, "model_name_or_path", "forget_data", "retain_data", "holdout_data"} | {
        *("output_dir", "seed", "per_device_train_batch_size", "num_views", "views_column"),
        *("save_strategy", "report_to"),
    }
