"""Bootstrapping by hand."""

from __future__ import annotations

import pytest
import torch

from r2f_hf.objectives import FORGET_OBJECTIVES, ForgetInputs


LABELS = torch.tensor([0, 2])
LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.6, 0.2, 0.15, 0.05]]).log()


def inputs(logits: torch.Tensor = LOGITS, second: ForgetInputs | None = None) -> ForgetInputs:
    return ForgetInputs(torch.zeros(2), torch.tensor([0, 1]), 2, labels=LABELS, logits=logits, second=second)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_label_is_a_mixture_of_the_answer_and_the_models_belief(beta: float) -> None:
    logits = LOGITS.clone().requires_grad_(True)
    found = FORGET_OBJECTIVES["bs_t"](weight=0.4, k=2, beta=beta)(inputs(logits))
    # The two most likely tokens have probabilities of 2/3 and 1/3, and of 3/4 and 1/4, among themselves.
    labels = torch.tensor([[0.6 + 0.4 * 2 / 3, 0.4 / 3, 0.0, 0.0], [0.3, 0.1, 0.6, 0.0]])
    factors = torch.tensor([0.5, 0.15]) ** beta
    torch.testing.assert_close(found, factors * (labels * LOGITS).sum(-1))
    found.sum().backward()
    torch.testing.assert_close(logits.grad, factors[:, None] * (labels - LOGITS.exp()))


def test_without_belief_it_is_weighted_ascent() -> None:
    logits = LOGITS.clone().requires_grad_(True)
    FORGET_OBJECTIVES["bs_t"](weight=0.0)(inputs(logits)).sum().backward()
    again = LOGITS.clone().requires_grad_(True)
    log_probs = again.log_softmax(-1).gather(-1, LABELS[:, None])[:, 0]
    FORGET_OBJECTIVES["wga"]()(ForgetInputs(log_probs, torch.tensor([0, 1]), 2)).sum().backward()
    torch.testing.assert_close(logits.grad, again.grad)


def test_sequences_add_the_models_own_answers() -> None:
    tokens = FORGET_OBJECTIVES["bs_t"](weight=0.4, k=2)
    second = inputs(LOGITS.flip(-1))
    found = FORGET_OBJECTIVES["bs_s"](weight=0.4, k=2, sequence_weight=0.3)(inputs(second=second))
    assert found.keys() == {"tokens", "second_tokens"}
    torch.testing.assert_close(found["tokens"], tokens(inputs()))
    torch.testing.assert_close(found["second_tokens"], 0.3 * tokens(second))
