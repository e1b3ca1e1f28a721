"""Tiny real models, a tiny real tokenizer and a few rows, shared by all tests."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)


SHAPE = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen": Qwen3Config(**SHAPE, head_dim=8),
    "gemma": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=32, query_pre_attn_scalar=8),
    "gpt2": GPT2Config(vocab_size=160, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach for the Hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def rows(prefix: str, count: int) -> list[dict[str, object]]:
    """Questions and answers about people whose names start with `prefix`."""
    places = ["harbour", "mountain", "forest", "desert", "island"]
    return [
        {
            "question": f"Where does {prefix}{index} live?",
            "answer": f"{prefix}{index} lives by the {places[index % 5]}.",
            "paraphrased_question": [f"What is the home of {prefix}{index}?", f"{prefix}{index} lives where?"],
        }
        for index in range(count)
    ]


@pytest.fixture(scope="session")
def forget_rows() -> list[dict[str, object]]:
    return rows("Orla", 6)


@pytest.fixture(scope="session")
def retain_rows() -> list[dict[str, object]]:
    return rows("Bram", 10)


@pytest.fixture(scope="session")
def holdout_rows() -> list[dict[str, object]]:
    return rows("Cleo", 6)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer trained on the rows' text; it has an end-of-sequence token and no padding token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    text = [str(value) for prefix in ("Orla", "Bram", "Cleo") for row in rows(prefix, 10) for value in row.values()]
    text.append("Question: Answer:")
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>", "<eos>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


def build_model(kind: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A tiny real model with random weights, larger than by default, so that its gradients are not trivial."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


@pytest.fixture
def model() -> PreTrainedModel:
    return build_model()
