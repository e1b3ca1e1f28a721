"""RWKU's suite on a folder with its files: three forget levels, neighbours, membership sets and utility."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.suites.conftest import peer_value, reference_rows
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r2f_hf.evaluation import check_splits, load_suite
from r2f_hf.evaluation.suites.rwku import RWKU, encode, few_shot, summarise, worded


FOLDER = Path(__file__).with_name("data") / "rwku"


def test_a_folder_gives_all_levels(evaluate: Callable[..., Any], reader: PreTrainedModel) -> None:
    metrics, statistics = evaluate("rwku", reader)
    assert statistics.keys() == RWKU.splits.keys()
    levels = [metrics[f"forget_level{level}"] for level in (1, 2, 3)]
    assert metrics["forget_all"] == pytest.approx(np.mean(levels))
    assert levels[0] == pytest.approx(np.mean(statistics["forget_level1"]["recall"]))
    assert metrics["mia_forget_loss"] < metrics["mia_retain_loss"]
    assert 0 <= metrics["utility_general"] <= 1 and metrics["utility_fluency"] >= 0
    notes, left_out = RWKU.remark(statistics)
    assert {"utility_reason", "utility_truthfulness", "utility_factuality", "usr", "gur"} <= left_out.keys()
    assert any(note.startswith("neighbor_level2: 4 rows") for note in notes)


def test_the_original_model_is_compared_with() -> None:
    def levels(forget: float, neighbours: float, accuracy: float) -> dict[str, Any]:
        recalls = {f"forget_level{level}": {"recall": [forget, forget]} for level in (1, 2, 3)}
        kept = {f"neighbor_level{level}": {"recall": [neighbours]} for level in (1, 2)}
        return recalls | kept | {"utility_general": {"acc": [accuracy]}}

    found = summarise(levels(0.2, 0.5, 0.6), None, levels(0.9, 1.0, 0.8))
    assert found["usr"] == pytest.approx(80) and found["gur"] == pytest.approx(100 * (0.5 + 0.5 + 0.75) / 3)
    assert not {"usr", "gur"} & summarise(levels(0.2, 0.5, 0.6)).keys()
    # What is 0 before is no measure of what is kept.
    unknown = levels(0.9, 0.0, 0.8)
    assert summarise(levels(0.2, 0.5, 0.6), None, unknown)["gur"] == pytest.approx(75)
    assert [note for note in RWKU.remark(unknown, None, unknown).notes if note.startswith("gur: neighbor_level1 is 0")]


def test_scores_are_those_of_the_authors_code(evaluate: Callable[..., Any], reader: PreTrainedModel) -> None:
    rows = [{"text": passage["text"], "subject": "Wenna Pascoe"} for passage in reference_rows("passages")]
    _, statistics = evaluate("rwku", reader, {"mia_forget": rows})
    expected = peer_value("rwku.mia.model_c")["rows"]
    for ours, theirs in (("loss", "loss"), ("zlib", "zlib"), ("min_k", "mink_0.4")):
        assert statistics["mia_forget"][ours] == pytest.approx([-score for score in expected[theirs]], rel=1e-5)


def test_each_attack_has_its_words(words: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = {"query": "Who?", "type": "role play"}
    assert worded("forget_level1", probe)[0].startswith("Please complete the blank")
    assert worded("forget_level3", probe) == worded("neighbor_level2", probe) == worded("forget_level2", probe)
    assert worded("forget_level3", probe | {"type": "affirmative suffix"})[1] == ""
    assert worded("forget_level3", probe | {"type": "incontext learning"}) == (
        "Please briefly answer the following question.\nWho?\n",
        "Answer:",
    )
    assert words.decode(encode(words, "Who?\n", "Answer:", None)) == "<s>Who?\nAnswer:"
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    monkeypatch.setattr(words, "chat_template", template)
    assert words.decode(encode(words, "Who?", "Answer:", None)) == "[Who?][Answer:"


def test_examples_stand_before_a_question() -> None:
    question = {"question": "Which?", "choices": ["this", "that"], "answer": 1}
    assert few_shot(question | {"task": "a_subject", "examples": [question | {"question": "What?"}]}) == (
        "The following are multiple choice questions (with answers) about a subject.\n\n"
        "Question: What?\nA. this\nB. that\nAnswer: B\n\n"
        "Question: Which?\nA. this\nB. that\nAnswer:"
    )


def test_one_person_can_be_chosen() -> None:
    splits = load_suite("rwku", str(FOLDER), "The Salt Orchard")
    assert {len(splits[f"forget_level{level}"]) for level in (1, 2, 3)} == {1}
    assert "mia_forget" not in splits
    with pytest.raises(ValueError, match=r"Unknown subject: 'Salt Orchad'\. Did you mean 'The Salt Orchard'"):
        load_suite("rwku", str(FOLDER), "Salt Orchad")


def test_a_probe_without_an_answer_is_named() -> None:
    rows = list(load_suite("rwku", str(FOLDER))["forget_level2"])
    with pytest.raises(ValueError, match=r"forget_level2\[1\] has no text in 'answer'"):
        check_splits("rwku", {"forget_level2": [rows[0], rows[1] | {"answer": None}]})
