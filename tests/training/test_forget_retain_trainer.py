"""The losses, their means over the global batch, and evaluation, whichever way the weights are moved."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import BuildTrainer, changed, weights
from peft import LoraConfig, get_peft_model
from transformers import EvalPrediction, PreTrainedModel

from r2f_hf.data.formatting import encode_example
from r2f_hf.training.forget_retain_trainer import ForgetRetainTrainer


BETA, GAMMA = 0.4, 0.3


def score_tokens(model: PreTrainedModel, example: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of a completion's tokens."""
    targets = torch.tensor(example["labels"])[1:]
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1].log_softmax(-1)
    labelled = targets != -100
    return log_probs[labelled, targets[labelled]]


def score(model: PreTrainedModel, examples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability and number of tokens of each completion, one example at a time."""
    tokens = [score_tokens(model, example) for example in examples]
    return torch.stack([each.sum() for each in tokens]), torch.tensor([len(each) for each in tokens])


@pytest.mark.parametrize(("batch_size", "accumulation"), [(6, 1), (4, 2), (1, 6)])
@pytest.mark.parametrize("objective", ["ga", "grad_diff", "wga", "simnpo", "tnpo"])
def test_losses_are_means_over_the_global_batch(
    objective: str, batch_size: int, accumulation: int, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    original = copy.deepcopy(model).eval()
    rows = [
        {"question": f"Where does Orla{i} live?", "answer": "Orla lives by the harbour. " * (1 + i % 3)}
        for i in range(6)
    ]
    kwargs = {"simnpo": {"beta": BETA, "gamma": GAMMA}, "wga": {"beta": BETA}, "tnpo": {"beta": BETA}}.get(objective)
    trainer = build_trainer(
        model,
        ForgetRetainTrainer,
        data={"forget_dataset": rows},
        forget_objective=objective,
        forget_objective_kwargs=kwargs,
        forget_weight=0.7,
        retain_weight=1.3,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1e-3,
    )
    examples = trainer.splits.originals
    log_probs, tokens = score(original, examples)
    dealt = [example for item in range(6) for example in trainer.train_dataset[item]["retain"]]
    retain_log_probs, retain_tokens = score(original, dealt)
    if objective == "simnpo":
        forget = (-2 / BETA * F.logsigmoid(-BETA * log_probs / tokens - GAMMA)).mean()
    elif objective == "wga":
        forget = torch.stack([(BETA * score_tokens(original, each)).exp().sum() / BETA for each in examples]).mean()
    elif objective == "tnpo":
        # Before the first step, the model equals its reference.
        forget = (tokens * 2 / BETA * math.log(2)).mean()
    else:
        forget = log_probs.sum() / tokens.sum()
    retain = -retain_log_probs.sum() / retain_tokens.sum()
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["forget_loss"] == pytest.approx(forget.item(), rel=1e-4)
    assert logs["retain_loss"] == pytest.approx(retain.item(), rel=1e-4)
    assert logs["loss"] == pytest.approx((0.7 * forget + 1.3 * retain).item(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_moves_whatever_is_trainable(with_adapter: bool, model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    before = weights(model)
    if with_adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    trainer = build_trainer(model, ForgetRetainTrainer, max_steps=8, optim="adamw_torch", learning_rate=5e-3)
    start = trainer.evaluate()["eval_forget_probability"]
    trainer.train()
    assert trainer.evaluate()["eval_forget_probability"] < 0.8 * start
    assert changed(before, weights(model)) == (set() if with_adapter else before.keys())


def test_all_wordings_take_their_turns(
    model: PreTrainedModel, build_trainer: BuildTrainer, forget_rows: list[dict[str, Any]]
) -> None:
    template = "Tell me: {prompt}"
    trainer = build_trainer(
        model, ForgetRetainTrainer, num_views=2, views_column="paraphrased_question", view_templates=[template]
    )
    seen = set()
    loader = trainer.get_train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            assert batch["is_forget"].tolist() == [True] * 4 + [False] * 2
            for ids, mask in zip(batch["input_ids"][:4], batch["attention_mask"][:4], strict=True):
                seen.add(tuple(ids[mask.bool()].tolist()))
    assert seen == {
        tuple(encode_example(trainer.processing_class, wording, row["answer"])["input_ids"])
        for row in forget_rows
        for wording in [row["question"], *row["paraphrased_question"], template.format(prompt=row["question"])]
    }


def probability(model: PreTrainedModel, examples: list[dict[str, Any]]) -> float:
    log_probs, tokens = score(model, examples)
    return (log_probs / tokens).exp().mean().item()


def test_evaluates_the_probability_of_each_set(
    model: PreTrainedModel, build_trainer: BuildTrainer, holdout_rows: list[dict[str, Any]]
) -> None:
    trainer = build_trainer(model.eval(), ForgetRetainTrainer, data={"holdout_dataset": holdout_rows})
    metrics = trainer.evaluate()
    sets = {
        "forget": trainer.splits.originals,
        "retain": trainer.splits.retain,
        "holdout": trainer.splits.holdout,
    }
    for name, examples in sets.items():
        assert metrics[f"eval_{name}_probability"] == pytest.approx(probability(model, examples), rel=1e-4)
        assert metrics[f"eval_{name}_loss"] > 0


@pytest.mark.parametrize("named", [False, True])
def test_evaluates_other_rows_instead(
    named: bool, model: PreTrainedModel, build_trainer: BuildTrainer, holdout_rows: list[dict[str, Any]]
) -> None:
    data = {"eval_dataset": {"other": holdout_rows} if named else holdout_rows}
    metrics = build_trainer(model, ForgetRetainTrainer, data=data).evaluate()
    found = {name for name in metrics if name.endswith("_probability")}
    assert found == {"eval_other_probability" if named else "eval_probability"}


def test_the_training_set_itself_can_be_evaluated(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    """Its batches hold forget and retain rows. The mean is over both, however long their prompts are."""
    trainer = build_trainer(
        model.eval(), ForgetRetainTrainer, forget_objective="ga", per_device_eval_batch_size=3, retain_per_forget=1
    )
    items = [trainer.train_dataset[index] for index in range(6)]
    examples = [example for item in items for name in ("forget", "retain") for example in item[name]]
    metrics = trainer.evaluate(trainer.train_dataset)
    assert metrics["eval_probability"] == pytest.approx(probability(model, examples), rel=1e-4)


def test_compute_metrics_gets_the_logits(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        rows, length = prediction.label_ids.shape
        assert prediction.predictions.shape == (rows, length, model.config.vocab_size)
        return {"rows": float(rows)}

    metrics = build_trainer(model, ForgetRetainTrainer, data={"compute_metrics": compute_metrics}).evaluate()
    assert (metrics["eval_forget_rows"], metrics["eval_retain_rows"]) == (6, 10)
    assert "eval_forget_probability" not in metrics
