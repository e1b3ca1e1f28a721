"""Running attacks: files are reused, hold no text, and models stand side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from r2f_hf.attacks import ATTACKS, Attack, Target, compare, curves, remark_on_rows, run_attacks
from r2f_hf.data.formatting import encode_example


@pytest.fixture
def target(
    memorised_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, forget_rows: list[dict[str, Any]]
) -> Target:
    examples = [
        encode_example(tokenizer, row["question"], row["answer"]) | {"item": index}
        for index, row in enumerate(forget_rows)
    ]
    return Target(memorised_model, tokenizer, examples, rows={"forget": forget_rows}, max_new_tokens=8)


def test_values_are_read_again_and_files_hold_no_text(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget_rows: list[dict[str, Any]]
) -> None:
    first = run_attacks(["pruning", "sampling"], target, tmp_path)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["pruning.json", "sampling.json"]
    for file in tmp_path.iterdir():
        assert not any(row["answer"] in file.read_text() for row in forget_rows)

    def fails(target: Target) -> dict[str, list[float]]:
        raise AssertionError("attacked again")

    monkeypatch.setitem(ATTACKS, "pruning", Attack("", "probability", fails))
    assert run_attacks(["pruning", "sampling"], target, tmp_path) == first
    # With another weight everything is done again.
    target.model.lm_head.weight.data[0, 0] += 1
    with pytest.raises(AssertionError, match="attacked again"):
        run_attacks(["pruning"], target, tmp_path)


def test_a_damaged_file_is_made_anew(target: Target, tmp_path: Path) -> None:
    first = run_attacks(["pruning"], target, tmp_path)
    (tmp_path / "pruning.json").write_text(json.dumps({"key": "of another run"}))
    assert run_attacks(["pruning"], target, tmp_path) == first
    file = tmp_path / "pruning.json"
    file.write_text(file.read_text()[:-20])
    assert run_attacks(["pruning"], target, tmp_path) == first
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="no file of an earlier run, and is not overwritten"):
        run_attacks(["pruning"], target, tmp_path)
    assert file.read_text() == "[1, 2]"


def test_models_side_by_side_by_hand() -> None:
    def values(before: float, after: float) -> dict[str, dict[str, list[float]]]:
        rows = {"no attack": [before, before], "no attack: all rows": [before], "a rate": [after - 0.1, after + 0.1]}
        return {"relearning": rows | {"an epoch: all rows": [after]}}

    results = {"unlearned": values(0.1, 0.4), "original": values(0.9, 1.0), "gold": values(0.1, 0.2)}
    line = compare(results)["relearning"]["a rate"]
    assert line == pytest.approx(
        {
            "unlearned": 0.4,
            "original": 1.0,
            "gold": 0.2,
            "comeback": (0.4 - 0.2) / (1.0 - 0.2),
            "relearning_ratio": (0.2 - 0.1) / (0.4 - 0.1),
        }
    )
    assert compare(results)["relearning"]["an epoch: all rows"]["comeback"] == pytest.approx(0.25)
    # Without gold there is no comeback, only what each model says.
    del results["gold"]
    assert compare(results)["relearning"]["a rate"].keys() == {"unlearned", "original"}


def test_a_curve_begins_without_the_attack_and_ends_with_it() -> None:
    def values(start: float, middle: float, end: float) -> dict[str, dict[str, list[float]]]:
        rows = {"no attack": [start], "no attack: all rows": [0.5, 0.7], "an epoch: all rows": [end, end]}
        return {"relearning": rows | {"an epoch: all rows @1": [middle, middle], "an epoch: all rows @2": [end, end]}}

    results = {"unlearned": values(0.1, 0.2, 0.4), "gold": values(0.1, 0.1, 0.3), "original": {}}
    assert curves(results) == {
        "relearning": {
            "an epoch: all rows": {
                "steps": [0, 1, 2],
                "unlearned": pytest.approx([0.6, 0.2, 0.4]),
                "gold": pytest.approx([0.6, 0.1, 0.3]),
            }
        }
    }
    # The steps are no variants of their own.
    del results["original"]
    assert compare(results)["relearning"].keys() == {"no attack", "no attack: all rows", "an epoch: all rows"}
    # Values that an older version has kept have no steps.
    assert curves({"unlearned": {"relearning": {"no attack": [0.1], "a rate": [0.2]}}}) == {}


def test_no_comeback_where_the_original_knows_as_little_as_gold() -> None:
    rows = {"pruning": {"no attack": [0.5], "30% of the weights": [0.02]}}
    results = {
        "unlearned": rows,
        "original": rows,
        "gold": {"pruning": {"no attack": [0.1], "30% of the weights": [0.01]}},
    }
    lines = compare(results)["pruning"]
    assert lines["no attack"]["comeback"] == 1
    assert "comeback" not in lines["30% of the weights"]


def test_the_quantisation_ratio_is_of_the_means() -> None:
    results = {"unlearned": {"quantisation": {"no attack": [0.1, 0.1], "4 bits": [0.1, 0.3]}}}
    assert compare(results)["quantisation"]["4 bits"]["quantisation_ratio"] == pytest.approx(0.5)


def test_a_model_of_fewer_layers_has_fewer_lines() -> None:
    results = {
        "unlearned": {"logit_lens": {"no attack": [0.1], "layer 1": [0.1], "layer 2": [0.2]}},
        "gold": {"logit_lens": {"no attack": [0.1], "layer 1": [0.1]}},
    }
    lines = compare(results)["logit_lens"]
    assert lines["layer 1"].keys() == {"unlearned", "gold"} and lines["layer 2"].keys() == {"unlearned"}


def test_few_rows_are_named() -> None:
    def notes(rows: int) -> list[str]:
        # Each row has two windows.
        return remark_on_rows([{"item": index // 2} for index in range(2 * rows)], ["relearning"])

    assert "both fine-tuned on and measured" in notes(1)[1] and "by up to 0.98" in notes(1)[0]
    assert "6 forget rows" in notes(6)[0] and "The attacker has one row" in notes(6)[1]
    assert len(notes(10)) == 1 and notes(100) == []


@pytest.mark.parametrize("name", ["pruning", "sampling", "logit_lens"])
def test_a_ruined_model_is_named_by_its_row(name: str, target: Target, tmp_path: Path) -> None:
    target.model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"forget\[0\] has tokens to which the model gives NaN"):
        run_attacks([name], target, tmp_path)
    assert not list(tmp_path.iterdir())
