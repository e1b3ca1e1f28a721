"""Mistakes that users make, each made for real, for faults.py: is it refused before any weight has changed?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from rich.progress import track
from transformers import AutoModelForCausalLM

from r2f_hf import R2FTrainer, cli
from shared.faults_worker import build_args, build_data, build_tokenizer, load_model


FORGET, RETAIN = build_data().values()
ROW = FORGET[0]

# By the name of a mistake the trainer's data (first table), or the configuration's settings (second table).
DATA: dict[str, dict[str, Any]] = {
    "no forget set": {"forget_dataset": None},
    "an empty forget set": {"forget_dataset": []},
    "no retain set": {"retain_dataset": None},
    "an empty holdout set": {"holdout_dataset": []},
    "a row to forget and to keep": {"retain_dataset": [*RETAIN, ROW]},
    "a holdout row that is to be forgotten": {"holdout_dataset": [ROW]},
    "a holdout row that is to be kept": {"holdout_dataset": RETAIN[:1]},
    "no question in a forget row": {"forget_dataset": [{"answer": "By the sea."}]},
    "no answer in a later retain row": {"retain_dataset": [*RETAIN, {"question": "Who?"}]},
    "a row longer than the context": {"forget_dataset": [ROW | {"answer": "far " * 200}]},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "a prompt column that is not there": {"prompt_column": "prompt"},
    "a views column that is not there": {"views_column": "wordings"},
    "more views than wordings": {"num_views": 2},
    "a view template without a prompt": {"view_templates": ["Tell me."]},
    "max_length without room for an answer": {"max_length": 2},
    "a rank above a module's dimension": {"rank": 65},
    "rank 0": {"rank": 0},
    "no row left for the decoder": {"held_out": 16},
    "a single held-out row": {"held_out": 1},
    "modules that are not there": {"target_modules": ["query"]},
    "every module excluded": {"exclude_modules": ".*"},
    "an unknown forget objective": {"forget_objective": "nppo"},
    "an unknown retain objective": {"retain_objective": "nl"},
    "a difference with nothing": {"forget_objective": "grad_diff", "retain_objective": "none"},
    "an unknown decoder": {"decoder": "spectrum"},
    "a decoder's folder that is not there": {"decoder": "./decoder"},
    "an unknown answer to NaN": {"on_bad_gradient": "ignore"},
    "a least fidelity above 1": {"min_fidelity": 1.5},
    "beta 0": {"forget_objective_kwargs": {"beta": 0.0}},
    "weight decay": {"weight_decay": 0.1},
}


def try_mistakes(root: Path, finished: Path) -> dict[str, Any]:
    """
    Make every mistake, and count those that are refused before any weight has changed.

    Args:
        root (`Path`):
            A folder to work in.
        finished (`Path`):
            The folder of a finished run.

    Returns:
        `dict[str, Any]`: `tried`, `refused_before_any_weight_changed` and the names of the `others`.
    """
    tokenizer = build_tokenizer()

    def fresh_model() -> torch.nn.Module:
        """The model that the finished run began with."""
        return load_model(finished.parent / "base", "ddp")

    def build(model: torch.nn.Module, data: dict[str, Any] | None = None, **settings: Any) -> R2FTrainer:
        folder = Path(settings.pop("output_dir", root / "bad"))
        args = build_args(folder, **settings)
        return R2FTrainer(model, args, processing_class=tokenizer, **build_data() | (data or {}))

    def quantised(model: torch.nn.Module) -> None:
        model.is_quantized = True
        build(model)

    def unwritable(model: torch.nn.Module) -> None:
        (root / "file").touch()
        build(model, output_dir=root / "file" / "output")

    def resume(model: torch.nn.Module, name: str, damage: Callable[[Path], Any] = lambda folder: None, **settings):
        folder = root / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished / name, folder)
        damage(folder)
        build(model, output_dir=root / "resumed", **settings).train(resume_from_checkpoint=str(folder))

    def locked(model: torch.nn.Module) -> None:
        trainer = build(model, output_dir=root / "locked")
        with FileLock(root / "locked" / "_r2f.lock"):
            trainer.train()

    def command(*argv: str) -> Callable[[torch.nn.Module], None]:
        def run(model: torch.nn.Module) -> None:
            model.save_pretrained(root / "model")
            tokenizer.save_pretrained(root / "model")
            try:
                cli.main([argument.format(root=root) for argument in argv])
            finally:
                model.load_state_dict(AutoModelForCausalLM.from_pretrained(root / "model").state_dict())

        return run

    (root / "recipe.yaml").write_text("model_name_or_path: model\nlearnign_rate: 1.0\n")
    (root / "broken.yaml").write_text("model_name_or_path: [model\n")
    (root / "empty.jsonl").touch()
    unlearn = ("unlearn", "--model_name_or_path", "{root}/model", "--output_dir", "{root}/out", "--use_cpu")
    mistakes: dict[str, Callable[[torch.nn.Module], Any]] = {
        **{name: lambda model, data=data: build(model, data) for name, data in DATA.items()},
        **{name: lambda model, settings=settings: build(model, **settings) for name, settings in SETTINGS.items()},
        "a quantised model": quantised,
        "a model with an adapter": lambda model: build(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))),
        "an output folder that cannot be written": unwritable,
        "another run's folder": lambda model: build(model, output_dir=finished, seed=1).train(),
        "a folder that another run writes to": locked,
        "resuming from a model that is no checkpoint": lambda model: resume(model, "_undo"),
        "resuming with other settings": lambda model: resume(model, "checkpoint-3", rank=8),
        "resuming from a checkpoint cut short": lambda model: resume(
            model, "checkpoint-3", lambda folder: (folder / "model.safetensors").write_bytes(b"short")
        ),
        "resuming from a checkpoint without its references": lambda model: resume(
            model, "checkpoint-3", lambda folder: (folder / "r2f_references.safetensors").unlink()
        ),
        "a mistyped key in a recipe": command("unlearn", "--config", "{root}/recipe.yaml"),
        "a recipe that is not YAML": command("unlearn", "--config", "{root}/broken.yaml"),
        "a recipe that is not there": command("unlearn", "--config", "{root}/none.yaml"),
        "a data file that is not there": command(*unlearn, "--forget_data", "{root}/none.jsonl"),
        "an empty data file": command(*unlearn, "--forget_data", "{root}/empty.jsonl"),
        "a mistyped command": command("unlaern"),
        "undoing where nothing was done": command("undo", "{root}/model"),
    }
    # Without a mistake all of this has to work. Otherwise a mistake could be refused for another reason.
    build(fresh_model(), output_dir=root / "good").train()
    resume(fresh_model(), "checkpoint-3")
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--forget_data", "{root}/forget.jsonl", "--retain_data", "{root}/retain.jsonl", "--max_steps", "1")
    command(*unlearn, *given)(fresh_model())
    others = []
    for name, mistake in track(mistakes.items(), "Making mistakes"):
        model = fresh_model()
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        try:
            mistake(model)
            refused = False
        except (ValueError, FileNotFoundError):
            refused = True
        except SystemExit as error:
            # The command refuses a mistake in one line, with this exit code.
            refused = error.code == 2
        after = {
            key.replace("base_model.model.", "").replace(".base_layer", ""): tensor
            for key, tensor in model.state_dict().items()
        }
        same = all(torch.equal(tensor, after[key]) for key, tensor in before.items())
        if not (refused and same):
            others.append(name)
    count = len(mistakes)
    return {"tried": count, "refused_before_any_weight_changed": count - len(others), "others": ", ".join(others)}
