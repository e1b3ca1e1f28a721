"""PDU by hand."""

from __future__ import annotations

import math

import pytest
import torch

from r2f_hf.objectives import FORGET_OBJECTIVES, ForgetInputs


def test_the_loss_is_zero_where_the_logits_are_flat() -> None:
    logits, nothing = torch.tensor([[3.0, 1.0, 2.0], [7.0, 7.0, 7.0]]), torch.zeros(2)
    found = FORGET_OBJECTIVES["pdu"]()(ForgetInputs(nothing, nothing.long(), 1, labels=nothing.long(), logits=logits))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]))


def test_the_dual_variable_is_a_state() -> None:
    objective = FORGET_OBJECTIVES["pdu"](retain_limit=0.5, dual_step=2.0, dual_start=0.25)
    seen = [objective.retain_factor]
    for loss in (0.75, math.nan, 0.25, 0.0):
        objective.after_step({"forget_loss": 1.0, "retain_loss": loss})
        seen.append(objective.retain_factor)
    # A loss that is no number changes nothing, and it is never below zero.
    assert seen == pytest.approx([0.25, 0.75, 0.75, 0.25, 0.0])
    other = FORGET_OBJECTIVES["pdu"](dual_start=0.25)
    other.retain_factor = 3.7
    objective.load_state(other.state())
    assert objective.retain_factor == 3.7
    objective.load_state({})
    assert objective.retain_factor == 0.25
