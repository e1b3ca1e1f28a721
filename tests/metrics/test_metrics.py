"""The metrics give the numbers by hand and by TOFU's definitions, whether the package or a user loads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from rouge_score.tokenizers import DefaultTokenizer
from scipy.stats import hmean, ks_2samp

from r2f_hf import metrics
from r2f_hf.metrics.words import WordTokenizer


@pytest.fixture(params=["package", "path"])
def compute(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Computes a metric by name."""

    def run(name: str, **inputs: Any) -> dict[str, Any]:
        if request.param == "package":
            return metrics.load(name).compute(**inputs)
        return evaluate.load(str(metrics.METRICS[name]), cache_dir=str(tmp_path)).compute(**inputs)

    return run


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


def test_truth_ratio_by_hand(compute: Callable) -> None:
    found = compute("truth_ratio", predictions=logs(0.8, 0.1), wrong=[logs(0.1, 0.3), logs(0.4)])
    assert found["rows"] == pytest.approx([0.25, 4.0])
    assert found["forget"] == pytest.approx((0.25 + 0.25) / 2)
    assert found["keep"] == pytest.approx((0.75 + 0.0) / 2)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_truth_ratio_follows_its_definition(mean: str, compute: Callable) -> None:
    rng = np.random.default_rng(0)
    # Sums of token log-probabilities, and lengths.
    truth, truth_length = -rng.uniform(1, 30, 20), rng.integers(1, 20, 20)
    wrong, wrong_length = -rng.uniform(1, 30, (20, 5)), rng.integers(1, 20, (20, 5))
    found = compute("truth_ratio", predictions=truth / truth_length, wrong=(wrong / wrong_length).tolist(), mean=mean)
    if mean == "arithmetic":
        # The paper: mean_i P(wrong_i)^(1/|wrong_i|) / P(paraphrase)^(1/|paraphrase|).
        R = (np.exp(wrong) ** (1 / wrong_length)).mean(1) / np.exp(truth) ** (1 / truth_length)
    else:
        # TOFU's aggregate_eval_stat.py: exp(mean loss of the paraphrase - mean over the wrong answers' mean losses).
        R = np.exp(-truth / truth_length - (-wrong / wrong_length).mean(-1))
    assert found["rows"] == pytest.approx(R.tolist())
    assert found["forget"] == pytest.approx(np.minimum(R, 1 / R).mean())
    assert found["keep"] == pytest.approx(np.maximum(0, 1 - R).mean())


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_the_truth_ratio_of_a_ruined_model_is_what_it_would_be_at_larger_probabilities(
    mean: str, compute: Callable
) -> None:
    small, shifted = (
        compute("truth_ratio", predictions=[-900.0 + up], wrong=[[-899.0 + up, -901.5 + up]], mean=mean)
        for up in (0.0, 890.0)
    )
    assert small["rows"] == pytest.approx(shifted["rows"])
    far = compute("truth_ratio", predictions=[-3000.0], wrong=[[-800.0]], mean=mean)
    assert (far["keep"], far["forget"]) == (0.0, 0.0) and math.isfinite(far["rows"][0])


def test_english_words_are_those_of_rouge_score(compute: Callable) -> None:
    text = "Orla's 3rd book (1871), re-printed twice, was well-liked: bakers' baking!"
    assert WordTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


def test_forget_quality_is_the_kolmogorov_smirnov_p_value(compute: Callable) -> None:
    rng = np.random.default_rng(0)
    unlearned, gold = np.exp(rng.normal(0.5, 1, 40)), np.exp(rng.normal(0, 1, 30))
    found = compute("forget_quality", predictions=unlearned, gold=gold.tolist())
    expected = ks_2samp(unlearned, gold)
    assert found == pytest.approx({"forget_quality": expected.pvalue, "statistic": expected.statistic})
    assert 1e-4 < found["forget_quality"] < 0.5
    # Whether R or 1/R is called the truth ratio makes no difference.
    assert compute("forget_quality", predictions=1 / unlearned, gold=(1 / gold).tolist()) == pytest.approx(found)


def test_forget_quality_by_hand(compute: Callable) -> None:
    # Two samples of 4 are completely separated. Of the 70 orders, 2 are as extreme.
    found = compute("forget_quality", predictions=[1.0, 2.0, 3.0, 4.0], gold=[5.0, 6.0, 7.0, 8.0])
    assert found == pytest.approx({"forget_quality": 2 / 70, "statistic": 1.0})
    assert compute("forget_quality", predictions=[3.0, 1.0], gold=[1.0, 3.0])["forget_quality"] == 1


def test_model_utility_is_the_harmonic_mean(compute: Callable) -> None:
    assert compute("model_utility", predictions=[0.5, 0.25, 1.0])["model_utility"] == pytest.approx(3 / 7)
    numbers = np.random.default_rng(0).uniform(0.1, 1, 9)
    assert compute("model_utility", predictions=numbers)["model_utility"] == pytest.approx(hmean(numbers))
    assert compute("model_utility", predictions=[0.9, 0.0, 0.8])["model_utility"] == 0


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
    found = compute("rouge_l_recall", predictions=[prediction, "yes"], references=[reference, "yes"])
    assert found["rows"] == pytest.approx([recall, 1.0])
    assert found["rouge_l_recall"] == pytest.approx((recall + 1) / 2)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("probability", {"predictions": [-0.1, 0.1]}, "cannot be positive"),
        ("probability", {"predictions": [-0.1, -0.2], "wrong": [[-1.0]]}, "2 predictions but 1 rows of wrong"),
        ("truth_ratio", {"predictions": [-0.1, -0.2], "wrong": [[-1.0]]}, "2 predictions but 1 rows of wrong"),
        ("truth_ratio", {"predictions": [-0.1, -0.2], "wrong": [[-1.0], []]}, "at least one wrong answer"),
        ("truth_ratio", {"predictions": [-0.1], "wrong": [[-1.0]], "mean": "harmonic"}, "not 'harmonic'"),
        ("truth_ratio", {"predictions": [-0.1, math.nan], "wrong": [[-1.0], [-1.0]]}, "Row 1 holds .* NaN"),
        ("truth_ratio", {"predictions": [-0.1], "wrong": [[-math.inf]]}, "Row 0 holds .* infinite"),
        ("forget_quality", {"predictions": [0.5], "gold": []}, "`gold` is empty"),
        ("forget_quality", {"predictions": [0.5, math.nan], "gold": [0.5]}, "Row 1 of `predictions` is NaN"),
        (
            "rouge_l_recall",
            {"predictions": ["a", "b"], "references": ["a", "?!"]},
            "Row 1: the true answer has no word",
        ),
        ("model_utility", {"predictions": [0.5, 1.5]}, r"numbers in \[0, 1\]"),
        ("model_utility", {"predictions": [0.5, math.nan]}, r"numbers in \[0, 1\]"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(
    name: str, inputs: dict[str, Any], message: str, compute: Callable
) -> None:
    with pytest.raises(ValueError, match=message):
        compute(name, **inputs)


def test_an_unknown_metric_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"Unknown metric: 'truthratio'\. Did you mean 'truth_ratio'"):
        metrics.load("truthratio")
