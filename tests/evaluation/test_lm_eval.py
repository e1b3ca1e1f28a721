"""Tasks of lm-evaluation-harness, offline, on a model that is loaded already."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluation.suites.conftest import MODELS, reference_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2f_hf.evaluation.lm_eval import check_lm_eval, run_lm_eval
from r2f_hf.evaluation.suites.base import Settings
from r2f_hf.evaluation.suites.choices import letters_and_texts


CHOICES = "".join(rf"\n{letter}. {{{{choices[{index}]}}}}" for index, letter in enumerate("ABCD"))
TASK = f"""
task: invented_letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: FILE}}}}
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: "{{{{question.strip()}}}}{CHOICES}\\nAnswer:"
doc_to_choice: [A, B, C, D]
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a task of multiple choice with letters."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{name: row[name] for name in ("question", "choices", "label")} for row in reference_rows("rows")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(TASK.replace("FILE", str(folder / "rows.jsonl")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        yield folder


def test_a_local_task_gives_what_the_suites_give(tasks: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODELS / "model_c").train()
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "model_a")
    found = run_lm_eval(model, tokenizer, ["invented_letters"], str(tasks), 4)
    assert model.training and found.keys() == {"invented_letters"}
    rows = [row | {"answer": row["label"]} for row in reference_rows("rows")]
    expected = letters_and_texts(model.eval(), tokenizer, rows, "rows", Settings())["acc"]
    assert found["invented_letters"]["acc"] == pytest.approx(sum(expected) / len(expected))
    assert {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"} <= found["invented_letters"].keys()


def test_an_unknown_task_is_answered_with_the_nearest_name(tasks: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown lm-eval task: 'invented_leters'\. Did you mean 'invented_letters'"):
        check_lm_eval(["invented_leters"], str(tasks))
    with pytest.raises(FileNotFoundError, match="There is no folder nowhere with tasks of lm-eval"):
        check_lm_eval(["invented_letters"], "nowhere")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ValueError, match="pip install lm_eval"):
        check_lm_eval(["mmlu"])
