"""The settings that bad_inputs.py draws: R2FConfig's own, and those of TrainingArguments."""

from __future__ import annotations

import copy
import math
from typing import Any

from hypothesis import strategies as st


# Drawn for any field. A user who writes a configuration by hand or by a script comes across each of them.
WRONG = [None, -1, 0, 1, 1.5, "x", "", "8", True, False, math.nan, math.inf, [], ["x"], {}, {"x": 1}]
COUNT = [1, 2, 3]
# By field what may well be right. Those of large sizes have to be refused before memory is taken.
SETTINGS: dict[str, list[Any]] = {
    "rank": [1, 2, 3, 8, 15, 16, 17, 10**4],
    "learning_rate": [1e-30, 1e-6, 0.1, 0.6, 10.0, 1e30],
    "target_modules": [
        "all-linear",
        ["q_proj"],
        [".*"],
        ".*proj",
        "q_proj",
        ["lm_head"],
        ["c_attn"],
        "(",
        ["embed_tokens"],
    ],
    "exclude_modules": [["q_proj"], ".*", "mlp.*", ["down_proj"], ["experts"], "experts", "("],
    "update_target": ["weights", "adapter", "Weights"],
    "adapter_rank": [1, 4, 64, 10**4],
    "protect_retain": [True, False],
    "min_fidelity": [0.0, 0.5, 1.0, 2.0],
    "on_bad_gradient": ["skip", "stop", "ignore"],
    "forget_objective": ["ga", "grad_diff", "wga", "npo", "simnpo", "tnpo", "NPO", "nppo"],
    "forget_objective_kwargs": [
        *({"beta": value} for value in (0.5, 0, -1, "x", math.nan, math.inf, 1e30, 1e-30, None)),
        *({"gamma": 0.5}, {"bta": 1}, '{"beta": 0.5}', "{beta: 0.5}", "null", {1: 2}),
    ],
    "retain_objective": ["nll", "kl", "none", "NLL"],
    "retain_objective_kwargs": [
        *({"k": value} for value in (1, 16, 10**6, 0, 1.5, "x", math.nan, math.inf)),
        {"x": 1},
    ],
    "forget_weight": [0.0, 0.5, -1.0, 1e30],
    "retain_weight": [0.0, 0.5, -1.0, 1e30],
    "prompt_column": ["question", "frage", "none", "text", "answer", "prompt"],
    "completion_column": ["answer", "antwort", "text", "question", "completion"],
    "max_length": [1, 2, 8, 40, 60, 100, 192, 10**6],
    "window_overlap": [0, 1, 5, 10**6],
    "chat_template_kwargs": [
        *(
            {"enable_thinking": False},
            {"date_string": "x"},
            {"tokenize": True},
            {"messages": []},
            {"conversation": []},
        ),
        *({"return_dict": True}, {"add_generation_prompt": True}, {"continue_final_message": True}, '{"a": 1}', "{"),
    ],
    "system_prompt": ["Be brief.", "\n"],
    "retain_per_forget": COUNT,
    "num_views": [1, 2, 3],
    "views_column": ["paraphrased_question", "question"],
    "view_templates": [
        ["Tell me: {prompt}"],
        ["{prompt}", "{prompt}?"],
        ["{"],
        ["{prompt!r}"],
        ["{prompt.x}"],
        ["{}"],
        "{prompt}",
    ],
    "stop_check_steps": COUNT,
    "keep_original": [True, False],
    "overwrite_output_dir": [True, False],
    "decoder": ["spectral", "tikhonov", "mlp", "no/such/folder", "."],
    "held_out": [0, 1, 2, 4, 15, 16],
    "warm_probes": [True, False],
    "adaptive": [True, False],
    "normalize_update": [True, False],
    "per_device_train_batch_size": [1, 2, 7],
    "per_device_eval_batch_size": [1, 2, 7],
    "gradient_accumulation_steps": [1, 2, 5],
    "dataloader_drop_last": [True],
    "max_steps": [-1, 0, 1, 2],
    "num_train_epochs": [0, 0.1, 1, 2],
    "lr_scheduler_type": [
        "constant",
        "linear",
        "cosine",
        "constant_with_warmup",
        "polynomial",
        "reduce_lr_on_plateau",
        "inverse_sqrt",
    ],
    "lr_scheduler_kwargs": [{"power": 2}, {"num_cycles": 1}],
    "warmup_steps": [0, 1, 5, 0.5],
    "weight_decay": [0.0, 0.1],
    "max_grad_norm": [0.0, 1.0, 1e-30],
    "adam_beta1": [0.9],
    "optim": [
        "sgd",
        "adamw_torch",
        "adafactor",
        "adagrad",
        "rmsprop",
        "lomo",
        "adamw_torch_fused",
        "adamw_8bit",
        "galore_adamw",
    ],
    "optim_args": ["momentum=0.9", "x=1"],
    "optim_target_modules": ["all-linear", ["q_proj"]],
    "seed": [0, 1, 2**31, 2**32, 2**64],
    "data_seed": [0, 2**32, 2**64],
    "bf16": [True],
    "fp16": [True],
    "tf32": [True, False],
    "bf16_full_eval": [True],
    "gradient_checkpointing": [True],
    "gradient_checkpointing_kwargs": [{"use_reentrant": False}, {"use_reentrant": True}],
    "eval_strategy": ["no", "steps", "epoch"],
    "eval_steps": [1, 2, 0.5],
    "eval_delay": [0, 1],
    "eval_accumulation_steps": COUNT,
    "eval_on_start": [True],
    "eval_do_concat_batches": [False],
    "batch_eval_metrics": [True],
    "prediction_loss_only": [True],
    "include_for_metrics": [["loss"], ["inputs"]],
    "save_strategy": ["no", "steps", "epoch", "best"],
    "save_steps": [1, 2, 0.5],
    "save_total_limit": COUNT,
    "save_only_model": [True],
    "load_best_model_at_end": [True],
    "metric_for_best_model": ["loss", "eval_forget_loss", "forget_probability"],
    "greater_is_better": [True, False],
    "restore_callback_states_from_checkpoint": [True],
    "logging_strategy": ["no", "steps", "epoch"],
    "logging_steps": [1, 2, 0.5],
    "logging_first_step": [True],
    "logging_nan_inf_filter": [False],
    "label_smoothing_factor": [0.0, 0.1],
    "label_names": [["labels"]],
    "remove_unused_columns": [False],
    "dataloader_prefetch_factor": [2],
    "dataloader_persistent_workers": [True],
    "dataloader_pin_memory": [True],
    "neftune_noise_alpha": [5.0],
    "train_sampling_strategy": ["random", "sequential", "group_by_length", "batch_group_by_length"],
    "length_column_name": ["length"],
    "auto_find_batch_size": [True],
    "skip_memory_metrics": [False],
    "torch_empty_cache_steps": [1],
    "ignore_data_skip": [True],
    "average_tokens_across_devices": [False],
    "accelerator_config": [
        {"split_batches": True},
        {"dispatch_batches": True},
        {"even_batches": False},
        {"use_seedable_sampler": False},
    ],
    "report_to": ["none", "nowhere"],
    "output_dir": ["output", "a/b", "file/output", "\x00", "\u00e9 \U0001f642", "x" * 300],
    "use_cpu": [True],
    "do_train": [True],
    "hub_model_id": ["x"],
    "project": ["x"],
    "log_level": ["error", "passive"],
}
# Those that take steps, so that a trial that is not refused is short.
USUAL: dict[str, Any] = {
    "output_dir": "output",
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "per_device_train_batch_size": 2,
    "max_steps": 1,
    "rank": 4,
}


@st.composite
def drawn_settings(draw: st.DrawFn, most: int) -> dict[str, Any]:
    """Settings other than the usual ones, at most so many; one of six has a value that may be of the wrong kind."""
    names = draw(st.lists(st.sampled_from(list(SETTINGS)), unique=True, max_size=most))
    settings = {}
    for name in names:
        wrong = draw(st.integers(0, 5)) == 5
        settings[name] = copy.deepcopy(draw(st.sampled_from(WRONG if wrong else SETTINGS[name])))
    return settings
