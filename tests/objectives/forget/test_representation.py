"""RMU by hand."""

from __future__ import annotations

import torch

from r2f_hf.objectives import FORGET_OBJECTIVES, ForgetInputs


STATES = torch.tensor([[1.0, 2.0], [0.0, -1.0]])


def inputs() -> ForgetInputs:
    nothing = torch.zeros(2)
    return ForgetInputs(
        nothing, torch.tensor([0, 1]), 2, hidden_states=STATES, reference_norms=torch.tensor([2.0, 0.5])
    )


def direction(seed: int) -> torch.Tensor:
    drawn = torch.rand(2, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def test_states_are_drawn_to_a_direction_of_a_fixed_length() -> None:
    found = FORGET_OBJECTIVES["rmu"](coefficient=3.0, seed=5)(inputs())
    torch.testing.assert_close(found, (STATES - 3 * direction(5)).square().mean(-1))


def test_the_adaptive_length_is_that_of_the_tokens_own_state_before() -> None:
    found = FORGET_OBJECTIVES["adaptive_rmu"](coefficient=3.0)(inputs())
    lengths = torch.tensor([[6.0], [1.5]])
    torch.testing.assert_close(found, (STATES - lengths * direction(0)).square().mean(-1))
