"""Ways to take a step on a model, to be compared: R2F, LoRA, full AdamW, exact-gradient SGD, and the least of all."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from r2f_hf import R2FConfig, R2FStep
from r2f_hf.models.wrapping import wrap
from shared.pypi_models import smollm2_folder


RANK = 16
CONTENDERS = ("floor", "r2f", "lora", "full", "exact")
# The shapes of Llama-3.2-1B and Llama-3.1-8B, and of a fifth of SmolLM2-135M: in layers and in vocabulary, so that the
# ratios between contenders stay. It is for machines that have no time for more.
SHAPES = {
    "smollm2-fifth": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 9},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}


def load(model: str, dtype: str, device: str, layers: int | None = None) -> PreTrainedModel:
    """A model by name, or its first layers."""
    if model == "smollm2":
        loaded = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=dtype)
        if layers is not None:
            del loaded.model.layers[layers:]
        return loaded.to(device)
    small = model == "smollm2-fifth"
    sizes = (
        {"vocab_size": 9830, "num_key_value_heads": 3} if small else {"vocab_size": 128256, "num_key_value_heads": 8}
    )
    config = LlamaConfig(tie_word_embeddings=model != "llama-8b", **sizes, **SHAPES[model])
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def linear_layers(model: PreTrainedModel) -> list[nn.Linear]:
    """The layers whose weights R2F writes: all linear layers but the head."""
    head = model.get_output_embeddings()
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]


class Contender:
    """
    A model, and a way to take steps on it.

    Args:
        name (`str`):
            One of [`CONTENDERS`].
        model ([`~transformers.PreTrainedModel`]):
            The model; changed in place.
        clock (`Callable`, *optional*, defaults to [`time.perf_counter`]):
            The seconds so far.
    """

    def __init__(self, name: str, model: PreTrainedModel, clock: Callable[[], float] = time.perf_counter):
        self.name, self.model, self.optimizer, self.clock = name, model.train(), None, clock
        self.r2f: R2FStep | None = None
        self._exact: list[nn.Parameter] = []
        self._accumulates = False
        if name == "floor":
            model.requires_grad_(False)
            model.enable_input_require_grads()
        elif name == "exact":
            model.requires_grad_(False)
            self._exact = [layer.weight for layer in linear_layers(model)]
            for weight in self._exact:
                weight.requires_grad_(True)
                weight.register_post_accumulate_grad_hook(self._release_at_once)
        elif name == "full":
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        elif name == "lora":
            config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = get_peft_model(model, config)
            self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        else:
            args = R2FConfig(tempfile.gettempdir(), rank=RANK, use_cpu=model.device.type == "cpu", report_to="none")
            self.model = wrap(model, args)
            self.r2f = R2FStep(self.model)
            # Any text will do as the retain set: the sketches of its inputs have the same number of columns.
            ids = torch.randint(model.config.vocab_size, (4, 64), device=model.device)
            with self.r2f.protecting():
                self.model(input_ids=ids)
            self.r2f.begin()

    def _release_at_once(self, weight: nn.Parameter) -> None:
        """Apply a gradient where it arises, unless those of further micro-batches have to be added to it."""
        if not self._accumulates:
            release(weight)

    def forward(self, batch: Tensor) -> Tensor:
        return self.model(input_ids=batch, labels=batch).loss

    def update(self) -> None:
        if self.r2f is not None:
            self.r2f.step(lr=1e-3)
        elif self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        for weight in self._exact:
            if weight.grad is not None:
                release(weight)

    def step(self, batch: Tensor, micro_batches: int = 1) -> dict[str, float]:
        """Take a step. Returns the seconds of its forward passes, its backward passes and its update."""
        seconds = self.passes(batch, micro_batches)
        start = self.now()
        self.update()
        return seconds | {"update": self.now() - start}

    def passes(self, batch: Tensor, micro_batches: int = 1) -> dict[str, float]:
        """The forward and backward passes of a step, one pair per micro-batch."""
        self._accumulates = micro_batches > 1
        seconds = np.zeros(2)
        for part in batch.chunk(micro_batches):
            times = [self.now()]
            loss = self.forward(part) / micro_batches
            times.append(self.now())
            loss.backward()
            times.append(self.now())
            del loss
            seconds += np.diff(times)
        return dict(zip(("forward", "backward"), seconds.tolist(), strict=True))

    def now(self) -> float:
        """The time in seconds, after the device has finished its work."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()


@torch.no_grad()
def release(weight: nn.Parameter) -> None:
    """Apply a gradient, and release it."""
    weight.sub_(weight.grad, alpha=1e-6)
    weight.grad = None


def release_memory() -> None:
    """Free the memory of models that nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()


def draw_batch(model: PreTrainedModel, rows: int, length: int, seed: int) -> Tensor:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (rows, length), generator=generator).to(model.device)
