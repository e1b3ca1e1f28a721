"""The configuration refuses what cannot work, before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r2f_hf import R2FConfig


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
        ({"forget_objective": "grad_diff", "retain_objective": "none"}, "is a difference with a retain loss"),
        *(
            ({name: value}, f"`{name}` must be positive, got {value}")
            for name in ("rank", "num_views", "retain_per_forget", "stop_check_steps", "beta")
            for value in (0, -1)
        ),
        ({"beta": float("nan")}, "`beta` must be positive"),
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


def test_the_default_rate_is_that_of_what_is_spared(tmp_path: Path) -> None:
    assert build(tmp_path).learning_rate == 0.6
    assert build(tmp_path).retain_per_forget == 1
    assert build(tmp_path, spare_retained=False).learning_rate == 0.15
    assert build(tmp_path, spare_retained=False).retain_per_forget == 3
    without = build(tmp_path, retain_objective="none")
    assert (without.learning_rate, without.spare_retained) == (0.15, False)
    assert build(tmp_path, learning_rate=0.3).learning_rate == 0.3


def test_shorthands_of_the_command_line(tmp_path: Path) -> None:
    assert build(tmp_path).target_modules == "all-linear"
    assert build(tmp_path, target_modules=["q_proj", "o_proj"]).target_modules == ["q_proj", "o_proj"]
    assert build(tmp_path, prompt_column="none").prompt_column is None


def test_a_configuration_survives_the_trip_through_a_dictionary(tmp_path: Path) -> None:
    config = build(tmp_path, rank=8, forget_objective="simnpo", gamma=0.5, target_modules=["q_proj"])
    again = R2FConfig(
        **{name: value for name, value in config.to_dict().items() if name in R2FConfig.__dataclass_fields__}
    )
    assert again.to_dict() == config.to_dict()
