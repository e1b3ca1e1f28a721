"""Suites: their numbers are those by hand, and their files can be reused and hold no text of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import hmean, ks_2samp
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from r2f_hf.evaluation import run_suite
from r2f_hf.evaluation.suites.tofu import summarise
from r2f_hf.scoring.completions import score_completions
from r2f_hf.scoring.generation import generate_answers


Splits = dict[str, list[dict[str, Any]]]


def with_wrong_answers(rows: list[dict[str, object]]) -> list[dict[str, Any]]:
    return [
        row
        | {
            "paraphrased_answer": f"The {['harbour', 'mountain', 'forest'][index % 3]}.",
            "perturbed_answer": ["The island.", "The old desert."][: 1 + index % 2],
        }
        for index, row in enumerate(rows)
    ]


@pytest.fixture(scope="session")
def splits(forget_rows: list[dict[str, object]], retain_rows: list[dict[str, object]]) -> Splits:
    facts = [
        {"question": "Where does Bram1 live?", "answer": "The forest.", "perturbed_answer": ["A desert", "An island"]},
        {"question": "Where is Bram2?", "answer": "By the harbour.", "perturbed_answer": ["Bram"]},
    ]
    return {
        "forget": with_wrong_answers(forget_rows[:3]),
        "retain": with_wrong_answers(retain_rows[:2]),
        "world_facts": facts,
    }


@pytest.fixture
def evaluate(tokenizer: PreTrainedTokenizerFast, splits: Splits, tmp_path: Path) -> Callable[..., Any]:
    def run(model: PreTrainedModel, **settings: Any) -> Any:
        defaults = {"output_dir": tmp_path / "statistics", "batch_size": 4, "max_new_tokens": 6}
        return run_suite("tofu", model, tokenizer, **{"splits": splits} | defaults | settings)

    return run


def test_numbers_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, splits: Splits, evaluate: Callable[..., Any]
) -> None:
    metrics, statistics = evaluate(model.train())
    assert model.training
    model.eval()

    def probability(question: str, answer: str) -> float:
        return float(np.exp(score_completions(model, tokenizer, [question], [answer])[0]))

    def ratios(split: str) -> np.ndarray:
        return np.array(
            [
                np.mean([probability(row["question"], wrong) for wrong in row["perturbed_answer"]])
                / probability(row["question"], row.get("paraphrased_answer", row["answer"]))
                for row in splits[split]
            ]
        )

    expected = {}
    for split in ("forget", "retain"):
        expected[f"{split}_probability"] = np.mean([probability(r["question"], r["answer"]) for r in splits[split]])
        expected[f"{split}_paraphrase_probability"] = np.mean(
            [np.mean([probability(view, r["answer"]) for view in r["paraphrased_question"]]) for r in splits[split]]
        )
    chosen = []
    for row in splits["world_facts"]:
        right, *wrong = (probability(row["question"], text) for text in (row["answer"], *row["perturbed_answer"]))
        chosen.append(right / (right + sum(wrong)))
    expected["world_facts_probability"] = np.mean(chosen)
    expected["truth_ratio"] = np.minimum(ratios("forget"), 1 / ratios("forget")).mean()
    for split in ("retain", "world_facts"):
        expected[f"{split}_truth_ratio"] = np.maximum(0, 1 - ratios(split)).mean()
    for split in splits:
        expected[f"{split}_rouge_l_recall"] = np.mean(statistics[split]["rouge_l_recall"])
    kept = [
        expected[f"{split}_{name}"]
        for split in ("retain", "world_facts")
        for name in ("probability", "rouge_l_recall", "truth_ratio")
    ]
    expected["model_utility"] = hmean(kept)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-3)


def test_a_model_that_knows_the_answers_repeats_them(
    memorised: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, splits: Splits, evaluate: Callable[..., Any]
) -> None:
    metrics, statistics = evaluate(memorised, max_new_tokens=30)
    answers = generate_answers(memorised, tokenizer, [row["question"] for row in splits["forget"]], 30)
    words = [set(row["answer"].lower().strip(".").split()) for row in splits["forget"]]
    recalls = [
        len(known & set(answer.lower().replace(".", " ").split())) / len(known)
        for known, answer in zip(words, answers, strict=True)
    ]
    assert statistics["forget"]["rouge_l_recall"] == pytest.approx(recalls)
    assert metrics["forget_probability"] > 0.9
    assert min(recalls) > 0.5


def test_a_second_run_computes_only_what_is_missing(
    model: PreTrainedModel, evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    metrics, statistics = evaluate(model)
    files = {split: tmp_path / "statistics" / f"{split}.json" for split in statistics}
    # Change a number in each file. Only a run that reads the file can report it.
    for file in files.values():
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"rouge_l_recall": [0.125] * len(content["answer"])}))
    files["retain"].unlink()
    again, _ = evaluate(model)
    assert again["forget_rouge_l_recall"] == again["world_facts_rouge_l_recall"] == 0.125
    assert again["retain_rouge_l_recall"] == metrics["retain_rouge_l_recall"]
    computed = json.loads(files["retain"].read_text())
    # The time that it took is another one.
    assert computed.pop("seconds").keys() == statistics["retain"].pop("seconds").keys()
    assert computed == statistics["retain"]


@pytest.mark.parametrize("change", ["weights", "rows", "settings", "template"])
def test_statistics_of_another_model_or_of_other_rows_are_not_reused(
    change: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    splits: Splits,
    evaluate: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate(model)
    file = tmp_path / "statistics" / "forget.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"rouge_l_recall": [0.125] * 3}))
    settings: dict[str, Any] = {}
    if change == "weights":
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    elif change == "rows":
        settings["splits"] = splits | {"forget": [*splits["forget"][:2], splits["forget"][2] | {"answer": "Gone."}]}
    elif change == "template":
        monkeypatch.setattr(tokenizer, "chat_template", "{% for m in messages %}Question: {{ m.content }}{% endfor %}")
    else:
        settings["max_new_tokens"] = 5
    metrics, statistics = evaluate(model, **settings)
    assert metrics["forget_rouge_l_recall"] != 0.125
    assert statistics["forget"]["key"] != content["key"]


def test_no_text_of_the_rows_is_written(
    memorised: PreTrainedModel, splits: Splits, evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    evaluate(memorised, max_new_tokens=30)
    written = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file()).lower()
    assert "rouge_l_recall" in written
    for word in ("orla", "bram", "harbour", "island", "live"):
        assert word not in written


def test_without_a_folder_nothing_is_written(
    model: PreTrainedModel, evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    evaluate(model, output_dir=None)
    assert not list(tmp_path.iterdir())


def test_forget_quality_compares_with_gold(
    model: PreTrainedModel, memorised: PreTrainedModel, evaluate: Callable[..., Any]
) -> None:
    before, gold = evaluate(model, output_dir=None)
    assert "forget_quality" not in before
    assert summarise(gold, gold)["forget_quality"] == 1
    metrics, statistics = evaluate(memorised, output_dir=None, gold=gold)

    def ratios(split: dict[str, Any]) -> list[float]:
        return [
            np.exp(wrong).mean() / np.exp(right)
            for wrong, right in zip(split["wrong"], split["paraphrase"], strict=True)
        ]

    expected = ks_2samp(ratios(statistics["forget"]), ratios(gold["forget"])).pvalue
    assert metrics["forget_quality"] == pytest.approx(expected)


def test_one_row_has_no_forget_quality() -> None:
    row = {"answer": [-0.5], "paraphrase": [-0.5], "wrong": [[-1.0, -2.0]], "rouge_l_recall": [0.5]}
    metrics = summarise({"forget": row}, {"forget": row})
    assert "forget_quality" not in metrics and 0 < metrics["truth_ratio"] < 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "The retain set is empty"), ([{"question": "Who?", "answer": "Orla"}], "no column 'perturbed_answer'")],
)
def test_splits_are_checked_before_anything_is_computed(
    rows: list[dict[str, Any]],
    message: str,
    model: PreTrainedModel,
    splits: Splits,
    evaluate: Callable[..., Any],
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(model, splits=splits | {"retain": rows})
    assert not list(tmp_path.iterdir())


def test_one_wrong_answer_need_not_be_in_a_list(
    model: PreTrainedModel, splits: Splits, evaluate: Callable[..., Any]
) -> None:
    lists = [row | {"perturbed_answer": row["perturbed_answer"][:1]} for row in splits["retain"]]
    alone = [row | {"perturbed_answer": row["perturbed_answer"][0]} for row in lists]
    assert evaluate(model, splits={"retain": alone})[0] == evaluate(model, splits={"retain": lists})[0]


@pytest.mark.parametrize("column", ["question", "answer", "perturbed_answer", "paraphrased_question"])
@pytest.mark.parametrize("value", [None, "", [], ["Who?", None], 1956, {"text": "Who?"}])
def test_what_is_not_text_is_refused_by_name(
    column: str, value: object, model: PreTrainedModel, splits: Splits, evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [splits["retain"][0], splits["retain"][1] | {column: value}]
    with pytest.raises(ValueError, match=rf"retain\[1\] has no text in '{column}', or something that is not text"):
        evaluate(model, splits={"retain": rows})
    assert not list(tmp_path.iterdir())


def test_a_question_is_one_text(model: PreTrainedModel, splits: Splits, evaluate: Callable[..., Any]) -> None:
    rows = [splits["retain"][0] | {"question": ["Who?"]}]
    with pytest.raises(ValueError, match=r"retain\[0\] has no text in 'question'"):
        evaluate(model, splits={"retain": rows})
