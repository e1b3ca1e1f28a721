"""LoRA pairs as probes of the full gradient: found, grouped, drawn and read."""

from .drawing import draw_probes
from .groups import ProbeGroup, group_probes, update_subspaces
from .lora_probe import LoraProbe, find_probes
from .subspace import GradientSubspace


__all__ = [
    "GradientSubspace",
    "LoraProbe",
    "ProbeGroup",
    "draw_probes",
    "find_probes",
    "group_probes",
    "update_subspaces",
]
