"""Attacks on sharded weights give what they give on whole ones, and restore the weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIGS, build_model, process_environment
from distributed.attacks_run import attack
from transformers import GPT2Config, PreTrainedConfig


SCRIPT = Path(__file__).with_name("attacks_run.py")
# It has tied weights, and matrices whose rows are its inputs. Three processes share out the words evenly, and nothing
# else.
GPT2 = GPT2Config(vocab_size=162, n_embd=32, n_layer=2, n_head=4, n_positions=128)
# FSDP2 would keep two copies of its tied weight.
UNEVEN = GPT2Config(vocab_size=161, n_embd=32, n_layer=2, n_head=4, n_positions=128)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "processes"), [(CONFIGS["llama"], 2), (GPT2, 3)], ids=["two processes", "three with GPT-2"]
)
def test_sharded_weights_give_what_whole_ones_give(config: PreTrainedConfig, processes: int, tmp_path: Path) -> None:
    models = [build_model(config, seed=seed).eval() for seed in range(2)]
    for name, model in zip(("one", "other"), models, strict=True):
        model.save_pretrained(tmp_path / name / "base")
    build_model(UNEVEN).save_pretrained(tmp_path / "uneven" / "base")
    expected = attack(*models, tmp_path / "files")
    assert expected["restored"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*torchrun, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(processes):
        found = json.loads((tmp_path / f"process{rank}.json").read_text())
        assert found["restored"] and found["again"] == found["values"]
        refused = {name for name, reason in found["reasons"].items() if "cannot be shared out" in str(reason)}
        assert refused == {"relearning", "merging"}
        for name, variants in expected["values"].items():
            assert found["values"][name].keys() == variants.keys()
            for variant, values in variants.items():
                assert found["values"][name][variant] == pytest.approx(values, abs=1e-4), (name, variant)
