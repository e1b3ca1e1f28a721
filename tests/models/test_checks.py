"""Models that are refused, and that the way out which the refusal names is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS, SHAPE, BuildTrainer, build_model, changed, weights, write_rows
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    EncoderDecoderModel,
    Gemma3TextConfig,
    LlamaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
)

from r2f_hf import R2FStep, cli
from r2f_hf.models.checks import check_kind, is_causal


ADAPTER: dict[str, Any] = {"update_target": "adapter", "adapter_rank": 32}
BERT = BertConfig(
    vocab_size=160, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, is_decoder=False
)
T5 = T5Config(vocab_size=160, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
WHISPER = WhisperConfig(
    vocab_size=160,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)
LLAMA = LlamaConfig(**SHAPE, pad_token_id=0)


# Other kinds of models

OTHER_KINDS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "without a head": (lambda: AutoModel.from_config(CONFIGS["llama"]), "LlamaModel has no head"),
    "classifier": (
        lambda: AutoModelForSequenceClassification.from_config(LLAMA),
        "LlamaForSequenceClassification has no head",
    ),
    "T5": (lambda: T5ForConditionalGeneration(T5), "T5ForConditionalGeneration has an encoder"),
    "Whisper": (lambda: WhisperForConditionalGeneration(WHISPER), "WhisperForConditionalGeneration has an encoder"),
    "two models": (
        lambda: EncoderDecoderModel(encoder=AutoModel.from_config(BERT), decoder=build_model("gpt2")),
        "EncoderDecoderModel has an encoder",
    ),
    "BERT": (lambda: BertForMaskedLM(BERT), "BertForMaskedLM has no head"),
    # A head for generation, and attention in both directions.
    "BERT that generates": (lambda: BertLMHeadModel(BERT), "BertLMHeadModel lets tokens see those that come after"),
    "XLM": (
        lambda: XLMWithLMHeadModel(XLMConfig(vocab_size=160, emb_dim=32, n_layers=2, n_heads=4)),
        "XLMWithLMHeadModel lets tokens see",
    ),
    "Gemma that embeds": (
        lambda: AutoModelForCausalLM.from_config(
            Gemma3TextConfig(**SHAPE, head_dim=8, use_bidirectional_attention=True)
        ),
        "Gemma3ForCausalLM lets tokens see",
    ),
    "a module": (lambda: nn.Linear(4, 4), "Linear is no model of Transformers"),
    "compiled": (lambda: torch.compile(build_model()), "OptimizedModule is no model of Transformers"),
    "classifier with an adapter": (
        lambda: get_peft_model(AutoModelForSequenceClassification.from_config(LLAMA), LoraConfig(task_type="SEQ_CLS")),
        "LlamaForSequenceClassification has no head",
    ),
}


@pytest.mark.parametrize("settings", [{}, ADAPTER], ids=["weights", "adapter"])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_causal_language_model_is_refused_in_a_sentence(
    kind: str, settings: dict[str, Any], build_trainer: BuildTrainer
) -> None:
    build, what = OTHER_KINDS[kind]
    with pytest.raises(ValueError, match=rf"^R2F needs a causal language model, [^.]+: a {what}[^.]*\.$"):
        build_trainer(build(), **settings)


@pytest.mark.parametrize("kind", [*CONFIGS, "multimodal gemma", "gpt_neox"])
def test_causal_models_pass(kind: str) -> None:
    check_kind(build_model(kind))


@pytest.mark.parametrize(("text", "causal"), [("gemma", False), ("gemma2", True)])
def test_attention_that_may_go_both_ways_is_tried(text: str, causal: bool) -> None:
    """PaliGemma's first version lets the tokens of a text see each other, and its second does not."""
    sizes = SHAPE | {"head_dim": 8, "model_type": text}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "projection_dim": 32}
    model = PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(text_config=sizes, vision_config=vision, image_token_index=159)
    )
    model.lm_head.eval()
    assert is_causal(model) == causal
    assert model.training and not model.lm_head.training


def test_an_encoder_that_was_made_a_decoder_forgets(build_trainer: BuildTrainer) -> None:
    config = BertConfig(**BERT.to_diff_dict() | {"is_decoder": True})
    model = build_model(config)
    assert type(model) is BertLMHeadModel
    before = weights(model)
    build_trainer(model).train()
    assert changed(before, weights(model))


# Weights that are not in memory


def test_weights_on_the_disk_are_refused_with_what_to_do(tmp_path: Path, build_trainer: BuildTrainer) -> None:
    build_model().save_pretrained(tmp_path / "model")
    here = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    places = dict.fromkeys(here, "cpu") | {"model.layers.1": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "disk")
    )
    for settings in ({}, ADAPTER):
        with pytest.raises(ValueError, match=r"layers.1.* \(of 9 weights\) is on the meta device.*disk") as error:
            build_trainer(model, **settings)
    assert "without `device_map`" in str(error.value)
    # As it says, and with everything in one place also with a device map.
    for kwargs in ({}, {"device_map": "cpu"}):
        build_trainer(AutoModelForCausalLM.from_pretrained(tmp_path / "model", **kwargs), **ADAPTER)


def test_a_model_without_weights_is_refused(build_trainer: BuildTrainer) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    with pytest.raises(ValueError, match=r"\(of 21 weights\) is on the meta device .*`torch.device\('meta'\)`"):
        build_trainer(model)
    with pytest.raises(ValueError, match="q_proj is on the meta device and not in memory"):
        R2FStep(get_peft_model(model, LoraConfig(r=4, lora_alpha=4e-6, target_modules="all-linear")))
    # Whether its attention goes both ways cannot be tried then.
    with torch.device("meta"):
        doubtful = BertLMHeadModel(BERT)
    with pytest.raises(ValueError, match="is on the meta device and not in memory"):
        build_trainer(doubtful)


# Models with adapters


@pytest.fixture
def folders(saved: Path, tmp_path: Path, forget_rows: list[Any], retain_rows: list[Any]) -> dict[str, str]:
    """A model, and an adapter that `r2f unlearn` has made of it."""
    names = {"model": str(saved), "adapter": str(tmp_path / "adapter")}
    names |= {"forget_data": write_rows(tmp_path / "forget.jsonl", forget_rows[:3])}
    names |= {"retain_data": write_rows(tmp_path / "retain.jsonl", retain_rows)}
    unlearn(names, "model", names["adapter"], update_target="adapter")
    return names


def unlearn(folders: dict[str, str], model: str, output_dir: str, **settings: Any) -> None:
    """`r2f unlearn` in a few steps."""
    common = {"max_steps": 2, "rank": 8, "report_to": "none", "save_strategy": "no", "disable_tqdm": "true"}
    data = {name: folders[name] for name in ("forget_data", "retain_data")}
    options = data | common | {"model_name_or_path": folders[model], "output_dir": output_dir} | settings
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    cli.main(["unlearn", "--use_cpu", *words])


def test_the_folder_of_an_adapter_is_no_model_and_both_ways_out_work(
    folders: dict[str, str],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    build_trainer: BuildTrainer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = []
    for settings in ({}, {"update_target": "adapter"}):
        with pytest.raises(SystemExit):
            unlearn(folders, "adapter", str(tmp_path / "again"), **settings)
        said.append(capsys.readouterr().err)
        assert "carries an adapter that Transformers itself has loaded. In Python load it with PEFT" in said[-1]
    # What is set already is no advice.
    assert 'update_target="adapter"' in said[0] and "update_target" not in said[1]

    def loaded() -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(folders["model"])
        return PeftModel.from_pretrained(base, folders["adapter"])

    build_trainer(loaded(), output_dir=str(tmp_path / "stacked"), **ADAPTER).train()
    merged = str(tmp_path / "merged")
    loaded().merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    unlearn(folders | {"merged": merged}, "merged", str(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_a_model_with_an_adapter_is_merged_as_told(build_trainer: BuildTrainer) -> None:
    model = get_peft_model(build_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="carries an adapter") as error:
        build_trainer(model)
    assert "`model = model.merge_and_unload().requires_grad_(True)`" in str(error.value)
    build_trainer(model.merge_and_unload().requires_grad_(True)).train()


def test_a_variable_whose_modules_carry_an_adapter_is_refused(build_trainer: BuildTrainer) -> None:
    """PEFT puts its layers into the model that it is given."""
    model = build_model()
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match=r"already carries an adapter \(default\) in its modules.*Merge it first"):
        build_trainer(model)
    with pytest.raises(ValueError, match="or hand the PeftModel itself to R2FTrainer"):
        build_trainer(model, **ADAPTER)
    build_trainer(peft_model, **ADAPTER).train()
    build_trainer(peft_model.merge_and_unload().requires_grad_(True), overwrite_output_dir=True).train()


def test_adapters_that_are_not_lora_are_merged_as_told(build_trainer: BuildTrainer) -> None:
    from peft import IA3Config

    model: PreTrainedModel = get_peft_model(
        build_model(), IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    )
    with pytest.raises(ValueError, match=r"not LoRA: default \(\w*\.?IA3\).*`model = model.merge_and_unload\(\)`"):
        build_trainer(model, **ADAPTER)
    build_trainer(model.merge_and_unload(), **ADAPTER).train()
