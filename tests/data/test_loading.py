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
        (".csv", 'question,answer\n"Orla,1\n2,3,4,Orla\n'),
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


def test_no_copy_of_the_rows_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    for name in ("rows.jsonl", "rows.parquet", "rows.csv"):
        write(tmp_path / name, [{"question": "Who is Orla?", "answer": "A secret."}])
        assert load_rows(str(tmp_path / name))[0]["answer"] == "A secret."
    assert not any(b"secret" in path.read_bytes() for path in cache.rglob("*") if path.is_file())
