"""`r2f decode`: reads adapters from before and after a real step, and gives a direction for a real model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_model, linear_gradients, read_sketches
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from r2f_hf import cli
from r2f_hf.data.collator import ForgetRetainCollator
from r2f_hf.data.formatting import encode_example
from r2f_hf.decoders import load_decoder
from r2f_hf.gradients import LoraSketch, LowRankGradient
from r2f_hf.probes import find_probes, group_probes
from r2f_hf.scoring.completions import score_completions


MODULES = {"llama": ["q_proj", "o_proj", "up_proj", "down_proj"], "gpt2": ["c_attn", "c_proj", "c_fc"]}
RANK = 8
# Times the scaling of 1e-3 it is 1, so that the change of a step is large compared with the rounding of fp32.
LR = 1e3

Batch = dict[str, Tensor]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail without a traceback, and returns the message with single spaces."""

    def run(*argv: str) -> str:
        with pytest.raises(SystemExit) as error:
            cli.main(["decode", *argv])
        assert error.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return run


def wrap(model: PreTrainedModel, random_B: bool = True, **settings: Any) -> PeftModel:
    """The model, saved as `base` and loaded again, in an adapter of Gaussian probes."""
    model.save_pretrained("base")
    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    common = {"r": RANK, "lora_alpha": 1e-3 * RANK, "target_modules": MODULES[model.config.model_type]}
    wrapped = get_peft_model(base, LoraConfig(**common | settings))
    if random_B:
        for group in group_probes(find_probes(wrapped)):
            group.draw(seed=0, step=0)
    return wrapped


def sgd_step(
    model: PeftModel, batch: Batch, sign: int = 1, held_out: int = 2, lr: float = LR
) -> dict[str, LoraSketch]:
    """Take a step of SGD, save it as `before` and `after`, and return autograd's gradients as sketches."""
    model.save_pretrained("before")
    (sign * model(**batch).loss).backward()
    sketches = read_sketches(model, held_out)
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=lr).step()
    model.save_pretrained("after")
    return sketches


def decode(sketches: dict[str, LoraSketch]) -> dict[str, LowRankGradient]:
    return dict(zip(sketches, load_decoder("spectral").decode_all(list(sketches.values())), strict=True))


def norm(tensors: dict[str, Tensor]) -> float:
    return torch.stack([tensor.norm() for tensor in tensors.values()]).norm().item()


def direction(folder: str) -> dict[str, Tensor]:
    """What the adapter in a folder adds to the weights, `(out_features, in_features)`, as PEFT itself computes it."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32), folder)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach().T
        if layer.fan_in_fan_out
        else layer.get_delta_weight("default").detach()
        for name, layer in layers.items()
    }


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference, relative to that of the expected direction."""
    assert found.keys() == expected.keys()
    return norm({name: found[name] - tensor for name, tensor in expected.items()}) / norm(expected)


# What comes out


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_direction_is_that_decoded_from_the_gradients_themselves(
    kind: str, batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(kind)
    sketches = sgd_step(wrap(model), batch)
    cli.main(["decode", "before", "after", "--out", "direction", "--step", "0.5", "--learning_rate", str(LR)])
    decoded = {name: gradient.U @ gradient.V.T for name, gradient in decode(sketches).items()}
    length = norm(decoded)
    found = direction("direction")
    assert distance(found, {name: -0.5 / length * tensor for name, tensor in decoded.items()}) < 1e-3
    assert norm(found) == pytest.approx(0.5, rel=1e-4)

    printed = " ".join(capsys.readouterr().out.split())
    assert float(re.search(r"gradient has norm (\S+)\.", printed)[1]) == pytest.approx(length, rel=1e-2)
    truth = linear_gradients(model, batch)
    cosines = [
        torch.nn.functional.cosine_similarity(tensor.flatten(), truth[name].flatten(), dim=0).item()
        for name, tensor in decoded.items()
    ]
    # A mean over modules: the estimate of one module uses only two rows.
    estimate = float(re.search(r"mean (\S+), minimum", printed)[1])
    assert estimate == pytest.approx(np.mean(cosines), abs=0.08) and estimate > 0.4


def test_the_direction_does_not_depend_on_the_learning_rate(batch: Batch) -> None:
    sgd_step(wrap(build_model()), batch)
    cli.main(["decode", "before", "after", "--out", "one"])
    cli.main(["decode", "--before", "before", "--after", "after", "--out", "other", "--learning_rate", "3e-4"])
    assert distance(direction("other"), direction("one")) < 1e-4


def test_a_fresh_peft_adapter_leaves_the_projection_onto_A(batch: Batch, caplog: pytest.LogCaptureFixture) -> None:
    model = build_model()
    wrapped = wrap(model, random_B=False, use_rslora=True, lora_alpha=1e-3)
    sketches = sgd_step(wrapped, batch, held_out=0)
    cli.main(["decode", "before", "after", "--held_out", "0"])
    assert "B is zero in 8 of 8 modules" in caplog.text and "rounding" not in caplog.text
    projected = {}
    for name, G in linear_gradients(model, batch).items():
        if name in sketches:
            A = sketches[name].A
            projected[name] = -G @ torch.linalg.pinv(A) @ A
    length = norm(projected)
    assert distance(direction("direction"), {name: tensor / length for name, tensor in projected.items()}) < 1e-3


@pytest.mark.parametrize(("sign", "step"), [(-1, "3"), (1, "-3")])
def test_the_direction_of_ascent_makes_a_model_forget(
    sign: int,
    step: str,
    memorised_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    forget_rows: list[dict[str, Any]],
) -> None:
    pairs = [(row["question"], row["answer"]) for row in forget_rows]
    batch = ForgetRetainCollator(0)([encode_example(tokenizer, *pair) for pair in pairs])
    sgd_step(wrap(memorised_model), batch, sign)
    cli.main(["decode", "before", "after", "--step", step])

    def probability(model: PreTrainedModel | PeftModel) -> float:
        return np.exp(score_completions(model, tokenizer, *zip(*pairs, strict=True))).mean()

    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    before = probability(base)
    after = probability(PeftModel.from_pretrained(base, "direction"))
    assert before > 0.9 and after < 0.4


# AdamW


@pytest.fixture
def train(tokenizer: PreTrainedTokenizerFast, retain_rows: list[dict[str, Any]]) -> Callable[..., None]:
    """Trains the same adapter on the same rows, from `before` to `<output>/checkpoint-<steps>`."""

    def run(output: str, optim: str, learning_rate: float, steps: int = 1) -> None:
        model = wrap(build_model())
        model.save_pretrained("before")
        args = TrainingArguments(
            output,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            optim=optim,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.1 if optim.startswith("adamw") else 0.0,
            max_steps=steps,
            save_steps=1,
            remove_unused_columns=False,
        )
        examples = [encode_example(tokenizer, row["question"], row["answer"]) for row in retain_rows]
        Trainer(model, args, ForgetRetainCollator(0), train_dataset=examples).train()

    return run


def test_the_first_step_of_adamw_gives_the_direction_of_sgd(
    train: Callable[..., None], fails: Callable[..., str]
) -> None:
    train("sgd", "sgd", LR)
    train("adamw", "adamw_torch", 1e-3, steps=2)
    state = "adamw/checkpoint-1/optimizer.pt"
    cli.main(["decode", "before", "sgd/checkpoint-1", "--out", "expected"])
    cli.main(["decode", "before", "adamw/checkpoint-1", "--optimizer_state", state])
    assert distance(direction("direction"), direction("expected")) < 1e-3

    # A state from which the gradient cannot be read.
    message = fails("adamw/checkpoint-1", "adamw/checkpoint-2", "--optimizer_state", "adamw/checkpoint-2/optimizer.pt")
    assert "was saved after step 2: its `exp_avg` mixes the gradients of all steps" in message
    sgd = ("before", "sgd/checkpoint-1", "--optimizer_state", "sgd/checkpoint-1/optimizer.pt")
    assert "holds no `exp_avg` of parameter 0: it is not AdamW's" in fails(*sgd)
    step = ("before", "adamw/checkpoint-1", "--optimizer_state")
    assert "There is no optimizer state nowhere.pt" in fails(*step, "nowhere.pt")
    for file, content in (("text.pt", b"text"), ("empty.pt", b"")):
        Path(file).write_bytes(content)
        assert f"{file} is not an optimizer's state as Trainer saves it" in fails(*step, file)
    assert "scheduler.pt is not an optimizer's state" in fails(*step, "adamw/checkpoint-1/scheduler.pt")

    # A state in another order, of another adapter, or of another step.
    def edited(edit: Callable[[dict[int, Any], dict[str, Any]], None]) -> str:
        content = torch.load(state, weights_only=True)
        edit(content["state"], content["param_groups"][0])
        torch.save(content, "edited.pt")
        return fails(*step, "edited.pt")

    def swap(one: int, other: int) -> Callable[..., None]:
        return lambda entries, _: entries.update({one: entries[other], other: entries[one]})

    assert "is (32, 8), base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight in its place (8, 32)" in edited(
        swap(0, 1)
    )
    assert "did not move against the sign of parameter 0" in edited(swap(0, 8))
    assert "is of 15 parameters, the adapter in before has 16" in edited(lambda _, group: group["params"].pop())
    assert "lora_B.weight in edited.pt is NaN" in edited(lambda entries, _: entries[1]["exp_avg"].fill_(torch.nan))
    message = fails("adamw/checkpoint-1", "before", "--optimizer_state", state)
    assert "did not move against the sign" in message

    # The base model's configuration says in which order the parameters are.
    assert "'./no/such/model' cannot be read:" in fails(*step, state, "--base", "./no/such/model")
    Path("base").rename("moved")
    cli.main(["decode", *step, state, "--base", "moved", "--out", "again"])
    assert json.loads(Path("again/adapter_config.json").read_text())["base_model_name_or_path"] == "moved"
    build_model("gpt2").save_pretrained("gpt2")
    assert "'gpt2' has no model.layers.0.mlp.down_proj" in fails(*step, state, "--base", "gpt2")


# What cannot be decoded


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "Two adapters are needed: r2f decode BEFORE AFTER --out DIR."),
        (("--before", "before"), "Two adapters are needed"),
        (("before",), "Two adapters are needed"),
        (("before", "after", "--stpe", "2"), "Unknown option: 'stpe'. Did you mean 'step'?"),
        (("before", "after", "--out", "./after"), "`out` is ./after, whose adapter would be overwritten"),
        (("before", "after", "--decoder", "tikonov"), "Unknown decoder: 'tikonov'. Did you mean 'tikhonov'"),
        (("before", "after", "--held_out", "8"), "held_out=8 leaves no row of model.layers.0.mlp.down_proj"),
        (("before", "after", "--held_out", "1"), "held_out=1 cannot measure how sure its own estimate is"),
        (("before", "after", "--held_out", "-1"), "`held_out` must be 2 or more, or 0; got -1"),
        (("before", "after", "--step", "0"), "`step` must not be 0"),
        (("before", "after", "--learning_rate", "0"), "`learning_rate` must be positive"),
        (("before", "nowhere"), "There is no adapter folder nowhere."),
        (("base", "after"), "base holds no adapter (no adapter_config.json)"),
        (("before", "before"), "before and before are identical: nothing was learned between them"),
    ],
)
def test_mistakes_are_told_in_a_line(
    argv: tuple[str, ...], message: str, batch: Batch, fails: Callable[..., str]
) -> None:
    sgd_step(wrap(build_model()), batch)
    assert message in fails(*argv)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 4, "lora_alpha": 4e-3}, "differ in the shapes (`A`, `B`) of model.layers.0.mlp.down_proj: [(8, 64)"),
        ({"lora_alpha": 1e-3}, "differ in the scaling of model.layers.0.mlp.down_proj: 0.001 and 0.000125"),
        ({"target_modules": ["q_proj"]}, "adapt different modules: model.layers.0.mlp.down_proj"),
        ({"use_dora": True}, "The adapter in other is not plain LoRA (use_dora)"),
        (
            {"modules_to_save": ["lm_head"]},
            "holds base_model.model.lm_head.weight, which is not half of the LoRA pair",
        ),
        ({"lora_bias": True}, "lora_B.bias, which is not half of the LoRA pair"),
        ({"target_modules": ["embed_tokens"]}, "is not half of the LoRA pair"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    settings: dict[str, Any], message: str, batch: Batch, fails: Callable[..., str]
) -> None:
    model = build_model()
    sgd_step(wrap(model), batch)
    wrap(model, random_B=False, **settings).save_pretrained("other")
    assert message in fails("before", "other")


def test_an_adapter_that_is_not_lora_is_refused(fails: Callable[..., str]) -> None:
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(build_model(), config).save_pretrained("ia3")
    assert "The adapter in ia3 is not plain LoRA (peft_type=" in fails("ia3", "ia3")


def test_adapters_of_different_bases_are_refused_unless_the_base_is_named(
    batch: Batch, fails: Callable[..., str]
) -> None:
    sgd_step(wrap(build_model()), batch)
    file = Path("after/adapter_config.json")
    file.write_text(file.read_text().replace('"base"', '"./base"'))
    assert "before and after are adapters of different models, 'base' and './base'" in fails("before", "after")
    cli.main(["decode", "before", "after", "--base", "base"])
    assert norm(direction("direction")) == pytest.approx(1.0, rel=1e-4)


def test_damaged_adapters_are_refused(batch: Batch, fails: Callable[..., str]) -> None:
    sgd_step(wrap(build_model()), batch)
    file, config = Path("after/adapter_model.safetensors"), Path("after/adapter_config.json")
    content = file.read_bytes()
    tensors = load_file(file)
    tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][3, 2] = torch.nan
    save_file(tensors, file)
    assert "up_proj.lora_B.weight in after/adapter_model.safetensors is NaN or infinite" in fails("before", "after")
    file.write_bytes(content[:-100])
    assert "after/adapter_model.safetensors is damaged" in fails("before", "after")
    file.rename("after/adapter_model.bin")
    message = fails("before", "after")
    assert "after holds no adapter_model.safetensors" in message and "can run code and is refused" in message
    Path("after/adapter_model.bin").rename(file)
    file.write_bytes(content)
    for text in ("{", '{"peft_type": "LORRA"}'):
        config.write_text(text)
        assert "after/adapter_config.json is not a configuration that PEFT reads" in fails("before", "after")
    assert not Path("direction").exists()


@pytest.mark.parametrize(("dtype", "lr"), [(torch.float32, 1e-5 * LR), (torch.bfloat16, LR)])
def test_rounding_that_swallows_the_step_is_told(
    dtype: torch.dtype, lr: float, batch: Batch, caplog: pytest.LogCaptureFixture
) -> None:
    sgd_step(wrap(build_model()), batch)
    cli.main(["decode", "before", "after"])
    assert "rounding" not in caplog.text
    precise = direction("direction")
    sgd_step(wrap(build_model()), batch, lr=lr / 20)
    for folder in ("before", "after"):
        file = Path(folder, "adapter_model.safetensors")
        save_file({key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file)
    cli.main(["decode", "before", "after"])
    told = re.search(r"About (\d+)% of the difference between the adapters is rounding", caplog.text)
    assert int(told[1]) > 5 and distance(direction("direction"), precise) > 0.05
