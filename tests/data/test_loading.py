"""Files, folders and what they hold: every text as it stands there."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from r2f_hf.data.loading import load_rows


ROWS = [{"question": "Who?", "answer": "Orla, the baker."}, {"question": "Where?", "answer": "By the harbour."}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(file: Path, rows: list[dict[str, str]]) -> None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[0] in (".csv", ".tsv"):
        with gzip.open(file, "wt") if suffixes[-1] == ".gz" else file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0], delimiter="," if suffixes[0] == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif suffixes[0] == ".parquet":
        Dataset.from_list(rows).to_parquet(file)
    else:
        text = "\n".join(map(json.dumps, rows)) if suffixes[0] == ".jsonl" else json.dumps(rows)
        file.write_bytes(gzip.compress(text.encode()) if suffixes[-1] == ".gz" else text.encode())


@pytest.mark.parametrize(
    "name",
    ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "A.JSONL", "a.CSV", "a.jsonl.gz", "a.csv.gz", "a.b.json"],
)
def test_files_give_their_rows(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, ROWS)
    assert list(load_rows(str(tmp_path / name))) == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl"])
def test_texts_that_look_like_something_else_stay_texts(name: str, tmp_path: Path) -> None:
    texts = ["1971-03-01", "0049301234567", "NA", "null", "1e5", "True", "1871", "12:30", "-0", "nan", "3.10"]
    rows = [{"question": f"What is number {index}?", "answer": text} for index, text in enumerate(texts)]
    write(tmp_path / name, rows)
    assert list(load_rows(str(tmp_path / name))) == rows


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_values_of_several_kinds_in_a_column_are_left_to_the_check_of_the_rows(name: str, tmp_path: Path) -> None:
    rows = [{"answer": "Orla lives."}, {"answer": ["Orla"]}, {"answer": [{"text": "Orla"}], "question": "Who?"}]
    write(tmp_path / name, rows)
    assert load_rows(str(tmp_path / name)) == rows


def test_numbers_in_json_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"answer": 1871}\n{"answer": 3.10}\n{"answer": 1e5}\n')
    assert load_rows(str(tmp_path / "a.jsonl"))["answer"] == ["1871", "3.10", "1e5"]


def test_json_may_be_texts_columns_or_one_row(tmp_path: Path) -> None:
    for content, rows in (
        (["Orla lives.", "Bram too."], [{"text": "Orla lives."}, {"text": "Bram too."}]),
        ({"question": ["Who?"], "answer": ["Orla."]}, [{"question": "Who?", "answer": "Orla."}]),
        ({"question": "Who?", "answer": "Orla."}, [{"question": "Who?", "answer": "Orla."}]),
    ):
        (tmp_path / "a.json").write_text(json.dumps(content))
        assert list(load_rows(str(tmp_path / "a.json"))) == rows


def test_conversations_come_through(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Orla."}]}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    assert list(load_rows(str(tmp_path / "a.jsonl"))) == rows


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    text = "Chapter 1\n\nOrla lived by the harbour.\n" * 20
    (tmp_path / "book.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(load_rows(str(tmp_path / "book.txt"))) == [{"text": text}]


def test_what_datasets_has_saved_is_read(tmp_path: Path) -> None:
    rows, other = Dataset.from_list(ROWS), Dataset.from_list(ROWS[:1])
    rows.save_to_disk(tmp_path / "one")
    assert list(load_rows(str(tmp_path / "one"))) == ROWS
    arrow = next((tmp_path / "one").glob("*.arrow"))
    assert list(load_rows(str(arrow))) == ROWS
    DatasetDict(forget=other, retain=rows).save_to_disk(tmp_path / "two")
    assert (
        len(load_rows(str(tmp_path / "two"), "forget")) == 1 and len(load_rows(str(tmp_path / "two"), "retain")) == 2
    )
    with pytest.raises(ValueError, match=r"with the splits 'forget', 'retain'. Pass one of them"):
        load_rows(str(tmp_path / "two"), "holdout")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"was not written by `Dataset.save_to_disk`"):
        load_rows(str(tmp_path / "empty"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no data file .*forget\.jsonl"):
        load_rows(str(tmp_path / "forget.jsonl"))


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.parquet.gz", "rows.gz"])
def test_a_file_of_another_kind_is_refused_with_the_kinds_that_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("Orla")
    with pytest.raises(ValueError, match=r"is of a kind that is not read. Files are .json, .jsonl, .csv, .tsv, .txt,"):
        load_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        *((suffix, text) for suffix in (".json", ".jsonl", ".parquet") for text in ("", '{"question": "Orla?"')),
        *((suffix, "") for suffix in (".csv", ".tsv", ".txt", ".arrow", ".jsonl.gz")),
        (".json", '["Orla", null]'),
        (".json", '"Orla"'),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_its_text_is_not_shown(suffix: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows{suffix}"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"The data file .*rows{suffix} is empty or is not") as error:
        load_rows(str(file))
    assert "Orla" not in str(error.value) and error.value.__cause__ is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "question,answer\nWho?,Orla, the baker.\n", r"row 0 \(line 2\) has 3 fields, and the header 2"),
        ("a.csv", "question,answer\nWho?,Bo.\nWho?,Orla, the baker.\n", r"row 1 \(line 3\) has 3 fields"),
        ("a.tsv", "question\tanswer\nWho?\tOrla\tthe baker\n", r"row 0 \(line 2\) has 3 fields"),
        ("a.tsv", 'question\tanswer\nWho?\t"Orla\nWho?\n', r"the quotes of row 0 \(line 3\) do not match"),
        ("a.csv", 'question,answer\n"Orla,1\n2,3,4,Orla\n', r"the quotes of row 0 \(line 3\) do not match"),
        ("a.csv", 'question,answer\nA,B\n"Who is "Orla"?",B\n', r"the quotes of row 1 \(line 3\) do not match"),
        ("a.csv", "question,answer,answer\nWho?,Orla,Orla\n", "two columns of the same name"),
    ],
)
def test_a_table_whose_fields_do_not_fit_its_header_is_refused_by_the_row(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_rows(str(tmp_path / name))
    assert "Orla" not in str(error.value)


def test_a_row_of_a_table_may_lack_its_last_fields(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer,note\nWho?,Orla.\n\nWhere?,There.,A note\n")
    assert load_rows(str(tmp_path / "a.csv"))["note"] == [None, "A note"]


def test_a_long_text_in_a_table_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"text": "Orla lives by the harbour,\nand so on. " * 10_000}])
    assert len(load_rows(str(tmp_path / "a.csv"))[0]["text"]) == 380_000


@pytest.mark.parametrize(
    ("lines", "answers"),
    [
        # Quotes that the texts have themselves, which would swallow rows by CSV's rule.
        (('A\t"Ahoy Orla', 'B\tBye Orla"', "C\tMe"), ['"Ahoy Orla', 'Bye Orla"', "Me"]),
        (('A\t"Ahoy", said Orla', 'B\t"Bye"'), ['"Ahoy", said Orla', '"Bye"']),
        # Quotes that a program has put around texts.
        (('A\t"""Ahoy"", said Orla"', 'B\t"Bye"'), ['"Ahoy", said Orla', "Bye"]),
        (('A\t"Ahoy\nOrla"', "B\tBye"), ["Ahoy\nOrla", "Bye"]),
    ],
    ids=["swallowing", "inside", "of texts", "of several lines"],
)
def test_quotes_in_tab_separated_values_swallow_no_rows(
    lines: tuple[str, ...], answers: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.tsv").write_text("\n".join(["question\tanswer", *lines]) + "\n")
    assert load_rows(str(tmp_path / "a.tsv"))["answer"] == answers


def test_tab_separated_values_of_one_column_may_have_texts_of_several_lines(tmp_path: Path) -> None:
    for lines, texts in (
        ('"Ahoy\n\nOrla"\n"""Bye"""\nBo', ["Ahoy\n\nOrla", '"Bye"', "Bo"]),
        ('"Ahoy" said Orla\nBo', ['"Ahoy" said Orla', "Bo"]),
    ):
        (tmp_path / "a.tsv").write_text(f"text\n{lines}\n")
        assert load_rows(str(tmp_path / "a.tsv"))["text"] == texts


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_a_file_in_another_encoding_is_said_to_be_no_utf_8(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("question,answer\nWho?,Orla of the Café\n".encode(encoding))
    with pytest.raises(ValueError, match=r"is not UTF-8. Save it in UTF-8") as error:
        load_rows(str(tmp_path / name))
    assert "Orla" not in str(error.value)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x1c"])
def test_line_ends_of_unicode_inside_of_texts_end_no_row(mark: str, tmp_path: Path) -> None:
    rows = [{"question": f"Where{mark}now?", "answer": "There."}, ROWS[0]]
    text = "\r\n".join(json.dumps(row, ensure_ascii=mark == "\x1c") for row in rows)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    assert list(load_rows(str(tmp_path / "a.jsonl"))) == rows


# Two calls of tools with different arguments, one of them a number, and two tools.
CALLS = [
    {
        "messages": [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name, "arguments": given}}]},
            {"role": "tool", "content": "rain"},
            {"role": "assistant", "content": "Rain."},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": name, "parameters": {"properties": {key: {"type": "string"} for key in given}}},
            }
        ],
    }
    for name, given in (("weather", {"city": "Cork", "days": 3}), ("time", {"zone": "Bern"}))
]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_calls_of_tools_come_through_as_they_stand_in_json(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, CALLS)
    assert load_rows(str(tmp_path / name)) == CALLS


def test_numbers_that_are_texts_of_messages_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": 3.10, "weight": 1}], "note": 7.0}')
    message = {"role": "user", "content": "3.10", "weight": 1}
    assert load_rows(str(tmp_path / "a.jsonl")) == [{"messages": [message], "note": "7.0"}]


def test_no_copy_of_the_rows_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    for name in ("rows.jsonl", "rows.parquet", "rows.csv"):
        write(tmp_path / name, [{"question": "Who is Orla?", "answer": "A secret."}])
        assert load_rows(str(tmp_path / name))[0]["answer"] == "A secret."
    assert not any(b"secret" in path.read_bytes() for path in cache.rglob("*") if path.is_file())


def test_a_saved_set_without_rows_is_named(tmp_path: Path) -> None:
    Dataset.from_list([]).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match="empty holds a set without rows"):
        load_rows(str(tmp_path / "empty"))
