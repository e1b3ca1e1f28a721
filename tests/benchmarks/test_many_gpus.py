"""The model of a step on many GPUs: its terms, on shapes that are easy to count."""

from __future__ import annotations

import argparse

import pytest

from shared.network import Shapes


SHAPES = Shapes(linear=[(1000, 2000)] * 10, resharded=21_000_000, kept=1_000_000, width=2)
OPTIONS = argparse.Namespace(tokens=100, peak=1e12, efficiency=0.5, memory=1e11, own=0.01)


def test_compute_is_counted_by_operations_and_bytes() -> None:
    from many_gpus import compute_seconds

    one = 22_000_000 * 100 / 0.5e12
    pairs = 2 * 16 * 30_000 * 100 / 0.5e12
    seconds = {name: compute_seconds(name, SHAPES, 8, "ddp", OPTIONS) for name in ("floor", "r2f", "lora", "exact")}
    written = 2 * 2 * 20_000_000 / 1e11
    assert seconds == pytest.approx(
        {
            "floor": 4 * one,
            "r2f": 4 * one + 2 * pairs + 0.01 + written,
            "lora": 4 * one + 4 * pairs,
            "exact": 6 * one,
        }
    )
    # Where weights are sharded, a GPU writes its own part.
    sharded = compute_seconds("r2f", SHAPES, 8, "fsdp2", OPTIONS)
    assert seconds["r2f"] - sharded == pytest.approx(written * 7 / 8)
    # ZeRO-2 shares out only the optimizer's state.
    assert compute_seconds("r2f", SHAPES, 8, "zero2", OPTIONS) == seconds["r2f"]
    optimizer = 7 * 44_000_000 / 1e11
    whole, shared = (compute_seconds("full", SHAPES, 8, sharding, OPTIONS) for sharding in ("ddp", "zero2"))
    assert whole - shared == pytest.approx(optimizer * 7 / 8)


def test_an_8b_model_has_its_shapes() -> None:
    from many_gpus import build

    shapes = Shapes.of(build("llama-8b"))
    assert shapes.weights == pytest.approx(16.06e9, rel=1e-3)
    assert len(shapes.linear) == 7 * 32
    # Full gradients are a hundred times the pairs'.
    assert 80 < shapes.weights / shapes.pairs(16) < 120
