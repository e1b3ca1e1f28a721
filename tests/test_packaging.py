"""What is in the package besides Python: the wheel must have it too."""

from __future__ import annotations

import configparser
from pathlib import Path


ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


def test_every_file_that_is_not_python_is_package_data() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = set()
    for package, patterns in settings["options.package_data"].items():
        for pattern in patterns.split():
            listed |= set((SOURCE / package.replace(".", "/")).glob(pattern))
    files = {
        file
        for file in (SOURCE / "r2f_hf").rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert files and files <= listed


def test_type_checkers_may_read_the_hints() -> None:
    assert (SOURCE / "r2f_hf" / "py.typed").is_file()
