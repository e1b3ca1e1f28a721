"""How wrong a reconstruction is, measured without the full gradient."""

from __future__ import annotations

from typing import NamedTuple

from .low_rank import LowRankGradient
from .sketch import LoraSketch


class Fidelity(NamedTuple):
    """
    Estimated quality of one module's reconstruction at one step.

    Args:
        relative_error (`float`):
            Estimate of `‖G - Ĝ‖ / ‖G‖` (Frobenius).
        cosine (`float`):
            Estimate of `<G, Ĝ> / (‖G‖ ‖Ĝ‖)`.
    """

    relative_error: float
    cosine: float


def estimate_fidelity(sketch: LoraSketch, reconstruction: LowRankGradient) -> Fidelity:
    """
    Estimate a reconstruction's relative error and cosine from the sketch's held-out rows.

    For `a ~ N(0, I/n)` that the decoder never saw, `n E‖(G - Ĝ)a‖² = ‖G - Ĝ‖²`, `n E‖Ga‖² = ‖G‖²` and
    `n E<Ga, Ĝa> = <G, Ĝ>`, and `Ga` is a column of the right sketch: no further backward pass is needed. The squared
    error and the inner product are unbiased; the ratios reported here are consistent in the number of held-out rows.

    Args:
        sketch ([`LoraSketch`]):
            Sketch with `held_out > 0`.
        reconstruction ([`LowRankGradient`]):
            What a decoder made of it.

    Returns:
        [`Fidelity`]: A zero gradient that was decoded to zero counts as exact.
    """
    rows = sketch.A[sketch.decodable :].T
    truth = sketch.Y[:, sketch.decodable :]
    guess = reconstruction.matmul(rows)
    unit = sketch.A.shape[1] / sketch.held_out
    norm = (unit * truth.square().sum()).sqrt().item()
    guess_norm = reconstruction.norm().item()
    if norm == 0.0 or guess_norm == 0.0:
        exact = norm == guess_norm
        return Fidelity(relative_error=0.0 if exact else 1.0, cosine=1.0 if exact else 0.0)
    error = (unit * (truth - guess).square().sum()).sqrt().item()
    inner = (unit * (truth * guess).sum()).item()
    return Fidelity(relative_error=error / norm, cosine=max(-1.0, min(1.0, inner / (norm * guess_norm))))
