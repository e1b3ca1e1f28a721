"""Objectives by name: what each needs, and what all have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from r2f_hf.objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES, ForgetInputs, ForgetObjective, build_objective
from r2f_hf.objectives.divergences import top_log_probs


# Two rows: the first has two tokens, and the second has one.
ROWS = torch.tensor([0, 0, 1])
LABELS = torch.tensor([3, 1, 4])
# These look at the answer's tokens. All others look at something else too, or only at something else.
NOT_ON_ANSWERS = {"idk", "duet", "rmu", "adaptive_rmu"}
OPTIONS: dict[str, dict[str, Any]] = {"margin": {"anchor": -20.0}, "shred": {"fraction": 1.0}}


def logits(seed: int) -> Tensor:
    return torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))


def inputs(scores: Tensor, k: int | None = None, second: ForgetInputs | None = None) -> ForgetInputs:
    """All that an objective may ask for, with a reference that is surer of the answers."""
    reference = logits(1).scatter_add(-1, LABELS[:, None], torch.full((3, 1), 4.0))
    log_probs, before = (each.log_softmax(-1).gather(-1, LABELS[:, None])[:, 0] for each in (scores, reference))
    found = ForgetInputs(log_probs, ROWS, 2, before, LABELS, scores, *top_log_probs(reference, k))
    found.hidden_states, found.reference_norms, found.second = scores, torch.ones(3), second
    found.ignorant_log_probs = torch.full((3,), -8.0)
    return found


@pytest.mark.parametrize("name", FORGET_OBJECTIVES.keys() - NOT_ON_ANSWERS)
def test_descending_a_forget_objective_makes_the_answer_less_probable(name: str) -> None:
    objective = build_objective(FORGET_OBJECTIVES, name, OPTIONS.get(name, {}), "forget objective")
    objective.token_ids = [5]

    def total(scores: Tensor) -> Tensor:
        losses = objective(inputs(scores, second=inputs(logits(2))))
        return sum(each.sum() for each in losses.values()) if isinstance(losses, dict) else losses.sum()

    # The answers begin likely, as they do in a model that knows them.
    scores = logits(0).scatter_add(-1, LABELS[:, None], torch.full((3, 1), 4.0)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(total(scores), scores)
    after = scores.detach() - 1e-2 * gradient
    assert total(after) < total(scores)
    if name != "pdu":
        assert (inputs(after).log_probs < inputs(scores).log_probs).all()


@pytest.mark.parametrize("name", FORGET_OBJECTIVES)
def test_a_process_without_forget_rows_has_a_loss_of_zero_with_a_gradient(name: str) -> None:
    objective = FORGET_OBJECTIVES[name](**OPTIONS.get(name, {}))
    objective.token_ids = [5]
    scores = torch.randn(0, 7, requires_grad=True)
    nothing = torch.empty(0)
    empty = ForgetInputs(
        scores.sum(-1),
        torch.empty(0, dtype=torch.long),
        0,
        nothing,
        torch.empty(0, dtype=torch.long),
        scores,
        torch.empty(0, 3, dtype=torch.long),
        torch.empty(0, 3),
        scores,
        nothing,
        nothing,
    )
    empty.second = empty
    losses = objective(empty)
    total = sum(each.sum() for each in losses.values()) if isinstance(losses, dict) else losses.sum()
    total.backward()
    assert total == 0 and scores.grad.shape == (0, 7)


def test_what_each_objective_needs() -> None:
    def those(need: str, table: dict[str, Any] = FORGET_OBJECTIVES) -> set[str]:
        return {name for name, objective in table.items() if getattr(objective(), need)}

    assert those("needs_reference") == {"npo", "tnpo", "dpo", "altpo", "shred"}
    assert those("needs_retain") == {"grad_diff", "pdu", "ignorance"}
    assert those("needs_ignorance") == {"ignorance"}
    assert those("needs_distribution") == {"undial", "shred"}
    assert those("needs_second_distribution") == {"duet"}
    assert those("needs_hidden_states") == {"rmu", "adaptive_rmu"}
    assert those("needs_holdout_margin") == {"margin"}
    assert those("answers") == {"dpo", "altpo", "idk", "flat", "duet", "bs_s"}
    assert those("needs_reference", RETAIN_OBJECTIVES) == {"kl", "jensen_shannon"}
    assert those("needs_hidden_states", RETAIN_OBJECTIVES) == {"hidden_states"}
    assert not FORGET_OBJECTIVES["margin"](anchor=-1.0).needs_holdout_margin


def test_token_wise_objectives_take_their_mean_by_name() -> None:
    for name in ("wga", "tnpo", "satimp"):
        assert FORGET_OBJECTIVES[name]().mean_over == "rows"
        assert build_objective(FORGET_OBJECTIVES, name, {"mean_over": "tokens"}, "").mean_over == "tokens"


def test_a_users_own_objective_is_one_more_entry() -> None:
    class Mine(ForgetObjective):
        def __call__(self, inputs: ForgetInputs) -> Tensor:
            return inputs.sum_rows(inputs.log_probs)

    objective = build_objective(FORGET_OBJECTIVES | {"mine": Mine}, "mine", {}, "forget objective")
    assert objective(ForgetInputs(torch.tensor([-2.0, -4.0, -2.0]), ROWS, 2)).tolist() == [-6.0, -2.0]


def test_inputs_are_summed_over_the_tokens_of_a_row() -> None:
    found = ForgetInputs(torch.tensor([-2.0, -4.0, -2.0]), ROWS, 2)
    assert found.sum_rows(found.log_probs).tolist() == [-6.0, -2.0]
    assert found.num_tokens.tolist() == [2.0, 1.0]
    assert found.positions.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("undial", {"betta": 1}, "Unknown option of the forget objective 'undial': 'betta'. Did you mean 'beta'"),
        ("undial", {"beta": -1}, "`beta` of the objective UNDIAL must be positive and finite"),
        ("undial", {"k": 0}, "`k` of the objective UNDIAL must be a whole number above 0, or null for all"),
        ("ce_u", {"beta": 1}, "has no options, got 'beta'"),
        ("jensun", {"token_ids": [1]}, "Unknown option"),
        ("jensun", {"target": " "}, "`target` of the objective JensUn must be a text"),
        ("wga", {"mean_over": "token"}, "`mean_over` of the objective WeightedGradientAscent: 'token'. Did you mean"),
        ("dpo", {"definition": "papr"}, "`definition` of the objective DPO: 'papr'. Did you mean 'paper'"),
        ("dpo", {"answers": ""}, '`answers` of the objective DPO must be "refusals", "model", a column'),
        ("altpo", {"instruction": "Write!"}, "`instruction` of the objective AltPO must be a text with the field"),
        ("altpo", {"num_answers": 2.5}, "`num_answers` of the objective AltPO must be a whole number above 0"),
        ("bs_t", {"weight": 1.5}, "`weight` of the objective BootstrappedTokens must be from 0 to 1"),
        ("satimp", {"beta2": -1}, "`beta2` of the objective SatImp must be a number of at least 0"),
        ("flat", {"divergence": "tv"}, "`divergence` of the objective FLAT"),
        ("shred", {"fraction": 2}, "`fraction` of the objective SHRED must be from 0 to 1"),
        (
            "duet",
            {"teacher_prompt": "Say so."},
            "`teacher_prompt` of the objective DUET must be a text with",
        ),
        ("rmu", {"layer": 0}, "`layer` of the objective RMU must be a whole number above 0"),
        ("margin", {"anchor": "low"}, "`anchor` of the objective MarginCalibration must be a finite number"),
        ("ignorance", {"lift_after": -1}, "`lift_after` of the objective Ignorance must be a number of at least 0"),
        ("ignorance", {"level": 0.5}, "`level` of the objective Ignorance must be below zero, got 0.5"),
        ("pdu", {"dual_step": -1}, "`dual_step` of the objective PDU must be a number of at least 0"),
    ],
)
def test_refuses(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        build_objective(FORGET_OBJECTIVES, name, options, "forget objective")
    assert message in str(refusal.value)
