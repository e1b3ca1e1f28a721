"""One whole unlearning run: the forget set is gone, the retain set is kept, and random steps do not do that."""

from __future__ import annotations

import torch
from conftest import BuildTrainer
from transformers import PreTrainedModel

from r2f_hf.decoders import GradientDecoder
from r2f_hf.gradients import LoraSketch, LowRankGradient


class RandomDirection(GradientDecoder):
    """The control: a step of the same norm and the same rank, but in a random direction."""

    def decode(self, sketch: LoraSketch) -> LowRankGradient:
        return LowRankGradient(torch.randn_like(sketch.Y), torch.randn_like(sketch.Z.mT))


def unlearn(
    model: PreTrainedModel, build_trainer: BuildTrainer, decoder: GradientDecoder | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    trainer = build_trainer(model, max_steps=30, per_device_train_batch_size=6, learning_rate=0.4)
    if decoder is not None:
        trainer.r2f_callback.options["decoder"] = decoder
    before = trainer.evaluate()
    trainer.train()
    return before, trainer.evaluate()


def test_forgets_the_forget_set_and_keeps_the_retain_set(
    memorised_model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    before, after = unlearn(memorised_model, build_trainer)
    assert before["eval_forget_probability"] > 0.95 and before["eval_retain_probability"] > 0.95
    assert after["eval_forget_probability"] < 0.05
    assert after["eval_retain_probability"] > 0.8


def test_steps_in_a_random_direction_forget_nothing(
    memorised_model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    _, after = unlearn(memorised_model, build_trainer, RandomDirection())
    assert after["eval_forget_probability"] > 0.5
