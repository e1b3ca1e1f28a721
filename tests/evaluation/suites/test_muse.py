"""MUSE's suite on a folder with its files, and on texts for which its authors' code has given values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.suites.conftest import peer_value, reference_rows
from transformers import PreTrainedModel

from r2f_hf.evaluation import check_splits, load_suite
from r2f_hf.evaluation.suites.muse import MUSE, prepare


FOLDER = Path(__file__).with_name("data") / "muse"


def test_a_folder_gives_all_of_muse_s_metrics(
    evaluate: Callable[..., Any], reader: PreTrainedModel, gold_model: PreTrainedModel
) -> None:
    splits = load_suite("muse", str(FOLDER))
    assert splits.keys() == MUSE.splits.keys() - {"request"}
    compared = {split: splits[split] for split in MUSE.gold}
    gold = evaluate("muse", gold_model, compared)[1]
    metrics, statistics = evaluate("muse", reader, splits, gold=gold)
    assert {*MUSE.headline, "retain_probability", "privacy_score"} <= metrics.keys()
    assert metrics["knowmem_f"] == pytest.approx(np.mean(statistics["knowmem_f"]["score"]))
    assert statistics["knowmem_f"]["examples"] == [2] * 6
    assert (
        metrics["forget_exact_memorisation"]
        > 2 * evaluate("muse", gold_model, compared)[0]["forget_exact_memorisation"]
    )
    notes, left_out = MUSE.remark(statistics, gold)
    assert left_out.keys() == {"mia_gradnorm"} and any(note.startswith("knowmem_f: 6 rows. A mean") for note in notes)


def test_scores_are_those_of_the_authors_code(
    evaluate: Callable[..., Any], reader: PreTrainedModel, gold_model: PreTrainedModel
) -> None:
    pairs = {"forget": reference_rows("rows"), "holdout": reference_rows("holdout")}
    splits = {split: [{"text": f"{row['question']} {row['answer']}"} for row in rows] for split, rows in pairs.items()}
    splits["retain"] = [{"text": passage["text"]} for passage in reference_rows("passages")]
    gold = evaluate("muse", gold_model, splits)[1]
    metrics, statistics = evaluate("muse", reader, splits, gold=gold)
    expected = peer_value("muse.privleak_scores.model_c")
    for split in splits:
        assert statistics[split]["loss"] == pytest.approx(expected[split]["PPL"], rel=1e-5)
        assert statistics[split]["min_k"] == pytest.approx(expected[split]["Min-40%"], rel=1e-5)
    for ours, theirs in (("min_k", "Min-40%"), ("loss", "PPL")):
        privleak = peer_value(f"muse_fork.privleak.forget_holdout_{theirs}.model_c")
        assert metrics[f"privleak_{ours}"] == pytest.approx(privleak)


def test_continuations_are_those_of_the_authors_code(evaluate: Callable[..., Any], reader: PreTrainedModel) -> None:
    rows = [{"prompt": passage["prompt"], "gt": passage["rest"]} for passage in reference_rows("passages")]
    metrics, _ = evaluate("muse", reader, {"verbmem": rows}, max_new_tokens=48)
    # Their code counts a special token among the 48 of the true text.
    assert metrics["verbmem_f"] == pytest.approx(peer_value("muse_fork.verbmem_knowmem.model_c")["verbmem_f"], abs=0.2)


def test_examples_stand_before_the_question() -> None:
    (row,) = prepare(
        {
            "knowmem_f": [{"question": "Who?", "answer": "She."}],
            "knowmem_f_icl": [{"question": "Where?", "answer": "There."}],
        }
    )["knowmem_f"]
    assert row["prompt"] == "Question: Where?\nAnswer: There.\n\nQuestion: Who?\nAnswer: "


def test_questions_without_examples_are_named(evaluate: Callable[..., Any], reader: PreTrainedModel) -> None:
    rows = load_suite("muse", str(FOLDER))["knowmem_r"]
    _, statistics = evaluate("muse", reader, {"knowmem_r": rows})
    assert any(note.startswith("knowmem_r: no example questions") for note in MUSE.remark(statistics).notes)


def test_larger_and_successive_requests_are_asked_for_by_name(
    evaluate: Callable[..., Any], reader: PreTrainedModel
) -> None:
    sizes = {
        name: len(load_suite("muse", str(FOLDER), name)["request"]) for name in ("scal:forget_1", "scal:forget_2")
    }
    assert list(sizes.values()) == [2, 3]
    request = {"request": load_suite("muse", str(FOLDER), "sust:forget_2")["request"]}
    assert 0 < evaluate("muse", reader, request)[0]["request_probability"] < 1
    with pytest.raises(FileNotFoundError, match=r"scal/forget_9\.json\. The nearest that is there is scal/forget_"):
        load_suite("muse", str(FOLDER), "scal:forget_9")


def test_rows_of_another_benchmark_are_named() -> None:
    tofu = load_suite("tofu", str(FOLDER.parent / "tofu"))
    with pytest.raises(ValueError, match=r"no column 'prompt', which the muse suite .* those of the 'tofu' suite"):
        check_splits("muse", {"verbmem": tofu["forget"]})
    wmdp = load_suite("wmdp", str(FOLDER.parent / "wmdp"))
    with pytest.raises(ValueError, match=r"no column 'perturbed_answer'.* those of the 'wmdp' or 'rwku' suite"):
        check_splits("tofu", {"forget": wmdp["bio"]})
    # Many sets have these columns.
    with pytest.raises(ValueError, match=r"its columns are 'question', 'answer'\.$"):
        check_splits("wmdp", {"bio": [{"question": "Who?", "answer": "She."}]})
