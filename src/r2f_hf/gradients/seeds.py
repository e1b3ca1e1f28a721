"""Random generators by name: the same numbers on every process and in a resumed run."""

from __future__ import annotations

import hashlib

import torch


def named_generator(
    seed: int, step: int, module_name: str, purpose: str, device: str | torch.device = "cpu"
) -> torch.Generator:
    """
    A random generator that depends only on the seed, the step, the module's name and the purpose.

    So every process, and a resumed run, gets the same numbers without any communication, and the order in which
    modules are visited does not matter.

    Args:
        seed (`int`):
            Seed of the run.
        step (`int`):
            Optimizer step.
        module_name (`str`):
            Name of the module in the model.
        purpose (`str`):
            What the numbers are for. Different purposes give independent streams.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`):
            Device of the generator.

    Returns:
        `torch.Generator`
    """
    return torch.Generator(device).manual_seed(named_seed(seed, step, module_name, purpose))


def named_seed(seed: int, step: int, module_name: str, purpose: str) -> int:
    """The seed of [`named_generator`], a signed 64-bit integer."""
    digest = hashlib.sha256(f"{seed}/{step}/{module_name}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
