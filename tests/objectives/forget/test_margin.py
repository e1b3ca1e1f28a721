"""Hinge losses by hand."""

from __future__ import annotations

import torch

from r2f_hf.objectives import FORGET_OBJECTIVES, ForgetInputs


LABELS = torch.tensor([0, 2])
LOGITS = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]).log()


def inputs(logits: torch.Tensor, anchor: float | None = None) -> ForgetInputs:
    nothing = torch.zeros(2)
    margin = None if anchor is None else torch.tensor(anchor)
    return ForgetInputs(nothing, LABELS, 3, labels=LABELS, logits=logits, holdout_margin=margin)


def test_the_inverted_hinge_by_hand() -> None:
    found = FORGET_OBJECTIVES["inverted_hinge"]()(inputs(LOGITS))
    torch.testing.assert_close(found, torch.tensor([1 + 0.7 - 0.2, 1 + 0.1 - 0.6]))


def test_the_margin_is_pushed_down_to_the_anchor_and_no_further() -> None:
    logits = LOGITS.clone().requires_grad_(True)
    found = FORGET_OBJECTIVES["margin"](anchor=-0.5)(inputs(logits))
    torch.testing.assert_close(found, torch.tensor([torch.tensor(0.7 / 0.2).log() + 0.5, 0.0]))
    found.sum().backward()
    # As large far above the anchor as near to it, and none below it.
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_the_anchor_may_be_that_of_the_holdout_set() -> None:
    own, holdout = (FORGET_OBJECTIVES["margin"](**options)(inputs(LOGITS, -0.5)) for options in ({"anchor": -0.5}, {}))
    assert torch.equal(own, holdout)
