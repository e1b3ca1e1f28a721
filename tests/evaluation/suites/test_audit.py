"""The attacks and the memorisation of a suite are those of the metrics, and what few rows can show is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r2f_hf import metrics
from r2f_hf.data.formatting import encode_example, encode_text
from r2f_hf.data.windows import cut_into_windows
from r2f_hf.evaluation import Settings
from r2f_hf.evaluation.suites.audit import ATTACKS, answer_statistics, membership, remark_on_membership
from r2f_hf.scoring import gradient_norms, token_statistics


FORGET = [("Who?", "The widow Aldith Kemble."), ("Where is it?", "In Norrey."), ("When?", "In late October.")]
HOLDOUT = [("Who else?", "Nobody."), ("Where else?", "On the Isle of Harl."), ("Which colour?", "A dull green.")]


@pytest.fixture
def statistics(reader: PreTrainedModel, words: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        name: answer_statistics(
            reader, words, [[encode_example(words, *pair)] for pair in pairs], name, Settings(batch_size=2)
        )
        for name, pairs in (("forget", FORGET), ("holdout", HOLDOUT))
    }


def test_the_scores_are_those_of_the_metrics(
    statistics: dict[str, Any], reader: PreTrainedModel, words: PreTrainedTokenizerBase
) -> None:
    found = membership(statistics)
    rows = [
        token_statistics(reader, [encode_example(words, *pair) for pair in pairs], 0) for pairs in (FORGET, HOLDOUT)
    ]
    losses = [[row.loss for row in of_set] for of_set in rows]
    log_probs = [[row.log_probs for row in of_set] for of_set in rows]
    # The tokens of an answer begin with the space before it.
    texts = [[f" {answer}" for _, answer in pairs] for pairs in (FORGET, HOLDOUT)]
    spread = [([row.means for row in of_set], [row.deviations for row in of_set]) for of_set in rows]
    expected = {
        "loss": metrics.load("mia_loss").compute(predictions=losses[0], holdout=losses[1]),
        "zlib": metrics.load("mia_zlib").compute(
            predictions=losses[0], texts=texts[0], holdout=losses[1], holdout_texts=texts[1]
        ),
        "min_k": metrics.load("mia_min_k").compute(predictions=log_probs[0], holdout=log_probs[1]),
        "min_k_plus_plus": metrics.load("mia_min_k_plus_plus").compute(
            predictions=log_probs[0],
            means=spread[0][0],
            deviations=spread[0][1],
            holdout=log_probs[1],
            holdout_means=spread[1][0],
            holdout_deviations=spread[1][1],
        ),
    }
    for name in ATTACKS:
        assert found[f"mia_{name}_auc"] == expected[name]["auc"]
        for split in ("forget", "holdout"):
            assert statistics[split][name] == pytest.approx(expected[name][split], rel=1e-4)
    hits = [row.hits for row in rows[0]]
    for name in ("exact_memorisation", "extraction_strength"):
        assert statistics["forget"][name] == metrics.load(name).compute(predictions=hits)["rows"]


def test_the_windows_of_a_text_are_one_row(reader: PreTrainedModel, words: PreTrainedTokenizerBase) -> None:
    example = encode_text(words, " ".join(answer for _, answer in FORGET))
    windows = cut_into_windows(example, 10, 4)
    assert len(windows) > 2
    whole, cut = (answer_statistics(reader, words, [each], "forget", Settings()) for each in ([example], windows))
    assert cut["tokens"] == whole["tokens"]
    assert len(cut["loss"]) == 1 and cut["loss"] != whole["loss"]


def test_gold_is_compared_with(statistics: dict[str, Any]) -> None:
    scores = {"forget": [1.0, 2.0, 3.0], "holdout": [2.5, 1.5, 3.5]}
    gold = {split: dict.fromkeys((*ATTACKS, "loss"), scores[split]) | {"tokens": [3, 4, 5]} for split in scores}
    found = membership(statistics, gold)
    # Six of the nine pairs have the holdout row above the forget row.
    leaks = [100 * ((1 - found[f"mia_{name}_auc"]) / (3 / 9) - 1) for name in ATTACKS]
    assert [found[f"privleak_{name}"] for name in ATTACKS] == pytest.approx(leaks)
    assert membership(gold, gold)["privacy_score"] == 1
    differences = {split: np.subtract(statistics[split]["loss"], scores[split]) for split in scores}
    pairs = [(a, b) for a in differences["forget"] for b in differences["holdout"]]
    assert found["mia_reference_auc"] == pytest.approx(np.mean([b > a for a, b in pairs]))
    assert {"mia_reference", "privleak", "privacy_score"} & remark_on_membership(
        statistics, gold
    ).left_out.keys() == set()


def test_a_gold_that_tells_the_sets_apart_is_not_divided_by(statistics: dict[str, Any]) -> None:
    apart = {"forget": [1.0, 2.0, 3.0], "holdout": [4.0, 5.0, 6.0]}
    gold = {split: dict.fromkeys(ATTACKS, scores) | {"tokens": [3, 4, 5]} for split, scores in apart.items()}
    assert not any(name.startswith("privleak") for name in membership(statistics, gold))
    assert {f"privleak_{name}" for name in ATTACKS} <= remark_on_membership(statistics, gold).left_out.keys()
    turned = {"forget": gold["holdout"], "holdout": gold["forget"]}
    assert "privacy_score" not in membership(statistics, turned)
    assert "privacy_score" in remark_on_membership(statistics, turned).left_out


def test_without_holdout_rows_there_are_no_attacks(statistics: dict[str, Any]) -> None:
    alone = {"forget": statistics["forget"]}
    assert membership(alone, alone) == {}
    assert {"mia", "privleak", "privacy_score"} <= remark_on_membership(alone).left_out.keys()


@pytest.mark.parametrize("rows", [6, 40, 400])
def test_too_few_rows_are_named(rows: int) -> None:
    split = {name: list(range(rows)) for name in (*ATTACKS, "tokens")}
    notes = remark_on_membership({"forget": split, "holdout": split}).notes
    assert [note for note in notes if f"with {rows} forget rows and {rows} holdout rows" in note] == (
        notes if rows < 400 else []
    )
    assert len(notes) == (rows < 400)


def test_a_holdout_of_another_length_is_named() -> None:
    def split(shortest: int) -> dict[str, Any]:
        return {name: list(range(shortest, shortest + 20)) for name in (*ATTACKS, "tokens")}

    notes = remark_on_membership({"forget": split(5), "holdout": split(20)}).notes
    assert "medians of 30 and 14 tokens" in notes[-1] and "an `auc` of 0.97" in notes[-1]
    assert not any("length" in note for note in remark_on_membership({"forget": split(5), "holdout": split(6)}).notes)


def test_gradient_norms_are_computed_on_request(reader: PreTrainedModel, words: PreTrainedTokenizerBase) -> None:
    examples = {
        name: [[encode_example(words, *pair)] for pair in pairs]
        for name, pairs in (("forget", FORGET), ("holdout", HOLDOUT))
    }
    found = {
        name: answer_statistics(reader, words, rows, name, Settings(gradnorm=True)) for name, rows in examples.items()
    }
    norms = {name: gradient_norms(reader, [example for (example,) in rows], 0) for name, rows in examples.items()}
    expected = metrics.load("mia_gradnorm").compute(predictions=norms["forget"], holdout=norms["holdout"])
    assert membership(found)["mia_gradnorm_auc"] == expected["auc"]
    assert found["forget"]["gradnorm"] == pytest.approx(expected["forget"])
    assert "mia_gradnorm" not in remark_on_membership(found).left_out
    assert "privleak_gradnorm" in membership(found, found) or expected["auc"] == 1
    # Windows have gradients of their own.
    cut = [cut_into_windows(encode_text(words, "In Norrey, in late October, in the rain."), 10, 4)]
    assert "gradnorm" not in answer_statistics(reader, words, cut, "forget", Settings(gradnorm=True))
