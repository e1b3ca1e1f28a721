"""What importing the package takes."""

from __future__ import annotations

import subprocess
import sys


def imported_by(statement: str) -> set[str]:
    """Names of all modules that a fresh process has after a statement."""
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_package_itself_imports_no_library() -> None:
    assert not {"torch", "transformers", "numpy"} & imported_by("import r2f_hf")


def test_the_public_names_import_what_training_needs_alone() -> None:
    modules = imported_by("from r2f_hf import R2FCallback, R2FConfig, R2FTrainer")
    assert not {"scipy.stats", "trl", "rich", "evaluate", "rouge_score"} & modules
