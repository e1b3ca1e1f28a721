"""The models, tokenizers and chat templates that bad_inputs.py draws from, built once and copied."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    ByT5Tokenizer,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)


VOCABULARY = 264
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 192,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
BERT = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "tied llama": LlamaConfig(**SHAPE | {"tie_word_embeddings": True}),
    "small vocabulary": LlamaConfig(**SHAPE | {"vocab_size": 160, "eos_token_id": 1}),
    "short context": LlamaConfig(**SHAPE | {"max_position_embeddings": 24}),
    "two layers": LlamaConfig(**SHAPE | {"num_hidden_layers": 2}),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=192,
        bos_token_id=None,
        eos_token_id=256,
    ),
    "gemma": Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=16, query_pre_attn_scalar=8),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1),
    "qwen moe": Qwen2MoeConfig(**SHAPE, **EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=16),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "bert with a head for generation": lambda: BertLMHeadModel(BertConfig(**BERT)),
    "classifier": lambda: LlamaForSequenceClassification(LlamaConfig(**SHAPE)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ),
    "no transformer": lambda: nn.Linear(4, 4),
    "base model": lambda: copy.deepcopy(built("llama", torch.float32).model),
}
MODELS = (*CONFIGS, *OTHERS)
# What a user may have done to a model before.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "lora": lambda model: get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")),
    "lora on attention": lambda model: get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "c_attn"])),
    "ia3": lambda model: get_peft_model(
        model, IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    ),
    "lora left inside": lambda model: get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])) and model,
    "frozen": lambda model: model.requires_grad_(False),
    "frozen first parameters": lambda model: freeze_some(model),
    "meta": lambda model: model.to("meta"),
    "nan": lambda model: spoil(model, torch.nan),
    "infinite": lambda model: spoil(model, torch.inf),
    "huge": lambda model: spoil(model, 1e30),
    "zero": lambda model: zero(model),
    "evaluation mode": lambda model: model.eval(),
    "quantised": lambda model: mark_as_quantised(model),
    "name of a folder": lambda model: "no/such/folder",
    "nothing": lambda model: None,
    "gradient checkpointing": lambda model: model.gradient_checkpointing_enable() or model,
}


def freeze_some(model: nn.Module) -> nn.Module:
    for parameter in list(model.parameters())[:4]:
        parameter.requires_grad_(False)
    return model


def spoil(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        list(model.parameters())[-1].view(-1)[0] = value
    return model


def zero(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def mark_as_quantised(model: nn.Module) -> nn.Module:
    model.is_quantized = True
    return model


@functools.cache
def built(name: str, dtype: torch.dtype) -> nn.Module:
    """A model with random weights, larger than by default, so that gradients are not trivial."""
    torch.manual_seed(0)
    if name in CONFIGS:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), dtype=dtype)
    else:
        model = OTHERS[name]().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def build_model(name: str, dtype: str, change: str | None) -> Any:
    """
    A model for one trial.

    Args:
        name (`str`):
            One of [`MODELS`].
        dtype (`str`):
            `"float32"` and so on.
        change (`str`, *optional*):
            One of [`CHANGES`].
    """
    model = copy.deepcopy(built(name, getattr(torch, dtype)))
    return model if change is None else CHANGES[change](model)


def byte_level(specials: list[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def with_specials() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(["<eos>", "<bos>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 257), ("<eos>", 256)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")


def lowercase() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(["<eos>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def few_words() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<eos>", "lives", "by", "the", "Where", "does", "live", "?", ".", "Question", "Answer", ":"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def no_unknown() -> PreTrainedTokenizerFast:
    """Drops what it does not know."""
    tokenizer = Tokenizer(
        models.BPE(vocab={character: index for index, character in enumerate("abcdefg ")}, merges=[])
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="a")


def larger(count: int) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(["<eos>"]), eos_token="<eos>")
    tokenizer.add_tokens([f"<new{index}>" for index in range(count)] + ["harbour"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def fast(**specials: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(["<eos>", "<pad>", "<|im_end|>"]), **specials)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: fast(eos_token="<eos>", pad_token="<pad>"),
    "no pad": lambda: fast(eos_token="<eos>"),
    "no eos": lambda: fast(pad_token="<pad>"),
    "no special token": lambda: fast(),
    "eos of a turn": lambda: fast(eos_token="<|im_end|>", pad_token="<|im_end|>"),
    "pads on the left": lambda: fast(eos_token="<eos>", pad_token="<pad>", padding_side="left"),
    "cuts at 8": lambda: fast(eos_token="<eos>", pad_token="<pad>", model_max_length=8),
    "bos and eos": with_specials,
    "lowercase": lowercase,
    "few words": few_words,
    "drops the unknown": no_unknown,
    "larger than the embeddings": lambda: larger(40),
    "one token more": lambda: larger(7),
    "in Python": lambda: ByT5Tokenizer(extra_ids=0),
    "none": lambda: None,
    "a name": lambda: "bytes",
    "of tokenizers": lambda: byte_level(["<eos>"]),
    "a function": lambda: str.split,
}
# Those of which the decoded tokens are the text itself.
FAITHFUL = ("bytes", "no pad", "no eos", "no special token", "eos of a turn", "pads on the left", "cuts at 8")


def chatml(text: str = "{{ m.content }}") -> str:
    """A chat template, by how it writes the text of a message."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + text + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def only(role: str) -> str:
    """A chat template that writes the messages of one role alone."""
    return chatml("{% if m.role == '" + role + "' %}{{ m.content }}{% endif %}")


TEMPLATES: dict[str, Any] = {
    "chatml": chatml(),
    "parts": chatml("{% for p in m.content %}{{ p.text }}{% endfor %}"),
    "parts or text": chatml("{{ m.content if m.content is string else m.content | map(attribute='text') | join }}"),
    "drops the question": only("assistant"),
    "drops the answer": only("user"),
    "rewrites": chatml("{{ m.content | upper }}"),
    "strips": chatml("{{ m.content | trim }}"),
    "repeats": chatml("{{ m.content }}{{ m.content }}"),
    "first words": chatml("{{ m.content[:12] }}"),
    "escapes": chatml("{{ m.content | e }}"),
    "dated": "Today: {{ strftime_now('%d %b %Y') }}\n" + chatml(),
    "empty thought": chatml("{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"),
    "cuts thoughts": chatml("{{ m.content.split('</think>')[-1] }}"),
    "no system": "{% if messages[0].role == 'system' %}{{ raise_exception('No system role.') }}{% endif %}" + chatml(),
    "quotes": chatml("{{ raise_exception('Cannot say ' + m.content) }}"),
    "last message only": "{{ messages[-1].content }}<eos>",
    "only a prompt": "{{ messages[0].content }}",
    "broken": "{% for m in messages %}{{ m.content }",
    "undefined": "{{ nothing.at.all }}" + chatml(),
    "divides": "{{ 1 / 0 }}",
    "missing method": chatml("{{ m.content.nothing() }}"),
    "missing key": chatml("{{ m['content']['x'] + 1 }}"),
    "index": "{{ messages[7].content }}",
    "empty": "",
    "constant": "Hello.",
    "several": {"default": chatml(), "tool_use": chatml()},
    "several without a default": {"other": chatml()},
    "a number": 7,
}


def build_tokenizer(name: str, template: str | None) -> PreTrainedTokenizerBase | Any:
    """
    A tokenizer for one trial.

    Args:
        name (`str`):
            One of [`TOKENIZERS`].
        template (`str`, *optional*):
            One of [`TEMPLATES`].
    """
    tokenizer = TOKENIZERS[name]()
    if template is not None and isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer.chat_template = TEMPLATES[template]
    return tokenizer
