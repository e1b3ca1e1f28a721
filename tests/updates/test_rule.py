"""The update rule of modules of one shape."""

from __future__ import annotations

import pytest
import torch

from r2f_hf.gradients import LowRankGradient
from r2f_hf.updates import SecondMoments
from r2f_hf.updates.rule import UpdateRule, step_factors


MODULES, SHAPE = 4, (6, 9)


def gradients() -> LowRankGradient:
    return LowRankGradient(*(torch.randn(MODULES, side, 3) for side in SHAPE))


def test_modules_are_rescaled_together_as_each_is_alone() -> None:
    rule = UpdateRule(adaptive=True)
    alone: list[SecondMoments | None] = [None] * MODULES
    for _ in range(3):
        gradient = gradients()
        together = rule.rescale(gradient).unbind()
        for index, one in enumerate(gradient.unbind()):
            alone[index] = SecondMoments.after(one, alone[index])
            expected = alone[index].scale(one)
            torch.testing.assert_close(together[index].U @ together[index].V.T, expected.U @ expected.V.T)


def test_without_rescaling_and_retained_inputs_a_gradient_is_its_own_direction() -> None:
    rule, gradient = UpdateRule(adaptive=False), gradients()
    assert rule.protect(rule.rescale(gradient)) is gradient


def test_the_state_of_a_rule_is_one_pair_of_tensors_per_module() -> None:
    names = [f"layer{index}" for index in range(MODULES)]
    rule, again = UpdateRule(adaptive=True), UpdateRule(adaptive=True)
    assert rule.state_dict(names) == {}
    rule.rescale(gradients())
    state = rule.state_dict(names)
    assert state.keys() == {f"{name}.{side}" for name in names for side in ("rows", "columns")}
    again.load_state_dict(state, names, torch.device("cpu"))
    gradient = gradients()
    assert torch.equal(rule.rescale(gradient).U, again.rescale(gradient).U)
    # If a checkpoint lacks one module, the moments of the others are not loaded either.
    new = UpdateRule(adaptive=True)
    new.load_state_dict(
        {name: each for name, each in state.items() if "layer3" not in name}, names, torch.device("cpu")
    )
    assert new.moments is None


@pytest.mark.parametrize(
    ("normalize", "max_norm", "expected"),
    [
        (True, 1.0, [1 / 3, 1 / 4]),
        (False, 1.0, [0.2, 0.2]),
        (False, 10.0, [1.0, 1.0]),
        (False, None, [1.0, 1.0]),
        (False, 0.0, [1.0, 1.0]),
    ],
)
def test_factors_make_every_norm_one_or_clip_that_of_all_modules(
    normalize: bool, max_norm: float | None, expected: list[float]
) -> None:
    torch.testing.assert_close(step_factors(torch.tensor([3.0, 4.0]), normalize, max_norm), torch.tensor(expected))
