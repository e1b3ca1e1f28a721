"""`r2f evaluate` on the folder of each suite: what its report has, and which mistakes it names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation.suites.conftest import DATA, MODELS, texts_of
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from r2f_hf import cli
from r2f_hf.cli.evaluate import SCHEMA
from r2f_hf.data.loading import load_rows
from r2f_hf.evaluation import SUITES
from r2f_hf.evaluation.writing import FILE


OWN = [f"--{name}_data={DATA / 'own' / file}.jsonl" for name, file in (("forget", "forget"), ("retain", "questions"))]
TEXTS = f"--retain_data={DATA / 'own' / 'holdout.jsonl'}"
ARGUMENTS = {
    "tofu": ["--data", str(DATA / "tofu")],
    "muse": ["--data", str(DATA / "muse"), "--forget_split", "scal:forget_1"],
    "wmdp": ["--data", str(DATA / "wmdp")],
    "rwku": ["--data", str(DATA / "rwku")],
    "knowundo": ["--data", str(DATA / "knowundo"), "--forget_split", "privacy"],
    "own": [*OWN, f"--holdout_data={DATA / 'own' / 'holdout.jsonl'}"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that knows the texts, and one that does not."""
    folder = tmp_path_factory.mktemp("models")
    for name, source in (("knows", "model_c"), ("gold", "model_b")):
        shutil.copytree(MODELS / source, folder / name)
        AutoTokenizer.from_pretrained(MODELS / "model_a").save_pretrained(folder / name)
    return folder


@pytest.fixture
def run(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs the command, and returns its report and what it printed."""

    def evaluate(suite: str, *more: str) -> tuple[dict[str, Any], str]:
        model = ["--model_name_or_path", str(models / "knows"), "--output_dir", str(tmp_path / "evaluation")]
        cli.main(["evaluate", "--suite", suite, *ARGUMENTS[suite], *model, "--max_new_tokens", "8", *more])
        return json.loads((tmp_path / "evaluation" / "report.json").read_text()), capsys.readouterr().out

    return evaluate


@pytest.fixture
def fails(models: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which has to fail, and returns its message."""

    def evaluate(*argv: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["evaluate", "--model_name_or_path", str(models / "knows"), *argv])
        return capsys.readouterr().err

    return evaluate


def test_every_suite_has_a_folder() -> None:
    assert ARGUMENTS.keys() == SUITES.keys()


@pytest.mark.parametrize("suite", ARGUMENTS)
def test_the_report_of_each_suite(
    suite: str, run: Callable[..., tuple[dict[str, Any], str]], models: Path, tmp_path: Path
) -> None:
    report, printed = run(suite, "--gold_model", str(models / "gold"), "--original_model", str(models / "knows"))
    fields = "schema command model gold_model original_model weights suite forget_split rows metrics compared notes"
    assert list(report) == [*fields.split(), "left_out", "seconds"]
    assert report["schema"] == SCHEMA == "r2f-evaluate/1" and report["suite"] == suite
    assert {*SUITES[suite].headline} <= report["metrics"].keys() | {"forget_paraphrase_probability"}
    assert all(isinstance(value, float) for value in report["metrics"].values())
    assert all(name not in report["metrics"] for name in report["left_out"])
    parts = report["seconds"]["model"]
    assert all(value >= 0 for value in parts.values()) and {part.split(":")[0] for part in parts} <= {*report["rows"]}
    # So few rows are always named.
    assert report["notes"] and all(f"Note: {note}" in printed for note in report["notes"])
    assert set(report["left_out"]) <= set(printed.split("says why): ")[-1].split(".\n")[0].split(", "))
    # The files hold numbers only.
    rows = [row for file in (DATA / suite).rglob("*.json*") for row in load_rows(str(file))]
    written = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file()).lower()
    assert not [text for text in texts_of(rows) if len(text.split()) > 1 and text.lower() in written]
    assert len(list((tmp_path / "evaluation").rglob("*.json"))) > 1


def test_depth_is_measured_if_it_is_asked_for(
    run: Callable[..., tuple[dict[str, Any], str]], models: Path, tmp_path: Path
) -> None:
    others = ("--gold_model", str(models / "gold"), "--original_model", str(models / "knows"))
    report, _ = run("tofu", *others)
    assert {"unlearning_depth", "truth_stability"} <= report["left_out"].keys()
    report, _ = run("tofu", *others, "--depth")
    # The model is the original one itself.
    assert report["metrics"]["unlearning_depth"] == 0 and "depth: layers" in report["seconds"]["model"]
    # The folder's retain set has four rows.
    assert "truth_stability" in report["left_out"] and "unlearning_depth" not in report["left_out"]
    assert len(list((tmp_path / "evaluation").rglob("depth.json"))) == 3
    report, _ = run("tofu", "--depth", *others[:2])
    assert "It needs the original model" in report["left_out"]["unlearning_depth"]


def test_a_model_writes_what_own_rows_lack(
    run: Callable[..., tuple[dict[str, Any], str]], models: Path, tmp_path: Path
) -> None:
    lines = (DATA / "own" / "questions.jsonl").read_text().splitlines()
    for name, part in (("forget", lines[:3]), ("retain", lines[3:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    sets = tuple(f"--{name}_data={tmp_path / name}.jsonl" for name in ("forget", "retain"))
    asked = (*sets, "--write_wrong_answers", "2", "--write_paraphrases")
    report, _ = run("own", *asked, "--gold_model", str(models / "gold"))
    assert {"truth_ratio", "forget_quality", "retain_truth_ratio", "model_utility"} <= report["metrics"].keys()
    assert report["notes"][0].startswith("truth_ratio: the model itself wrote")
    assert report["seconds"]["writing"].keys() >= {"forget: wrong answers", "retain: paraphrases"}
    file = tmp_path / "evaluation" / FILE
    assert str(file) in report["notes"][0]
    written = file.read_text()
    again, _ = run("own", *asked, "--gold_model", str(models / "gold"))
    assert again["metrics"] == report["metrics"] and file.read_text() == written
    report, _ = run("own", *asked, "--original_model", str(models / "gold"))
    assert report["notes"][0].startswith("truth_ratio: the original model wrote")
    assert not [note for note in report["notes"] if "was not read" in note] and file.read_text() != written


def test_lm_eval_runs_on_the_same_model(run: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = DATA / "wmdp" / "wmdp-bio.json"
    (tmp_path / "task.yaml").write_text(
        "task: invented_words\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\nnum_fewshot: 0\n"
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\nmetric_list: [{{metric: acc}}]\n"
        'doc_to_text: "Question: {{question.strip()}}\\nAnswer:"\ndoc_to_choice: choices\ndoc_to_target: answer\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        report, printed = run("wmdp", "--lm_eval_tasks", "invented_words", "--lm_eval_include_path", str(tmp_path))
    assert report["lm_eval"]["invented_words"]["acc"] == report["metrics"]["bio_text_acc"]
    assert "lm-eval invented_words" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--suite", "mouse"), "Unknown suite: 'mouse'. Did you mean 'muse'?"),
        (OWN, "The tofu suite takes its rows from `data`. For rows of your own set `suite` to own."),
        (("--suite", "own", "--data", "rows"), "The own suite takes no `data`"),
        (("--suite", "own", OWN[0]), "The own suite needs `retain_data`"),
        (("--suite", "own", *OWN, "--write_wrong_answers", "-1"), "`write_wrong_answers` is -1, and must be at least"),
        (("--suite", "own", *OWN, "--write_paraphrases"), "Set `write_wrong_answers` too, or give the rows a column"),
        (("--suite", "own", OWN[0], TEXTS, "--write_wrong_answers", "2"), "and all rows are texts"),
        ((*ARGUMENTS["tofu"], "--write_paraphrases"), "A model writes answers only for the own suite"),
        (("--suite", "rwku", *ARGUMENTS["rwku"], "--depth"), "The rwku suite cannot measure `depth`"),
        (("--suite", "rwku", "--data", str(DATA / "muse")), "The rwku suite needs"),
        (("--suite", "wmdp", "--data", "./nowhere"), "There is no folder ./nowhere"),
        ((*ARGUMENTS["tofu"], "--prompt_column", "text"), "The tofu suite has columns of its own. Leave out `prompt_"),
        (("--suite", "own", *OWN, "--forget_split", "forget01"), "takes its forget set from `forget_data`"),
        (("--suite", "wmdp", *ARGUMENTS["wmdp"], "--gradnorm"), "The wmdp suite has no holdout rows to compare with"),
        ((*ARGUMENTS["tofu"], "--batch_size", "0"), "`batch_size` must be at least 1, got 0."),
        ((*ARGUMENTS["tofu"], "--max_new_tokens", "-2"), "`max_new_tokens` must be at least 1, got -2."),
        ((*ARGUMENTS["tofu"], "--lm_eval_tasks", "mmlu", "--lm_eval_include_path", "nowhere"), "There is no folder"),
    ],
)
def test_mistakes_are_told_in_a_line(argv: tuple[str, ...], message: str, fails: Callable[..., str]) -> None:
    assert message in fails(*argv)


def test_a_gold_model_with_another_tokenizer_is_refused(
    fails: Callable[..., str], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    shutil.copytree(MODELS / "model_b", tmp_path / "gold")
    tokenizer.save_pretrained(tmp_path / "gold")
    message = fails(*ARGUMENTS["tofu"], "--gold_model", str(tmp_path / "gold"))
    assert "has another tokenizer" in message and "Train gold from the same base model" in message
    message = fails(*ARGUMENTS["tofu"], "--original_model", str(tmp_path / "gold"))
    assert "The original model" in message and "has another tokenizer" in message


def test_what_shows_only_in_the_model_is_told_in_a_line_too(
    fails: Callable[..., str], models: Path, tmp_path: Path
) -> None:
    ruined = AutoModelForCausalLM.from_pretrained(models / "gold")
    ruined.lm_head.weight.data.fill_(torch.nan)
    ruined.save_pretrained(tmp_path / "ruined")
    AutoTokenizer.from_pretrained(models / "gold").save_pretrained(tmp_path / "ruined")
    message = fails(*ARGUMENTS["tofu"], "--gold_model", str(tmp_path / "ruined"), f"--output_dir={tmp_path / 'out'}")
    assert message.endswith("forget[0] has tokens to which the model gives NaN: its weights or its precision fail.\n")


def test_a_file_that_is_not_of_an_earlier_run_is_not_overwritten(fails: Callable[..., str], tmp_path: Path) -> None:
    shutil.copy(DATA / "own" / "questions.jsonl", tmp_path / "forget.json")
    before = (tmp_path / "forget.json").read_text()
    message = fails(*ARGUMENTS["tofu"], "--output_dir", str(tmp_path))
    assert "forget.json is no file of an earlier run, and is not overwritten" in message
    assert (tmp_path / "forget.json").read_text() == before


def test_files_of_another_benchmark_are_named(fails: Callable[..., str], tmp_path: Path) -> None:
    shutil.copytree(DATA / "tofu", tmp_path / "tofu")
    shutil.copy(DATA / "wmdp" / "wmdp-bio.json", tmp_path / "tofu" / "retain_perturbed.json")
    message = fails("--data", str(tmp_path / "tofu"))
    assert "has no column 'perturbed_answer', which the tofu suite needs" in message
    assert "They look like those of the 'wmdp' or 'rwku' suite." in message
