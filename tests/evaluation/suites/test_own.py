"""A user's own rows, in every format that the trainer takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.suites.conftest import folder_of
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r2f_hf.data.formats import recognise_format
from r2f_hf.data.formatting import encode_example
from r2f_hf.data.loading import load_rows
from r2f_hf.evaluation import check_splits, load_own, load_suite
from r2f_hf.evaluation.suites.own import OWN, last_answer, with_answer
from r2f_hf.scoring import generate_answers, score_completions


FOLDER = Path(__file__).with_name("data") / "own"


def test_texts_conversations_and_completions(evaluate: Callable[..., Any], reader: PreTrainedModel) -> None:
    splits = load_own(*(str(FOLDER / f"{name}.jsonl") for name in ("forget", "retain", "holdout")))
    with pytest.raises(ValueError, match="retain\\[0\\] is a conversation, and the tokenizer has no chat template"):
        evaluate("own", reader, splits)
    splits["retain"] = load_rows(str(FOLDER / "questions.jsonl"))
    metrics, statistics = evaluate("own", reader, splits)
    assert "forget_rouge_l_recall" not in metrics and 0 <= metrics["retain_rouge_l_recall"] <= 1
    assert {"mia_loss_auc", "forget_extraction_strength", "retain_exact_memorisation"} <= metrics.keys()
    assert metrics["forget_probability"] == pytest.approx(np.mean(np.exp(-np.array(statistics["forget"]["loss"]))))
    _, left_out = OWN.remark(statistics)
    assert {"truth_ratio", "forget_quality", "overall_score", "forget_rouge", "mia_gradnorm"} <= left_out.keys()
    assert "retain_rouge" not in left_out


def test_a_chat_template_is_used(
    evaluate: Callable[..., Any],
    reader: PreTrainedModel,
    words: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(words, "chat_template", template)
    rows = dict.fromkeys(("forget", "retain"), load_rows(str(FOLDER / "retain.jsonl")))
    metrics, statistics = evaluate("own", reader, rows)
    question, answer = (message["content"] for message in rows["forget"][0]["messages"])
    expected = score_completions(reader, words, [question], [answer])[0]
    assert statistics["forget"]["loss"][0] == pytest.approx(-expected, rel=1e-4)
    assert metrics["forget_probability"] == pytest.approx(metrics["retain_probability"])


def test_questions_are_asked_as_in_training(
    evaluate: Callable[..., Any], reader: PreTrainedModel, words: PreTrainedTokenizerBase
) -> None:
    pairs = [("Where is it?", "In Norrey."), ("Who painted the ceiling of Orlen Hall?", "Marisol Quenby did.")]
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    _, statistics = evaluate("own", reader, {"forget": rows, "retain": rows})
    expected = score_completions(reader, words, *zip(*pairs, strict=True))
    assert statistics["forget"]["loss"] == pytest.approx([-score for score in expected], rel=1e-4)
    encoded = [encode_example(words, *pair) for pair in pairs]
    starts = [last_answer(example)[1] for example in encoded]
    asked = [example["input_ids"][:start] for example, start in zip(encoded, starts, strict=True)]
    by_ids, by_text = (generate_answers(reader, words, prompts, 8) for prompts in (asked, [pair[0] for pair in pairs]))
    assert by_ids == by_text


def test_a_long_text_counts_as_one_row(evaluate: Callable[..., Any], reader: PreTrainedModel) -> None:
    splits = load_own(str(FOLDER / "forget.jsonl"), str(FOLDER / "holdout.jsonl"))
    (whole, of_whole), (cut, of_cut) = (evaluate("own", reader, splits, max_length=size) for size in (None, 50))
    assert of_cut["forget"]["tokens"] == of_whole["forget"]["tokens"] and min(of_cut["forget"]["tokens"]) > 150
    assert whole["forget_probability"] != cut["forget_probability"]


def test_columns_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"ask": "Who?", "say": "Orla.", "question": "x", "answer": "y"}) + "\n")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "Orla lives."}) + "\n")
    splits = load_own(str(file), str(other), None, "ask", "say")
    assert splits["forget"][0] == {"question": "Who?", "answer": "Orla."}
    assert splits["retain"][0] == {"text": "Orla lives."}
    assert load_own(str(file), str(other), None, "none", "say")["forget"][0] == {"text": "Orla."}


def test_mistakes_are_named(tmp_path: Path) -> None:
    forget = str(FOLDER / "forget.jsonl")
    with pytest.raises(ValueError, match="The own suite needs `retain_data`"):
        load_own(forget, None)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"title": "Who?"}) + "\n")
    with pytest.raises(ValueError, match="The retain set has the columns 'title'"):
        check_splits("own", load_own(forget, str(file)))
    file.write_text(json.dumps({"text": " "}) + "\n")
    with pytest.raises(ValueError, match=r"retain\[0\] has an empty 'text'"):
        check_splits("own", load_own(forget, str(file)))
    with pytest.raises(ValueError, match=r"share 3 rows: forget\[0\] = holdout\[0\]"):
        load_own(forget, str(FOLDER / "questions.jsonl"), forget)
    with pytest.raises(ValueError, match=r"share 3 rows: forget\[0\] = retain\[0\]"):
        load_own(forget, forget)


def test_rows_with_wrong_answers_have_the_figures_of_tofu(
    evaluate: Callable[..., Any], reader: PreTrainedModel, gold_model: PreTrainedModel
) -> None:
    columns = ("question", "answer", "perturbed_answer", "paraphrased_answer")
    rows = [
        {column: row[column] for column in columns} for row in load_suite("tofu", str(folder_of("tofu")))["forget"]
    ]
    splits = {"forget": rows, "retain": rows}
    found = {}
    for suite in ("own", "tofu"):
        _, gold = evaluate(suite, gold_model, splits)
        found[suite], _ = evaluate(suite, reader, splits, gold=gold)
    for name in ("truth_ratio", "forget_quality", "retain_truth_ratio", "memorisation_score", "model_utility"):
        assert found["own"][name] == pytest.approx(found["tofu"][name], rel=1e-4), name


def test_a_wrong_answer_takes_the_place_of_the_last_one() -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Orla."}]
    row = {"messages": [*turns, {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]}
    changed = with_answer(row, recognise_format(row, "forget"), "There.")
    assert [message["content"] for message in changed["messages"]] == ["Who?", "Orla.", "Where?", "There."]
    row = {"prompt": "Where?", "completion": " Here."}
    assert with_answer(row, recognise_format(row, "forget"), "There.")["completion"] == " There."
    assert with_answer(row, recognise_format(row, "forget"), None) == row


def test_rows_without_a_wrong_answer_are_left_out_of_the_truth_ratio(
    evaluate: Callable[..., Any], reader: PreTrainedModel
) -> None:
    rows = [
        {"question": "Where is it?", "answer": "In Norrey.", "perturbed_answer": ["In Harl.", "By the mill."]},
        {"question": "Who?", "answer": "Aldith Kemble.", "perturbed_answer": None},
    ]
    metrics, statistics = evaluate("own", reader, {"forget": rows, "retain": rows[1:]})
    assert (
        metrics["truth_ratio"] == evaluate("own", reader, {"forget": rows[:1], "retain": rows[1:]})[0]["truth_ratio"]
    )
    notes, left_out = OWN.remark(statistics)
    assert [note for note in notes if note.startswith("forget: 1 of 2 rows have no wrong answer")]
    assert {"forget_quality", "model_utility", "memorisation_score"} <= left_out.keys()


@pytest.mark.parametrize("value", ["", [""], [1956], 1956])
def test_wrong_answers_that_are_no_text_are_refused(value: object) -> None:
    rows = [{"question": "Who?", "answer": "Orla.", "perturbed_answer": value}]
    if value == "":
        check_splits("own", {"forget": rows})
    else:
        with pytest.raises(ValueError, match=r"forget\[0\] has no text in 'perturbed_answer'"):
            check_splits("own", {"forget": rows})
