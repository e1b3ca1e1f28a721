"""A setting of the wrong kind or out of range is refused by its name, not by an error somewhere in a library."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.training_args import OptimizerNames

from r2f_hf import R2FConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"rank": value}, "`rank` must be a whole number, got") for value in (None, "16", 1.5, True, [16])),
        *(({"max_steps": value}, "`max_steps` must be a whole number, got") for value in ("20", 20.5, math.nan)),
        *(
            ({"learning_rate": value}, "`learning_rate` must be a finite number, got")
            for value in ("1e-4", math.nan, True)
        ),
        *(({name: math.inf}, f"`{name}` must be a finite") for name in ("max_grad_norm", "retain_weight")),
        ({"exclude_modules": "mlp.("}, r"`exclude_modules` is 'mlp.\(', which is no regular expression"),
        ({"bf16": "false"}, "`bf16` must be True or False, got 'false'"),
        ({"decoder": None}, "`decoder` must be text, got None"),
        ({"system_prompt": "Be brief \ud83d"}, "`system_prompt` must be text, got"),
        ({"output_dir": 7}, "`output_dir` must be text, got 7"),
        ({"view_templates": "Tell me: {prompt}"}, "`view_templates` must be a list of texts, got 'Tell me"),
        ({"label_names": ["labels", 1]}, "`label_names` must be a list of texts"),
        ({"accelerator_config": 1}, "`accelerator_config` must be options by name, got 1"),
        ({"lr_scheduler_kwargs": ["power"]}, "`lr_scheduler_kwargs` must be options by name, got"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be at least 1, got 0"),
        ({"eval_accumulation_steps": -1}, "`eval_accumulation_steps` must be at least 1, got -1"),
        ({"max_grad_norm": -1.0}, "`max_grad_norm` must be at least 0, got -1.0"),
        *(({name: 2**32}, f"`{name}` must be from 0 to 4294967295, got 4294967296") for name in ("seed", "data_seed")),
        ({"eval_strategy": "step"}, "Unknown eval_strategy: 'step'. Did you mean 'steps'"),
        ({"optim": "adam"}, "Unknown optim: 'adam'. Did you mean"),
        ({"save_strategy": ["steps"]}, r"Unknown save_strategy: \['steps'\]"),
        ({"log_level": "loud"}, "Unknown log_level: 'loud'"),
    ],
)
def test_refuses(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        R2FConfig(**{"output_dir": str(tmp_path), "use_cpu": True} | settings)


def test_numbers_of_other_libraries_paths_and_members_are_taken(tmp_path: Path) -> None:
    args = R2FConfig(
        tmp_path,
        use_cpu=True,
        rank=np.int64(8),
        learning_rate=np.float32(0.5),
        num_train_epochs=2,
        bf16=0,
        optim=OptimizerNames.SGD,
        target_modules={"v_proj", "q_proj"},
    )
    assert args.rank == 8 and args.num_train_epochs == 2
    # As they are written down with the run.
    assert type(args.rank) is int and type(args.learning_rate) is float
    assert args.target_modules == ["q_proj", "v_proj"]
