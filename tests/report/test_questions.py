"""The answers to the four questions, and the verdict: it says no more than the figures do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r2f_hf.attacks import ATTACKS, UNATTACKED
from r2f_hf.evaluation import SUITES
from r2f_hf.report import questions
from r2f_hf.report.questions import GONE, KEPT, LASTS, TOLD, answers, not_measured, verdict
from r2f_hf.report.run import Run
from r2f_hf.runs.details import Details


BEFORE = {"forget_probability": 0.9, "mia_loss_auc": 1.0, "retain_probability": 0.9, "model_utility": 0.5}
GOOD = {"forget_probability": 0.12, "forget_quality": 0.4, "mia_loss_auc": 0.52} | {
    "retain_probability": 0.89,
    "model_utility": 0.5,
}
GOLD = {"forget_probability": 0.1, "forget_quality": 1.0, "mia_loss_auc": 0.5, "retain_probability": 0.9}
LASTING = {"no attack": {"unlearned": 0.1, "comeback": 0.9}, "rate 1e-4": {"unlearned": 0.2, "comeback": 0.05}}


def run(
    metrics: dict[str, float] | None = None,
    attack: dict[str, Any] | None = None,
    gold: bool = True,
    original: bool = True,
    **trained: Any,
) -> Run:
    """A run with these metrics. The figures of before and gold are those above."""
    compared = ({"original": BEFORE} if original else {}) | ({"gold": GOLD} if gold else {})
    evaluation = {
        "suite": "tofu",
        "rows": {"forget": 400, "holdout": 400},
        "metrics": metrics,
        "compared": compared,
        "left_out": {},
    }
    entry = {"kind": "unlearn", "recipe": {}, "metrics": trained, "undo": None}
    report = {"attacks": {"relearning": {"meaning": "", "results": attack}}, "left_out": {"sampling": "no questions"}}
    return Run(
        Path("run"),
        [entry],
        1,
        Details(),
        evaluations=[] if metrics is None else [evaluation],
        attacks=[] if attack is None else [report],
    )


def test_only_four_good_answers_are_called_forgotten() -> None:
    found = answers(run(GOOD, LASTING))
    assert [answer.good for answer in found.values()] == [True, True, True, True]
    assert [answer.word for answer in found.values()] == ["yes", "no", "yes", "yes"]
    heading, text = verdict(found)
    assert heading == "Forgotten, as far as these figures tell"
    assert text == (
        "The model does not give the answers any more, one cannot tell that the rows were there, the rest is kept, "
        "and the attacks bring nothing back."
    )


@pytest.mark.parametrize(
    ("question", "metrics", "attack"),
    [
        (GONE, {"forget_probability": 0.2}, {}),
        (GONE, {"forget_extraction_strength": 0.9}, {}),
        (TOLD, {"mia_loss_auc": 0.4}, {}),
        (TOLD, {"mia_loss_auc": 0.6}, {}),
        (TOLD, {"forget_quality": 0.04}, {}),
        (KEPT, {"model_utility": 0.4}, {}),
        (KEPT, {"retain_probability": 0.8}, {}),
        (LASTS, {}, {"rate 1e-3": {"unlearned": 0.5, "comeback": 0.3}}),
    ],
)
def test_one_bad_figure_is_enough(question: str, metrics: dict[str, float], attack: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BEFORE, "forget_extraction_strength", 1.0)
        patch.setitem(GOLD, "forget_extraction_strength", 0.1)
        found = answers(run(GOOD | metrics, LASTING | attack))
    assert {key for key, answer in found.items() if answer.good is False} == {question}
    heading, text = verdict(found)
    assert heading == "Not forgotten as if never known" and " But " in text


def test_without_gold_and_before_nothing_is_claimed() -> None:
    alone = run(GOOD, {"rate 1e-4": {"unlearned": 0.0}}, gold=False, original=False)
    found = answers(alone)
    assert [found[key].good for key in (GONE, KEPT, LASTS)] == [None, None, None]
    heading, text = verdict(found)
    assert (
        heading == "Not settled"
        and " Here nobody has shown whether the answers are gone, " in text
        and text.endswith("and whether it lasts.")
    )
    missing = " ".join(not_measured(alone, found))
    assert "There is no gold" in missing and "mean little" in missing and "`original_model`" in missing


def test_without_gold_what_has_hardly_fallen_is_not_gone() -> None:
    assert answers(run(GOOD | {"forget_probability": 0.8}, gold=False))[GONE].good is False
    assert answers(run(GOOD | {"forget_probability": 0.001}, gold=False))[GONE].good is None


def test_a_run_alone_has_the_figures_of_its_own_evaluations() -> None:
    metrics = {when: {"eval_forget_probability": p, "eval_retain_probability": 0.9} for when, p in WHEN.items()}
    found = answers(run(None, **metrics))
    (figure,) = found[GONE].figures
    assert (figure.before, figure.after, figure.gold) == (0.9, 0.01, None)
    assert found[KEPT].good and found[GONE].good is None
    assert found[TOLD].word == found[LASTS].word == "not measured"


WHEN = {"before": 0.9, "after": 0.01}


def test_few_rows_allow_more_but_say_so() -> None:
    few = run(GOOD | {"mia_loss_auc": 0.6}, LASTING)
    few.evaluations[0]["rows"] = {"forget": 40, "holdout": 40}
    (figure,) = (figure for figure in answers(few)[TOLD].figures if figure.name == "mia_loss_auc")
    assert figure.good and figure.reason == "0.10 from gold's, where 0.13 is allowed."


def test_a_figure_that_never_differed_is_not_judged() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GOLD, "forget_probability", 0.88)
        found = answers(run(GOOD, LASTING))
    assert found[GONE].good is None and "hardly differ" in found[GONE].reasons[0]


def test_what_was_not_measured_is_named() -> None:
    attacked = run(GOOD, LASTING)
    attacked.evaluations[0]["left_out"] = {"overall_score": "It needs a holdout split."}
    attacked.outdated.append("old/report.json")
    missing = " ".join(not_measured(attacked, answers(attacked)))
    assert "overall score: It needs a holdout split." in missing
    assert "The attack sampling: no questions." in missing
    assert "Attacks that were not made: quantisation, pruning" in missing
    assert "old/report.json: of other weights than the model has now" in missing


def test_an_undone_run_claims_nothing() -> None:
    assert verdict(answers(run(GOOD, LASTING)), undone=True)[0] == "Undone"


def test_the_names_are_those_that_there_are() -> None:
    assert tuple(ATTACKS) == questions.ATTACK_NAMES and UNATTACKED == questions.UNATTACKED
    assert tuple(SUITES) == questions.SUITE_NAMES


def test_a_suite_that_the_run_has_evaluated_itself_is_shown_too() -> None:
    after = {"eval_retain_probability": 0.9, "eval_tofu_model_utility": 0.4, "eval_retain_runtime": 3.0}
    found = answers(run(None, before=after | {"eval_tofu_model_utility": 0.5}, after=after))
    assert [(figure.words, figure.good) for figure in found[KEPT].figures] == [
        ("P(answer)", True),
        ("model utility (tofu)", False),
    ]
    assert not found[GONE].figures
