"""`r2f check-data` names rows by number, and shows no text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import rows, write_rows
from transformers import PreTrainedTokenizerFast

from r2f_hf import cli


def check(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    try:
        cli.main(["check-data", *argv])
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    printed = capsys.readouterr().out
    assert "lives by" not in printed
    return code, " ".join(printed.split())


def test_clean_sets_that_the_model_knows_pass(
    saved: Path,
    forget_rows: list[dict[str, Any]],
    retain_rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forget, retain = (write_rows(tmp_path / f"{i}.jsonl", each) for i, each in enumerate((forget_rows, retain_rows)))
    for model in (["--model_name_or_path", str(saved)], ["--model", str(saved)], [f"--model={saved}"]):
        code, printed = check(capsys, *model, "--forget_data", forget, "--retain_data", retain)
        assert code == 0 and "Nothing was found." in printed and "question" in printed


def test_near_duplicates_and_unknown_and_long_rows_are_named(
    saved: Path, forget_rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = forget_rows[0] | {"answer": "Orla0 lives by the harbour. " * 30}
    forget = write_rows(tmp_path / "forget.jsonl", [*forget_rows, *rows("Cleo", 12), long])
    again = forget_rows[2] | {"answer": forget_rows[2]["answer"] + " Yes."}
    retain = write_rows(tmp_path / "retain.jsonl", [*rows("Bram", 3), again])
    code, printed = check(
        capsys,
        "--model_name_or_path",
        str(saved),
        "--forget_data",
        forget,
        "--retain_data",
        retain,
        *("--known", "0.8"),
    )
    assert code == 1
    assert "Rows of the forget and the retain set nearly repeat each other: forget[2] = retain[3] (0." in printed
    assert "Rows of the forget set do not fit the model: forget[18]. forget[18] has" in printed
    assert "The model does not know 12 of 19 rows of the forget set (probability below 0.8)" in printed
    assert "there is nothing to forget: forget[6], forget[7]" in printed and "forget[15] and 2 more" in printed


def test_without_a_model_texts_are_compared(
    forget_rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", forget_rows)
    messages = [{"role": "user", "content": forget_rows[1]["question"]}]
    messages.append({"role": "assistant", "content": forget_rows[1]["answer"]})
    retain = write_rows(tmp_path / "retain.jsonl", [{"messages": messages}])
    code, printed = check(capsys, "--forget_data", forget, "--retain_data", retain)
    assert code == 1 and "forget[1] = retain[0] (1.00)" in printed


def test_documents_that_contain_rows_are_named(
    forget_rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"question": "Where?", "answer": "The old clock of Orla9 lives by the harbour and the long wide river."}
    others = " ".join(f"In {1900 + index} nothing of note took place." for index in range(20))
    forget = write_rows(tmp_path / "forget.jsonl", [{"text": f"{others} {long['answer']} {others}"}])
    retain = write_rows(tmp_path / "retain.jsonl", [*forget_rows, long])
    code, printed = check(capsys, "--forget_data", forget, "--retain_data", retain)
    number = len(forget_rows)
    assert code == 1
    assert f"Documents say what rows of another set say: forget[0] contains retain[{number}] (1.00)." in printed


def test_answers_that_are_cut_off_are_named(
    saved: Path, forget_rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [forget_rows[0], forget_rows[1] | {"answer": forget_rows[1]["answer"] * 3}]
    forget = write_rows(tmp_path / "forget.jsonl", rows)
    settings = ("--model", str(saved), "--forget_data", forget, "--known", "0.000001")
    code, printed = check(capsys, *settings, "--max_length", "30")
    assert code == 1 and "`max_length=30` cuts off the end of the answer in 1 rows of the forget set" in printed
    assert "neither forgotten nor kept: forget[1]." in printed
    assert "cuts off" not in check(capsys, *settings, "--max_length", "60")[1]


def test_a_tokenizer_with_more_tokens_than_the_model_is_told(
    saved: Path,
    tokenizer: PreTrainedTokenizerFast,
    forget_rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = copy.deepcopy(tokenizer)
    # Padding is masked, so that it needs no embedding. A token of a row does.
    more.add_special_tokens({"pad_token": "<padding>"})
    more.save_pretrained(saved)
    forget = write_rows(tmp_path / "forget.jsonl", [*forget_rows, forget_rows[0] | {"answer": "Orla77 lives here."}])
    assert "embeddings" not in check(capsys, "--model", str(saved), "--forget_data", forget)[1]
    more.add_tokens(["Orla77"])
    more.save_pretrained(saved)
    code, printed = check(capsys, "--model", str(saved), "--forget_data", forget)
    assert code == 1 and "Orla77" not in printed
    number = len(forget_rows)
    assert (
        f"Rows of the forget set do not fit the model: forget[{number}]. forget[{number}] has a token of id" in printed
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [((), "No rows are named"), (("--similarity", "2"), "`similarity` must be above 0 and below 1")],
)
def test_mistakes_are_told_in_a_line(argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["check-data", *argv])
    assert message in capsys.readouterr().err
