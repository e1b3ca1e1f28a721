"""Objectives by name: what each needs, and what all have in common."""

from __future__ import annotations

import pytest
import torch

from r2f_hf.objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES, ForgetInputs, ForgetObjective, build_objective


# Two rows: the first has two tokens, and the second has one.
ROWS = torch.tensor([0, 0, 1])
REFERENCE = torch.tensor([-1.0, -3.0, -3.0])


def inputs(log_probs: torch.Tensor) -> ForgetInputs:
    return ForgetInputs(log_probs, ROWS, 2, REFERENCE)


@pytest.mark.parametrize("name", FORGET_OBJECTIVES)
def test_descending_any_forget_objective_makes_the_answer_less_probable(name: str) -> None:
    log_probs = torch.tensor([-2.0, -4.0, -2.0], requires_grad=True)
    FORGET_OBJECTIVES[name]()(inputs(log_probs)).sum().backward()
    assert (log_probs.grad > 0).all()


def test_what_each_objective_needs() -> None:
    assert {name for name, objective in FORGET_OBJECTIVES.items() if objective.needs_reference} == {"npo", "tnpo"}
    assert {name for name, objective in FORGET_OBJECTIVES.items() if objective.needs_retain} == {"grad_diff"}
    assert {name for name, each in FORGET_OBJECTIVES.items() if each.mean_over == "tokens"} == {"ga", "grad_diff"}
    assert {name for name, objective in RETAIN_OBJECTIVES.items() if objective.needs_reference} == {"kl"}


def test_a_users_own_objective_is_one_more_entry() -> None:
    class Mine(ForgetObjective):
        def __call__(self, inputs: ForgetInputs) -> torch.Tensor:
            return inputs.sum_rows(inputs.log_probs)

    objective = build_objective(FORGET_OBJECTIVES | {"mine": Mine}, "mine", {}, "forget objective")
    assert objective(inputs(torch.tensor([-2.0, -4.0, -2.0]))).tolist() == [-6.0, -2.0]


def test_inputs_are_summed_over_the_tokens_of_a_row() -> None:
    found = inputs(torch.tensor([-2.0, -4.0, -2.0]))
    assert found.sum_rows(found.log_probs).tolist() == [-6.0, -2.0]
    assert found.num_tokens.tolist() == [2.0, 1.0]
