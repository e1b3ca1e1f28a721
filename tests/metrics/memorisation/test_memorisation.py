"""Metrics of memorisation give the numbers by hand and by their definitions, and refuse what makes no sense."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from r2f_hf import metrics


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_probability_by_hand(compute: Callable) -> None:
    # Two tokens of 1/2 and 1/8: the length-normalised probability is the square root of 1/16.
    found = compute("probability", predictions=[(math.log(1 / 2) + math.log(1 / 8)) / 2, 0.0])
    assert found["rows"] == pytest.approx([0.25, 1.0])
    assert found["probability"] == pytest.approx(0.625)


def test_probability_as_multiple_choice_is_normalised_by_the_wrong_answers(compute: Callable) -> None:
    found = compute("probability", predictions=logs(0.6, 0.2), wrong=[logs(0.1, 0.1), logs(0.2, 0.2, 0.4)])
    assert found["rows"] == pytest.approx([0.75, 0.2])
    assert found["probability"] == pytest.approx(0.475)


def test_a_probability_that_underflows_is_0_alone_and_a_share_among_others_as_small(compute: Callable) -> None:
    assert compute("probability", predictions=[-3000.0, -math.inf])["rows"] == [0.0, 0.0]
    assert compute("probability", predictions=[-3000.0], wrong=[[-3000.0] * 3])["rows"] == pytest.approx([0.25])


def test_truth_ratio_by_hand(compute: Callable) -> None:
    found = compute("truth_ratio", predictions=logs(0.8, 0.1), wrong=[logs(0.1, 0.3), logs(0.4)])
    assert found["rows"] == pytest.approx([0.25, 4.0])
    assert found["closer_to_1_better"] == pytest.approx((0.25 + 0.25) / 2)
    assert found["true_better"] == pytest.approx((0.75 + 0.0) / 2)
    assert found["prob_mean"] == pytest.approx((0.8 / 1.0 + 0.1 / 0.5) / 2)


@pytest.mark.parametrize("definition", ["paper", "tofu", "open-unlearning"])
def test_truth_ratio_follows_its_definition(definition: str, compute: Callable) -> None:
    rng = np.random.default_rng(0)
    # Sums of token log-probabilities, and lengths.
    truth, truth_length = -rng.uniform(1, 30, 20), rng.integers(1, 20, 20)
    wrong, wrong_length = -rng.uniform(1, 30, (20, 5)), rng.integers(1, 20, (20, 5))
    found = compute(
        "truth_ratio",
        predictions=truth / truth_length,
        wrong=(wrong / wrong_length).tolist(),
        definition=definition,
    )
    # P(paraphrase)^(1/|paraphrase|), and the mean over i of P(wrong_i)^(1/|wrong_i|).
    true = np.exp(truth) ** (1 / truth_length)
    others = np.exp(wrong) ** (1 / wrong_length)
    average = others.mean(1) if definition == "paper" else np.exp(np.log(others).mean(1))
    epsilon = 1e-10 if definition == "open-unlearning" else 0
    R = average / (true + epsilon)
    assert found["rows"] == pytest.approx(R.tolist())
    assert found["closer_to_1_better"] == pytest.approx(np.minimum(R, 1 / (R + epsilon)).mean())
    assert found["true_better"] == pytest.approx(np.maximum(0, 1 - R).mean())
    assert found["prob_mean"] == pytest.approx((true / (true + average + epsilon)).mean())


@pytest.mark.parametrize("definition", ["paper", "tofu"])
def test_the_truth_ratio_of_a_ruined_model_is_what_it_would_be_at_larger_probabilities(
    definition: str, compute: Callable
) -> None:
    small, shifted = (
        compute("truth_ratio", predictions=[-900.0 + up], wrong=[[-899.0 + up, -901.5 + up]], definition=definition)
        for up in (0.0, 890.0)
    )
    assert small == {name: pytest.approx(value) for name, value in shifted.items()}
    far = compute("truth_ratio", predictions=[-3000.0], wrong=[[-800.0]], definition=definition)
    assert (far["true_better"], far["closer_to_1_better"], far["prob_mean"]) == (0.0, 0.0, 0.0)
    assert math.isfinite(far["rows"][0])


@pytest.mark.parametrize(
    ("prediction", "reference", "recall"),
    [
        ("Orla lives by the harbour.", "Orla lives by the harbour", 1.0),
        # Longest common subsequence: orla, the, harbour. Extra words do not lower recall.
        ("Orla, they say, left the old harbour", "Orla lives by the harbour", 3 / 5),
        # The order counts: one of the two words matches, but not both.
        ("harbour Orla", "Orla harbour", 1 / 2),
        # Words are compared by their stems.
        ("she was baking", "she bakes", 1.0),
        ("", "Orla lives", 0.0),
        # Other scripts: characters where no spaces part words, and marks that belong to their letters.
        ("奥拉住在港口附近。", "奥拉住在港口附近。", 1.0),
        ("奥拉住在山上", "奥拉住在港口", 4 / 6),
        ("Орла живёт у гавани.", "орла живёт у гавани", 1.0),
        ("أورلا تعيش عند الميناء", "أورلا تعيش عند الميناء", 1.0),
        ("ओरला बंदरगाह के पास रहती है", "ओरला बंदरगाह के पास रहती है", 1.0),
        ("오를라는 항구 옆에 산다", "오를라는 산에 산다", 2 / 3),
        ("ออร์ลา", "ออร์ลา", 1.0),
        # What two different answers share is a number.
        ("Орла живёт в 1871", "Брам умер в 1871", 2 / 4),
        ("Zoë", "Zoé", 0.0),
    ],
)
def test_rouge_l_recall_by_hand(prediction: str, reference: str, recall: float, compute: Callable) -> None:
    found = compute("rouge", predictions=[prediction, "yes"], references=[reference, "yes"])
    assert found["rows"]["rougeL_recall"] == pytest.approx([recall, 1.0])
    assert found["rougeL_recall"] == pytest.approx((recall + 1) / 2)


def test_rouge_1_takes_words_in_any_order_and_f1_punishes_what_was_not_asked(compute: Callable) -> None:
    found = compute("rouge", predictions=["harbour Orla left"], references=["Orla harbour"])
    assert (found["rouge1_recall"], found["rougeL_recall"]) == (1.0, 0.5)
    assert found["rouge1_f1"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))


def test_the_definitions_of_rouge_differ_where_they_should(compute: Callable) -> None:
    def recall(prediction: str, reference: str, definition: str) -> float:
        return compute("rouge", predictions=[prediction], references=[reference], definition=definition)[
            "rougeL_recall"
        ]

    assert [recall("bakes", "baking", name) for name in ("paper", "tofu", "muse", "unstemmed", "rwku")] == [
        1,
        1,
        0,
        0,
        0,
    ]
    assert [recall("ORLA", "Orla", name) for name in ("paper", "rwku")] == [1, 0]
    assert [recall("Zoë née", "Zoé née", name) for name in ("paper", "open-unlearning")] == [0.5, 1]
    # RWKU counts a word once, and an empty answer as one that says nothing.
    assert recall("the", "the the the loom", "rwku") == 0.5 and recall("", "Orla", "rwku") == 0


@pytest.mark.parametrize(
    ("hits", "exact", "strength", "their_exact", "their_strength"),
    [
        ([1, 1, 1, 1], 1, 1, 1, 1),
        # Two of four tokens have to be given.
        ([1, 0, 1, 1], 3 / 4, 2 / 4, 2 / 3, 1 / 3),
        # The last token is wrong: nothing can be extracted, which open-unlearning does not see.
        ([1, 1, 1, 0], 3 / 4, 0, 1, 1),
        ([0, 0, 0, 0], 0, 0, 0, 1 / 3),
    ],
)
def test_exact_memorisation_and_extraction_strength_by_hand(
    hits: list[int], exact: float, strength: float, their_exact: float, their_strength: float, compute: Callable
) -> None:
    for definition, numbers in (("paper", (exact, strength)), ("open-unlearning", (their_exact, their_strength))):
        for name, number in zip(("exact_memorisation", "extraction_strength"), numbers, strict=True):
            found = compute(name, predictions=[[bool(hit) for hit in hits]], definition=definition)
            assert found["rows"] == pytest.approx([number]) and found[name] == pytest.approx(number)


def test_muse_counts_f1_in_percent_without_stemming(compute: Callable) -> None:
    texts = {"predictions": ["Orla bakes", ""], "references": ["Orla bakes bread", "Bram left"]}
    verbatim = compute("verbatim_memorisation", **texts)
    assert verbatim["rows"] == pytest.approx([80, 0]) and verbatim["verbatim_memorisation"] == pytest.approx(40)
    stemmed = {"predictions": ["she was baking"], "references": ["she was bakes"]}
    assert compute("verbatim_memorisation", **stemmed)["rows"] == pytest.approx([100 * 2 / 3])
    assert compute("verbatim_memorisation", **stemmed, definition="open-unlearning")["rows"] == [100]


def test_an_answer_to_a_question_ends_where_the_model_goes_on(compute: Callable) -> None:
    written = ["A stork.\n\nQuestion: What?\nAnswer: A bird.", "A stork.\nQuestion: What?"]
    found = compute("knowledge_memorisation", predictions=written, references=["A stork", "A stork"])
    assert found["rows"] == [100, 100]


def test_rwku_recall_is_a_mean_of_levels(compute: Callable) -> None:
    found = compute(
        "rwku_recall",
        predictions=["Orla", "", "harbour", "Orla harbour"],
        references=["Orla"] + ["Orla harbour"] * 3,
        levels=[1, 2, 2, 2],
    )
    assert found["rows"] == [1, 0, 0.5, 1]
    assert (found["level_1"], found["level_2"], found["all"]) == (1, 0.5, 0.75)


def test_unlearning_depth_by_hand(compute: Callable) -> None:
    found = compute(
        "unlearning_depth",
        # Half as deep as gold; deeper than gold, and not at all; no layer that knows.
        predictions=[[1.0, 2.0, 9.0], [5.0, -1.0, 0.0], [1.0, 1.0, 1.0]],
        gold=[[2.0, 4.0, 0.01], [3.0, 1.0, 0.0], [0.0, 0.05, -1.0]],
    )
    assert found["rows"] == [pytest.approx(0.5), pytest.approx(0.75), None]
    assert found["left_out"] == [2] and found["unlearning_depth"] == pytest.approx(0.625)


@pytest.mark.parametrize("kind", ["unfamiliar", "false", "true"])
def test_what_was_forgotten_looks_like_what_its_states_are_near(kind: str, compute: Callable) -> None:
    rng = np.random.default_rng(0)
    centres = {"true": [3, 0, 0, 0], "false": [-3, 0, 0, 0], "unfamiliar": [0, 0, 4, 0]}

    def states(name: str) -> list[list[float]]:
        return (rng.normal(size=(40, 4)) + np.array(centres[name])).tolist()

    found = compute("truth_stability", predictions=states(kind), **{name: states(name) for name in centres})
    assert found["probe_accuracy"] > 0.8
    assert (found["unfamiliar"] > 0.8) == (kind == "unfamiliar")
    assert (found["judged_true"] > 0.8) == (kind == "true")
    # To call true what looks false turns the probe's judgement round.
    assert (found["truth_stability"] < 0.9) == (kind == "false")


def test_truth_stability_means_nothing_where_states_are_noise_and_says_so(compute: Callable) -> None:
    rng = np.random.default_rng(0)
    sets = {name: rng.normal(size=(20, 200)).tolist() for name in ("predictions", "true", "false", "unfamiliar")}
    found = compute("truth_stability", **sets)
    assert abs(found["probe_accuracy"] - 0.5) < 0.2 and found["truth_stability"] < 0.9


def test_relearning_ratio_by_hand(compute: Callable) -> None:
    gold = {"gold": [0.2, 0.4], "gold_before": [0.1, 0.3]}
    fast = compute("relearning_ratio", predictions=[0.6, 0.6], before=[0.0, 0.4], **gold)
    assert (fast["gain"], fast["gold_gain"]) == (pytest.approx(0.4), pytest.approx(0.1))
    assert fast["relearning_ratio"] == pytest.approx(0.25)
    slow = {"predictions": [0.05, 0.05], "before": [0.0, 0.0]}
    assert compute("relearning_ratio", **slow, **gold)["relearning_ratio"] == 1
    symmetric = compute("relearning_ratio", **slow, **gold, definition="symmetric")
    assert symmetric["relearning_ratio"] == pytest.approx(1 - 0.05 / 0.15)
    assert compute("relearning_ratio", predictions=[0.0], before=[0.1], gold=[0.2], gold_before=[0.1]) == {
        "relearning_ratio": 1.0,
        "gain": pytest.approx(-0.1),
        "gold_gain": pytest.approx(0.1),
    }


def test_quantisation_ratio_by_hand(compute: Callable) -> None:
    def ratio(after: list[float], before: list[float], definition: str = "paper") -> float:
        return compute("quantisation_ratio", predictions=after, before=before, definition=definition)[
            "quantisation_ratio"
        ]

    assert ratio([0.3, 0.1], [0.1, 0.0]) == pytest.approx(0.25)
    assert ratio([0.1], [0.2]) == ratio([0.0], [0.2]) == 1
    assert ratio([0.1], [0.3], "symmetric") == pytest.approx(0.5)
    assert ratio([0.1], [0.0]) == 0


def test_memorisation_score_is_the_harmonic_mean_of_what_is_forgotten(compute: Callable) -> None:
    found = compute("memorisation_score", predictions=[0.5, 0.75])["memorisation_score"]
    assert found == pytest.approx(2 / (1 / 0.5 + 1 / 0.25))
    assert compute("memorisation_score", predictions=[0.1, 1.0])["memorisation_score"] == 0


NAN, INF = math.nan, math.inf
PAIR = {"predictions": ["a", "b"], "references": ["a", "?!"]}
STATES = {name: [[0.0, 1.0]] * 5 for name in ("predictions", "true", "false", "unfamiliar")}


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("probability", {"predictions": [-0.1, 0.1]}, "cannot be positive"),
        ("probability", {"predictions": [-0.1, NAN]}, "Row 1 of `predictions` is NaN"),
        ("probability", {"predictions": [-0.1], "wrong": [[NAN]]}, "Row 0 of `wrong` holds .* NaN"),
        (
            "probability",
            {"predictions": [-INF], "wrong": [[-INF]]},
            "Row 0: all of its answers have the probability 0",
        ),
        ("probability", {"predictions": [-0.1, -0.2], "wrong": [[-1.0]]}, "2 predictions but 1 rows of wrong"),
        ("truth_ratio", {"predictions": [-0.1, -0.2], "wrong": [[-1.0]]}, "2 predictions but 1 rows of wrong"),
        ("truth_ratio", {"predictions": [-0.1, -0.2], "wrong": [[-1.0], []]}, "at least one wrong answer"),
        ("truth_ratio", {"predictions": [-0.1], "wrong": [[-1.0]], "definition": "harmonic"}, "'harmonic'"),
        ("truth_ratio", {"predictions": [-0.1, NAN], "wrong": [[-1.0], [-1.0]]}, "Row 1 holds .* NaN"),
        ("truth_ratio", {"predictions": [-0.1], "wrong": [[-INF]]}, "Row 0 holds .* infinite"),
        ("rouge", PAIR, "Row 1: the true answer has no word"),
        ("rouge", {"predictions": ["a"], "references": ["a"], "definition": "rouge"}, "Unknown definition"),
        ("verbatim_memorisation", PAIR, "Row 1: the true answer has no word"),
        ("knowledge_memorisation", PAIR, "Row 1: the true answer has no word"),
        ("rwku_recall", PAIR | {"levels": [1, 2]}, "Row 1: the true answer has no word"),
        ("rwku_recall", PAIR | {"levels": [1]}, "2 rows of `predictions`, 1 rows of `levels`"),
        ("exact_memorisation", {"predictions": [[True], []]}, "Row 1 of `predictions` has no token"),
        ("extraction_strength", {"predictions": [[], [True]]}, "Row 0 of `predictions` has no token"),
        ("exact_memorisation", {"predictions": [[True]], "definition": "open-unlearning"}, "Row 0 has one token"),
        ("extraction_strength", {"predictions": [[True]], "definition": "open-unlearning"}, "Row 0 has one token"),
        ("unlearning_depth", {"predictions": [[NAN]], "gold": [[1.0]]}, "Row 0 of `predictions` holds .* NaN"),
        ("unlearning_depth", {"predictions": [[1.0]], "gold": [[0.01]]}, "No layer of any row"),
        ("unlearning_depth", {"predictions": [[1.0]], "gold": [[1.0, 2.0]]}, "Row 0 has 1 layers .* and 2"),
        ("unlearning_depth", {"predictions": [[1.0]], "gold": [[1.0]], "threshold": 0.0}, "must be above 0"),
        ("truth_stability", STATES | {"true": [[0.0, 1.0]] * 4}, "`true` has 4 rows. The probe needs at least 5"),
        ("truth_stability", STATES | {"false": [[0.0, NAN]] * 5}, "Row 0 of `false` holds"),
        ("truth_stability", STATES | {"false": [[0.0]] * 5}, "Row 0 of `false` has 1 numbers"),
        (
            "relearning_ratio",
            {"predictions": [0.0], "before": [0.0], "gold": [0.1], "gold_before": [0.1]},
            "taught gold nothing",
        ),
        (
            "relearning_ratio",
            {"predictions": [NAN], "before": [0.0], "gold": [0.1], "gold_before": [0.1]},
            "Row 0 of `predictions` is NaN",
        ),
        ("quantisation_ratio", {"predictions": [0.0], "before": [0.0]}, "0 both before and after"),
        ("quantisation_ratio", {"predictions": [0.0, NAN], "before": [0.0, 0.0]}, "Row 1 of `predictions` is NaN"),
        ("quantisation_ratio", {"predictions": [-1.0], "before": [0.0]}, "Row 0 of `predictions` is -1"),
        ("memorisation_score", {"predictions": [0.5, NAN]}, "Row 1 of `predictions` is NaN"),
        ("memorisation_score", {"predictions": [0.5, 1.5]}, r"Row 1 .* numbers in \[0, 1\]"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(name: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.load(name).compute(**inputs)


def test_the_number_that_tofu_reports_is_one_of_rouge() -> None:
    texts = {"predictions": ["Орла живёт у гавани.", "by the sea", ""], "references": ["Орла живёт у гавани."] * 3}
    found = metrics.load("rouge_l_recall").compute(**texts)
    assert found["rows"] == metrics.load("rouge").compute(**texts)["rows"]["rougeL_recall"] == [1.0, 0.0, 0.0]
    assert found["rouge_l_recall"] == pytest.approx(1 / 3)


def test_truth_ratios_have_the_names_of_what_tofu_takes_them_for() -> None:
    found = metrics.load("truth_ratio").compute(predictions=[-1.0, -2.0], wrong=[[-3.0], [-1.5]])
    assert (found["forget"], found["keep"]) == (found["closer_to_1_better"], found["true_better"])
    assert found["forget"] != found["keep"]
