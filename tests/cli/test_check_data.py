"""`r2f check-data` names rows by number, and shows no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import rows, write_rows

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
    code, printed = check(capsys, "--model_name_or_path", str(saved), "--forget_data", forget, "--retain_data", retain)
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


@pytest.mark.parametrize(
    ("argv", "message"),
    [((), "No rows are named"), (("--similarity", "2"), "`similarity` must be above 0 and below 1")],
)
def test_mistakes_are_told_in_a_line(argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["check-data", *argv])
    assert message in capsys.readouterr().err
