"""The training dataset deals retain rows evenly and the same way each time."""

from __future__ import annotations

from collections import Counter

import pytest
from torch.utils.data import DataLoader

from r2f_hf.data.dataset import ForgetRetainDataset


def build(views: int = 1, retain: int = 7, **settings: int) -> ForgetRetainDataset:
    forget = [[{"id": f"f{index}.{view}"} for view in range(views)] for index in range(4)]
    return ForgetRetainDataset(forget, [{"id": f"r{index}"} for index in range(retain)], **settings)


def dealt(dataset: ForgetRetainDataset, kind: str, epochs: int) -> list[list[str]]:
    """The ids that come with each item, epoch after epoch."""
    found = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        found += [[example["id"] for example in dataset[index][kind]] for index in range(len(dataset))]
    return found


@pytest.mark.parametrize("retain_per_forget", [1, 3])
@pytest.mark.parametrize("retain", [1, 3, 7, 30])
def test_retain_rows_are_used_equally_often(retain: int, retain_per_forget: int) -> None:
    dataset = build(retain=retain, retain_per_forget=retain_per_forget)
    items = dealt(dataset, "retain", epochs=30)
    assert len(dataset) == 4
    assert all(len(item) == retain_per_forget for item in items)
    uses = Counter(name for item in items for name in item)
    assert len(uses) == retain
    assert max(uses.values()) - min(uses.values()) <= 1


def test_items_depend_on_seed_epoch_and_index_alone() -> None:
    expected = dealt(build(retain_per_forget=3, seed=5), "retain", epochs=6)
    dataset = build(retain_per_forget=3, seed=5)
    for position in (23, 2, 11, 11, 0):
        epoch, index = divmod(position, 4)
        dataset.set_epoch(epoch)
        assert [example["id"] for example in dataset[index]["retain"]] == expected[position]
    assert dealt(build(retain_per_forget=3, seed=6), "retain", epochs=6) != expected


def test_retain_rows_are_shuffled_anew_in_each_pass() -> None:
    order = [name for item in dealt(build(retain=8, retain_per_forget=2), "retain", epochs=3) for name in item]
    passes = [order[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(one) == [f"r{index}" for index in range(8)] for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_without_retain_rows_forget_rows_come_alone() -> None:
    assert build(retain=0, retain_per_forget=3)[2] == {"forget": [{"id": "f2.0"}], "retain": []}


@pytest.mark.parametrize(
    ("views", "num_views", "expected"),
    [
        (3, 1, [["f0.0"], ["f0.1"], ["f0.2"], ["f0.0"]]),
        (3, 2, [["f0.0", "f0.1"], ["f0.2", "f0.0"], ["f0.1", "f0.2"], ["f0.0", "f0.1"]]),
        (2, 2, [["f0.0", "f0.1"]] * 4),
        (1, 5, [["f0.0"]] * 4),
    ],
)
def test_views_take_turns(views: int, num_views: int, expected: list[list[str]]) -> None:
    dataset = build(views=views, num_views=num_views)
    assert dealt(dataset, "forget", epochs=4)[::4] == expected


def test_workers_that_outlive_an_epoch_are_told_of_the_next() -> None:
    dataset = build(views=3, retain_per_forget=3)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert list(loader) == [dataset[index] for index in range(len(dataset))]
        assert dataset[0]["forget"] == [{"id": f"f0.{epoch}"}]
