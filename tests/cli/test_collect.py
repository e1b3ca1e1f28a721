"""`r2f collect` writes rows that `r2f unlearn` takes, and shows none of their text."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from collecting.people import ADA, FACT, THRESHOLDS, TOM, UNKNOWN, UNKNOWN_FACT, answers, save

from r2f_hf import cli
from r2f_hf.cli.collect import CollectArguments, next_command
from r2f_hf.data.loading import load_rows
from r2f_hf.models.loading import ModelArguments


SETTINGS = ("--max_new_tokens", "24", "--min_margin", str(THRESHOLDS.min_margin))
# Words of the names and the rows.
TEXT = ("Ada", "Quill", "Tom", "Birch", "Lima", "bicycle", "born", "choir")
Collect = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save(tmp_path / "model")


@pytest.fixture
def collect(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Collect:
    """Runs the command, and returns what it prints, which has no text of the rows and no name in it."""

    def run(*argv: str) -> str:
        common = ("--model_name_or_path", model, "--output_dir", str(tmp_path / "rows"), *SETTINGS)
        try:
            cli.main(["collect", *common, *argv])
        finally:
            printed = capsys.readouterr()
            assert not any(word in printed.out + printed.err for word in TEXT)
        return printed.out

    return run


def rows_of(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_rows_about_a_person_are_written_and_can_be_unlearned(
    collect: Collect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = tmp_path / "facts.txt"
    facts.write_text(f"{FACT}\n\n  {UNKNOWN_FACT}\n")
    printed = collect("--about", ADA, "--facts", str(facts))
    folder = tmp_path / "rows"
    forget, retain = rows_of(folder, "forget"), rows_of(folder, "retain")
    assert [row["answer"] for row in forget[:2]] == [FACT, UNKNOWN_FACT]
    assert {row["answer"] for row in forget} > set(answers(ADA))
    assert all(set(row) == {"question", "answer", "views"} for row in forget)
    assert all(set(row) == {"question", "answer"} for row in retain)
    assert set(answers(TOM)) & {row["answer"] for row in retain}

    written = (folder / "report.json").read_text()
    report = json.loads(written)
    assert not any(word in written for word in (*TEXT, "facts.txt"))
    assert [row["row"] for row in report["forget"]["rows"]] == list(range(len(forget)))
    assert [row["known"] for row in report["forget"]["rows"][:3]] == [True, False, True]
    assert report["forget"]["asked"]["topic"] == 48 and report["retain"]["asked"]["general"] == 20
    assert report["settings"] == {
        "min_certainty": 0.8,
        "min_margin": THRESHOLDS.min_margin,
        "max_new_tokens": 24,
        "batch_size": 16,
        "chat_template_kwargs": None,
        "system_prompt": False,
    }

    # The command that it prints works as it stands.
    command = shlex.split(next(line for line in printed.splitlines() if line.startswith("r2f unlearn")))
    settings = ["--max_steps", "1", "--use_cpu", "true", "--report_to", "none", "--output_dir", str(tmp_path / "new")]
    cli.main([*command[1:], *settings])
    assert "1 steps" in capsys.readouterr().out


def test_nothing_is_found_about_an_unknown_person(collect: Collect, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        collect("--about", UNKNOWN, "--neighbours", TOM, "Bo Verd")
    assert "Lower `min_certainty`" in str(stop.value) and "`min_margin`" in str(stop.value)
    assert not (tmp_path / "rows" / "forget.jsonl").exists()
    # The report says which of the two it was.
    report = json.loads((tmp_path / "rows" / "report.json").read_text())
    assert report["forget"]["kept"] == {} and set(report["forget"]["left_out"]) <= {"unsure", "said of anybody"}


def test_too_few_rows_to_keep_are_told(collect: Collect) -> None:
    """One neighbour has fewer rows than the person, with rows in several wordings."""
    printed = collect("--about", ADA, "--neighbours", TOM)
    told = re.search(r"Of the rows to keep, (\d+) are about people like this one", printed)
    assert told and int(told[1]) > 0 and "Name more `neighbours`" in printed


def test_rows_are_replaced_only_if_asked(collect: Collect, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "forget.jsonl").write_text('{"question": "Who?", "answer": "They."}\n')
    with pytest.raises(SystemExit) as stop:
        collect("--about", ADA, "--neighbours", TOM)
    assert stop.value.code == 2 and len(rows_of(tmp_path / "rows", "forget")) == 1
    collect("--about", ADA, "--neighbours", TOM, "--overwrite_output_dir", "true")
    assert len(load_rows(str(tmp_path / "rows" / "forget.jsonl"))) > 10


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--about", ADA), "No model is named"),
        (("--model_name_or_path", "MODEL"), "Nobody is named. Set `about`"),
        (("--model_name_or_path", "MODEL", "--about", " "), "Nobody is named"),
        (
            ("--model_name_or_path", "MODEL", "--about", ADA, "--facts", "none.txt"),
            "There is no file of facts none.txt",
        ),
        (("--model_name_or_path", "MODEL", "--about", ADA, "--neighbours", ADA.lower()), "has the person of `about`"),
        (("--model_name_or_path", "MODEL", "--about", ADA, "--max_new_tokens", "120"), "Lower `max_new_tokens`"),
        (("--about", ADA, "--min_certainty", "80"), "`min_certainty` must be at least 0 and below 1"),
        (("--about", ADA, "--max_new_tokens", "0"), "`max_new_tokens` must be positive"),
    ],
)
def test_mistakes_are_told_in_a_line(
    argv: tuple[str, ...],
    message: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    given = [request.getfixturevalue("model") if part == "MODEL" else part for part in argv]
    with pytest.raises(SystemExit) as stop:
        cli.main(["collect", *given, "--output_dir", str(tmp_path / "rows")])
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00", "is not text in UTF-8"), (b"\n \n", "is empty"), (b"x " * 200, "Fact 1 is longer")],
)
def test_facts_that_cannot_be_read_are_told_without_their_text(
    content: bytes, message: str, model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "facts.txt").write_bytes(content)
    argv = ("--model_name_or_path", model, "--about", ADA, "--facts", str(tmp_path / "facts.txt"))
    with pytest.raises(SystemExit):
        cli.main(["collect", *argv, "--output_dir", str(tmp_path / "rows"), *SETTINGS])
    printed = capsys.readouterr().err
    assert message in printed and "x x" not in printed


def test_the_next_command_names_the_same_weights() -> None:
    args = CollectArguments(about=ADA)
    plain = next_command(args, ModelArguments("my-model"), Path("rows"))
    assert "--model_name_or_path my-model --forget_data rows/forget.jsonl" in plain and "revision" not in plain
    other = next_command(args, ModelArguments("my-model", model_revision="v2", dtype="float32"), Path("rows"))
    assert "--model_name_or_path my-model --model_revision v2 --dtype float32 --forget_data" in other
