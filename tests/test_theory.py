"""The statements of docs/theory.md that no other test shows, on numbers. Each test is named after its statement."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import BuildTrainer, build_model, changed, linear_gradients, weights
from torch import Tensor
from transformers import PreTrainedModel

from r2f_hf.decoders import GradientDecoder, SketchCore, TikhonovDecoder
from r2f_hf.decoders.training import FilterPairs
from r2f_hf.gradients import LoraSketch, LowRankGradient, damp_spectra
from r2f_hf.gradients.fidelity import error_moments
from r2f_hf.probes import GradientSubspace, draw_probes
from r2f_hf.probes.subspace import DECAY


RANK = 8
PAGE = Path(__file__).parents[1] / "docs" / "theory.md"


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(randn(size, size, seed=seed)).Q


def decaying(out_features: int, in_features: int, decay: float = 0.7, seed: int = 0) -> Tensor:
    """Singular values `decay ** k` in random bases."""
    sizes = min(out_features, in_features)
    values = decay ** torch.arange(sizes, dtype=torch.float64)
    return orthogonal(out_features, seed)[:, :sizes] * values @ orthogonal(in_features, seed + 1)[:sizes]


def probes_of(G: Tensor, rank: int = RANK, step: int = 0) -> tuple[Tensor, Tensor]:
    A, B = draw_probes(0, step, "module", *G.shape, rank)
    return A.to(G.dtype), B.to(G.dtype)


def sketch_with(G: Tensor, A: Tensor, B: Tensor, held_out: int = 0) -> LoraSketch:
    return LoraSketch(Y=G @ A.mT, Z=B.mT @ G, A=A, B=B, held_out=held_out)


def sketch_of(G: Tensor, rank: int = RANK, held_out: int = 0, step: int = 0) -> LoraSketch:
    return sketch_with(G, *probes_of(G, rank, step), held_out)


def draws(G: Tensor, count: int, rank: int = RANK) -> LoraSketch:
    """Sketches of one gradient under many blind probes, with a leading dimension."""
    return LoraSketch.stack([sketch_of(G, rank, step=step) for step in range(count)])


def dense(gradient: LowRankGradient) -> Tensor:
    return gradient.U @ gradient.V.mT


def cosine(G: Tensor, X: Tensor) -> Tensor:
    return (G * X).sum() / (G.norm() * X.norm())


@pytest.fixture(scope="module")
def gradients(batch: dict[str, Tensor]) -> list[Tensor]:
    """The gradients of every linear layer of a tiny real model."""
    return [G.double() for G in linear_gradients(build_model(), batch).values()]


# The missing block


def test_the_known_blocks_lower_the_error_of_any_estimate(gradients: list[Tensor]) -> None:
    for G in gradients:
        core = SketchCore.of(sketch_of(G))
        Pa, Pb = core.right_basis @ core.right_basis.T, core.left_basis @ core.left_basis.T

        def project(X: Tensor, G: Tensor = G, Pa: Tensor = Pa, Pb: Tensor = Pb) -> Tensor:
            return X + (G - X) @ Pa + Pb @ (G - X) @ (torch.eye(len(Pa), dtype=Pa.dtype) - Pa)

        phi = TikhonovDecoder(0.1).gate(core) * core.inverse_sigma
        nystrom = core.right @ (core.Q * phi) @ core.P.T @ core.left.T
        # What the decoders return is the projection of the filtered Nyström form.
        torch.testing.assert_close(dense(core.reconstruct(phi)), project(nystrom))
        for X in (nystrom, torch.zeros_like(G), G.norm() * randn(*G.shape) / G.numel() ** 0.5, 0.1 * G):
            assert (G - project(X)).norm() <= (G - X).norm()
        # The cosine of an estimate can fall, unless it is scaled first to be as near to G as it can be.
        assert cosine(G, project(0.1 * G)) < cosine(G, 0.1 * G)
        nearest = nystrom * (G * nystrom).sum() / nystrom.square().sum()
        assert cosine(G, project(nearest)) >= cosine(G, nystrom)


@pytest.mark.parametrize("rank", [1, 4, 6])
@pytest.mark.parametrize("held_out", [0, 2])
def test_the_plain_inverse_is_exact_at_equal_ranks(rank: int, held_out: int) -> None:
    G = randn(40, rank, seed=1) @ randn(rank, 24, seed=2)
    core = SketchCore.of(sketch_of(G, held_out=held_out))
    found = dense(core.reconstruct(core.inverse_sigma))
    torch.testing.assert_close(found, G, atol=1e-9 * G.norm().item(), rtol=0)
    assert (dense(core.reconstruct(0 * core.sigma)) - G).norm() > 0.1 * G.norm()


def test_the_size_of_a_gaussian_cores_inverse() -> None:
    """`‖C⁺‖² = Σ 1/dist²`, whose mean is `k / (m - 1)` with `m` more rows than columns: infinite for a square core."""
    k, m = 5, 6
    C = randn(4000, k + m, k)
    sizes = torch.linalg.pinv(C).square().sum((-2, -1))
    distances = []
    for j in range(k):
        others = torch.linalg.qr(C[..., [n for n in range(k) if n != j]]).Q
        column = C[..., j : j + 1]
        distances.append((column - others @ (others.mT @ column)).square().sum((-2, -1)))
    torch.testing.assert_close(sizes, (1 / torch.stack(distances)).sum(0))
    assert sizes.mean().item() == pytest.approx(k / (m - 1), rel=0.03)
    square = torch.linalg.inv(randn(4000, k, k)).square().sum((-2, -1))
    assert square.mean() > 100 * sizes.mean()


def test_what_blind_probes_know_depends_on_the_shape() -> None:
    """`E K = 1 - (1 - r/o)(1 - r/i)`; with `B = 0` it is `r/i`."""
    G = decaying(40, 30)
    sketch = draws(G, 800)
    for B, expected in ((sketch.B, 1 - (1 - RANK / 40) * (1 - RANK / 30)), (0 * sketch.B, RANK / 30)):
        core = SketchCore.of(sketch_with(G, sketch.A, B))
        known = core.reconstruct(torch.zeros_like(core.sigma))
        energy = known.norm().square() / G.square().sum()
        assert energy.mean().item() == pytest.approx(expected, abs=4 * energy.std().item() / 800**0.5)
        # The cosine of only the known blocks is √K.
        cosines = (dense(known) * G).sum((-2, -1)) / (known.norm() * G.norm())
        torch.testing.assert_close(cosines, energy.sqrt())


def test_the_product_of_the_probes_has_energy_r() -> None:
    """`E ‖BA‖² = r`, whatever the module's width."""
    for shape in ((40, 30), (400, 20)):
        sketch = draws(randn(*shape), 200)
        sizes = (sketch.B @ sketch.A).square().sum((-2, -1))
        assert sizes.mean().item() == pytest.approx(RANK, abs=4 * sizes.std().item() / 200**0.5)


# The filter


def test_rotating_a_gradient_is_rotating_the_probes(gradients: list[Tensor]) -> None:
    for G in gradients:
        left, right = orthogonal(G.shape[0], 3), orthogonal(G.shape[1], 4)
        A, B = probes_of(G)
        turned = left @ G @ right.T
        mine = FilterPairs.of(sketch_with(turned, A, B, held_out=2), turned)
        other = FilterPairs.of(sketch_with(G, A @ right, left.T @ B, held_out=2), G)
        for name in FilterPairs.__dataclass_fields__:
            torch.testing.assert_close(getattr(mine, name), getattr(other, name), atol=1e-6, rtol=1e-6)


def test_the_law_depends_on_the_singular_values_alone() -> None:
    count = 500

    def moments(G: Tensor, first: int) -> tuple[Tensor, Tensor]:
        pairs = FilterPairs.cat([FilterPairs.of(sketch_of(G, step=first + step), G) for step in range(count)])
        seen = torch.cat([pairs.features.flatten(1), pairs.inner, pairs.known[:, None]], dim=1)
        return seen.mean(0), seen.var(0) / count

    def apart(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
        """The largest difference of two means, in standard errors."""
        error = (first[1] + second[1]).sqrt().clamp_min(1e-9)
        return ((first[0] - second[0]).abs() / error).max().item()

    diagonal = torch.zeros(40, 30, dtype=torch.float64)
    diagonal.diagonal().copy_(0.7 ** torch.arange(30))
    here = moments(diagonal, 0)
    assert apart(here, moments(decaying(40, 30, 0.7), count)) < 4
    # Another spectrum is another law.
    assert apart(here, moments(decaying(40, 30, 0.8), count)) > 20


@pytest.fixture(scope="module")
def pairs(gradients: list[Tensor]) -> FilterPairs:
    return FilterPairs.cat([FilterPairs.of(sketch_of(G, step=step), G) for G in gradients for step in range(4)])


def test_gates_that_are_near_have_near_cosines(
    pairs: FilterPairs,
) -> None:
    lipschitz = (pairs.gram.abs().sum((-2, -1)) / pairs.known).sqrt()
    for seed in range(20):
        gates = torch.rand(2, *pairs.inner.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        gates[1] = gates[0] + 0.5 ** (seed % 10) * (gates[1] - gates[0])
        change = gates[1] - gates[0]
        energies = [pairs.known + torch.einsum("ni,nij,nj->n", gate, pairs.gram, gate) for gate in gates]
        distance = torch.einsum("ni,nij,nj->n", change, pairs.gram, change).clamp_min(0).sqrt()
        moved = (pairs.cosine(gates[1]) - pairs.cosine(gates[0])).abs()
        near, far = distance / (energies[0] * energies[1]) ** 0.25, lipschitz * change.abs().amax(-1)
        assert (moved <= near + 1e-12).all() and (near <= far + 1e-12).all()


def test_missing_the_best_gate_costs_the_squared_distance(
    pairs: FilterPairs,
) -> None:
    best = torch.linalg.solve(pairs.gram, pairs.inner)
    highest = pairs.cosine(best)
    torch.testing.assert_close(highest, (pairs.known + (pairs.inner * best).sum(-1)).sqrt())
    for seed in range(20):
        gate = best + 0.5 ** (seed % 10) * randn(*best.shape, seed=seed)
        change = gate - best
        cost = torch.einsum("ni,nij,nj->n", change, pairs.gram, change)
        excess = highest - pairs.cosine(gate)
        assert (excess >= -1e-12).all() and (excess <= cost / (2 * pairs.known) + 1e-12).all()


# The step


def test_the_relative_error_bounds_the_cosine(gradients: list[Tensor]) -> None:
    for G in gradients:
        core = SketchCore.of(sketch_of(G))
        for scale in (0.0, 0.3, 1.0):
            found = dense(core.reconstruct(scale * core.inverse_sigma))
            cos, error = cosine(G, found), (G - found).norm() / G.norm()
            assert cos.square() >= 1 - error.square() - 1e-9
            assert error >= 1 or cos > 0
            if scale == 0:
                assert cos.square().item() == pytest.approx(1 - error.square().item())


@pytest.mark.parametrize("curvature", ["equal", "unequal"])
def test_the_guaranteed_decrease_on_a_quadratic(curvature: str) -> None:
    start = decaying(40, 30)
    largest = 3.0
    curvatures = torch.full_like(start, largest)
    if curvature == "unequal":
        curvatures = largest * torch.rand(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        curvatures[0, 0] = largest

    def loss(W: Tensor) -> float:
        return (curvatures * W.square()).sum().item() / 2

    G = curvatures * start
    found = dense(TikhonovDecoder(0.1).decode(sketch_of(G)))
    cos, size = cosine(G, found).item(), G.norm().item()
    assert 0.3 < cos < 1

    def after(length: float) -> float:
        return loss(start - length * found / found.norm())

    for length in (0.1, 0.5, 1.0, 1.5, 1.9):
        length *= cos * size / largest
        assert after(length) <= loss(start) - length * cos * size + largest * length**2 / 2 + 1e-9
    assert loss(start) - after(cos * size / largest) >= cos**2 * size**2 / (2 * largest) - 1e-9
    if curvature == "equal":
        # The guarantee is all that there is: the bound is attained, and a longer step raises the loss.
        assert loss(start) - after(cos * size / largest) == pytest.approx(cos**2 * size**2 / (2 * largest))
        assert after(2.01 * cos * size / largest) > loss(start)


def test_the_cosine_of_several_modules(gradients: list[Tensor]) -> None:
    def weigh(found: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The cosine of the whole update, and for each module its cosine and the two relative norms."""
        whole, guess = (torch.cat([X.flatten() for X in matrices]) for matrices in (gradients, found))
        cosines = torch.stack([cosine(G, X) for G, X in zip(gradients, found, strict=True)])
        true, decoded = (torch.stack([X.norm() for X in matrices]) for matrices in (gradients, found))
        return cosine(whole, guess), cosines, true / true.norm(), decoded / decoded.norm()

    decoded = [dense(TikhonovDecoder(0.1).decode(sketch_of(G))) for G in gradients]
    total, cosines, true, guess = weigh(decoded)
    torch.testing.assert_close(total, (true * guess * cosines).sum())
    errors = torch.stack([(G - X).norm() / G.norm() for G, X in zip(gradients, decoded, strict=True)])
    assert total >= (1 - (true * errors).square().sum()).sqrt()
    # Where the error of each module is orthogonal to its reconstruction, it is a root mean square.
    cores = [SketchCore.of(sketch_of(G)) for G in gradients]
    total, cosines, true, _ = weigh([dense(core.reconstruct(0 * core.sigma)) for core in cores])
    torch.testing.assert_close(total, (true * cosines).square().sum().sqrt())


def test_a_damped_step_gains_less_of_its_own_batch(gradients: list[Tensor]) -> None:
    for G in gradients:
        U, S, Vt = torch.linalg.svd(G, full_matrices=False)
        s = S[(S / S[0]) > 1e-3]
        kept = LowRankGradient(U[:, : len(s)] * s, Vt[: len(s)].T)
        cosines = []
        for damping in (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0):
            found = dense(damp_spectra([kept], damping)[0])
            powers = s ** (1 - 2 * damping)
            torch.testing.assert_close(found.norm(), s.norm())
            # Each direction has this share of the squared norm: its energy without damping, and 1/r with 0.5.
            along = torch.einsum("or,oi,ri->r", U[:, : len(s)], found, Vt[: len(s)])
            torch.testing.assert_close(along.square() / found.square().sum(), powers.square() / powers.square().sum())
            expected = (s * powers).sum() / (s.norm() * powers.norm())
            torch.testing.assert_close(cosine(dense(kept), found), expected)
            cosines.append(expected.item())
            if damping == 0.5:
                torch.testing.assert_close(expected, s.sum() / (len(s) ** 0.5 * s.norm()))
        assert cosines[0] == pytest.approx(1)
        assert all(first > second > 0 for first, second in pairwise(cosines))


class Nothing(GradientDecoder):
    """Decodes every sketch to zero."""

    def decode(self, sketch: LoraSketch) -> LowRankGradient:
        return LowRankGradient(torch.zeros_like(sketch.Y), torch.zeros_like(sketch.Z.mT))


def test_a_reconstruction_of_zero_writes_nothing(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(model, max_steps=1)
    trainer.r2f_callback.options["decoder"] = Nothing()
    before = weights(model)
    trainer.train()
    assert not changed(before, weights(model))


# The measurement


def test_held_out_rows_are_unbiased_with_known_variance() -> None:
    G = decaying(40, 30)
    found = TikhonovDecoder(0.3).decode(sketch_of(G))
    E = G - dense(found)
    count, n = 20_000, G.shape[1]
    rows = randn(count, n, seed=5) / n**0.5
    for M in (E.T @ E, E.T @ dense(found)):
        S = (M + M.T) / 2
        values = n * torch.einsum("ci,ij,cj->c", rows, M, rows)
        assert values.mean().item() == pytest.approx(M.trace().item(), abs=5 * values.std().item() / count**0.5)
        assert values.var().item() == pytest.approx(2 * S.square().sum().item(), rel=0.1)
        apart = n * torch.einsum("ci,ij,cj->c", rows[::2], S, rows[1::2])
        assert apart.square().mean().item() == pytest.approx(S.square().sum().item(), rel=0.1)
    # The estimator reads these values from a sketch.
    sketch = sketch_with(G, torch.cat([probes_of(G)[0], rows[:1000]]), probes_of(G)[1], held_out=1000)
    S = (E.T @ dense(found) + dense(found).T @ E) / 2
    expected = (
        found.norm(),
        E.square().sum(),
        (E * dense(found)).sum(),
        (E.T @ E).square().sum(),
        (E.T @ E * S).sum(),
        S.square().sum(),
    )
    size = found.norm().item() ** 2
    for mine, true in zip(error_moments([sketch], [found])[0].tolist(), expected, strict=True):
        assert mine == pytest.approx(true.item(), abs=0.05 * size)


def shared(count: int, seed: int = 0) -> list[Tensor]:
    """Gradients of one row and column space of 12 dimensions, and noise."""
    left, right = randn(60, 12, seed=seed), randn(12, 40, seed=seed + 1)
    return [left @ randn(12, 12, seed=10 + k) @ right + 0.3 * randn(60, 40, seed=50 + k) for k in range(count)]


def test_warm_rows_misstate_the_error() -> None:
    subspace = None
    ratios: dict[str, list[float]] = {"warm": [], "random": []}
    for step, G in enumerate(shared(30)):
        A, B = probes_of(G, step=step)
        if subspace is not None:
            random = A
            A, B = subspace.probes(A, B, random_rows=0)
            for name, last in (("warm", A[-2:]), ("random", random[-2:])):
                sketch = sketch_with(G, torch.cat([A[:-2], last]), B, held_out=2)
                found = TikhonovDecoder(0.1).decode(sketch)
                error = (G - dense(found)).square().sum().item()
                ratios[name].append(error_moments([sketch], [found])[0, 1].item() / error)
        subspace = GradientSubspace.after(sketch_with(G, A, B), subspace)
    means = {name: sum(found) / len(found) for name, found in ratios.items()}
    assert means["random"] == pytest.approx(1, abs=0.15)
    assert abs(means["warm"] - 1) > 0.5


# Warm probes


def test_the_state_is_a_truncated_moving_average() -> None:
    subspace = None
    for step, G in enumerate(shared(4)):
        sketch = sketch_of(G, step=step)
        new = GradientSubspace.after(sketch, subspace)
        for side, data in (("left", sketch.Y), ("right", sketch.Z.T)):
            moving = data @ data.T / data.square().sum()
            if subspace is not None:
                moving = moving + DECAY * getattr(subspace, side) @ getattr(subspace, side).T
            values, vectors = torch.linalg.eigh(moving)
            best = vectors[:, -RANK:] * values[-RANK:] @ vectors[:, -RANK:].T
            torch.testing.assert_close(getattr(new, side) @ getattr(new, side).T, best, atol=1e-9, rtol=0)
        subspace = new


def test_warm_probes_find_a_constant_gradients_directions() -> None:
    G = decaying(60, 40)
    leading = torch.linalg.svdvals(G)[:RANK].norm() / G.norm()
    subspace, seen = None, []
    for step in range(20):
        A, B = probes_of(G, step=step)
        if subspace is not None:
            A, B = subspace.probes(A, B, random_rows=2)
        seen.append(((torch.linalg.qr(B).Q.T @ G).norm() / G.norm()).item())
        subspace = GradientSubspace.after(sketch_with(G, A, B, held_out=2), subspace)
    assert seen[0] < 0.6
    assert seen[-1] == pytest.approx(leading.item(), abs=1e-3)


@pytest.mark.parametrize("held_out", [0, 2])
def test_new_directions_enter_through_the_random_rows(held_out: int) -> None:
    old, new = torch.zeros(60, 40, dtype=torch.float64), torch.zeros(60, 40, dtype=torch.float64)
    old[:30, :20], new[30:, 20:] = randn(30, 20, seed=1), 3 * randn(30, 20, seed=2)
    subspace = None
    for step in range(12):
        G = old if step == 0 else old + new
        A, B = probes_of(G, step=step)
        if subspace is not None:
            A, B = subspace.probes(A, B, held_out)
        subspace = GradientSubspace.after(sketch_with(G, A, B, held_out), subspace)
    seen = (B.T @ new).norm() / new.norm()
    assert seen > 0.3 if held_out else seen < 1e-6


# The page


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, function in named:
        assert f"def {function}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), (file, function)
