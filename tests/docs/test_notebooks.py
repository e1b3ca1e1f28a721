"""Every notebook of the docs runs from top to bottom on a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import process_environment


NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs").rglob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_from_top_to_bottom(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    # The kernel takes this process's environment.
    for name, value in process_environment(MPLBACKEND="agg").items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(file, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(texts)
    (before,), (after,) = (re.findall(rf"{when}: P\(forget\) ([\d.]+)", printed) for when in ("before", "after"))
    assert float(after) < 0.5 * float(before)
