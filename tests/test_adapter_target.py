"""Updates that go into an adapter: the weights stay as they are, whatever their kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE, BuildTrainer, build_model, changed, distance, weights
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from r2f_hf import cli
from r2f_hf.runs.ledger import first_break, read_ledger
from r2f_hf.runs.weights import saved_weights_hash


IDS = torch.arange(40)[None]
ADAPTER: dict[str, Any] = {"update_target": "adapter", "adapter_rank": 32}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "tied llama"])
def test_an_adapter_of_sufficient_rank_equals_a_run_on_the_weights(
    kind: str, tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    # The adapter has full rank for these shapes, so that nothing is cut off.
    base, plain = build_model(kind), build_model(kind)
    before = weights(base)
    trainer = build_trainer(base, max_steps=4, **ADAPTER)
    trainer.train()
    assert not changed(before, {name: tensor for name, tensor in weights(base).items() if name in before})
    assert all(logs["r2f/discarded_energy"] < 1e-6 for logs in trainer.state.log_history if "loss" in logs)
    trainer.save_model()

    build_trainer(plain, max_steps=4, output_dir=str(tmp_path / "plain")).train()
    adapted = PeftModel.from_pretrained(build_model(kind), tmp_path / "output")
    expected = logits(plain)
    assert (logits(adapted) - expected).abs().max() < 1e-2 * (expected - logits(build_model(kind))).abs().max()
    # With the adapter disabled it is the model from before, bit for bit. Merged, it is a plain model.
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), logits(build_model(kind)))
    merged = adapted.merge_and_unload()
    assert distance(weights(plain), weights(merged)) < 1e-3 * distance(before, weights(plain))


def test_forgets_in_a_small_rank_and_says_what_it_cut_off(
    memorised_model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    trainer = build_trainer(memorised_model, max_steps=6, learning_rate=0.4, update_target="adapter", adapter_rank=4)
    assert trainer.evaluate()["eval_forget_probability"] > 0.9
    trainer.train()
    assert trainer.evaluate()["eval_forget_probability"] < 0.5
    logs = [logs["r2f/discarded_energy"] for logs in trainer.state.log_history if "loss" in logs]
    assert len(logs) == 6 and all(0 < part < 1 for part in logs[1:])


def test_stacks_on_an_adapter_of_the_users(tmp_path: Path, build_trainer: BuildTrainer) -> None:
    def users() -> PeftModel:
        torch.manual_seed(3)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(build_model(), config)

    users().save_pretrained(tmp_path / "users")
    model = users()
    before = {name.replace(".base_layer", ""): tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = build_trainer(model, max_steps=3, **ADAPTER)
    start = trainer.evaluate()["eval_forget_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_forget_loss"] > start + 0.1
    trainer.save_model()
    now = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.items())

    stacked = PeftModel.from_pretrained(build_model(), tmp_path / "users", adapter_name="users")
    stacked.load_adapter(tmp_path / "output", "forget")
    stacked.base_model.set_adapter(["users", "forget"])
    assert torch.allclose(logits(stacked), logits(trainer.model), atol=1e-4)
    # The adapter can be switched off: only the user's is active then.
    stacked.set_adapter("users")
    assert torch.allclose(logits(stacked), logits(users()), atol=1e-6)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, build_trainer: BuildTrainer) -> None:
    settings = ADAPTER | {"adapter_rank": 6, "save_strategy": "steps", "save_steps": 1}
    build_trainer(build_model(), max_steps=5, **settings).train()
    whole = saved_weights_hash(tmp_path / "output" / "checkpoint-5")
    (tmp_path / "output" / "checkpoint-5" / "r2f_run.json").unlink()
    (tmp_path / "output" / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"short")
    trainer = build_trainer(build_model(), max_steps=5, **settings)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    assert saved_weights_hash(tmp_path / "output") == whole
    (entry,) = read_ledger(tmp_path / "output")
    assert first_break([entry], whole) is None
    cli.main(["verify", str(tmp_path / "output")])
    with pytest.raises(SystemExit):
        cli.main(["undo", str(tmp_path / "output")])


@pytest.mark.parametrize("module", ["q_proj", "up_proj"])
def test_a_bad_rank_leaves_a_users_adapter_alone(module: str, build_trainer: BuildTrainer) -> None:
    model = get_peft_model(build_model(), LoraConfig(r=4, target_modules=[module], task_type="CAUSAL_LM"))
    before = logits(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with pytest.raises(ValueError, match="Rank 17 exceeds"):
        build_trainer(model, rank=17, **ADAPTER)
    assert model.active_adapters == ["default"] and torch.equal(logits(model), before)
    now = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name.replace(".base_layer", "") for name in now] == trained
    build_trainer(model, **ADAPTER).train()


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 2},
        {"gradient_checkpointing": True},
        {"bf16": True, "dtype": torch.bfloat16},
        {
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_forget_loss",
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": 1,
            "save_steps": 1,
        },
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_trains_as_any_trainer_does(settings: dict[str, Any], tmp_path: Path, build_trainer: BuildTrainer) -> None:
    dtype = settings.pop("dtype", torch.float32)
    model = build_model(dtype=dtype)
    before = logits(model)
    trainer = build_trainer(model, max_steps=4, **ADAPTER, **settings)
    # PEFT makes all adapters trainable when it enables them again.
    with trainer.model.disable_adapter():
        trainer.evaluate()
    trainer.train()
    trainer.save_model()
    loaded = PeftModel.from_pretrained(build_model(dtype=dtype), tmp_path / "output")
    assert not torch.equal(logits(loaded), before)
    moved = (logits(loaded) - before).norm()
    assert (logits(loaded) - logits(trainer.model)).norm() < (0.1 if dtype == torch.bfloat16 else 1e-3) * moved
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), before)


def test_stacks_on_an_adapter_that_brings_modules_of_its_own(build_trainer: BuildTrainer) -> None:
    config = LoraConfig(r=4, target_modules=["v_proj"], modules_to_save=["lm_head"], bias="lora_only")
    model = get_peft_model(build_model(), config)
    before = {name.replace(".base_layer", ""): tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = build_trainer(model, **ADAPTER)
    trainer.train()
    now = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.items())
    with pytest.raises(ValueError, match="carries the adapters of an R2FTrainer already"):
        build_trainer(model, **ADAPTER)


def test_an_adapter_fits_only_the_base_that_it_was_made_on(tmp_path: Path, build_trainer: BuildTrainer) -> None:
    settings = ADAPTER | {"save_strategy": "steps", "save_steps": 1}
    build_trainer(build_model(), **settings).train()
    for resume in (True, False):
        with pytest.raises(ValueError, match="base was"):
            build_trainer(build_model(seed=1), **settings).train(resume_from_checkpoint=resume)


def test_a_model_or_an_adapter_in_the_output_folder_is_not_overwritten(
    tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    build_model().save_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="is the model's own"):
        build_trainer(base, output_dir=str(tmp_path / "model"), **ADAPTER, overwrite_output_dir=True)
    get_peft_model(build_model(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "output")
    with pytest.raises(ValueError, match="output holds a model or an adapter, which this run would overwrite"):
        build_trainer(build_model(), **ADAPTER).train()
    # The other way round: a model that is saved over an adapter leaves nothing of it.
    trainer = build_trainer(build_model(), overwrite_output_dir=True)
    trainer.train()
    trainer.save_model()
    assert not list((tmp_path / "output").glob("adapter*"))


def test_embeddings_are_refused(build_trainer: BuildTrainer) -> None:
    with pytest.raises(ValueError, match=r"embed_tokens is a Embedding"):
        build_trainer(build_model(), target_modules=["q_proj", "embed_tokens"], **ADAPTER)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_forgets(bits: int, tmp_path: Path, build_trainer: BuildTrainer) -> None:
    pytest.importorskip("bitsandbytes")
    # Four-bit weights come in blocks of 64, so the dimensions are multiples of it.
    config = LlamaConfig(**SHAPE | {"hidden_size": 64, "intermediate_size": 128})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    quantisation = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4")

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=quantisation)

    model = load()
    before = logits(model)
    with pytest.raises(ValueError, match=r'The model is quantised.*`update_target="adapter"`'):
        build_trainer(model)
    trainer = build_trainer(model, max_steps=8, learning_rate=0.4, **ADAPTER)
    start = trainer.evaluate()["eval_forget_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_forget_loss"] > start + 0.2
    assert min(trainer.r2f_callback.fidelities) > 0.3
    trainer.save_model()
    loaded = PeftModel.from_pretrained(load(), tmp_path / "output")
    # bitsandbytes computes with four-bit weights in bf16.
    moved = (logits(trainer.model) - before).norm()
    assert (logits(loaded) - logits(trainer.model)).norm() < 0.1 * moved
    with trainer.model.disable_adapter():
        assert (logits(trainer.model) - before).norm() < 0.05 * moved
