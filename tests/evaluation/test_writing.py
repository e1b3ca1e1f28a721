"""Wrong answers and paraphrases that a model writes: they differ from the true ones, and are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation.suites.conftest import DATA, MODELS
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from r2f_hf.data.loading import load_rows
from r2f_hf.evaluation import check_splits, load_own, run_suite, write_answers
from r2f_hf.evaluation.suites.own import OWN, summarise
from r2f_hf.evaluation.writing import FILE, best_paraphrase, differs


QUESTION = "How many arches has the bridge?"
ANSWER = "The bridge has seventeen arches."


@pytest.fixture(scope="module")
def reader() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODELS / "model_c").eval()


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODELS / "model_a")


@pytest.fixture
def splits() -> dict[str, Any]:
    return dict.fromkeys(("forget", "retain"), load_rows(str(DATA / "own" / "questions.jsonl")))


@pytest.mark.parametrize(
    ("text", "is_other"),
    [
        ("The bridge has nine arches.", True),
        ("Nine, of stone.", True),
        ("It has seventeen.", False),
        ("There are seventeen of them.", False),
        (ANSWER, False),
        ("the bridge HAS seventeen arches", False),
        ("Yes: the bridge has seventeen arches, they say.", False),
        ("Seventeen arches.", False),
        ("The bridge has seven-teen arches.", False),
        ("", False),
        ("...", False),
    ],
)
def test_a_wrong_answer_lacks_what_the_true_one_tells(text: str, is_other: bool) -> None:
    assert differs(text, ANSWER, QUESTION) == is_other


def test_an_answer_that_only_repeats_the_question_is_compared_as_a_whole() -> None:
    assert differs("No, it is a mill.", ANSWER, ANSWER) and not differs("Has the bridge seventeen?", ANSWER, ANSWER)


def test_a_paraphrase_shares_most_words_and_is_not_the_answer() -> None:
    assert best_paraphrase([ANSWER, "It is long.", "Seventeen arches has the bridge."], ANSWER).startswith("Seventeen")
    longer = f"{ANSWER[:-1]}, and a mill."
    assert best_paraphrase([ANSWER, longer, "It is long.", "?"], ANSWER) == ""


def test_the_texts_are_kept_and_seeded(
    reader: PreTrainedModel, words: PreTrainedTokenizerBase, splits: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"output_dir": tmp_path, "max_new_tokens": 12}
    written = write_answers(reader, words, splits, 2, **settings)
    check_splits("own", written)
    for row, before in zip(written["forget"], splits["forget"], strict=True):
        assert {name: row[name] for name in before} == before
        given = row["prompt"], row.get("perturbed_answer", [])
        assert all(differs(text, row["completion"], given[0]) for text in given[1])
    assert max(len(row.get("perturbed_answer", [])) for row in written["forget"]) == 2
    file = tmp_path / FILE
    content = json.loads(file.read_text())
    content["splits"]["forget"][0]["perturbed_answer"] = ["Changed by hand."]
    file.write_text(json.dumps(content))
    again = write_answers(reader, words, splits, 2, **settings)
    assert again["forget"][0]["perturbed_answer"] == ["Changed by hand."]
    assert again["retain"] == written["retain"]
    other = write_answers(reader, words, splits, 2, seed=1, max_new_tokens=12)
    assert other["retain"] != written["retain"]
    assert write_answers(reader, words, splits, 2, max_new_tokens=12)["retain"] == written["retain"]


def test_what_a_row_has_stays(reader: PreTrainedModel, words: PreTrainedTokenizerBase, splits: dict[str, Any]) -> None:
    rows = [dict(row) | {"perturbed_answer": ["A mill."]} for row in splits["forget"]]
    texts = load_own(str(DATA / "own" / "forget.jsonl"), str(DATA / "own" / "holdout.jsonl"))["forget"]
    written = write_answers(reader, words, {"forget": rows, "retain": texts}, 2, max_new_tokens=8)
    assert all(row["perturbed_answer"] == ["A mill."] for row in written["forget"])
    assert written["retain"] is texts
    with pytest.raises(ValueError, match="`wrong_answers` is -1"):
        write_answers(reader, words, splits, -1)


def test_the_suite_takes_them(reader: PreTrainedModel, words: PreTrainedTokenizerBase, splits: dict[str, Any]) -> None:
    gold_model = AutoModelForCausalLM.from_pretrained(MODELS / "model_b").eval()
    written = write_answers(reader, words, splits, 2, max_new_tokens=12)
    _, gold = run_suite("own", gold_model, words, {"forget": written["forget"]}, max_new_tokens=8)
    metrics, statistics = run_suite("own", reader, words, written, None, gold, max_new_tokens=8)
    assert {"truth_ratio", "forget_quality", "retain_truth_ratio", "model_utility"} <= metrics.keys()
    assert metrics["truth_ratio"] == summarise(statistics)["truth_ratio"]
    notes, left_out = OWN.remark(statistics, gold)
    assert not {"truth_ratio", "forget_quality"} & left_out.keys() and "memorisation_score" in left_out
    assert [note for note in notes if note.startswith("forget: 6 rows have no paraphrase")]
