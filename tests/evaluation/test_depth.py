"""What is found inside a model: nothing of the answers in gold, and all of them in the model that knows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation.suites.conftest import DATA, MODELS
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from r2f_hf import metrics
from r2f_hf.data.formatting import encode_example
from r2f_hf.data.loading import load_rows
from r2f_hf.evaluation import load_own, load_suite, run_depth
from r2f_hf.evaluation.depth import remark_on_depth, summarise_depth
from r2f_hf.scoring import hidden_states, patching_falls


PROBE = {"truth_stability", "forget_judged_true", "forget_unfamiliar", "truth_probe_accuracy"}


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    """One that knows the rows, one that never saw them, and a third one. Tests share them."""
    return {name: AutoModelForCausalLM.from_pretrained(MODELS / f"model_{name}").eval() for name in "abc"}


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODELS / "model_a")


@pytest.fixture
def splits() -> dict[str, Any]:
    rows = load_suite("tofu", str(DATA / "tofu"))
    # The probe needs five statements of each kind.
    return dict(rows) | {"retain": [*rows["retain"], *rows["retain"]]}


def test_the_depth_is_one_for_gold_and_zero_for_the_model_that_knows(
    models: dict[str, PreTrainedModel], words: PreTrainedTokenizerBase, splits: dict[str, Any]
) -> None:
    found = {name: run_depth("tofu", model, words, splits, knows=models["c"]) for name, model in models.items()}
    depths = {name: summarise_depth(each, found["b"])["unlearning_depth"] for name, each in found.items()}
    assert depths["b"] == 1 and depths["c"] == 0 and 0 < depths["a"] < 1
    examples = [encode_example(words, row["question"], row["answer"]) for row in splits["forget"]]
    falls = [patching_falls(models["c"], models[name], examples, 0) for name in "ab"]
    expected = metrics.load("unlearning_depth").compute(predictions=falls[0], gold=falls[1])
    assert depths["a"] == pytest.approx(expected["unlearning_depth"])


def test_the_probe_is_that_of_the_metric(
    models: dict[str, PreTrainedModel], words: PreTrainedTokenizerBase, splits: dict[str, Any]
) -> None:
    found, original = (run_depth("tofu", models[name], words, splits) for name in "ac")
    summary = summarise_depth(found, None, original)
    assert summary.keys() == PROBE | {f"original_{name}" for name in PROBE}
    pairs = {
        "predictions": [(row["question"], row["answer"]) for row in splits["forget"]],
        "true": [(row["question"], row["answer"]) for row in splits["retain"]],
        "false": [(row["question"], row["perturbed_answer"][0]) for row in splits["retain"]],
        "unfamiliar": [(row["question"], row["answer"]) for row in splits["holdout"]],
    }
    states = {
        kind: hidden_states(models["a"], [encode_example(words, *pair) for pair in of_kind], 0).tolist()
        for kind, of_kind in pairs.items()
    }
    expected = metrics.load("truth_stability").compute(**states)
    assert summary["truth_stability"] == pytest.approx(expected["truth_stability"])
    assert summary["forget_unfamiliar"] == pytest.approx(expected["unfamiliar"])
    assert [note for note in remark_on_depth(found).notes if note.startswith("truth_stability: the probe has 6")]


def test_key_words_may_be_named(
    models: dict[str, PreTrainedModel], words: PreTrainedTokenizerBase, splits: dict[str, Any]
) -> None:
    rows = [dict(row) for row in splits["forget"]]
    whole = run_depth("tofu", models["a"], words, {"forget": rows}, knows=models["c"])["falls"]
    rows[0]["key_words"] = "seventeen arches"
    named = run_depth("tofu", models["a"], words, {"forget": rows}, knows=models["c"])["falls"]
    assert named[0] != whole[0] and named[1] == pytest.approx(whole[1], rel=1e-4)
    rows[0]["key_words"] = "eighteen arches"
    with pytest.raises(ValueError, match=r"forget\[0\] has key words that its answer does not contain"):
        run_depth("tofu", models["a"], words, {"forget": rows}, knows=models["c"])


def test_what_is_missing_is_left_out_by_name(
    models: dict[str, PreTrainedModel], words: PreTrainedTokenizerBase, splits: dict[str, Any]
) -> None:
    assert remark_on_depth(None).left_out.keys() == {"unlearning_depth", "truth_stability"}
    alone = run_depth("tofu", models["a"], words, {"forget": splits["forget"]})
    assert alone.keys() == {"key", "seconds"} and summarise_depth(alone, alone) == {}
    assert remark_on_depth(alone, alone).left_out.keys() == {"unlearning_depth", "truth_stability"}
    # Gold knows as much as the model before unlearning.
    same = run_depth("tofu", models["c"], words, splits, knows=models["c"])
    assert "unlearning_depth" in remark_on_depth(same, same).left_out
    assert "unlearning_depth" not in summarise_depth(same, same)
    with pytest.raises(ValueError, match=r"The muse suite cannot measure `depth`.*the suites tofu and own can"):
        run_depth("muse", models["a"], words, splits)


def test_rows_of_one_s_own(models: dict[str, PreTrainedModel], words: PreTrainedTokenizerBase) -> None:
    questions = str(DATA / "own" / "questions.jsonl")
    sets = {name: [dict(row) for row in load_rows(questions)] for name in ("forget", "retain")}
    sets["holdout"] = [row | {"prompt": f"And {row['prompt']}"} for row in sets["forget"]]
    for row in sets["retain"]:
        row["perturbed_answer"] = ["Nobody knows."]
    found = run_depth("own", models["a"], words, sets, knows=models["c"])
    assert len(found["falls"]) == len(sets["forget"]) and found["statements"]["false"] == len(sets["retain"])
    texts = load_own(str(DATA / "own" / "forget.jsonl"), questions)
    assert run_depth("own", models["a"], words, texts, knows=models["c"]).keys() == {"key", "falls", "seconds"}
    # Windows of a long text are no rows.
    assert run_depth("own", models["a"], words, texts, knows=models["c"], max_length=40).keys() == {"key", "seconds"}


def test_a_second_run_reads_the_file(
    models: dict[str, PreTrainedModel], words: PreTrainedTokenizerBase, splits: dict[str, Any], tmp_path: Path
) -> None:
    first = run_depth("tofu", models["a"], words, splits, tmp_path, models["c"])
    file = tmp_path / "depth.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"falls": [[0.5, 0.5]]}))
    assert run_depth("tofu", models["a"], words, splits, tmp_path, models["c"])["falls"] == [[0.5, 0.5]]
    # Another model that knows the answers.
    again = run_depth("tofu", models["a"], words, splits, tmp_path, models["b"])
    assert again["key"] != first["key"] and again["falls"] != [[0.5, 0.5]]
    written = file.read_text()
    assert not [row["answer"] for rows in splits.values() for row in rows if row["answer"] in written]
