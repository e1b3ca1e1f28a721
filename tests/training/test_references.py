"""What the model was like before the first write: its predictions, and the inputs of its modules."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from conftest import BuildTrainer
from transformers import PreTrainedModel

from r2f_hf.data.splits import num_labels
from r2f_hf.training.forget_retain_trainer import ForgetRetainTrainer
from r2f_hf.training.references import (
    reference_inputs,
    reference_log_probs,
    reference_token_log_probs,
    reference_top_tokens,
)
from r2f_hf.updates import RetainedInputs, watch_inputs


@pytest.fixture
def trainer(model: PreTrainedModel, build_trainer: BuildTrainer) -> ForgetRetainTrainer:
    """A trainer over encoded rows. Their lengths differ, so that batches are padded."""
    trainer = build_trainer(model.eval(), ForgetRetainTrainer, views_column="paraphrased_question")
    assert len({len(view["input_ids"]) for view in trainer.splits.views}) > 1
    return trainer


def alone(model: PreTrainedModel, example: dict[str, list[int]]) -> torch.Tensor:
    """Log-probabilities of the next token at each position of an example, without a batch or padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)


def labelled(example: dict[str, list[int]]) -> torch.Tensor:
    """Which positions predict a token of the answer."""
    return torch.tensor(example["labels"])[1:] != -100


@pytest.mark.parametrize("batch_size", [1, 5])
def test_log_probs_are_of_the_completion_token_by_token_or_summed(
    batch_size: int, trainer: ForgetRetainTrainer
) -> None:
    examples = trainer.splits.views
    common = trainer.model, examples, trainer.data_collator, batch_size
    found, of_tokens = (each(*common, disable=True) for each in (reference_log_probs, reference_token_log_probs))
    expected = []
    for example in examples:
        labels, log_probs = example["labels"], alone(trainer.model, example)
        expected.append([log_probs[i - 1, labels[i]].item() for i in range(1, len(labels)) if labels[i] != -100])
    assert found.dtype == of_tokens.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([sum(each) for each in expected]), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(of_tokens, torch.tensor([*itertools.chain(*expected)]), atol=1e-4, rtol=1e-5)


def test_top_tokens_are_the_most_likely_ones_at_each_token_of_an_answer(trainer: ForgetRetainTrainer) -> None:
    examples = trainer.splits.retain
    ids, log_probs = reference_top_tokens(trainer.model, examples, trainer.data_collator, 4, 64, disable=True)
    expected = torch.cat([alone(trainer.model, each)[:-1][labelled(each)] for each in examples])
    assert ids.shape == (sum(map(num_labels, examples)), 64)
    torch.testing.assert_close(log_probs, expected.topk(64).values, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(log_probs, expected.gather(-1, ids), atol=1e-4, rtol=1e-5)


def test_a_run_compares_with_the_model_before_the_first_write(
    model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    original = copy.deepcopy(model).eval()
    trainer = build_trainer(model, retain_objective="kl", views_column="paraphrased_question", learning_rate=0.4)
    trainer.train()

    def known(name: str, example: dict[str, list[int]]) -> torch.Tensor:
        return trainer.references.of_rows(name, torch.tensor([example["row"]]))

    for example in trainer.splits.views:
        target = torch.tensor(example["labels"])[1:]
        token = alone(original, example)[:-1].gather(-1, target.clamp_min(0)[:, None])[:, 0]
        torch.testing.assert_close(known("forget_log_probs", example), token[target != -100], atol=1e-4, rtol=1e-5)
    for example in trainer.splits.retain:
        expected = alone(original, example)[:-1][labelled(example)].gather(-1, known("retain_top_ids", example))
        torch.testing.assert_close(known("retain_top_log_probs", example), expected, atol=1e-4, rtol=1e-5)
    # The references of several rows follow one another in the order asked for.
    both = trainer.references.of_rows("forget_log_probs", torch.tensor([3, 1]))
    apart = [known("forget_log_probs", trainer.splits.views[row]) for row in (3, 1)]
    assert torch.equal(both, torch.cat(apart))
    # At the first step the model equals its reference: NPO is 2/β log 2, and the divergence is zero.
    first = trainer.state.log_history[0]
    assert first["forget_loss"] == pytest.approx(
        2 / trainer.forget_objective.beta * torch.tensor(2.0).log().item(), rel=1e-4
    )
    assert first["retain_loss"] == pytest.approx(0, abs=1e-5)


def damped(inputs: RetainedInputs) -> torch.Tensor:
    Q = inputs.directions.float()
    return Q * inputs.damped @ Q.T


@pytest.mark.parametrize("head", [False, True])
def test_inputs_are_those_of_text_and_not_of_padding(
    head: bool, model: PreTrainedModel, trainer: ForgetRetainTrainer
) -> None:
    # Some examples have similar lengths, and some do not.
    ids = [token for example in trainer.splits.retain for token in example["input_ids"]]
    lengths = (30, 30, 28, 12, 11, 30, 29, 20)
    examples = [{"input_ids": ids[i : i + length]} for i, length in enumerate(lengths)]
    examples = [example | {"labels": [-100, *example["input_ids"][1:]]} for example in examples]
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    modules = {name: module for name, module in linear.items() if head or name != "lm_head"}
    assert len(modules) == len(linear) - (not head)
    logits = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: logits.append(output.shape[1]))
    found = reference_inputs(model, modules, examples, trainer.data_collator, 4, seed=0, disable=True)
    hook.remove()
    assert head or set(logits) == {2}
    # The lengths of the batches: 11 and 12; 20; 28, 29, 30 and 30; and 30, because four examples fill a batch.
    ordered = iter(sorted(examples, key=lambda example: len(example["input_ids"])))
    batches = [list(itertools.islice(ordered, size)) for size in (2, 1, 4, 1)]
    assert len(logits) == len(batches)
    with watch_inputs(modules, seed=0) as sketches, torch.no_grad():
        for batch in batches:
            shortest = len(batch[0]["input_ids"])
            # The head only reads from the position on that predicts the first answer token of the batch.
            first = min(index for example in batch for index, label in enumerate(example["labels"]) if label != -100)
            for example in batch:
                ids = torch.tensor([example["input_ids"][:shortest]])
                model(ids, logits_to_keep=shortest - first + 1)
    for name, inputs in found.items():
        torch.testing.assert_close(damped(inputs), damped(sketches[name].result()), rtol=0, atol=5e-3, msg=name)
