"""Views: several wordings of one forget example, each another look at the same thing to forget."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any


def example_prompts(
    row: Mapping[str, Any],
    prompt_column: str | None,
    views_column: str | None = None,
    view_templates: Sequence[str] | None = None,
) -> list[str]:
    """
    The wordings of a row's prompt: its own first, then the paraphrases of a column, then the templates filled in.

    Args:
        row (`Mapping[str, Any]`):
            A row of the dataset.
        prompt_column (`str`, *optional*):
            Column of the prompt; `None` for plain text, whose prompt is empty.
        views_column (`str`, *optional*):
            Column that holds a paraphrase of the prompt, or a list of them.
        view_templates (`Sequence[str]`, *optional*):
            Texts with a `{prompt}` field, such as `"Tell me: {prompt}"`.

    Returns:
        `list[str]`: Distinct prompts.
    """
    prompt = "" if prompt_column is None else row[prompt_column]
    paraphrases = (row[views_column] or []) if views_column is not None else []
    paraphrases = [paraphrases] if isinstance(paraphrases, str) else paraphrases
    templated = [template.format(prompt=prompt) for template in view_templates or []]
    return list(dict.fromkeys([prompt, *paraphrases, *templated]))


def check_templates(view_templates: Sequence[str] | None) -> None:
    """
    Refuse templates that do not contain the prompt.

    Raises:
        `ValueError`: Naming the template.
    """
    for template in view_templates or []:
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
            template.format(prompt="Who?")
        except (ValueError, KeyError, IndexError, AttributeError):
            # A brace that is not closed, or a format that no text has.
            fields = set()
        if fields != {"prompt"}:
            raise ValueError(
                f"The view template {template!r} must have the field {{prompt}} and no other. A brace of its own is "
                "written twice."
            )
