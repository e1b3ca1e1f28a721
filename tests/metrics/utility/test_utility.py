"""Metrics of utility give the numbers by hand and by their definitions, and refuse what makes no sense."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean

from r2f_hf import metrics


def test_model_utility_is_the_harmonic_mean(compute: Callable) -> None:
    assert compute("model_utility", predictions=[0.5, 0.25, 1.0])["model_utility"] == pytest.approx(3 / 7)
    numbers = np.random.default_rng(0).uniform(0.1, 1, 9)
    assert compute("model_utility", predictions=numbers)["model_utility"] == pytest.approx(hmean(numbers))
    assert compute("model_utility", predictions=[0.9, 0.0, 0.8])["model_utility"] == 0


def test_overall_score_is_the_harmonic_mean_of_three(compute: Callable) -> None:
    assert compute("overall_score", predictions=[0.5, 0.25, 1.0])["overall_score"] == pytest.approx(3 / 7)
    assert compute("overall_score", predictions=[0.0, 1.0, 1.0])["overall_score"] == 0


def test_multiple_choice_by_hand(compute: Callable) -> None:
    found = compute(
        "multiple_choice",
        # The short choice wins by its sum, the long one per character, and "é" has two bytes.
        predictions=[[-4.0, -6.0], [-1.0, -2.0], [-3.0, -4.0]],
        labels=[1, 0, 0],
        choices=[["by", "by the sea"], ["yes", "no"], ["éé", "no!"]],
    )
    assert found["rows"] == {"acc": [0, 1, 1], "acc_norm": [1, 1, 0], "acc_bytes": [1, 1, 1]}
    assert found["acc"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("value", [-math.inf, -1e30, -1.0])
def test_a_model_that_finds_all_choices_alike_guesses(value: float, compute: Callable) -> None:
    inputs = {"predictions": [[value] * 4], "labels": [0], "choices": [["aa", "bb", "cc", "dd"]]}
    assert compute("multiple_choice", **inputs)["acc"] == 0.25
    # lm-evaluation-harness takes the first of them, and so gets it right.
    assert compute("multiple_choice", **inputs, definition="lm-eval")["acc"] == 1


@pytest.mark.parametrize(
    ("text", "entropy"),
    [
        ("", 0),
        ("word", 0),
        ("bread bread bread bread bread", 0),
        # Two pairs, one triple.
        ("a b a", (2 / 3 * 1 + 0) / 2),
        ("a b c d e", (2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2),
        # Scripts without spaces: five characters.
        ("奥拉住在港", (2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2),
    ],
)
def test_fluency_by_hand(text: str, entropy: float, compute: Callable) -> None:
    found = compute("fluency", predictions=[text, "x"])
    assert found["rows"] == pytest.approx([entropy, 0]) and found["fluency"] == pytest.approx(entropy / 2)


def test_usr_and_gur_by_hand(compute: Callable) -> None:
    found = compute("usr_gur", predictions=[0.1, 0.2, 0.3], utility=[0.5, 0.4], utility_before=[0.5, 0.5])
    assert found == {"usr": pytest.approx(80), "gur": pytest.approx(90), "rows": pytest.approx([100, 80])}


NAN = math.nan
CHOICES = {"predictions": [[-1.0, -2.0]], "labels": [0], "choices": [["a", "b"]]}


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("model_utility", {"predictions": [0.5, 1.5]}, r"Row 1 .* numbers in \[0, 1\]"),
        ("model_utility", {"predictions": [0.5, NAN]}, "Row 1 of `predictions` is NaN"),
        ("overall_score", {"predictions": [0.5, 0.5]}, "has 2 numbers"),
        ("overall_score", {"predictions": [0.5, 0.5, NAN]}, "Row 2 of `predictions` is NaN"),
        ("multiple_choice", CHOICES | {"predictions": [[-1.0, NAN]]}, "Row 0 of `predictions` holds .* NaN"),
        ("multiple_choice", CHOICES | {"choices": [["a", ""]]}, "Row 0 has 2 log-likelihoods and 2 choices"),
        ("multiple_choice", CHOICES | {"predictions": [[]]}, "Row 0 of `predictions` has no choice"),
        ("multiple_choice", CHOICES | {"predictions": [[-1.0]], "choices": [["a"]]}, "at least two choices"),
        ("multiple_choice", CHOICES | {"labels": [2]}, "Row 0 has 2 choices, and the label 2"),
        ("multiple_choice", CHOICES | {"labels": [0, 1]}, "1 rows of `predictions`, 2 rows of `labels`"),
        ("usr_gur", {"predictions": [0.5], "utility": [0.5], "utility_before": [0.0]}, "Row 0 of `utility_before`"),
        ("usr_gur", {"predictions": [NAN], "utility": [0.5], "utility_before": [0.5]}, "Row 0 of `predictions` is"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(name: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.load(name).compute(**inputs)
