"""r2f-hf: Recover-to-Forget unlearning for causal language models, as a Hugging Face Trainer."""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0.dev0"

# Imported when first asked for, so that `import r2f_hf` and `r2f --help` do not wait for torch.
_EXPORTS = {"R2FCallback": "callback", "R2FConfig": "config", "R2FStep": "step", "R2FTrainer": "trainer"}

__all__ = ["R2FCallback", "R2FConfig", "R2FStep", "R2FTrainer", "__version__"]

if TYPE_CHECKING:
    from .callback import R2FCallback
    from .config import R2FConfig
    from .step import R2FStep
    from .trainer import R2FTrainer


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
