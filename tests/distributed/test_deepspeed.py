"""Configurations of DeepSpeed that are refused. Runs under DeepSpeed are in test_processes.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_model, changed, process_environment, weights

from r2f_hf.distributed.deepspeed import check_zero
from r2f_hf.models.loading import from_pretrained


SCRIPT = Path(__file__).with_name("deepspeed_run.py")

# The defaults that accelerate fills in.
PLAIN = {"stage": 3, "offload_optimizer": {"device": "none", "nvme_path": None}, "offload_param": {"device": "none"}}


def configuration(stage: int = 3, **zero: Any) -> dict[str, Any]:
    """A configuration of DeepSpeed."""
    return {
        "train_batch_size": 4,
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "zero_optimization": PLAIN | {"stage": stage} | zero,
    }


@pytest.mark.parametrize("stage", [2, 3])
def test_stages_that_shard_gradients_or_weights_pass(stage: int) -> None:
    check_zero(configuration(stage, zero_hpz_partition_size=1, zero_quantized_weights=False), to_adapter=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (configuration(0), "ZeRO-0 would shard nothing"),
        (configuration(1), "ZeRO-1 would shard nothing"),
        (configuration(offload_param={"device": "cpu"}), "zero_optimization.offload_param.device='cpu'"),
        (configuration(offload_optimizer={"device": "nvme"}), "zero_optimization.offload_optimizer.device='nvme'"),
        (configuration(zero_hpz_partition_size=8), "zero_optimization.zero_hpz_partition_size=8"),
        (configuration(zero_quantized_weights=True), "zero_optimization.zero_quantized_weights=True"),
        (configuration() | {"fp16": {"enabled": True}}, "fp16.enabled=True"),
        (configuration() | {"bf16": {"enabled": True}}, "bf16.enabled=True, which rounds probes and weights"),
        (configuration() | {"optimizer": {"type": "AdamW"}}, "optimizer={'type': 'AdamW'}"),
        (configuration() | {"scheduler": {"type": "WarmupLR"}}, "scheduler={'type': 'WarmupLR'}"),
        (configuration() | {"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size=2"),
    ],
)
def test_what_cannot_be_done_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_zero(config, to_adapter=False)


def test_an_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="An adapter cannot take the updates"):
        check_zero(configuration(), to_adapter=True)


def test_zero_3_loads_in_the_models_own_precision(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    build_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = process_environment()
    done = subprocess.run(
        [*torchrun, str(SCRIPT), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_deepspeed_a_model_is_loaded_as_ever(tmp_path: Path) -> None:
    model = build_model(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(str(tmp_path))
    assert loaded.dtype == torch.bfloat16
    assert not changed(weights(model), weights(loaded))
