"""A user's own rows, in every format that the trainer takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r2f_hf.data.formatting import encode_example
from r2f_hf.evaluation import check_splits, load_own
from r2f_hf.evaluation.suites.own import OWN, last_answer
from r2f_hf.scoring import generate_answers, score_completions


FOLDER = Path(__file__).with_name("data") / "own"


def test_texts_conversations_and_completions(evaluate: Callable[..., Any], reader: PreTrainedModel) -> None:
    splits = load_own(*(str(FOLDER / f"{name}.jsonl") for name in ("forget", "retain", "holdout")))
    with pytest.raises(ValueError, match="retain\\[0\\] is a conversation, and the tokenizer has no chat template"):
        evaluate("own", reader, splits)
    splits["retain"] = load_own(str(FOLDER / "questions.jsonl"), str(FOLDER / "questions.jsonl"))["retain"]
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
    rows = load_own(str(FOLDER / "retain.jsonl"), str(FOLDER / "retain.jsonl"))
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
        load_own(forget, forget, forget)
