"""The configuration refuses what cannot work, before any model is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from r2f_hf import R2FConfig
from r2f_hf.config import GROUPS
from r2f_hf.objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES
from r2f_hf.updates.targets import TARGETS


def build(tmp_path: Path, **settings: Any) -> R2FConfig:
    return R2FConfig(str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "tikonov"}, "Unknown decoder: 'tikonov'. Did you mean 'tikhonov'"),
        ({"forget_objective": "nppo"}, "Unknown forget objective: 'nppo'. Did you mean 'npo'"),
        ({"retain_objective": "nl"}, "Unknown retain objective: 'nl'. Did you mean 'nll'"),
        ({"retain_objective": "non"}, "Did you mean 'none'"),
        ({"view_templates": ["Tell me."]}, r"'Tell me.' must have the field \{prompt\} and no other"),
        ({"num_views": 2}, "`num_views=2` needs a `views_column` or `view_templates`"),
        ({"held_out": 16}, "`held_out` must be from 0 to `rank` - 1, got 16 with rank 16"),
        ({"held_out": -1}, "`held_out` must be from 0"),
        ({"forget_objective": "grad_diff", "retain_objective": "none"}, "is only defined together with a retain loss"),
        *(
            ({name: value}, f"`{name}` must be positive, got {value}")
            for name in ("rank", "num_views", "retain_per_forget", "stop_check_steps")
            for value in (0, -1)
        ),
        *(
            (
                {"forget_objective_kwargs": {"beta": value}},
                "`beta` of the objective NPO must be positive and finite, got",
            )
            for value in (0, -1, float("nan"), float("inf"), "0.5", True)
        ),
        ({"forget_objective_kwargs": {"gamma": 1}}, "Unknown option of the forget objective 'npo': 'gamma'"),
        ({"forget_objective": "ga", "forget_objective_kwargs": {"beta": 1}}, "The forget objective 'ga' has no opt"),
        ({"forget_objective_kwargs": "beta=1"}, "`forget_objective_kwargs` is not JSON"),
        ({"retain_objective_kwargs": "[1]"}, "`retain_objective_kwargs` must be options by name"),
        (
            {"retain_objective": "kl", "retain_objective_kwargs": {"k": 0}},
            "`k` of the objective KL must be",
        ),
        ({"update_target": "weight"}, "Unknown update_target: 'weight'. Did you mean 'weights'"),
        ({"window_overlap": -1}, "`window_overlap` must be 0 or more, got -1"),
        ({"max_length": -1}, "`max_length` must be positive, got -1"),
    ],
)
def test_refuses(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"held_out": 0},
        {"rank": 3, "held_out": 2},
        {"forget_objective": "ga", "retain_objective": "none"},
        {"forget_objective": "grad_diff", "retain_objective": "kl"},
        {"view_templates": ["Tell me: {prompt}"]},
    ],
)
def test_accepts(settings: dict[str, Any], tmp_path: Path) -> None:
    config = build(tmp_path, **settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_the_default_rate_depends_on_whether_the_retain_set_is_protected(tmp_path: Path) -> None:
    assert build(tmp_path).learning_rate == 0.6
    assert build(tmp_path).retain_per_forget == 1
    assert build(tmp_path, protect_retain=False).learning_rate == 0.15
    assert build(tmp_path, protect_retain=False).retain_per_forget == 3
    without = build(tmp_path, retain_objective="none")
    assert (without.learning_rate, without.protect_retain) == (0.15, False)
    assert build(tmp_path, learning_rate=0.3).learning_rate == 0.3


def test_shorthands_of_the_command_line(tmp_path: Path) -> None:
    assert build(tmp_path).target_modules == "all-linear"
    assert build(tmp_path, target_modules=["q_proj", "o_proj"]).target_modules == ["q_proj", "o_proj"]


def test_a_configuration_survives_the_trip_through_a_dictionary(tmp_path: Path) -> None:
    config = build(
        tmp_path, rank=8, forget_objective="simnpo", forget_objective_kwargs={"gamma": 0.5}, target_modules=["q_proj"]
    )
    again = R2FConfig(
        **{name: value for name, value in config.to_dict().items() if name in R2FConfig.__dataclass_fields__}
    )
    assert again.to_dict() == config.to_dict()


def test_options_of_an_objective_come_by_name_or_as_json(tmp_path: Path) -> None:
    for kwargs in ({"beta": 0.5}, '{"beta": 0.5}'):
        forget, retain = build(tmp_path, forget_objective_kwargs=kwargs).build_objectives()
        assert forget.beta == 0.5 and type(retain).__name__ == "NLL"
    assert build(tmp_path, retain_objective="none").build_objectives()[1] is None


def test_every_option_of_r2fs_own_is_in_one_group(tmp_path: Path) -> None:
    own = R2FConfig.__dataclass_fields__.keys() - TrainingArguments.__dataclass_fields__.keys()
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(own | {"learning_rate"})


def test_the_docstring_documents_every_option_in_its_group() -> None:
    """In the order of the groups, under their titles."""
    documented = re.findall(r"^ {8}(?:> (.+)|(\w+) \()", R2FConfig.__doc__, flags=re.MULTILINE)
    expected = [each for title, names in GROUPS.items() for each in ((title, ""), *(("", name) for name in names))]
    assert documented == expected


def test_the_choices_of_the_command_line_are_those_of_the_tables() -> None:
    choices = {name: each.metadata.get("choices") for name, each in R2FConfig.__dataclass_fields__.items()}
    assert choices["forget_objective"] == list(FORGET_OBJECTIVES)
    assert choices["retain_objective"] == [*RETAIN_OBJECTIVES, "none"]
    assert choices["update_target"] == list(TARGETS)


def test_no_tracker_can_be_asked_for_by_none() -> None:
    assert R2FConfig("unused", use_cpu=True, report_to=None).report_to == []
