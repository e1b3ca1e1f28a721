"""The benchmark of the crossing, on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_model
from torch import Tensor, nn

from shared.contenders import CONTENDERS, Contender, draw_batch, linear_layers


def test_micro_batches_take_the_step_of_the_whole_batch() -> None:
    for name in ("exact", "full", "lora", "r2f"):
        results = []
        for micro_batches in (1, 2):
            torch.manual_seed(0)
            contender = Contender(name, build_model("llama"))
            before = weights(contender)
            contender.step(draw_batch(contender.model, 4, 8, 0), micro_batches)
            results.append([after - start for after, start in zip(weights(contender), before, strict=True)])
        for one, two in zip(*results, strict=True):
            # LoRA's first step leaves the half of each pair that comes first.
            assert one.norm() > 0 or name == "lora"
            # A step of AdamW turns on the sign of a gradient, also where that is nearly zero.
            assert (one - two).norm() <= 0.02 * one.norm(), name


def weights(contender: Contender) -> list[Tensor]:
    """Copies of what the contender trains, in fp64."""
    if contender.name == "r2f":
        return [probe.weight.double() for probe in contender.r2f.modules.values()]
    return [p.detach().double() for p in contender.model.parameters() if p.requires_grad]


def test_exact_sgd_holds_dense_gradients_only_between_micro_batches() -> None:
    contender = Contender("exact", build_model("llama"))
    layers: list[nn.Linear] = linear_layers(contender.model)
    batch = draw_batch(contender.model, 4, 8, 0)
    contender.passes(batch)
    assert all(layer.weight.grad is None for layer in layers)
    contender.passes(batch, micro_batches=2)
    assert all(layer.weight.grad is not None for layer in layers)
    contender.update()
    assert all(layer.weight.grad is None for layer in layers)


def test_the_command_measures_fits_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import crossover

    monkeypatch.setattr(crossover, "load", lambda *args: build_model("llama"))
    files = ["--output", str(tmp_path / "crossover.json"), "--picture", str(tmp_path / "crossover.svg")]
    sizes = ["--tokens", "16", "32", "64", "--length", "16", "--micro_tokens", "32", "--memory"]
    monkeypatch.setattr(sys, "argv", ["crossover.py", "--device", "cpu", "--rounds", "2", *sizes, *files])
    crossover.main()
    report = json.loads((tmp_path / "crossover.json").read_text())
    assert set(report["seconds"]) == set(report["lines"]) == set(report["network"]) == set(CONTENDERS)
    assert all(list(medians) == ["16", "32", "64"] for medians in report["seconds"].values())
    assert set(report["ratios"]) == set(report["crossings"]) == set(CONTENDERS) - {"r2f"}
    for low, middle, high in (np.array(report["own_work"][tokens])[[1, 0, 2]] for tokens in ("16", "64")):
        assert 0 < low <= middle <= high < 1
    assert report["network"]["r2f"] == report["network"]["lora"]
    assert (tmp_path / "crossover.svg").read_text().startswith("<?xml")
