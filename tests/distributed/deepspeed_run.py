"""Loads a bf16 model under ZeRO-3 on any number of processes, for test_deepspeed.py."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from conftest import build_tokenizer, rows
from processes_run import use_zero
from transformers import AutoModelForCausalLM, PreTrainedModel

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.distributed import gather
from r2f_hf.models.loading import from_pretrained
from r2f_hf.runs.weights import full_state_dict


def build_trainer(load: Callable[[], PreTrainedModel | str]) -> R2FTrainer:
    """A trainer over a model that is loaded after the configuration is made."""
    args = R2FConfig(f"{folder}/output", ddp_backend="gloo", report_to="none", rank=8)
    rows_of = {"forget_dataset": rows("Orla", 4), "retain_dataset": rows("Bram", 4)}
    return R2FTrainer(load(), args, **rows_of, processing_class=build_tokenizer())


if __name__ == "__main__":
    folder = sys.argv[1]
    whole = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    use_zero(folder, 3)
    with pytest.raises(ValueError, match=r"in torch.float32, and not in torch.bfloat16. Give R2FTrainer its name"):
        build_trainer(lambda: AutoModelForCausalLM.from_pretrained(folder))
    for load in (lambda: folder, lambda: from_pretrained(folder)):
        trainer = build_trainer(load)
        found = gather(full_state_dict(trainer.model))
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    trainer.end_training()
