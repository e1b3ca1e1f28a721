"""TOFU's suite on a folder with its files: the audit's metrics, with and without gold and the original model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean
from transformers import PreTrainedModel

from r2f_hf.evaluation.suites.audit import ATTACKS
from r2f_hf.evaluation.suites.tofu import TOFU, summarise


@pytest.fixture
def audit(
    evaluate: Callable[..., Any], reader: PreTrainedModel, gold_model: PreTrainedModel
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Statistics of a model that knows the rows, and of gold."""
    return evaluate("tofu", reader)[1], evaluate("tofu", gold_model)[1]


def test_a_model_that_knows_the_rows_is_told_from_gold(audit: tuple[dict[str, Any], dict[str, Any]]) -> None:
    statistics, gold = audit
    found, of_gold = summarise(statistics, gold, statistics), summarise(gold, gold, statistics)
    assert found["forget_exact_memorisation"] > 0.9 > 0.3 > of_gold["forget_exact_memorisation"]
    assert found["forget_extraction_strength"] > 0.4 > 0.1 > of_gold["forget_extraction_strength"]
    assert found["memorisation_score"] < of_gold["memorisation_score"]
    assert [found[f"mia_{name}_auc"] for name in ATTACKS] == [1] * 4
    assert [found[f"privleak_{name}"] for name in ATTACKS] == [-100] * 4
    assert (found["privacy_score"], of_gold["privacy_score"]) == (0, 1)
    # Each is the harmonic mean of its parts.
    assert found["overall_score"] == 0
    relative = min(of_gold["model_utility"] / summarise(statistics)["model_utility"], 1)
    assert of_gold["overall_score"] == pytest.approx(hmean([of_gold["memorisation_score"], 1, relative]))
    parts = [of_gold["forget_extraction_strength"], of_gold["forget_exact_memorisation"]]
    forget = gold["forget"]
    shares = [
        p / (p + np.mean(w)) for p, w in zip(np.exp(forget["paraphrase"]), map(np.exp, forget["wrong"]), strict=True)
    ]
    parts += [np.exp(forget["paraphrase"]).mean(), np.mean(shares)]
    assert of_gold["memorisation_score"] == pytest.approx(hmean([1 - part for part in parts]))


def test_what_is_missing_is_left_out_by_name(audit: tuple[dict[str, Any], dict[str, Any]]) -> None:
    statistics, gold = audit
    notes, left_out = TOFU.remark(statistics, gold, statistics)
    assert left_out.keys() == {"mia_gradnorm"}
    for start in (
        "forget: 6 rows. A mean",
        "forget_quality: with 6 rows",
        "model_utility: the splits real_authors",
        "mia: with 6 forget rows",
    ):
        assert [note for note in notes if note.startswith(start)]
    _, left_out = TOFU.remark(statistics)
    wanted = {"forget_quality", "mia_gradnorm", "mia_reference", "privleak", "privacy_score", "overall_score"}
    assert left_out.keys() == wanted
    without = {split: of_rows for split, of_rows in statistics.items() if split != "holdout"}
    _, left_out = TOFU.remark(without, gold, statistics)
    assert left_out.keys() == {"mia_gradnorm", "mia", "privleak", "privacy_score", "overall_score"}
    assert not {"mia_loss_auc", "privacy_score", "overall_score"} & summarise(without, gold, statistics).keys()


def test_holdout_rows_change_none_of_the_paper_s_figures(
    evaluate: Callable[..., Any], reader: PreTrainedModel, audit: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    statistics, gold = audit
    paper = summarise({split: of_rows for split, of_rows in statistics.items() if split != "holdout"}, gold)
    found = summarise(statistics, gold)
    assert {name: found[name] for name in paper} == paper
