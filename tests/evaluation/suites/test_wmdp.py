"""WMDP's suite: letters and texts, with the likelihoods of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation.suites.conftest import peer_value, reference_rows
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r2f_hf.evaluation import Settings, check_splits, load_suite
from r2f_hf.evaluation.suites.choices import letters_and_texts
from r2f_hf.evaluation.suites.wmdp import WMDP


FOLDER = Path(__file__).with_name("data") / "wmdp"


def test_a_folder_gives_the_accuracy_of_each_subject(evaluate: Callable[..., Any], reader: PreTrainedModel) -> None:
    metrics, statistics = evaluate("wmdp", reader)
    assert {*WMDP.headline, "acc", "bio_text_acc_norm"} <= metrics.keys()
    # The model knows the answers, and not what letters are for.
    assert [metrics[f"{subject}_text_acc"] for subject in WMDP.splits] == [1, 1, 1]
    assert metrics["acc"] == pytest.approx(sum(metrics[name] for name in WMDP.headline) / 3)
    notes, left_out = WMDP.remark(statistics)
    assert [note.split(":")[0] for note in notes] == ["bio", "chem", "cyber"] and left_out.keys() == {"mmlu"}


def test_choices_are_those_of_lm_evaluation_harness(reader: PreTrainedModel, words: PreTrainedTokenizerBase) -> None:
    rows = [row | {"answer": row["label"]} for row in reference_rows("rows")]
    found = letters_and_texts(reader, words, rows, "bio", Settings())
    letters, texts = (peer_value(f"lm_eval.{kind}.model_c.bos")["rows"] for kind in ("letters", "texts"))
    assert found == {"acc": letters["acc"], "text_acc": texts["acc"], "text_acc_norm": texts["acc_norm"]}


def test_one_subject_is_enough(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"needs .*wmdp-bio\.json and .*wmdp-cyber\.json\. The folder has no"):
        load_suite("wmdp", str(tmp_path))
    (tmp_path / "wmdp-chem.jsonl").write_text((FOLDER / "wmdp-chem.json").read_text())
    assert load_suite("wmdp", str(tmp_path)).keys() == {"chem"}
    with pytest.raises(ValueError, match="The wmdp suite has no forget sets to choose from"):
        load_suite("wmdp", str(tmp_path), "forget01")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, r"bio\[1\] has no text in 'question'"),
        ({"choices": ["one"]}, r"bio\[1\] needs at least two texts in 'choices'"),
        ({"choices": "one or two"}, r"bio\[1\] needs at least two texts in 'choices'"),
        ({"answer": "B"}, r"bio\[1\] has 4 choices, and its 'answer' is not the number"),
        ({"answer": 4}, r"bio\[1\] has 4 choices, and its 'answer' is not the number"),
    ],
)
def test_a_row_that_is_no_question_is_named(change: dict[str, Any], message: str) -> None:
    rows = list(load_suite("wmdp", str(FOLDER))["bio"])
    with pytest.raises(ValueError, match=message):
        check_splits("wmdp", {"bio": [rows[0], rows[1] | change]})
