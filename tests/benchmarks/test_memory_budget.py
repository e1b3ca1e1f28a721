"""The memory that is computed for large models, compared with real tensors of small ones."""

from __future__ import annotations

import pytest
import torch
from conftest import build_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from shared.contenders import Contender, draw_batch


@pytest.mark.parametrize("name", ["r2f", "lora", "exact", "full"])
def test_what_stays_for_the_backward_pass_is_the_same_with_and_without_numbers(name: str) -> None:
    from memory_budget import kept_for_backward, prepare

    model = build_model("llama")
    with torch.device("meta"):
        on_meta = AutoModelForCausalLM.from_config(model.config)
    real, fake = kept_for_backward(prepare(name, model), 2, 16), prepare(name, on_meta)
    with FakeTensorMode():
        assert kept_for_backward(fake, 2, 16) == real > 0


@pytest.mark.parametrize("name", ["r2f", "lora", "full"])
def test_the_state_is_that_of_a_contender(name: str) -> None:
    import memory_budget
    from shared.contenders import RANK

    model = build_model("llama")
    fixed = memory_budget.parts(name, model)
    contender = Contender(name, model)
    for number in range(2):
        contender.passes(draw_batch(contender.model, 2, 16, number))
        held = sum(p.grad.nbytes for p in contender.model.parameters() if p.grad is not None)
        contender.update()
    assert held == fixed["gradients"]
    if contender.r2f is None:
        pairs = sum(p.nbytes for p in contender.model.parameters() if p.requires_grad) if name == "lora" else 0
        averages = [t for state in contender.optimizer.state.values() for t in state.values() if is_large(t)]
        assert pairs + sum(t.nbytes for t in averages) == fixed["state"]
        return
    r2f = contender.r2f
    pairs = sum(probe.A.nbytes + probe.B.nbytes for probe in r2f.modules.values())
    subspaces = sum(group.subspace.left.nbytes + group.subspace.right.nbytes for group in r2f.groups)
    means = sum(rule.moments.rows.nbytes + rule.moments.columns.nbytes for rule in r2f.rules)
    distinct = {id(inputs): inputs.directions.nbytes for inputs in r2f.retained_inputs.values()}
    # Modules this narrow have fewer directions than are counted for wide ones.
    assert pairs + subspaces + means == fixed["state"] - fixed_directions(model, memory_budget.DIRECTIONS)
    assert len(distinct) == 4 * model.config.num_hidden_layers
    assert pairs == 4 * RANK * sum(sum(probe.weight.shape) for probe in r2f.modules.values())


def fixed_directions(model: AutoModelForCausalLM, directions: int) -> int:
    """Bytes of the directions that are counted: three inputs of the hidden size per layer, and one of the other."""
    config = model.config
    return 2 * directions * config.num_hidden_layers * (3 * config.hidden_size + config.intermediate_size)


def is_large(tensor: Tensor) -> bool:
    """Whether it is an average, and no count of steps."""
    return tensor.numel() > 1
