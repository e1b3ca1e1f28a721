"""Running attacks: files are reused, hold no text, and models stand side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from r2f_hf.attacks import ATTACKS, Attack, Target, compare, run_attacks
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
