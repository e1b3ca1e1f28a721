"""`r2f completion`: what bash itself completes with the script that it prints."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from r2f_hf import cli


ASK = """
source "$1"
cd "$2"
shift 2
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
COMPREPLY=()
_shtab_r2f
printf '%s\\n' "${COMPREPLY[@]}"
"""
Complete = Callable[..., set[str]]


@pytest.fixture
def complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Complete:
    """What bash offers for the last of some words."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    cli.main(["completion", "bash"])
    script = tmp_path / "r2f.bash"
    script.write_text(capsys.readouterr().out)

    def ask(*words: str) -> set[str]:
        command = ["bash", "--norc", "-c", ASK, "bash", str(script), str(tmp_path), *words]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    return ask


def test_bash_completes_commands_options_choices_and_files(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "kept").mkdir()
    assert complete("r2f", "") >= set(cli.COMMANDS)
    assert complete("r2f", "unlearn", "--forget_o") == {"--forget_objective", "--forget_objective_kwargs"}
    assert "simnpo" in complete("r2f", "unlearn", "--forget_objective", "sim")
    assert "rows.jsonl" in complete("r2f", "unlearn", "--forget_data", "ro")
    assert complete("r2f", "evaluate", "--gold") >= {"--gold_model"}
    assert "kept" in complete("r2f", "undo", "ke")


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script_with_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["completion", shell])
    printed = capsys.readouterr().out
    assert all(command in printed for command in cli.COMMANDS) and "forget_objective" in printed
