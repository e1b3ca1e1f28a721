"""Models that are loaded as what they were saved from, also where `AutoModelForCausalLM` knows no such model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE, BuildTrainer, build_model, changed, weights, write_rows
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from r2f_hf import cli
from r2f_hf.models import from_pretrained
from r2f_hf.runs.ledger import read_ledger
from r2f_hf.runs.undo import prepare_undo
from r2f_hf.runs.weights import load_saved


VISION = {"image_size": 28, "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION_LANGUAGE = {
    "llava": (
        LlavaForConditionalGeneration,
        LlavaConfig(
            text_config=LlamaConfig(**SHAPE),
            vision_config=CLIPVisionConfig(**VISION, intermediate_size=32, projection_dim=16),
            image_token_index=159,
        ),
    ),
    "qwen2_vl": (
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig(
            text_config=SHAPE | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
            image_token_id=159,
            video_token_id=158,
            vision_start_token_id=157,
        ),
    ),
}


def build(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny model that reads pictures and text."""
    torch.manual_seed(0)
    model_class, config = VISION_LANGUAGE[kind]
    return model_class(config).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", VISION_LANGUAGE)
def test_a_model_that_also_reads_pictures_is_verified_and_undone(
    kind: str, dtype: torch.dtype, tmp_path: Path, build_trainer: BuildTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(kind, dtype)
    before, again = weights(model), copy.deepcopy(model)
    trainer = build_trainer(model, save_strategy="steps", save_steps=1)
    trainer.unlearn()
    after = weights(model)
    assert len(changed(before, after)) == 14
    assert not any("visi" in name for name in changed(before, after))
    saved = load_saved(tmp_path / "output")
    assert type(saved) is VISION_LANGUAGE[kind][0] and not changed(after, weights(saved))
    # Resumed, asked about and taken back.
    build_trainer(again, save_strategy="steps", save_steps=1).train(resume_from_checkpoint=True)
    cli.main(["verify", str(tmp_path / "output")])
    cli.main(["ledger", str(tmp_path / "output")])
    cli.main(["undo", str(tmp_path / "output")])
    assert read_ledger(tmp_path / "output")[0]["weights"]["before"] in capsys.readouterr().out
    assert not changed(before, weights(load_saved(tmp_path / "output")))


@pytest.mark.parametrize("kind", VISION_LANGUAGE)
def test_the_commands_load_it_too(
    kind: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    forget_rows: list[Any],
    retain_rows: list[Any],
) -> None:
    build(kind).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for output, model in (("one", "model"), ("two", "one")):
        options = {
            "model_name_or_path": str(tmp_path / model),
            "output_dir": str(tmp_path / output),
            "forget_data": write_rows(tmp_path / "forget.jsonl", forget_rows),
            "retain_data": write_rows(tmp_path / "retain.jsonl", retain_rows),
            "max_steps": "1",
            "rank": "8",
            "report_to": "none",
            "save_strategy": "no",
        }
        cli.main(["unlearn", "--use_cpu", *(word for item in options.items() for word in (f"--{item[0]}", item[1]))])
    assert len(read_ledger(tmp_path / "two")) == 2
    prepare_undo(tmp_path / "two").write()
    assert not changed(weights(load_saved(tmp_path / "one")), weights(load_saved(tmp_path / "two")))


def test_what_generates_no_text_is_left_to_transformers(tmp_path: Path) -> None:
    """A model that was saved without its head, which is tied to the embeddings and loses nothing by it."""
    model = build_model("tied llama")
    model.model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "LlamaModel"
    loaded = from_pretrained(str(tmp_path))
    assert type(loaded) is type(model) and not changed(weights(model), weights(loaded))
    # As before, with what Transformers has to say of it.
    AutoModelForSequenceClassification.from_config(model.config).save_pretrained(tmp_path / "classifier")
    assert type(from_pretrained(str(tmp_path / "classifier"))) is type(model)


def test_code_that_lies_in_a_folder_is_not_run(tmp_path: Path, build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(build_model())
    trainer.train()
    trainer.save_model()
    file = tmp_path / "output" / "config.json"
    text = file.read_text().replace('"LlamaForCausalLM"', '"OwnForCausalLM"')
    file.write_text(text.replace("{", '{\n  "auto_map": {"AutoModelForCausalLM": "own.OwnForCausalLM"},', 1))
    (tmp_path / "output" / "own.py").write_text("raise SystemExit('it was run')\n")
    with pytest.raises(ValueError, match=r"The code of the OwnForCausalLM in .* lies in files of its own"):
        prepare_undo(tmp_path / "output")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load_saved(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "output", trust_remote_code=False) is not None
