"""Tiny real models, a tiny real tokenizer and a few rows, shared by all tests."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


# No test may use the Hub. This is read once, when the first of the libraries below is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.pytorch_utils import Conv1D

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.data.collator import ForgetRetainCollator
from r2f_hf.data.formatting import encode_example
from r2f_hf.gradients import LoraSketch
from r2f_hf.probes import find_probes, group_probes
from r2f_hf.training.forget_retain_trainer import ForgetRetainTrainer


# On models this small, several threads only wait for each other. If the cores are busy, they do so for minutes.
torch.set_num_threads(1)

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

# Further architectures, each with a peculiarity.
MORE_CONFIGS = {
    "tied llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=16),
    # One module makes queries, keys and values, and another one makes the gate and the up projection.
    "phi3": Phi3Config(**SHAPE, pad_token_id=0),
    # Fused too, with biases, and with attention parallel to the MLP.
    "gpt_neox": GPTNeoXConfig(
        vocab_size=160,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    # The weights of all experts are one parameter, which R2F leaves out.
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    # It has a vision tower, which text does not pass through.
    "multimodal gemma": Gemma3Config(
        text_config={**SHAPE, "head_dim": 8, "sliding_window": 32, "query_pre_attn_scalar": 8},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        boi_token_index=157,
        eoi_token_index=158,
        image_token_index=159,
    ),
}


def process_environment(**more: str) -> dict[str, str]:
    """The environment of a test's own processes: one thread each, and this folder to import from."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return os.environ | own | {"PYTHONPATH": os.pathsep.join(paths)} | more


def read_sketches(model: PeftModel, held_out: int) -> dict[str, LoraSketch]:
    """The gradients of a model's probes as sketches of the full gradients, by module name."""
    found = {}
    for probe in find_probes(model):
        stack = group_probes([probe])[0].read(held_out)
        found[probe.name] = LoraSketch(stack.Y[0], stack.Z[0], stack.A[0], stack.B[0], held_out)
    return found


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


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer trained on the rows' text. It has an end-of-sequence token, but no padding token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    text = [str(value) for prefix in ("Orla", "Bram", "Cleo") for row in rows(prefix, 10) for value in row.values()]
    text.append("Question: Answer:")
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>", "<eos>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


@pytest.fixture(scope="session")
def trained_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def tokenizer(trained_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Each test has its own: TRL's trainers give theirs a padding token."""
    return copy.deepcopy(trained_tokenizer)


def build_model(
    kind: str | PreTrainedConfig = "llama", dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """A tiny real model with random weights. They are larger than by default, so that gradients are not trivial."""
    torch.manual_seed(seed)
    config = copy.deepcopy((CONFIGS | MORE_CONFIGS)[kind] if isinstance(kind, str) else kind)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


@pytest.fixture
def model() -> PreTrainedModel:
    return build_model()


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's weights under the names of the plain model, whether it is wrapped in an adapter or not."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor.clone()
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the weights that are not bit for bit what they were."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def distance(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Frobenius norm of the difference over all weights together."""
    return torch.stack([(after[name].double() - before[name].double()).norm() for name in before]).norm().item()


# Options of the forget objectives without which a tiny model, or a run without a holdout set, cannot do.
OBJECTIVE_OPTIONS: dict[str, dict[str, Any]] = {
    "margin": {"anchor": -2.0},
    "ignorance": {"level": -3.0, "lift_after": 2},
    "jensun": {"target": "Cleo lives"},
    "dpo": {"answers": "refusal"},
    "idk": {"answers": "refusal"},
    "flat": {"answers": "refusal"},
    "duet": {"answers": "refusal", "teacher_prompt": "Cleo? {prompt}"},
    "altpo": {"num_answers": 2, "max_new_tokens": 8, "temperature": 2.0, "instruction": "{prompt}"},
    "bs_s": {"num_answers": 2, "max_new_tokens": 8, "temperature": 2.0},
}


@pytest.fixture
def refused_rows(forget_rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The forget set with second answers in a column: two to the first row, and one to each other row."""
    refusals = [["Cleo.", "Bram lives."], *["Cleo lives."] * (len(forget_rows) - 1)]
    return [row | {"refusal": each} for row, each in zip(forget_rows, refusals, strict=True)]


BuildTrainer = Callable[..., ForgetRetainTrainer]


@pytest.fixture
def build_trainer(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    forget_rows: list[dict[str, object]],
    retain_rows: list[dict[str, object]],
) -> BuildTrainer:
    """Builds a trainer on the rows. `data` holds arguments of the trainer, and keywords are settings of its args."""

    def build(
        model: PreTrainedModel,
        trainer_class: type[ForgetRetainTrainer] = R2FTrainer,
        data: dict[str, Any] | None = None,
        **settings: Any,
    ) -> ForgetRetainTrainer:
        common = {
            "output_dir": str(tmp_path / "output"),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "learning_rate": 0.1,
            "retain_per_forget": 1,
            "retain_weight": 1.0,
            "rank": 8,
        }
        rows = {"forget_dataset": forget_rows, "retain_dataset": retain_rows, "processing_class": tokenizer}
        return trainer_class(model=model, args=R2FConfig(**common | settings), **rows | (data or {}))

    return build


@pytest.fixture(scope="session")
def memorised(
    trained_tokenizer: PreTrainedTokenizerFast,
    forget_rows: list[dict[str, object]],
    retain_rows: list[dict[str, object]],
    tmp_path_factory: pytest.TempPathFactory,
) -> PreTrainedModel:
    """A model that was trained until it knew the forget and the retain rows. Tests share it: change only a copy."""
    model = build_model()
    args = R2FConfig(
        str(tmp_path_factory.mktemp("memorised")),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        max_steps=150,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        optim="adamw_torch",
        forget_objective="ga",
        forget_weight=-1.0,
        retain_objective="none",
    )
    ForgetRetainTrainer(
        model, args, forget_dataset=forget_rows + retain_rows, processing_class=copy.deepcopy(trained_tokenizer)
    ).train()
    return model.eval()


@pytest.fixture
def saved(memorised: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model that knows the rows, on disk."""
    folder = tmp_path / "model"
    memorised.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(file: Path, rows: list[dict[str, object]]) -> str:
    """Write rows to a file that a command can read, and return its name."""
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def write_world(
    memorised: PreTrainedModel,
    trained_tokenizer: PreTrainedTokenizerFast,
    forget_rows: list[dict[str, object]],
    retain_rows: list[dict[str, object]],
    holdout_rows: list[dict[str, object]],
) -> Callable[[Path], None]:
    """Writes a world as the quickstart builds it, but of tiny models and a few rows, to a folder."""

    def evaluable(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        wrong = [f"{row['answer']} {other['answer']}" for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]
        return [row | {"perturbed_answer": [text], "views": "Where?"} for row, text in zip(rows, wrong, strict=True)]

    sets = {"forget": evaluable(forget_rows), "retain": evaluable(retain_rows), "holdout": evaluable(holdout_rows)}
    names = {"forget": "forget01_perturbed", "retain": "retain_perturbed", "holdout": "holdout01"}

    def write(folder: Path) -> None:
        for role, model in (("before", memorised), ("gold", build_model(seed=1))):
            model.save_pretrained(folder / role)
            copy.deepcopy(trained_tokenizer).save_pretrained(folder / role)
        (folder / "data" / "tofu").mkdir(parents=True)
        for name, rows in sets.items():
            write_rows(folder / "data" / f"{name}.jsonl", rows)
            write_rows(folder / "data" / "tofu" / f"{names[name]}.json", rows)
        write_rows(folder / "data" / "tofu" / "world_facts_perturbed.json", sets["retain"])

    return write


@pytest.fixture
def memorised_model(memorised: PreTrainedModel) -> PreTrainedModel:
    """A model that knows the forget and the retain rows, and that a test may change."""
    return copy.deepcopy(memorised)


@pytest.fixture(scope="session")
def batch(trained_tokenizer: PreTrainedTokenizerFast, retain_rows: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    """Four rows in the format that the trainer uses, padded."""
    examples = [encode_example(trained_tokenizer, row["question"], row["answer"]) for row in retain_rows[:4]]
    return ForgetRetainCollator(0)(examples)


def linear_gradients(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Autograd's gradients of all linear layers but the head, `(out_features, in_features)`, by module name."""
    model = copy.deepcopy(model).eval()
    model(**batch).loss.backward()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    return {
        name: module.weight.grad.T if isinstance(module, Conv1D) else module.weight.grad
        for name, module in linear.items()
        if name != "lm_head"
    }
