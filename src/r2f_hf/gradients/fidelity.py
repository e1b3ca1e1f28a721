"""How wrong a reconstruction is, measured without the full gradient."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import gammaincinv
from torch import Tensor

from .linalg import on_all, on_cpu
from .low_rank import LowRankGradient
from .sketch import LoraSketch


logger = logging.getLogger(__name__)

# Part of all cases in which an interval contains the true value.
COVERAGE = 0.9


class Fidelity(NamedTuple):
    """
    Estimated quality of one module's reconstruction at one step, with 90% intervals.

    Args:
        cosine (`float`):
            Estimate of `<G, Ĝ> / (‖G‖ ‖Ĝ‖)`.
        cosine_low (`float`):
            Lower end of the cosine's interval.
        cosine_high (`float`):
            Upper end of the cosine's interval.
        relative_error (`float`):
            Estimate of `‖G - Ĝ‖ / ‖G‖` (Frobenius).
        relative_error_low (`float`):
            Lower end of the error's interval.
        relative_error_high (`float`):
            Upper end of the error's interval.
    """

    cosine: float
    cosine_low: float
    cosine_high: float
    relative_error: float
    relative_error_low: float
    relative_error_high: float


def estimate_fidelity(sketches: Sequence[LoraSketch], reconstructions: Sequence[LowRankGradient]) -> list[Fidelity]:
    r"""
    Estimate the relative error and the cosine of reconstructions from the sketches' held-out rows.

    Let `a ~ N(0, I/n)` be a row that the decoder never saw, and `E = G - Ĝ` the error. Then `n 𝔼‖Ea‖² = ‖E‖²` and
    `n 𝔼<Ea, Ĝa> = <E, Ĝ>`. `Ea` is a held-out column of the right sketch minus `Ĝa`, so no further backward pass is
    needed. `‖Ĝ‖` is known exactly. Only the error is estimated, and

        cos = (‖Ĝ‖² + <E, Ĝ>) / (‖Ĝ‖ ‖G‖),    ‖G‖² = ‖Ĝ‖² + 2 <E, Ĝ> + ‖E‖²

    Both estimated terms are unbiased. To first order, an estimate is off by `n aᵀMa - tr M`. Here `M` is the mixture
    of `EᵀE` and `EᵀĜ` that the derivatives of the estimate give. Two held-out rows measure its variance:
    `n² 𝔼(aᵀMa')² = ‖M‖²`. Two rows say little about one module, so this is pooled over all modules of the call,
    relative to the size of each module. `1 - cos` and the squared relative error are treated as scaled chi-squared
    variables, with the degrees of freedom that give this variance (Satterthwaite). Their quantiles are the intervals.

    Args:
        sketches (`Sequence[LoraSketch]`):
            Sketches of one or of several modules each, with `held_out >= 2`: random rows that no decoder has used.
        reconstructions (`Sequence[LowRankGradient]`):
            The decoded gradient of each sketch.

    Returns:
        `list[Fidelity]`: One estimate per module, in their order. A zero gradient that was decoded to zero counts as
        exact.
    """
    return fidelity_of(error_moments(sketches, reconstructions), sketches[0].held_out)


def fidelity_of(moments: Tensor, count: int) -> list[Fidelity]:
    """[`estimate_fidelity`] from the [`error_moments`] of `count` held-out rows."""
    guess, error, inner, *spreads = moments.detach().numpy().T
    known, whole = guess**2, squared_norm(guess, error, inner)

    # 1 - cos, with its derivatives in ‖E‖² and <E, Ĝ>.
    cosine = np.where((guess == 0) & (error == 0), 1.0, np.clip(ratio(known + inner, guess * np.sqrt(whole)), -1, 1))
    slopes = (-ratio(cosine, 2 * whole), ratio(np.ones_like(guess), guess * np.sqrt(whole)) - ratio(cosine, whole))
    spread = pooled_variance(slopes, guess, error, spreads, count)
    distance_low, distance_high = chi_squared_interval(1 - cosine, spread)

    # ‖E‖² / ‖G‖², likewise.
    squared = np.where((whole == 0) & (error > 0), 1.0, ratio(error, whole))
    slopes = (ratio(1 - squared, whole), -ratio(2 * squared, whole))
    squared_low, squared_high = chi_squared_interval(squared, pooled_variance(slopes, guess, error, spreads, count))

    columns = (
        cosine,
        np.clip(1 - distance_high, -1, 1),
        1 - distance_low,
        np.sqrt(squared),
        np.sqrt(squared_low),
        np.sqrt(squared_high),
    )
    return [Fidelity(*map(float, row)) for row in zip(*columns, strict=True)]


def error_moments(sketches: Sequence[LoraSketch], reconstructions: Sequence[LowRankGradient]) -> Tensor:
    """
    Estimate from the held-out rows what [`estimate_fidelity`] needs.

    Returns:
        `torch.Tensor` of shape `(modules, 6)`, fp64, on the CPU: `‖Ĝ‖`, then estimates of `‖E‖²`, `<E, Ĝ>`, `‖EᵀE‖²`,
        `<EᵀE, S>` and `‖S‖²`, where `S` is the symmetric part of `EᵀĜ`.
    """
    return on_cpu(list(local_moments(sketches, reconstructions)))


def local_moments(sketches: Sequence[LoraSketch], reconstructions: Sequence[LowRankGradient]) -> list[Tensor]:
    """[`error_moments`] of each sketch, where it lies."""
    products = []
    for sketch, reconstruction in zip(sketches, reconstructions, strict=True):
        # As rows: on a CPU, products with two columns take several times as long.
        guesses = sketch.A[..., sketch.decodable :, :] @ reconstruction.V @ reconstruction.U.mT
        errors = sketch.Y[..., sketch.decodable :].mT.contiguous() - guesses
        unit = sketch.A.shape[-1]
        products.append((unit * errors @ errors.mT, unit * errors @ guesses.mT, reconstruction.norm()))
    return [moments.reshape(-1, 6) for (moments,) in on_all(moments_of, products)]


def moments_of(squares: Tensor, inner: Tensor, norm: Tensor) -> tuple[Tensor]:
    """
    [`error_moments`] from inner products of the held-out rows' errors and guesses.

    Args:
        squares (`torch.Tensor` of shape `(modules, held_out, held_out)`):
            Inner products of the errors, `n aᵀEᵀEa'`.
        inner (`torch.Tensor` of shape `(modules, held_out, held_out)`):
            Inner products of the errors with the guesses, `n aᵀEᵀĜa'`.
        norm (`torch.Tensor` of shape `(modules,)`):
            `‖Ĝ‖`.
    """
    squares, inner = squares.double(), inner.double()
    inner = (inner + inner.mT) / 2
    count = squares.shape[-1]
    products = torch.stack([squares, inner, squares * squares, squares * inner, inner * inner], dim=1)
    same_row = products.diagonal(dim1=-2, dim2=-1).sum(-1)
    different_rows = (products.sum((-2, -1)) - same_row) / (count * (count - 1))
    return (torch.cat([norm.double().unsqueeze(-1), same_row[:, :2] / count, different_rows[:, 2:]], dim=-1),)


def pooled_variance(
    slopes: tuple[np.ndarray, np.ndarray], guess: np.ndarray, error: np.ndarray, spreads: list[np.ndarray], count: int
) -> np.ndarray:
    """
    Variance of each module's estimate, from a spread that is pooled over all modules.

    Args:
        slopes (`tuple[np.ndarray, np.ndarray]`):
            Derivatives of the estimate in `‖E‖²` and in `<E, Ĝ>`, each of shape `(modules,)`.
        guess (`np.ndarray` of shape `(modules,)`):
            `‖Ĝ‖`.
        error (`np.ndarray` of shape `(modules,)`):
            Estimates of `‖E‖²`.
        spreads (`list[np.ndarray]`):
            Estimates of `‖EᵀE‖²`, `<EᵀE, S>` and `‖S‖²`, see [`error_moments`].
        count (`int`):
            Number of held-out rows.

    Returns:
        `np.ndarray` of shape `(modules,)`.
    """
    by_error, by_inner = slopes
    # ‖M‖² of each module, and its largest possible value for an error and a reconstruction of this size.
    spread = by_error**2 * spreads[0] + 2 * by_error * by_inner * spreads[1] + by_inner**2 * spreads[2]
    largest = by_error**2 * error**2 + by_inner**2 * error * guess**2
    part = ratio(spread, largest).mean()
    # The same rows measure the error's size and its spread. If the size came out too large, the spread comes out too
    # small.
    part = part / max(1 - 2 * part / count, 0.1)
    # With few rows, a size that came out too small also makes the interval too short. So the spread of the size itself
    # is added, as in a prediction from `count` samples.
    return (1 + 1 / count) * 2 * part * largest / count


def chi_squared_interval(estimate: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 90% interval of a positive quantity whose estimate is a scaled chi-squared variable."""
    degrees = np.clip(ratio(2 * estimate**2, variance), 1, 1e6)
    tail = (1 - COVERAGE) / 2
    return tuple(estimate * degrees / (2 * gammaincinv(degrees / 2, q)) for q in (1 - tail, tail))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`numerator / denominator`, and 0 where both are 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0)


def squared_norm(guess: np.ndarray, error: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """`‖G‖²`; never less than the part of it that is known, `<G, Ĝ>² / ‖Ĝ‖²`."""
    return np.maximum(guess**2 + 2 * inner + error, ratio((guess**2 + inner) ** 2, guess**2))


def check_min_fidelity(min_fidelity: float | None, held_out: int) -> None:
    """
    Refuse settings under which fidelity cannot be measured.

    Raises:
        `ValueError`: If one row is held out, if `min_fidelity` asks for a measurement and no row is held out, or if
            `min_fidelity` is not above 0 and below 1.
    """
    if held_out == 1:
        raise ValueError("held_out=1 cannot measure how sure its own estimate is. Hold out at least 2 rows, or 0.")
    if min_fidelity is not None and not 0 < min_fidelity < 1:
        raise ValueError(f"`min_fidelity` is a cosine, above 0 and below 1, got {min_fidelity:g}.")
    if min_fidelity is not None and not held_out:
        raise ValueError(
            f"min_fidelity={min_fidelity:g} needs rows that measure the reconstruction. Set `held_out` to 2 or more."
        )


def fidelity_metrics(estimates: Iterable[Fidelity]) -> dict[str, float]:
    """The metrics that a step logs about the fidelity of its modules."""
    cosines, errors = zip(*((estimate.cosine, estimate.relative_error) for estimate in estimates), strict=True)
    return {
        "r2f/fidelity": float(np.mean(cosines)),
        "r2f/fidelity_min": min(cosines),
        "r2f/relative_error": float(np.mean(errors)),
    }


def check_fidelity(estimates: Mapping[str, Fidelity], min_fidelity: float, stops: bool, step: int) -> Tensor:
    """
    Find the modules whose reconstructions are faithful enough to be written.

    Args:
        estimates (`Mapping[str, Fidelity]`):
            The estimate of each module.
        min_fidelity (`float`):
            The least cosine.
        stops (`bool`):
            Whether a module below the least cosine raises an error.
        step (`int`):
            Number of the step, for the messages.

    Returns:
        `torch.Tensor` of shape `(modules,)`: Booleans.

    Raises:
        `RuntimeError`: If `stops` is set and a module is below the least cosine. The message names the worst modules.
    """
    faithful = torch.tensor([estimate.cosine >= min_fidelity for estimate in estimates.values()])
    if stops and not faithful.all():
        low = sorted(estimates.items(), key=lambda item: item[1].cosine)[: int((~faithful).sum())]
        worst = ", ".join(f"{name} ({estimate.cosine:.2f})" for name, estimate in low[:5])
        raise RuntimeError(
            f"Step {step}: the reconstructions of {len(low)} of {len(estimates)} modules have an estimated cosine to "
            f"the full gradient below min_fidelity={min_fidelity:g}: {worst}. The weights were left as they were "
            "before this step. Raise `rank`, take more examples per step (`per_device_train_batch_size`, "
            "`gradient_accumulation_steps`), leave these modules out (`exclude_modules`), or lower `min_fidelity`."
        )
    if not faithful.any():
        logger.warning(
            "Step %d: no module reaches min_fidelity=%g, so the weights were left alone. Raise `rank`, take more "
            "examples per step, or lower `min_fidelity`.",
            step,
            min_fidelity,
        )
    return faithful


def refuse_nonfinite(names: Sequence[str], finite: Tensor, stops: bool, step: int) -> None:
    """
    Log that a step is skipped because gradients are NaN or infinite, or raise an error.

    Args:
        names (`Sequence[str]`):
            Names of all modules.
        finite (`torch.Tensor` of shape `(modules,)`):
            Whether the gradient of each is finite.
        stops (`bool`):
            Whether to raise an error.
        step (`int`):
            Number of the step, for the message.

    Raises:
        `RuntimeError`: If `stops` is set.
    """
    bad = [name for name, is_finite in zip(names, finite.tolist(), strict=True) if not is_finite]
    message = (
        f"Step {step}: the gradients of {len(bad)} modules are NaN or infinite (first: {bad[0]}); the weights were "
        "left as they were before this step."
    )
    if stops:
        raise RuntimeError(f"{message} Lower `learning_rate`, or set `on_bad_gradient` to skip such steps.")
    logger.warning(message)
