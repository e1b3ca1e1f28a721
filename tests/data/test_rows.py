"""Checking of a user's rows."""

from __future__ import annotations

import pytest
from datasets import Dataset

from r2f_hf.data.rows import check_overlap, check_rows, content_hash, normal_form


ROWS = [{"question": "Who?", "answer": "Orla, the baker."}, {"question": "Where?", "answer": "By the harbour."}]


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
    rows, other = [["Who?", "Orla, the baker."], ["Where?", "By the harbour."]], [["What?", "A boat."]]
    check_overlap(rows, other, ("forget", "retain"))
    # The same question with another answer is another row.
    check_overlap(rows, [["Who?", "Bram."]], ("forget", "retain"))
    retain = [*other, [" WHO? ", "orla,  the\nbaker."]]
    with pytest.raises(ValueError, match=r"forget and retain sets share 1 rows: forget\[0\] = retain\[1\]\.") as error:
        check_overlap(rows, retain, ("forget", "retain"))
    assert "orla" not in str(error.value).lower()


def test_the_form_of_unicode_does_not_make_another_row() -> None:
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    assert composed != decomposed and normal_form([composed]) == normal_form([decomposed])


def test_many_shared_rows_are_counted() -> None:
    rows = [[f"Row {index}"] for index in range(8)]
    with pytest.raises(
        ValueError, match=r"share 8 rows: forget\[0\] = retain\[0\], .*forget\[4\] = retain\[4\] and 3 more"
    ):
        check_overlap(rows, rows, ("forget", "retain"))


def test_content_hash_ignores_the_order_of_keys_and_sees_everything_else() -> None:
    value = {"a": [1, 2], "b": "x"}
    assert content_hash(value) == content_hash({"b": "x", "a": [1, 2]})
    assert len({content_hash(other) for other in (value, {"a": [2, 1], "b": "x"}, {"a": [1, 2], "b": "y"})}) == 3
