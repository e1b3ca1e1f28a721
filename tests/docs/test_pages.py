"""The pages of the docs: their scripts run, their sections are complete, and the reference names what is public."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from conftest import process_environment
from packaging.version import Version
from transformers import TrainingArguments

import r2f_hf
from r2f_hf.decoders import DECODERS
from r2f_hf.evaluation import SUITES
from r2f_hf.metrics import METRICS
from r2f_hf.objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES


DOCS = Path(__file__).parents[2] / "docs"
RUNNABLE = re.compile(r"^<!-- runnable -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted(DOCS.glob("howto/*.md")) if RUNNABLE.search(page.read_text(encoding="utf-8"))]

# One process for all scripts of a page: most of the time is that of the imports. Names stay from script to script.
RUN_ALL = """
import runpy, sys
names = {}
for script in sys.argv[1:]:
    names |= {name: value for name, value in runpy.run_path(script, names, "__main__").items() if name[:2] != "__"}
"""
PARTS = ["Claim", "Command", "Table", "What it means", "Not measured"]


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_there_are_pages_with_scripts() -> None:
    assert {"trainer", "own_loop"} <= {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_scripts_of_a_page_run_as_printed(page: Path, tmp_path: Path) -> None:
    scripts = []
    for number, text in enumerate(RUNNABLE.findall(page.read_text(encoding="utf-8"))):
        scripts.append(tmp_path / f"{page.stem}_{number}.py")
        scripts[-1].write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", RUN_ALL, *map(str, scripts)]
    done = subprocess.run(command, cwd=tmp_path, env=process_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    probabilities = re.findall(r"(before|after): P\(forget\) ([\d.]+), P\(retain\) ([\d.]+)", done.stdout)
    assert len(probabilities) >= 2 and len(probabilities) % 2 == 0
    for before, after in zip(probabilities[::2], probabilities[1::2], strict=True):
        assert (before[0], after[0]) == ("before", "after")
        assert float(after[1]) < 0.5 * float(before[1]) and float(after[2]) > 0.8 * float(before[2])


def test_each_measurement_has_its_parts_and_its_line_in_the_index() -> None:
    page = DOCS / "measurements.md"
    found = sections(page)
    found.pop("Words and data")
    index = page.read_text(encoding="utf-8").split("\n## ")[0]
    assert re.findall(r"\| \[(.+?)\]\(#", index) == list(found)
    for name, text in found.items():
        assert re.findall(r"^\*\*(.+?)\.\*\*", text, re.MULTILINE) == PARTS, name


def test_figures_begin_with_a_digit() -> None:
    for page in DOCS.rglob("*.md"):
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"(?<![0-9A-Za-z_])\.[0-9]", prose), page


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("objectives", [*FORGET_OBJECTIVES, *RETAIN_OBJECTIVES]),
        ("decoders", DECODERS),
        ("evaluation", SUITES),
        ("metrics", METRICS),
    ],
)
def test_the_reference_has_every_name_of_a_registry(page: str, names: list[str]) -> None:
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert [name for name in names if f'"{name}"' not in text and f"`{name}`" not in text] == []


def test_the_page_on_choosing_an_objective_has_every_name() -> None:
    named = set(re.findall(r"^\| `(\w+)`", (DOCS / "objectives.md").read_text(encoding="utf-8"), re.MULTILINE))
    listed = set(re.findall(r"`(\w+)`", (DOCS / "objectives.md").read_text(encoding="utf-8")))
    assert set(FORGET_OBJECTIVES) - named == set() and set(RETAIN_OBJECTIVES) - listed == set()


def test_the_page_of_training_arguments_has_every_field() -> None:
    page = (DOCS / "training_arguments.md").read_text(encoding="utf-8")
    made_with = re.search(r"with transformers ([\d.]+\d)", page)[1]
    if Version(transformers.__version__) < Version(made_with):
        pytest.skip(f"The page is about transformers {made_with}, which has other fields.")
    named = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert fields - named == set(), "run `python benchmarks/training_arguments.py --write`"


def test_the_reference_has_every_public_class() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    public = [f"::: r2f_hf.{name}\n" for name in r2f_hf.__all__ if name != "__version__"]
    assert [name for name in public if name not in text] == []
