"""What could not be saved at the end is refused before the first step."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BuildTrainer, build_model, changed, weights
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


# As in the file of Llama 2's chat models: at odds, but Transformers saves what it has loaded.
LLAMA_2 = {"temperature": 0.9, "top_p": 0.6, "do_sample": False}
LLAMA_3 = {"temperature": 0.6, "top_p": 0.9, "do_sample": True}


@pytest.fixture
def load(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreTrainedModel]:
    """Loads a model whose file has these generation settings."""

    def load(**settings: Any) -> PreTrainedModel:
        model = build_model()
        model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(tmp_path / "model")
        file = tmp_path / "model" / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return AutoModelForCausalLM.from_pretrained(tmp_path / "model")

    return load


def greedy(model: PreTrainedModel) -> None:
    model.generation_config.do_sample = False


def misplaced(model: PreTrainedModel) -> None:
    model.config.temperature = 0.7


def shared(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp = model.model.layers[0].mlp


@pytest.mark.parametrize(
    ("spoil", "message", "mend"),
    [
        (
            greedy,
            r"GenerationConfig is invalid.*`temperature` is set to `0.6`.*You should set `do_sample=True`",
            lambda model: setattr(model.generation_config, "do_sample", True),
        ),
        (misplaced, r"should go into `model.generation_config`", lambda model: delattr(model.config, "temperature")),
        (shared, r"shared tensors", lambda model: setattr(model.model.layers[1], "mlp", copy_of_the_first(model))),
    ],
)
def test_what_cannot_be_saved_is_refused_before_training(
    spoil: Callable[[PreTrainedModel], None],
    message: str,
    mend: Callable[[PreTrainedModel], None],
    load: Callable[..., PreTrainedModel],
    tmp_path: Path,
    build_trainer: BuildTrainer,
) -> None:
    model = load(**LLAMA_3)
    spoil(model)
    before = weights(model)
    with pytest.raises(ValueError, match=rf"(?s)^The result could not be saved once it is there: .*{message}"):
        build_trainer(model)
    assert model.state_dict().keys() == before.keys() and not changed(before, weights(model))
    assert not list((tmp_path / "output").iterdir())
    # An adapter is saved without the model's settings.
    trainer = build_trainer(model, update_target="adapter")
    trainer.unlearn()
    assert trainer.model.unload() is model
    mend(model)
    build_trainer(model, output_dir=str(tmp_path / "mended")).unlearn()


def copy_of_the_first(model: PreTrainedModel) -> Any:
    return copy.deepcopy(model.model.layers[0].mlp)


def test_what_is_changed_after_the_trainer_was_made_is_refused_too(
    load: Callable[..., PreTrainedModel], tmp_path: Path, build_trainer: BuildTrainer
) -> None:
    model = load(**LLAMA_3)
    trainer = build_trainer(model)
    greedy(model)
    before = weights(model)
    with pytest.raises(ValueError, match="The result could not be saved"):
        trainer.train()
    assert not changed(before, weights(model))
    model.generation_config.do_sample = True
    trainer.unlearn()


def test_settings_that_were_loaded_are_saved_unless_trainer_changes_them(
    load: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    build_trainer: BuildTrainer,
) -> None:
    build_trainer(load(**LLAMA_2)).unlearn()
    assert LLAMA_2.items() <= json.loads((tmp_path / "output" / "generation_config.json").read_text()).items()
    # Trainer writes the tokenizer's padding token into them when training begins.
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    data = {"processing_class": padded}
    settings = {"data": data, "output_dir": str(tmp_path / "padded")}
    model = load(**LLAMA_2)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        build_trainer(model, **settings)
    assert model.generation_config.pad_token_id is None
    model.generation_config.do_sample = True
    build_trainer(model, **settings).unlearn()
    build_trainer(load(**LLAMA_3), data=data, output_dir=str(tmp_path / "sampled")).unlearn()
