"""The commands of the pages and recipes: each names options that exist, and files of the repository that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from r2f_hf.cli import COMMANDS
from r2f_hf.cli.completion import whole_parser


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("recipes/**/*.md"))]


def commands(page: Path) -> list[str]:
    """The commands in a page's blocks for a shell, without comments, each on one line."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command."""
    (subcommands,) = (action for action in whole_parser()._actions if action.choices)
    return {name: {*parser._option_string_actions, "--model"} for name, parser in subcommands.choices.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_name_options_and_files_that_exist(page: Path, options: dict[str, set[str]]) -> None:
    for line in commands(page):
        for file in re.findall(r"(?<![\w/])(?:recipes|benchmarks)/[\w/]+\.\w+", line):
            assert (ROOT / file).is_file(), line
        called = re.search(r"(?:^|(?<!--methods)(?<!--runs)\s)(?:r2f|-m r2f_hf\.cli) ([\w-]+)(.*)", line)
        if called is None or called[1] == "COMMAND":
            continue
        assert called[1] in COMMANDS, line
        flags = set(re.findall(r"(?<=\s)--\w+", called[2]))
        assert flags <= {*options[called[1]], "--help"}, line
