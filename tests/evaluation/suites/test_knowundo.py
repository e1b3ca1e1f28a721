"""KnowUnDo's suite on a folder with its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r2f_hf.evaluation import check_splits, load_suite
from r2f_hf.evaluation.suites.audit import plain_example
from r2f_hf.evaluation.suites.knowundo import KNOWUNDO
from r2f_hf.scoring import token_statistics


FOLDER = Path(__file__).with_name("data") / "knowundo"


def test_a_folder_gives_both_scopes(
    evaluate: Callable[..., Any], reader: PreTrainedModel, words: PreTrainedTokenizerBase
) -> None:
    metrics, statistics = evaluate("knowundo", reader)
    assert [len(statistics[split]["loss"]) for split in ("unlearn", "retention")] == [4, 3]
    row = load_suite("knowundo", str(FOLDER))["unlearn"][0]["val"][0]
    example = plain_example(words, row["labels"], f"{row['text']}\n\n")
    (expected,) = token_statistics(reader, [example], 0)
    assert statistics["unlearn"]["exact_memorisation"][0] == pytest.approx(np.mean(expected.hits))
    assert metrics["unlearn_success"] == pytest.approx(100 - 100 * metrics["unlearn_exact_memorisation"])
    assert metrics["retention_success"] == pytest.approx(100 * metrics["retention_exact_memorisation"])
    assert metrics["unlearn_perplexity"] == pytest.approx(np.exp(np.mean(statistics["unlearn"]["loss"])))
    notes, left_out = KNOWUNDO.remark(statistics)
    assert len(notes) == 2 and left_out.keys() == {"mia", "privleak"}


def test_the_domain_is_chosen_by_name() -> None:
    assert load_suite("knowundo", str(FOLDER), "privacy").keys() == {"unlearn", "retention"}
    with pytest.raises(FileNotFoundError, match=r"needs .*privcy/unlearn\.json.* is privacy/unlearn\.json"):
        load_suite("knowundo", str(FOLDER), "privcy")


@pytest.mark.parametrize(
    ("val", "message"),
    [
        ([], r"unlearn\[0\]\['val'\] is empty"),
        ("Who?", r"unlearn\[0\]\['val'\] is not a list"),
        ([{"text": "Who?"}], r"unlearn\[0\]\['val'\]\[0\] has no 'labels'"),
        ([{"text": "Who?", "labels": ""}], r"unlearn\[0\]\['val'\]\[0\] has no text in 'labels'"),
    ],
)
def test_what_cannot_be_evaluated_is_named(val: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_splits("knowundo", {"unlearn": [{"train": [], "val": val}]})
