"""Probes of one shape are read and drawn together, and their subspaces updated together, as each would be alone."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import read_sketches
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from r2f_hf.probes import (
    GradientSubspace,
    LoraProbe,
    ProbeGroup,
    draw_probes,
    find_probes,
    group_probes,
    update_subspaces,
)


CONFIG = LoraConfig(r=4, lora_alpha=4e-6, target_modules="all-linear")


@pytest.fixture
def wrapped(model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, CONFIG)


def subspaces(group: ProbeGroup) -> GradientSubspace:
    return GradientSubspace(*(torch.randn(len(group.probes), side, 4) for side in group.shape))


def pairs(probes: list[LoraProbe]) -> list[tuple[Tensor, Tensor]]:
    return [(probe.A.detach().clone(), probe.B.detach().clone()) for probe in probes]


def test_a_group_is_of_one_shape_and_every_probe_is_in_one(wrapped: PeftModel) -> None:
    probes = find_probes(wrapped)
    groups = group_probes(probes)
    assert sorted(probe.name for group in groups for probe in group.probes) == sorted(probe.name for probe in probes)
    assert all({probe.weight.shape for probe in group.probes} == {group.shape} for group in groups)
    assert 1 < len(groups) < len(probes)


@pytest.mark.parametrize(("held_out", "random_rows"), [(0, 2), (2, 2), (3, 3), (4, 4)])
def test_warm_probes_keep_random_rows_even_if_none_is_held_out(
    held_out: int, random_rows: int, wrapped: PeftModel
) -> None:
    group = group_probes(find_probes(wrapped))[0]
    eyes = [torch.eye(side, 4) for side in group.shape]
    group.subspace = GradientSubspace(*(eye.expand(len(group.probes), -1, -1) for eye in eyes))
    rows = []
    for step in (1, 2):
        group.draw(seed=0, step=step, held_out=held_out)
        for probe in group.probes:
            warm = 4 - random_rows
            assert torch.equal(probe.A[:warm], eyes[1].T[:warm]) and torch.equal(probe.B, eyes[0])
            rows.append(probe.A[warm:].detach().flatten().clone())
    # No two rows are alike, whatever the module and the step. Their variance is the one for an unbiased estimate.
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.6
    assert torch.stack(rows).square().mean().item() * group.shape[1] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("warm", [False, True])
def test_a_group_is_drawn_as_each_of_its_probes_is_alone(warm: bool, wrapped: PeftModel) -> None:
    for group in group_probes(find_probes(wrapped)):
        if warm:
            group.subspace = subspaces(group)
            # A module whose gradients have vanished has random probes.
            group.subspace.left[0] = group.subspace.right[0] = 0
        group.draw(seed=3, step=5, held_out=2)
        together = pairs(group.probes)
        for index, probe in enumerate(group.probes):
            alone = ProbeGroup([probe])
            if warm:
                alone.subspace = GradientSubspace(group.subspace.left[[index]], group.subspace.right[[index]])
            alone.draw(seed=3, step=5, held_out=2)
            (A, B), (expected_A, expected_B) = pairs([probe])[0], together[index]
            # Random rows are drawn for all modules together.
            first = slice(2) if warm else slice(None)
            torch.testing.assert_close((A[first], B), (expected_A[first], expected_B))
            if not warm:
                expected = draw_probes(3, 5, probe.name, *group.shape, 4)
                torch.testing.assert_close(pairs([probe]), [expected])


def test_a_group_is_read_and_its_subspaces_updated_as_for_each_of_its_probes_alone(
    wrapped: PeftModel, batch: dict[str, Tensor]
) -> None:
    groups = group_probes(find_probes(wrapped))
    for group in groups:
        group.draw(seed=0, step=0)
    wrapped(**batch).loss.backward()
    sketches = read_sketches(wrapped, held_out=1)
    for group in groups:
        together = group.read(held_out=1)
        for _ in range(2):
            update_subspaces([group], [together])
        for index, probe in enumerate(group.probes):
            sketch, subspace = sketches[probe.name], None
            for side in ("Y", "Z", "A", "B"):
                assert torch.equal(getattr(together, side)[index], getattr(sketch, side))
            for _ in range(2):
                subspace = GradientSubspace.after(sketch, subspace)
            for side in ("left", "right"):
                mine, theirs = getattr(group.subspace, side)[index], getattr(subspace, side)
                assert mine.dtype == torch.float32
                whole, atol = theirs @ theirs.T, 1e-5 * theirs.square().sum(-1).max().item()
                torch.testing.assert_close(mine @ mine.T, whole, atol=atol, rtol=0)


def test_the_subspaces_of_groups_are_updated_together_as_for_each_group_alone(
    wrapped: PeftModel, batch: dict[str, Tensor]
) -> None:
    groups = group_probes(find_probes(wrapped))
    assert len(groups) > 1
    for group in groups:
        group.draw(seed=0, step=0)
    wrapped(**batch).loss.backward()
    sketches = [group.read(held_out=1) for group in groups]
    found = []
    for parts in ([slice(len(groups))], [slice(index, index + 1) for index in range(len(groups))]):
        for group in groups:
            group.subspace = None
        for _ in range(3):
            for part in parts:
                update_subspaces(groups[part], sketches[part])
        found.append([side for group in groups for side in (group.subspace.left, group.subspace.right)])
    for together, alone in zip(*found, strict=True):
        mine, theirs = together.float(), alone.float()
        whole = theirs @ theirs.mT
        torch.testing.assert_close(mine @ mine.mT, whole, atol=1e-5 * whole.abs().max().item(), rtol=0)


def test_weights_of_another_precision_are_a_group_of_their_own(model: PreTrainedModel) -> None:
    alike = len(group_probes(find_probes(get_peft_model(copy.deepcopy(model), CONFIG))))
    model.model.layers[0].mlp.up_proj.to(torch.bfloat16)
    groups = group_probes(find_probes(get_peft_model(model, CONFIG)))
    assert len(groups) == alike + 1
    assert all(len({probe.weight.dtype for probe in group.probes}) == 1 for group in groups)


def test_reading_without_a_gradient_is_an_error(wrapped: PeftModel) -> None:
    group = group_probes(find_probes(wrapped))[0]
    with pytest.raises(RuntimeError, match=f"LoRA pair of {group.probes[0].name} has no gradient"):
        group.read(held_out=0)
