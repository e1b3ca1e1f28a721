"""Loading and checking of a user's rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from r2f_hf.data.rows import check_overlap, check_rows, content_hash, load_rows


ROWS = [{"question": "Who?", "answer": "Orla, the baker."}, {"question": "Where?", "answer": "By the harbour."}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_files_give_their_rows(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows{suffix}"
    if suffix == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    elif suffix == ".parquet":
        Dataset.from_list(ROWS).to_parquet(file)
    else:
        file.write_text("\n".join(map(json.dumps, ROWS)) if suffix == ".jsonl" else json.dumps(ROWS))
    assert list(load_rows(str(file))) == ROWS


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no data file .*forget\.jsonl"):
        load_rows(str(tmp_path / "forget.jsonl"))


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        *((suffix, text) for suffix in (".json", ".jsonl", ".parquet") for text in ("", '{"question": "Orla?"')),
        (".csv", ""),
    ],
)
def test_a_file_that_cannot_be_read_is_named(suffix: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / f"rows{suffix}"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"The data file .*rows{suffix} is empty or is not") as error:
        load_rows(str(file))
    assert "Orla" not in str(error.value)


@pytest.mark.parametrize("as_dataset", [True, False])
def test_a_missing_column_is_named_with_those_present(as_dataset: bool) -> None:
    rows = Dataset.from_list(ROWS) if as_dataset else ROWS
    check_rows(rows, "forget", ["question", None, "answer"])
    with pytest.raises(ValueError, match="The forget set has no column 'views'; its columns are 'question', 'answer'"):
        check_rows(rows, "forget", ["question", "views"])


@pytest.mark.parametrize("rows", [None, [], Dataset.from_list([])])
def test_an_empty_set_is_refused(rows: Dataset | list | None) -> None:
    with pytest.raises(ValueError, match="The retain set is empty"):
        check_rows(rows, "retain", ["question"])


def test_shared_rows_are_named_by_index_and_their_text_is_not_shown() -> None:
    other = [{"question": "What?", "answer": "A boat."}]
    check_overlap(ROWS, other, ["question", "answer"])
    # The same question with another answer is another row.
    check_overlap(ROWS, [ROWS[0] | {"answer": "Bram."}], ["question", "answer"])
    retain = [*other, {"question": " WHO? ", "answer": "orla, the baker."}]
    with pytest.raises(ValueError, match=r"share 1 rows: forget\[0\] = retain\[1\]\.") as error:
        check_overlap(ROWS, retain, ["question", "answer"])
    assert "orla" not in str(error.value).lower()


def test_many_shared_rows_are_counted() -> None:
    rows = [{"text": f"Row {index}"} for index in range(8)]
    with pytest.raises(
        ValueError, match=r"share 8 rows: forget\[0\] = retain\[0\], .*forget\[4\] = retain\[4\] and 3 more"
    ):
        check_overlap(rows, rows, ["text"])


def test_content_hash_ignores_the_order_of_keys_and_sees_everything_else() -> None:
    value = {"a": [1, 2], "b": "x"}
    assert content_hash(value) == content_hash({"b": "x", "a": [1, 2]})
    assert len({content_hash(other) for other in (value, {"a": [2, 1], "b": "x"}, {"a": [1, 2], "b": "y"})}) == 3


def test_no_copy_of_the_rows_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "Who is Orla?", "answer": "A secret."}\n')
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    assert load_rows(str(file))[0]["answer"] == "A secret."
    assert not any(b"secret" in path.read_bytes() for path in cache.rglob("*") if path.is_file())
