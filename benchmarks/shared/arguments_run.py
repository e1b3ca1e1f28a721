"""One short run of R2FTrainer with given settings, and everything that training_arguments.py looks at in it."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback

from r2f_hf import R2FConfig, R2FTrainer
from shared.faults_worker import build_data, build_tokenizer


STEPS = 4
ROWS = 7
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "per_device_train_batch_size": 2,
    "max_steps": STEPS,
    "learning_rate": 0.1,
    "rank": 8,
}


def build_model() -> PreTrainedModel:
    """A Llama of 60 000 random parameters. They are larger than by default, so that gradients are not trivial."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=256,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the plain model's weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether weights are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Watch(TrainerCallback):
    """Keeps what each forward pass in training was given, and how often a layer was run in it."""

    def __init__(self, model: PreTrainedModel):
        self.batches: list[dict[str, Tensor]] = []
        self.layer_runs = 0
        self.dtypes: set[torch.dtype] = set()
        self.cache: set[bool] = set()
        self.evaluated: list[int] = []
        self.prediction_steps = 0
        layer = model.model.layers[1].mlp
        # Not after the layer: what is run again for the backward pass stops in it.
        layer.register_forward_pre_hook(self._before_layer)
        layer.register_forward_hook(self._after_layer)

    def _before_layer(self, module: nn.Module, inputs: Any) -> None:
        self.layer_runs += module.training and torch.is_grad_enabled()

    def _after_layer(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training and torch.is_grad_enabled():
            self.dtypes.add(output.dtype)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.cache.add(model.config.use_cache)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        self.prediction_steps += 1

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated.append(state.global_step)


class WatchedTrainer(R2FTrainer):
    """Tells its [`Watch`] the batches, and can make the loss of a step NaN."""

    watch: Watch
    nan_step: int | None = None

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self.watch.batches.append(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        return loss * torch.nan if self.state.global_step == self.nan_step else loss


@dataclass
class Run:
    """A run that has ended, or was refused."""

    folder: Path
    watch: Watch
    before: dict[str, Tensor]
    model: PreTrainedModel
    trainer: WatchedTrainer | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def after(self) -> dict[str, Tensor]:
        return weights(self.model)

    @property
    def ids(self) -> list[list[list[int]]]:
        """The token ids of each forward pass."""
        return [batch["input_ids"].tolist() for batch in self.watch.batches]

    @property
    def forget_rows(self) -> list[int]:
        """The number of forget rows in each forward pass."""
        return [int(batch["is_forget"].sum()) for batch in self.watch.batches]

    @property
    def steps(self) -> int:
        return self.trainer.state.global_step

    @property
    def logs(self) -> list[dict[str, float]]:
        """The logs of training steps."""
        return [logs for logs in self.trainer.state.log_history if "loss" in logs]

    @property
    def rates(self) -> list[float]:
        return [logs["learning_rate"] for logs in self.logs]

    @property
    def probabilities(self) -> dict[str, float]:
        return {key: value for key, value in self.metrics["after"].items() if key.endswith("_probability")}

    @property
    def probabilities_before(self) -> list[float]:
        return [value for key, value in self.metrics["before"].items() if key.endswith("_probability")]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("checkpoint-*"))

    def best_weights(self) -> dict[str, Tensor]:
        """The weights in the best checkpoint."""
        return load_file(Path(self.trainer.state.best_model_checkpoint) / "model.safetensors")

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()


class Bench:
    """
    Runs of one tiny model.

    Args:
        root (`Path`):
            Where the runs get folders of their own. All processes of a run need the same, or one on each node.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._count = 0
        self._bases: dict[str, Run] = {}

    def folder(self) -> Path:
        """A new folder."""
        self._count += 1
        return self.root / str(self._count)

    def base(self, **settings: Any) -> Run:
        """The run that another one is compared with. It is made once."""
        key = repr(settings)
        if key not in self._bases:
            self._bases[key] = self.run(**settings)
        return self._bases[key]

    def run(
        self,
        folder: Path | None = None,
        data: Mapping[str, Any] | None = None,
        prepare: Callable[[WatchedTrainer], None] | None = None,
        resume: str | bool | None = None,
        refused: bool = False,
        **settings: Any,
    ) -> Run:
        """
        Evaluate, unlearn, evaluate and save, on seven forget rows.

        Args:
            folder (`Path`, *optional*):
                The output folder. A new one by default.
            data (`Mapping`, *optional*):
                Further arguments of the trainer.
            prepare (`Callable`, *optional*):
                Called with the trainer before it runs.
            resume (`str` or `bool`, *optional*):
                What to resume from.
            refused (`bool`, *optional*, defaults to `False`):
                Whether an error is expected, and returned.
            settings (*optional*):
                Settings of the configuration.

        Returns:
            [`Run`]
        """
        folder = folder or self.folder()
        model = build_model()
        run = Run(folder, Watch(model), weights(model), model)
        rows = build_data()
        rows["forget_dataset"] = rows["forget_dataset"][:ROWS]
        data = dict(data or {})
        callbacks = [run.watch, *data.pop("callbacks", [])]
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                # accelerate changes some settings in place.
                args = R2FConfig(str(folder), **COMMON | copy.deepcopy(settings))
                run.trainer = WatchedTrainer(
                    model, args, processing_class=build_tokenizer(), callbacks=callbacks, **rows | data
                )
                run.trainer.watch = run.watch
                if prepare is not None:
                    prepare(run.trainer)
                run.metrics = run.trainer.unlearn(resume_from_checkpoint=resume)
        except (ValueError, ImportError, NotImplementedError) as error:
            if not refused:
                raise
            run.error = error
        return run
