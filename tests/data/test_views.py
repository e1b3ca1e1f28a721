"""Wordings of a prompt."""

from __future__ import annotations

from typing import Any

import pytest

from r2f_hf.data.views import check_templates, example_prompts


ROW = {"q": "Who?", "views": ["Which person?", "Who?"], "view": "What name?"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["Who?"]),
        ({"views_column": "views"}, ["Who?", "Which person?"]),
        ({"views_column": "view"}, ["Who?", "What name?"]),
        ({"view_templates": ["{prompt}", "Say: {prompt}"]}, ["Who?", "Say: Who?"]),
        ({"views_column": "view", "view_templates": ["Say: {prompt}"]}, ["Who?", "What name?", "Say: Who?"]),
    ],
)
def test_the_rows_own_wording_comes_first_and_none_comes_twice(settings: dict[str, Any], expected: list[str]) -> None:
    assert example_prompts(ROW, "q", **settings) == expected


def test_plain_text_has_an_empty_prompt() -> None:
    assert example_prompts(ROW, None) == [""]


def test_templates_must_hold_the_prompt() -> None:
    check_templates(["Say: {prompt}"])
    check_templates(None)
    for template in ("Say it", "{name}: {prompt}", "{prompt}: {", "{prompt:5d}", "{prompt.name}", "{}"):
        with pytest.raises(ValueError, match=r"must have the field \{prompt\} and no other"):
            check_templates(["Say: {prompt}", template])
