"""Private names of other libraries: each is there, and none is used that is not listed."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import r2f_hf
from r2f_hf._compat import PRIVATE_NAMES, PrivateName


SOURCE = Path(r2f_hf.__file__).parent


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: private.name)
def test_every_private_name_is_still_there(private: PrivateName) -> None:
    module, _, attribute = private.owner.partition(":")
    if module.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    owner = importlib.import_module(module)
    owner = getattr(owner, attribute) if attribute else owner
    # What is set on instances only is in the source.
    assert hasattr(owner, private.name) or private.name in inspect.getsource(owner)


def test_no_other_private_name_is_used() -> None:
    """An attribute with a leading underscore, of anything but the package's own objects."""
    texts = {file: file.read_text() for file in SOURCE.rglob("*.py")}
    own = set(re.findall(r"(?:def |class |self\.)(_[a-z]\w*)", "".join(texts.values())))
    # `_replace` is a public method of named tuples.
    listed = {private.name for private in PRIVATE_NAMES} | {"_replace"}
    for file, text in texts.items():
        used = set(re.findall(r"(?<=[\w)\]])\.(_[a-z]\w*)", text))
        assert not used - listed - own, file
