"""Metrics of privacy give the numbers by hand and by their definitions, and refuse what makes no sense."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from r2f_hf import metrics


def test_forget_quality_is_the_kolmogorov_smirnov_p_value(compute: Callable) -> None:
    rng = np.random.default_rng(0)
    unlearned, gold = np.exp(rng.normal(0.5, 1, 40)), np.exp(rng.normal(0, 1, 30))
    found = compute("forget_quality", predictions=unlearned, gold=gold.tolist())
    expected = ks_2samp(unlearned, gold)
    assert (found["forget_quality"], found["statistic"]) == pytest.approx((expected.pvalue, expected.statistic))
    assert found["smallest"] < 1e-10 and 1e-4 < found["forget_quality"] < 0.5
    # Whether R or 1/R is called the truth ratio makes no difference.
    assert compute("forget_quality", predictions=1 / unlearned, gold=(1 / gold).tolist()) == pytest.approx(found)


def test_forget_quality_by_hand(compute: Callable) -> None:
    # Two samples of 4 are completely separated. Of the 70 orders, 2 are as extreme.
    found = compute("forget_quality", predictions=[1.0, 2.0, 3.0, 4.0], gold=[5.0, 6.0, 7.0, 8.0])
    assert found == pytest.approx({"forget_quality": 2 / 70, "statistic": 1.0, "smallest": 2 / 70})
    few = compute("forget_quality", predictions=[3.0, 1.0], gold=[1.0, 3.0])
    # Two rows of each can never be told apart, which is said beside the number.
    assert few["forget_quality"] == 1 and few["smallest"] == pytest.approx(1 / 3)


def test_attacks_by_hand(compute: Callable) -> None:
    losses = {"predictions": [1.0, 2.0], "holdout": [3.0, 2.0, 1.5]}
    found = compute("mia_loss", **losses)
    # Of six pairs, holdout is higher in four, and equal in one.
    assert found["auc"] == pytest.approx(4.5 / 6) and 0 < found["p_value"] <= 1
    assert (found["forget"], found["holdout"]) == (losses["predictions"], losses["holdout"])
    # An answer that is less likely than unseen ones gives the request away too.
    assert compute("mia_loss", predictions=[9.0, 8.0], holdout=[1.0, 2.0])["auc"] == 0
    assert compute("mia_loss", predictions=[1.0, 1.0], holdout=[1.0, 1.0])["auc"] == 0.5

    texts = {"texts": ["aaaa", "Zoë"], "holdout_texts": ["b", "cd", "efg"]}
    expected = [loss / len(zlib.compress(text.encode())) for loss, text in zip([1, 2], texts["texts"], strict=True)]
    assert compute("mia_zlib", **losses, **texts)["forget"] == pytest.approx(expected)

    reference = {"reference": [2.0, 2.0], "holdout_reference": [3.0, 2.0, 1.0]}
    assert compute("mia_reference", **losses, **reference)["forget"] == [-1, 0]
    assert compute("mia_reference", **losses, **reference, definition="muse")["forget"] == [0.5, 1]

    norms = {"predictions": [[3.0, 4.0], [0.0, 1.0]], "holdout": [[1.0, 1.0], [2.0, 0.0]]}
    assert compute("mia_gradnorm", **norms)["forget"] == [5, 1]
    assert compute("mia_gradnorm", **norms, definition="open-unlearning")["forget"] == [3.5, 0.5]


def test_min_k_takes_the_least_likely_tokens_and_at_least_one(compute: Callable) -> None:
    log_probs = {"predictions": [[-1.0, -4.0, -2.0, -3.0, -9.0], [-1.0]], "holdout": [[-1.0, -2.0], [-3.0, -1.0]]}
    assert compute("mia_min_k", **log_probs, k=0.4)["forget"] == [6.5, 1]
    assert compute("mia_min_k", **log_probs, k=0.1)["forget"] == [9, 1]
    longer = log_probs | {"predictions": [*log_probs["predictions"][:1], [-1.0, -7.0]]}
    # The last token does not count: of four, one is taken.
    assert compute("mia_min_k", **longer, k=0.4, definition="open-unlearning")["forget"] == [4, 1]


def test_min_k_plus_plus_standardises(compute: Callable) -> None:
    found = compute(
        "mia_min_k_plus_plus",
        predictions=[[-1.0, -6.0], [-2.0]],
        means=[[-3.0, -2.0], [-2.0]],
        deviations=[[1.0, 2.0], [0.0]],
        holdout=[[-1.0], [-1.0]],
        holdout_means=[[-3.0], [-2.0]],
        holdout_deviations=[[1.0], [0.0]],
        k=0.5,
    )
    # A distribution that is all on one token has no deviation: it is taken as 0.001.
    assert found["forget"] == [2, 0] and found["holdout"] == pytest.approx([-2, -1000])


def test_a_token_that_a_model_rules_out_is_the_least_familiar_one(compute: Callable) -> None:
    found = compute("mia_min_k", predictions=[[-math.inf, -1.0], [-1.0]], holdout=[[-2.0], [-3.0]], k=0.5)
    assert found["forget"][0] == math.inf and found["auc"] == 0.5


def test_privleak_by_hand(compute: Callable) -> None:
    # A = 1 - auc: 0.25 against 0.5.
    assert compute("privleak", predictions=[0.75], gold=[0.5])["privleak"] == pytest.approx(-50)
    assert compute("privleak", predictions=[0.0], gold=[0.5])["privleak"] == pytest.approx(100)
    assert compute("privleak", predictions=[0.75], gold=[0.5], definition="open-unlearning")["rows"] == [50]
    both = compute("privleak", predictions=[0.75, 0.0], gold=[0.5, 0.5])
    # Too familiar by one attack and too unfamiliar by another do not make up for each other.
    assert both["rows"] == pytest.approx([-50, 100]) and both["privleak"] == pytest.approx(75)


def test_privacy_score_by_hand(compute: Callable) -> None:
    found = compute("privacy_score", predictions=[0.5, 0.75], gold=[0.5, 0.5])
    assert found["rows"] == [1, 0.5] and found["privacy_score"] == pytest.approx(2 / 3)
    deep = compute("privacy_score", predictions=[0.5, 0.75], gold=[0.5, 0.5], depth=1.0)["privacy_score"]
    assert deep == pytest.approx(2 / (1 + 3 / 2))
    assert compute("privacy_score", predictions=[1.0], gold=[0.5])["privacy_score"] == 0


NAN = math.nan
TWO = {"predictions": [1.0, 2.0], "holdout": [1.0, 2.0]}
LISTS = {"predictions": [[1.0], [2.0]], "holdout": [[1.0], [2.0]]}
SPREAD = {name: [[1.0], [1.0]] for name in ("means", "deviations", "holdout_means", "holdout_deviations")}
TEXTS = {"texts": ["a", "b"], "holdout_texts": ["c", "d"]}
OTHERS = {"reference": [1.0, 1.0], "holdout_reference": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("forget_quality", {"predictions": [0.5], "gold": []}, "`gold` is empty"),
        ("forget_quality", {"predictions": [0.5, NAN], "gold": [0.5]}, "Row 1 of `predictions` is NaN"),
        ("forget_quality", {"predictions": [0.5], "gold": [0.5, 0.7]}, "`predictions` has one row"),
        ("forget_quality", {"predictions": [0.5, 0.7], "gold": [0.5]}, "`gold` has one row"),
        ("mia_loss", TWO | {"predictions": [1.0, NAN]}, "Row 1 of `predictions` is NaN"),
        ("mia_loss", TWO | {"holdout": [1.0]}, "`holdout` has 1 rows, and this metric needs at least 2"),
        ("mia_loss", TWO | {"predictions": [1.0]}, "`predictions` has 1 rows"),
        ("mia_zlib", TWO | TEXTS | {"texts": ["a", ""]}, "Row 1 of `texts` is empty"),
        ("mia_zlib", TWO | TEXTS | {"texts": ["a"]}, "2 rows of `losses`, 1 rows of `texts`"),
        ("mia_zlib", TWO | TEXTS | {"holdout": [1.0, NAN]}, "Row 1 of `holdout` is NaN"),
        ("mia_min_k", LISTS | {"predictions": [[1.0], []]}, "Row 1 of `predictions` has no token"),
        ("mia_min_k", LISTS | {"holdout": [[1.0], [NAN]]}, "Row 1 of `holdout` holds .* NaN"),
        ("mia_min_k", LISTS | {"holdout": [[1.0]]}, "`holdout` has 1 rows"),
        ("mia_min_k", LISTS | {"k": 0.0}, "`k` is a share"),
        ("mia_min_k", LISTS | {"definition": "open-unlearning"}, "Row 0 has one token"),
        ("mia_min_k_plus_plus", LISTS | SPREAD | {"means": [[1.0], [NAN]]}, "Row 1 of `means` holds .* NaN"),
        ("mia_min_k_plus_plus", LISTS | SPREAD | {"deviations": [[1.0, 2.0], [1.0]]}, "Row 0 of `predictions` has 1"),
        ("mia_min_k_plus_plus", LISTS | SPREAD | {"predictions": [[1.0], []]}, "Row 1 of `predictions` has no token"),
        ("mia_gradnorm", LISTS | {"predictions": [[NAN], [1.0]]}, "Row 0 of `predictions` holds .* NaN"),
        ("mia_gradnorm", LISTS | {"holdout": [[1.0]]}, "`holdout` has 1 rows"),
        ("mia_reference", TWO | OTHERS | {"reference": [1.0, NAN]}, "Row 1 of `reference` is NaN"),
        (
            "mia_reference",
            TWO | OTHERS | {"reference": [1.0, 0.0], "definition": "muse"},
            "Row 1 has a loss of 0 under the reference",
        ),
        ("mia_reference", TWO | OTHERS | {"reference": [1.0]}, "2 rows of `predictions`, 1 rows of `reference`"),
        ("privleak", {"predictions": [0.5], "gold": [1.0]}, "Row 0 of `gold` tells the forget set from the holdout"),
        ("privleak", {"predictions": [NAN], "gold": [0.5]}, "Row 0 of `predictions` is NaN"),
        ("privleak", {"predictions": [50.0], "gold": [0.5]}, r"Row 0 .* numbers in \[0, 1\]"),
        ("privacy_score", {"predictions": [0.5], "gold": [0.0]}, "Row 0 of `gold` is 0"),
        ("privacy_score", {"predictions": [0.5, 0.5], "gold": [0.5]}, "2 rows of `predictions`, 1 rows of `gold`"),
        ("privacy_score", {"predictions": [0.5], "gold": [0.5], "depth": NAN}, "Row 0 of `depth` is NaN"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(name: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.load(name).compute(**inputs)
