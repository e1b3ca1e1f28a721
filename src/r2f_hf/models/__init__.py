"""From a name to a model, from a plain model to one with probes, and which models are refused."""

from .loading import from_pretrained


__all__ = ["from_pretrained"]
