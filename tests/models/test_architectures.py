"""Architectures and precisions: a run forgets, changes what it targets and nothing else, and reloads as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS, MORE_CONFIGS, BuildTrainer, build_model, changed, weights
from transformers import AutoModelForCausalLM

from r2f_hf.runs.undo import prepare_undo


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("kind", [*CONFIGS, *MORE_CONFIGS])
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        pytest.param(torch.float32, {}, id="fp32"),
        pytest.param(torch.bfloat16, {"bf16": True}, id="bf16"),
        # accelerate has no fp16 on a CPU.
        pytest.param(torch.float32, {"fp16": True, "use_cpu": False}, id="fp16", marks=NEEDS_GPU),
    ],
)
def test_forgets_changes_nothing_else_reloads_and_is_undone(
    kind: str, dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    model = build_model(kind, dtype)
    before = weights(model)
    if kind in ("mixtral", "qwen3_moe"):
        settings = settings | {"exclude_modules": ["experts"]}
    trainer = build_trainer(model, max_steps=6, learning_rate=0.2, **settings)
    start = trainer.evaluate()["eval_forget_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_forget_loss"] > start + 0.1
    targeted = {f"{probe.name}.weight" for probe in trainer.r2f_callback.step.modules.values()}
    assert len(targeted) >= 8
    assert changed(before, weights(model)) == targeted
    assert not any("vision" in name for name in targeted)
    assert min(trainer.r2f_callback.fidelities) > 0.3

    trainer.save_model()
    after = weights(model)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "output")
    assert saved.dtype == dtype
    assert not changed(after, weights(saved))
    prepare_undo(tmp_path / "output").write()
    assert not changed(before, weights(AutoModelForCausalLM.from_pretrained(tmp_path / "output")))


@pytest.mark.parametrize("target_modules", ["all-linear", ["q_proj", "experts"]])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_refused_by_name(kind: str, target_modules: str | list[str], build_trainer: BuildTrainer) -> None:
    model = build_model(kind)
    before = weights(model)
    with pytest.raises(ValueError, match=r"model.layers.0.mlp.experts holds .*exclude_modules=\[\"experts\"\]"):
        build_trainer(model, target_modules=target_modules)
    assert model.state_dict().keys() == before.keys() and not changed(before, weights(model))
    build_trainer(model, target_modules=["q_proj"])
