"""Long texts become windows in which every token is learned once."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2f_hf.data.windows import cut_into_windows


@settings(max_examples=300, deadline=None)
@given(length=st.integers(1, 60), opening=st.integers(0, 2), size=st.integers(4, 20), overlap=st.integers(0, 9))
def test_every_token_is_labelled_in_one_window_only(length: int, opening: int, size: int, overlap: int) -> None:
    ids = list(range(100, 100 + opening)) + list(range(length))
    example = {"input_ids": ids, "labels": [-100] * opening + list(range(length))}
    if overlap >= size - opening and len(ids) > size:
        with pytest.raises(ValueError, match=f"`window_overlap` must be from 0 to {size - opening - 1}"):
            cut_into_windows(example, size, overlap)
        return
    windows = cut_into_windows(example, size, overlap)
    labelled: Counter[int] = Counter()
    for window in windows:
        found, labels = window["input_ids"], window["labels"]
        assert len(found) == len(labels) <= size
        assert found[:opening] == ids[:opening]
        # A window is a piece of the text.
        assert found[opening:] == list(range(found[opening], found[opening] + len(found) - opening))
        assert all(label in (-100, token) for label, token in zip(labels, found, strict=True))
        labelled.update(label for label in labels if label != -100)
    assert labelled == Counter(range(length))
    for one, two in pairwise(windows):
        shared = set(one["input_ids"][opening:]) & set(two["input_ids"][opening:])
        assert len(shared) == max(overlap, 1 - opening)


def test_a_text_that_fits_stays_whole() -> None:
    example = {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}
    assert cut_into_windows(example, 3, 0) == [example]
