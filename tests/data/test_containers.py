"""Whatever holds rows gives them, or is refused by its kind."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from r2f_hf.data import containers
from r2f_hf.data.containers import as_rows


ROWS = [{"question": f"Who is Orla{index}?", "answer": f"Orla{index} is a baker."} for index in range(3)]
DATASET = Dataset.from_list(ROWS)


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        tuple(ROWS),
        DATASET,
        DATASET.with_format("torch"),
        DatasetDict(train=DATASET),
        DatasetDict(forget=DATASET, retain=DATASET.select([0])),
        DatasetDict(other=DATASET),
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS, index=[7, 8, 9]),
        {"question": [row["question"] for row in ROWS], "answer": [row["answer"] for row in ROWS]},
        DATASET.to_iterable_dataset(),
        (row for row in ROWS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rows_come_out_as_they_are(value: Any) -> None:
    assert [dict(row) for row in as_rows(value, "forget")] == ROWS


def test_texts_are_rows_of_plain_text() -> None:
    assert as_rows(["Orla lives.", "Bram too."], "forget") == [{"text": "Orla lives."}, {"text": "Bram too."}]
    assert as_rows(None, "retain") is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("forget.jsonl", "The forget set is a str, not rows"),
        (7, "The forget set is a int, not rows"),
        (pd.DataFrame([["Who?", "Orla1"]], columns=["a", "a"]), "a DataFrame with two columns of the same name"),
        (
            DatasetDict(a=DATASET, b=DATASET),
            r"is a DatasetDict with the splits 'a', 'b'. Pass one of them.*dataset\['a'\]",
        ),
        ([("Who is Orla1?", "A baker.")], r"forget\[0\] is a tuple, not a row"),
        ([ROWS[0], "Orla1 lives."], r"forget\[1\] is a str, not a row"),
        ({"Orla1": "A baker."}, "is a dictionary whose values are not columns"),
        ({"question": ["Who is Orla1?"], "answer": []}, r"columns of different lengths \(1, 0\)"),
        (torch.ones(2, 2), r"not a row"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_holds_no_rows_is_refused_without_its_text(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        as_rows(value, "forget")
    assert "Orla1" not in str(error.value) and "baker" not in str(error.value)


@pytest.mark.parametrize("holder", [pd.DataFrame, lambda rows: {"answer": [row["answer"] for row in rows]}])
def test_values_of_several_kinds_in_a_column_are_left_to_the_check_of_the_rows(holder: Any) -> None:
    rows = [{"answer": "Orla1 lives."}, {"answer": ["Orla1"]}, {"answer": 7}]
    assert [dict(row) for row in as_rows(holder(rows), "forget")] == rows


def test_a_stream_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MOST_STREAMED", 50)

    def stream() -> Any:
        while True:
            yield ROWS[0]

    with pytest.raises(ValueError, match=r"is streamed and has more than 50 rows"):
        as_rows(stream(), "retain")


def test_keys_that_arrow_adds_to_messages_and_tools_are_left_out() -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": None, "tool_calls": [{"name": "call", "arguments": {key: "Orla"}}]},
                {"role": "assistant", "content": "A baker."},
            ],
            "views": None,
        }
        for key in ("name", "place")
    ]
    dataset = Dataset.from_list(rows)
    # Arrow has unified the arguments.
    assert set(dataset[0]["messages"][1]["tool_calls"][0]["arguments"]) == {"name", "place"}
    for value in (dataset, DatasetDict(train=dataset), dataset.to_iterable_dataset(), pd.DataFrame(rows), rows):
        assert [dict(row) for row in as_rows(value, "forget")] == rows


def test_a_transform_makes_the_rows() -> None:
    loud = DATASET.with_transform(lambda batch: {"text": [answer.upper() for answer in batch["answer"]]})
    assert list(as_rows(loud, "forget")) == [{"text": row["answer"].upper()} for row in ROWS]
