"""All attacks on a model, on any number of processes, for test_attacks.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from conftest import build_tokenizer, rows
from distributed.processes_run import load
from transformers import PreTrainedModel

from r2f_hf.attacks import ATTACKS, Target, run_attacks
from r2f_hf.data.formatting import encode_example
from r2f_hf.distributed import is_sharded
from r2f_hf.runs.weights import weights_hash


def attack(model: PreTrainedModel, original: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """The values of each row, and whether the weights are in the end what they were."""
    tokenizer, sets = build_tokenizer(), {"forget": rows("Orla", 7), "retain": rows("Bram", 5)}
    encoded = {
        name: [
            encode_example(tokenizer, str(row["question"]), str(row["answer"])) | {"item": index}
            for index, row in enumerate(each)
        ]
        for name, each in sets.items()
    }
    settings: dict[str, Any] = {"original": original, "batch_size": 2, "max_new_tokens": 6}
    target = Target(model, tokenizer, encoded["forget"], encoded["retain"], sets, **settings)
    before = weights_hash(model.state_dict())
    # Fine-tuning comes last: what generating leaves behind must not disturb it.
    names = list(reversed(ATTACKS))
    values = run_attacks(names, target, folder)
    # Only the first process has the files.
    again = run_attacks(names, target, folder)
    return {"values": values, "again": again, "restored": weights_hash(model.state_dict()) == before}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    state = PartialState(cpu=True)
    models = [load("", folder / name, True, 0, state.num_processes).eval() for name in ("one", "other")]
    assert all(is_sharded(parameter) for model in models for parameter in model.parameters())
    uneven = load("", folder / "uneven", True, 0, state.num_processes)
    target = Target(uneven, build_tokenizer(), [], original=uneven)
    reasons = {name: each.does_not_fit(target) for name, each in ATTACKS.items()}
    results = attack(*models, folder / f"files{state.process_index}") | {"reasons": reasons}
    (folder / f"process{state.process_index}.json").write_text(json.dumps(results))
    state.destroy_process_group()
