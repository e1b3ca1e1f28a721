"""Which modules carry probes: of mixtures of experts, of classes that extend linear layers, of frozen models."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPE, BuildTrainer, build_model, changed, weights
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    FalconConfig,
    Glm4MoeConfig,
    Llama4TextConfig,
    LlamaConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from r2f_hf import R2FStep
from r2f_hf.probes import find_probes
from r2f_hf.probes.lora_probe import takes_a_pair


EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}

# Mixtures with dense layers, or with experts that all tokens go through: linear layers named as the experts' weights.
MIXTURES: dict[str, PreTrainedConfig] = {
    "deepseek_v3": DeepseekV3Config(**SHAPE | EXPERTS | LATENT | {"num_key_value_heads": 4}, first_k_dense_replace=1),
    "qwen3_moe": Qwen3MoeConfig(
        **SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=2
    ),
    # One expert that all tokens go through, with a gate that has a single output.
    "qwen2_moe": Qwen2MoeConfig(
        **SHAPE,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "glm4_moe": Glm4MoeConfig(**SHAPE | EXPERTS, head_dim=8, first_k_dense_replace=1),
    "ernie4_5_moe": Ernie4_5_MoeConfig(
        **SHAPE, moe_num_experts=4, moe_k=2, moe_intermediate_size=32, moe_layer_start_index=1
    ),
}

TARGETS: dict[str, Any] = {
    "all-linear": "all-linear",
    "list": ["o_proj", "gate_proj", "up_proj", "down_proj"],
    # Half of what is one weight in the experts.
    "one half": ["gate_proj"],
    "pattern": r".*\.(o_proj|gate_proj|up_proj|down_proj)",
}

# Classes that extend `nn.Linear` and return more than a tensor.
ROUTERS: dict[str, PreTrainedConfig] = {
    "llama4": Llama4TextConfig(**SHAPE, head_dim=8, num_local_experts=4, intermediate_size_mlp=64),
    "phimoe": PhimoeConfig(**SHAPE, num_local_experts=4),
}

IDS = torch.arange(40)[None]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def linear_names(model: PreTrainedModel) -> set[str]:
    """The linear layers of a mixture but the head and gates of one output; experts have none."""
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    return {name for name, module in linear.items() if name != "lm_head" and module.out_features > 1}


def excluded_by_the_advice(message: str) -> list[str]:
    """The setting that a refusal advises."""
    return ast.literal_eval(re.search(r"`exclude_modules=(.+?)`", message)[1])


# Mixtures of experts


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", MIXTURES)
def test_all_of_a_mixture_but_its_experts_changes(
    kind: str, targets: str, tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    settings = {"rank": 4, "target_modules": TARGETS[targets]}
    # Whoever names layers that the experts had names the experts too.
    with pytest.raises(ValueError, match="experts holds its weights in a parameter of three dimensions") as error:
        build_trainer(build_model(MIXTURES[kind]), **settings)
    settings["exclude_modules"] = excluded_by_the_advice(str(error.value))
    model = build_model(MIXTURES[kind])
    before = weights(model)
    # In the pattern the names are those of the list.
    named = {"all-linear": "", "one half": "gate_proj"}.get(targets, "o_proj gate_proj up_proj down_proj")
    names = {name for name in linear_names(model) if not named or name.rpartition(".")[2] in named.split()}
    expected = {f"{name}.weight" for name in names}
    trainer = build_trainer(model, **settings)
    trainer.train()
    assert expected and changed(before, weights(model)) == expected
    trainer.save_model()
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "output", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not changed(weights(loaded), weights(model))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("kind", MIXTURES)
def test_an_adapter_on_a_mixture_loads_as_it_was_saved(
    kind: str, targets: str, tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    settings = {
        "rank": 4,
        "target_modules": TARGETS[targets],
        "exclude_modules": ["experts"],
        "update_target": "adapter",
        "adapter_rank": 32,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    before = logits(build_model(MIXTURES[kind]))
    build_trainer(build_model(MIXTURES[kind]), **settings, max_steps=1).train()
    # In another trainer, from what was saved.
    trainer = build_trainer(build_model(MIXTURES[kind]), **settings)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    now = logits(trainer.model)
    loaded = PeftModel.from_pretrained(build_model(MIXTURES[kind]), tmp_path / "output")
    moved = (now - before).norm()
    assert moved > 0.01 and (logits(loaded) - now).norm() < 1e-3 * moved
    assert (logits(loaded.merge_and_unload()) - now).norm() < 1e-3 * moved


@pytest.mark.parametrize("users", [["q_proj"], ["q_proj", "gate_proj", "up_proj", "down_proj"]], ids=["linear", "all"])
def test_an_adapter_on_a_mixture_loads_next_to_a_users(
    users: list[str], tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    def adapted() -> PeftModel:
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=users, init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(build_model(MIXTURES["qwen3_moe"]), config)

    adapted().save_pretrained(tmp_path / "users")
    settings = {"rank": 4, "exclude_modules": ["experts"], "update_target": "adapter", "adapter_rank": 32}
    model = adapted()
    before, active = logits(model), model.active_adapters
    if len(users) > 1:
        # PEFT has put these on parameters of the experts.
        with pytest.raises(ValueError, match=r"'default' has pairs on parameters of the experts, and PEFT") as error:
            build_trainer(model, **settings)
        assert torch.equal(logits(model), before) and model.active_adapters == active
        settings["exclude_modules"] = excluded_by_the_advice(str(error.value))
        assert settings["exclude_modules"] == ["experts", "down_proj", "gate_proj", "up_proj"]
    trainer = build_trainer(model, **settings)
    trainer.train()
    trainer.save_model()
    loaded = PeftModel.from_pretrained(build_model(MIXTURES["qwen3_moe"]), tmp_path / "users", adapter_name="users")
    loaded.load_adapter(tmp_path / "output", "forget")
    loaded.base_model.set_adapter(["users", "forget"])
    now = logits(trainer.model)
    assert (logits(loaded) - now).norm() < 1e-3 * (now - before).norm()


@pytest.mark.parametrize("targets", [["o_proj"], r".*\.mlp\.(gate|up|down)_proj"], ids=["list", "pattern"])
def test_a_mixture_of_which_no_expert_is_named_needs_no_advice(
    targets: str | list[str], build_trainer: BuildTrainer
) -> None:
    trainer = build_trainer(build_model(MIXTURES["deepseek_v3"]), rank=4, target_modules=targets)
    assert len(find_probes(trainer.model)) == (2 if isinstance(targets, list) else 3)
    trainer.train()


def test_the_advice_adds_to_what_is_excluded_already(build_trainer: BuildTrainer) -> None:
    for excluded in (["o_proj"], r".*\.o_proj"):
        with pytest.raises(ValueError, match="holds its weights in a parameter of three dimensions") as error:
            build_trainer(build_model(MIXTURES["glm4_moe"]), exclude_modules=excluded)
        advised = excluded_by_the_advice(str(error.value))
        trainer = build_trainer(build_model(MIXTURES["glm4_moe"]), exclude_modules=advised)
        names = [probe.name for probe in find_probes(trainer.model)]
        assert len(names) == 12 and not any("experts." in name and "shared" not in name for name in names)
        assert not any("o_proj" in name for name in names)


def test_a_rank_too_high_for_some_modules_names_them_all(build_trainer: BuildTrainer) -> None:
    def build() -> PreTrainedModel:
        return build_model(LlamaConfig(**SHAPE | {"num_key_value_heads": 1}))

    with pytest.raises(ValueError, match=r"Rank 16 exceeds a dimension of .*k_proj \(8 x 32\)") as error:
        build_trainer(build(), rank=16)
    most, names = re.search(r"at most (\d+), or name (.+) in `exclude_modules`", str(error.value)).groups()
    assert names == "k_proj, v_proj"
    build_trainer(build(), rank=int(most)).train()
    build_trainer(build(), rank=16, exclude_modules=names.split(", ")).train()


def test_the_step_alone_refuses_experts_and_its_advice_works() -> None:
    def wrap(**settings: Any) -> PeftModel:
        model = build_model(MIXTURES["deepseek_v3"])
        return get_peft_model(model, LoraConfig(r=4, lora_alpha=4e-6, **settings))

    with pytest.raises(ValueError, match=r"a LoRA pair on a parameter of model.layers.1.mlp.experts \(\w+\)") as error:
        R2FStep(wrap(target_modules="all-linear"))
    assert "quantisation" not in str(error.value) and "update_target" not in str(error.value)
    step = R2FStep(wrap(target_modules=["q_a_proj", "q_b_proj", "o_proj"]))
    assert len(step.modules) == 6


# Classes that extend linear layers


@pytest.mark.parametrize("update_target", ["weights", "adapter"])
@pytest.mark.parametrize("kind", ROUTERS)
def test_a_router_that_returns_more_than_a_tensor_is_left_out(
    kind: str, update_target: str, build_trainer: BuildTrainer
) -> None:
    model = build_model(ROUTERS[kind])
    router = next(name for name, module in model.named_modules() if "Router" in type(module).__name__)
    settings = {"exclude_modules": ["experts"], "rank": 4, "update_target": update_target}
    trainer = build_trainer(model, **settings)
    assert {probe.name for probe in find_probes(trainer.model, update_target == "weights")} == linear_names(
        build_model(ROUTERS[kind])
    )
    trainer.train()

    # Named by the user, it is refused by name, and the advice works.
    plain = build_model(ROUTERS[kind])
    before = weights(plain)
    targets = {"target_modules": ["q_proj", router.rpartition(".")[2]]}
    with pytest.raises(ValueError, match=rf"{router} is a \w+Router, which does not compute `W x \+ b`"):
        build_trainer(plain, **settings | targets)
    assert plain.state_dict().keys() == before.keys() and all(p.requires_grad for p in plain.parameters())
    excluded = {"exclude_modules": ["experts", router.rpartition(".")[2]]}
    assert len(find_probes(build_trainer(plain, **settings | targets | excluded).model, writable=False)) == 2


def test_the_step_alone_refuses_a_router_and_its_advice_works() -> None:
    def wrap(**settings: Any) -> PeftModel:
        return get_peft_model(build_model(ROUTERS["llama4"]), LoraConfig(r=4, lora_alpha=4e-6, **settings))

    with pytest.raises(ValueError, match=r"feed_forward.router is a Llama4Router, .*name it in `exclude_modules`"):
        R2FStep(wrap(target_modules="all-linear"))
    step = R2FStep(wrap(target_modules="all-linear", exclude_modules=["router"]))
    assert step.modules.keys() == linear_names(build_model(ROUTERS["llama4"]))


def test_a_class_of_its_own_that_computes_what_a_linear_layer_does_changes(build_trainer: BuildTrainer) -> None:
    model = build_model(FalconConfig(vocab_size=160, hidden_size=32, num_hidden_layers=2, num_attention_heads=4))
    before = weights(model)
    names = {name for name, module in model.named_modules() if type(module).__name__ == "FalconLinear"}
    build_trainer(model).train()
    assert len(names) == 8 and changed(before, weights(model)) == {f"{name}.weight" for name in names}


class Scaled(nn.Linear):
    """Linear in its inputs, but not with its own weight."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


class Grouped(nn.Linear):
    """Takes and returns groups, as DeepSeek-V4's output projection."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        groups = inputs.unflatten(0, (2, -1))
        return torch.cat([super(Grouped, self).forward(group) for group in groups], dim=-1)


class Shouting(nn.Linear):
    """The same in other words."""

    def forward(self, INPUTS: torch.Tensor) -> torch.Tensor:
        return (INPUTS @ self.weight.T + self.bias).to(INPUTS.dtype)


@pytest.mark.parametrize(
    ("module", "writable", "beside"),
    [
        (nn.Linear(8, 4), True, True),
        (Shouting(8, 4), True, True),
        # An adapter next to it adds to what it returns, whatever that is.
        (Scaled(8, 4), False, True),
        (Grouped(8, 4), False, False),
        (nn.Bilinear(8, 8, 4), True, True),
        # Its weight is computed anew in each forward pass.
        (weight_norm(nn.Linear(8, 4)), False, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_which_classes_take_a_pair(module: nn.Module, writable: bool, beside: bool) -> None:
    state = torch.random.get_rng_state()
    assert takes_a_pair(module) == writable
    assert takes_a_pair(module, writable=False) == beside
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_that_are_computed_are_refused_by_name(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    weight_norm(model.model.layers[1].mlp.up_proj)
    trainer = build_trainer(model)
    assert len(find_probes(trainer.model)) == 13
    trainer.model.unload()
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj is a ParametrizedLinear, which does not compute"):
        build_trainer(model, target_modules=["up_proj"])


# What is named


def test_a_name_that_ends_as_another_module_does_is_the_whole_name(build_trainer: BuildTrainer) -> None:
    """PEFT also takes modules whose names end in a target's."""
    model = build_model()
    model.model.layers[0].mlp.model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"mlp": nn.Module()})])})
    model.model.layers[0].mlp.model.layers[0].mlp.up_proj = nn.Linear(32, 32)
    trainer = build_trainer(model, target_modules=r"model\.layers\.0\.mlp\.(up|down)_proj")
    names = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"]
    assert [probe.name for probe in find_probes(trainer.model)] == names


def test_what_cannot_carry_a_pair_is_named(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    before = weights(model)
    with pytest.raises(ValueError, match=r"PEFT cannot put a LoRA pair on .*mlp.* LlamaMLP"):
        build_trainer(model, target_modules=["q_proj", "mlp"])
    with pytest.raises(ValueError, match=r"embed_tokens is a Embedding .* Leave it out of `target_modules`"):
        build_trainer(model, target_modules=["q_proj", "embed_tokens"])
    # It is the plain model still.
    assert model.state_dict().keys() == before.keys() and not changed(before, weights(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_models_are_refused_with_what_to_do(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"14 are frozen: `model.requires_grad_\(True\)` makes them trainable"):
        build_trainer(model)
    # In part, it is the caller's choice.
    model.model.layers[1].requires_grad_(True)
    assert len(find_probes(build_trainer(model).model)) == 7
