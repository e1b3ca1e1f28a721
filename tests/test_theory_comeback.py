"""The statements of docs/theory.md on what comes back of a forgotten row, on numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import BuildTrainer, build_model, linear_gradients, weights
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from r2f_hf import R2FStep, metrics
from r2f_hf.attacks.relearning import finetune
from r2f_hf.data.collator import ForgetRetainCollator
from r2f_hf.data.formatting import encode_example
from r2f_hf.gradients import LowRankGradient, damp_spectra
from r2f_hf.updates import RetainedInputs, watch_inputs
from r2f_hf.updates.retained_inputs import DAMPING, protect


OUT, INTO = 40, 64
# Rows to forget, those of them that an attacker has, and pairs of retain rows.
ROWS, KNOWN, RETAINED = 16, 4, 12
# A row's input has `SHARED` along a direction that all rows share, and length 1 along its own.
# Its output gradient has `SAME` along one that all rows share, and length 1 along its own.
SHARED, SAME = 1.5, 0.8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(randn(size, size, seed=seed)).Q


INPUT_AXES, OUTPUT_AXES = orthogonal(INTO, 1), orthogonal(OUT, 2)
FORGET = SHARED * INPUT_AXES[0] + INPUT_AXES[1 : 1 + ROWS]
OWN = INPUT_AXES[1 + ROWS : 1 + ROWS + RETAINED]
RETAIN = torch.cat([SHARED * INPUT_AXES[0] + OWN, SHARED * INPUT_AXES[0] - OWN])
DELTAS = SAME * OUTPUT_AXES[0] + OUTPUT_AXES[1 : 1 + ROWS]
BEFORE = randn(OUT, INTO, seed=3)


def gradient(deltas: Tensor = DELTAS, inputs: Tensor = FORGET) -> LowRankGradient:
    """The gradient `Σ δ xᵀ` of one linear module."""
    return LowRankGradient(deltas.T[None], inputs.T[None])


def dense(found: LowRankGradient) -> Tensor:
    return (found.U @ found.V.mT)[0]


def sketched(inputs: Tensor = RETAIN) -> RetainedInputs:
    """The retained inputs as the library finds them."""
    module = nn.Linear(INTO, OUT)
    with watch_inputs({"module": module}, seed=0) as sketches:
        module(inputs.float())
    return sketches["module"].result()


def projecting(inputs: Tensor = RETAIN) -> RetainedInputs:
    """Retained inputs that take away all that lies in their span: the limit of no damping, without rounding."""
    basis = torch.linalg.svd(inputs.T, full_matrices=False)
    kept = (basis.S / basis.S[0]) > 1e-9
    return RetainedInputs(basis.U[:, kept], torch.ones(int(kept.sum()), dtype=torch.float64))


def cosine(first: Tensor, second: Tensor) -> float:
    return ((first * second).sum() / (first.norm() * second.norm())).item()


def tuned(
    start: Tensor,
    inputs: Tensor,
    targets: Tensor,
    optimizer: type[torch.optim.Optimizer],
    steps: int,
    **settings: float,
) -> Tensor:
    """The weight of a linear module after fine-tuning towards outputs, by half the sum of squared errors."""
    weight = nn.Parameter(start.clone())
    own = optimizer([weight], **settings)
    for _ in range(steps):
        own.zero_grad()
        ((inputs @ weight.T - targets).square().sum() / 2).backward()
        own.step()
    return weight.detach()


def relearned(update: Tensor, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, steps: int = 600) -> Tensor:
    """What relearning the known rows adds to the weight, until they have their outputs back."""
    start, inputs = BEFORE + update, FORGET[:KNOWN]
    rate = 0.09 if optimizer is torch.optim.SGD else 0.003
    return tuned(start, inputs, inputs @ BEFORE.T, optimizer, steps, lr=rate) - start


def comeback(update: Tensor, added: Tensor) -> float:
    """The part of what the other rows lost that came back, along what they lost."""
    lost, back = FORGET[KNOWN:] @ update.T, FORGET[KNOWN:] @ added.T
    return (-(back * lost).sum() / lost.square().sum()).item()


# Harmless tuning


def test_a_protected_update_is_orthogonal_to_the_gradients_of_retain_rows() -> None:
    plain = dense(gradient())
    hard, soft = (dense(protect(gradient(), [inputs])) for inputs in (projecting(), sketched()))
    for seed in range(5):
        deltas = randn(len(RETAIN), OUT, seed=seed) + DELTAS[:1]
        G = dense(gradient(deltas, RETAIN))
        for update in (plain, soft):
            moved = RETAIN @ update.T
            torch.testing.assert_close((update * G).sum(), (moved * deltas).sum())
            assert (update * G).sum().abs() <= moved.norm() * deltas.norm()
        assert abs(cosine(hard, G)) < 1e-12
        assert abs(cosine(soft, G)) < 0.02 < 0.2 < abs(cosine(plain, G))
    # Other rows' gradients are not protected from, such as those of the rows to forget.
    assert cosine(hard, plain) > 0.1


def test_a_protected_step_of_a_real_model_is_nearly_orthogonal_to_them(
    model: PreTrainedModel, batch: dict[str, Tensor]
) -> None:
    forget = {name: values[:1] for name, values in batch.items()}
    retain = {name: values[1:] for name, values in batch.items()}
    before, gradients = weights(model), linear_gradients(model, retain)
    found = {}
    for protected in (False, True):
        wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(r=8, lora_alpha=8e-6, target_modules="all-linear"))
        r2f = R2FStep(wrapped)
        if protected:
            with r2f.protecting():
                wrapped(**retain)
        r2f.begin()
        wrapped(**forget).loss.backward()
        r2f.step(lr=0.1)
        after = weights(wrapped.unload())
        cosines = [cosine(after[f"{name}.weight"] - before[f"{name}.weight"], G) for name, G in gradients.items()]
        found[protected] = torch.tensor(cosines).square().mean().sqrt()
    assert found[True] < 0.4 * found[False]


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [(torch.optim.SGD, {"lr": 0.002, "momentum": 0.5}), (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0})],
)
def test_tuning_on_retain_rows_moves_the_original_and_the_protected_by_the_same(
    optimizer: type[torch.optim.Optimizer], settings: dict[str, float]
) -> None:
    targets = randn(len(RETAIN), OUT, seed=4)
    original = tuned(BEFORE, RETAIN, targets, optimizer, 50, **settings)
    change = original - BEFORE
    assert change.norm() > 1
    # Gradient steps stay in the span of the inputs. The steps of AdamW do not, and need not for what follows.
    outside = dense(protect(LowRankGradient(change[None], torch.eye(INTO, dtype=change.dtype)[None]), [projecting()]))
    assert (outside.norm() > 0.1) == (optimizer is torch.optim.AdamW)
    left = {}
    for name, update in (("plain", dense(gradient())), ("protected", dense(protect(gradient(), [projecting()])))):
        left[name] = tuned(BEFORE - update, RETAIN, targets, optimizer, 50, **settings) - original + update
    # AdamW divides by the root of tiny squares, which widens rounding.
    assert left["protected"].norm() < 1e-6
    assert left["plain"].norm() > 1


def test_decoupled_weight_decay_shrinks_the_update_as_it_shrinks_the_weight() -> None:
    targets, update = randn(len(RETAIN), OUT, seed=4), dense(protect(gradient(), [projecting()]))
    settings = {"lr": 0.01, "weight_decay": 0.5}
    starts = (BEFORE, BEFORE - update)
    original, protected = (tuned(start, RETAIN, targets, torch.optim.AdamW, 50, **settings) for start in starts)
    torch.testing.assert_close(original - protected, (1 - 0.01 * 0.5) ** 50 * update, atol=1e-6, rtol=1e-6)


def test_in_several_modules_only_the_orthogonality_and_the_first_outputs_stay() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(INTO, OUT, bias=False), nn.Tanh(), nn.Linear(OUT, OUT, bias=False)).double()
    forgot = copy.deepcopy(original)
    targets = randn(len(RETAIN), OUT, seed=4)
    layers, updates = (0, 2), {}
    with torch.no_grad():
        for layer in layers:
            inputs, read = (original[:layer](rows) for rows in (FORGET, RETAIN))
            updates[layer] = -0.1 * dense(protect(gradient(DELTAS, inputs), [projecting(read)]))
            forgot[layer].weight += updates[layer]
    optimizer = torch.optim.SGD(forgot.parameters(), lr=0.01)
    overlaps = []
    for _ in range(20):
        optimizer.zero_grad()
        outputs = forgot(RETAIN)
        ((outputs - targets).square().sum() / 2).backward()
        if not overlaps:
            torch.testing.assert_close(outputs, original(RETAIN))
            # The backward pass goes through changed weights, so the first module's gradient is another one.
            ((original(RETAIN) - targets).square().sum() / 2).backward()
            apart = [(forgot[layer].weight.grad - original[layer].weight.grad).norm().item() for layer in layers]
            assert apart[1] < 1e-9 < 0.1 < apart[0]
        overlaps.append([abs(cosine(updates[layer], forgot[layer].weight.grad)) for layer in layers])
        optimizer.step()
    # The first module reads the same inputs for ever. Those of the second one move.
    assert max(first for first, _ in overlaps) < 1e-12
    assert overlaps[0][1] < 1e-12 < 1e-3 < overlaps[-1][1]


def test_what_tuning_takes_back_of_a_damped_update_is_bounded() -> None:
    """`μ/(λ+μ) · (1-(1-ηλ)^t) <= μηt` of the unprotected update, in each direction of the retain inputs."""
    values, vectors = torch.linalg.eigh(RETAIN.T @ RETAIN / (RETAIN.square().sum() / INTO))
    seen = values > 1e-9 * values[-1]
    scale = (RETAIN.square().sum() / INTO).item()
    plain = dense(gradient(DELTAS, FORGET + OWN.sum(0)))
    update = dense(protect(gradient(DELTAS, FORGET + OWN.sum(0)), [sketched()]))
    steps, rate = 40, 0.9 / values[-1].item()
    after = tuned(BEFORE - update, RETAIN, RETAIN @ BEFORE.T, torch.optim.SGD, steps, lr=rate / scale)
    size = (plain @ vectors).norm(dim=0)[seen]
    taken = (after - BEFORE + update) @ vectors
    share = taken.norm(dim=0)[seen] / size
    lam = values[seen]
    left = DAMPING / (lam + DAMPING)
    torch.testing.assert_close(share, left * (1 - (1 - rate * lam) ** steps), rtol=0, atol=2e-3)
    assert (share <= DAMPING * rate * steps + 2e-3).all()
    # Without protection nearly all of it is taken back, and what stays is what the projection would have left.
    bare = tuned(BEFORE - plain, RETAIN, RETAIN @ BEFORE.T, torch.optim.SGD, 1000, lr=rate / scale)
    expected = dense(protect(gradient(DELTAS, FORGET + OWN.sum(0)), [projecting()]))
    torch.testing.assert_close(BEFORE - bare, expected, rtol=0, atol=1e-6)


# Relearning


def test_a_relearning_step_moves_other_rows_by_the_overlap_of_inputs() -> None:
    known, other = slice(0, KNOWN), slice(KNOWN, ROWS)
    weight = nn.Parameter(BEFORE.clone())
    loss = torch.nn.functional.cross_entropy(FORGET[known] @ weight.T, torch.arange(KNOWN))
    outputs = FORGET @ weight.T
    deltas = torch.autograd.functional.jacobian(
        lambda logits: torch.nn.functional.cross_entropy(logits, torch.arange(KNOWN)), outputs[known].detach()
    )
    loss.backward()
    torch.optim.SGD([weight], lr=0.5).step()
    kernel = FORGET[other] @ FORGET[known].T
    moved = FORGET[other] @ (weight.detach() - BEFORE).T
    torch.testing.assert_close(moved, -0.5 * kernel @ deltas)
    # So a row whose input is orthogonal to those of the known rows does not move.
    assert (OWN @ (weight.detach() - BEFORE).T).norm() < 1e-12 < moved.norm()


def test_and_their_loss_by_the_inner_product_of_gradients(batch: dict[str, Tensor]) -> None:
    model = build_model("qwen")
    known = {name: values[:2] for name, values in batch.items()}
    other = {name: values[2:] for name, values in batch.items()}
    mine, theirs = linear_gradients(model, known), linear_gradients(model, other)
    slope = sum((mine[name] * theirs[name]).sum().item() for name in mine)
    errors = []
    with torch.no_grad():
        start = model.eval()(**other).loss.item()
        for rate in (2e-3, 1e-3):
            moved = copy.deepcopy(model)
            for name, module in moved.named_modules():
                if name in mine:
                    module.weight -= rate * mine[name]
            errors.append(moved(**other).loss.item() - start + rate * slope)
            assert abs(errors[-1]) < 0.05 * rate * abs(slope)
    # The rest is of second order.
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("rank", [1, 3, ROWS])
def test_relearning_to_the_end_is_kernel_regression_on_what_the_known_rows_lost(rank: int) -> None:
    update = randn(OUT, rank, seed=5) @ randn(rank, INTO, seed=6) / INTO
    known, other = FORGET[:KNOWN], FORGET[KNOWN:]
    kernel = torch.linalg.pinv(known @ known.T) @ known @ other.T
    back = other @ relearned(update).T
    torch.testing.assert_close(back, -kernel.T @ (known @ update.T), rtol=0, atol=1e-9)
    # The same for any depth, and for any number of steps.
    for steps in (5, 600):
        part = comeback(update, relearned(update, steps=steps))
        assert comeback(1000 * update, relearned(1000 * update, steps=steps)) == pytest.approx(part, abs=1e-9)
    # Nothing stays once all rows are relearned.
    everything = tuned(BEFORE + update, FORGET, FORGET @ BEFORE.T, torch.optim.SGD, 2000, lr=0.04)
    torch.testing.assert_close(FORGET @ everything.T, FORGET @ BEFORE.T, rtol=0, atol=1e-6)


def parts() -> dict[str, tuple[Tensor, float]]:
    """Four updates that forget the rows, and the part of each that relearning should bring back."""
    s, d, n = SHARED**2, SAME**2, ROWS
    ceiling = KNOWN * s / (KNOWN * s + 1)
    common, alone = (n * d + 1) * (n * s + 1) ** 2 / n, 1 - 1 / n
    orthogonalised = damp_spectra([gradient()], 0.5)[0]
    h = 1 / (n * s + 1)
    return {
        "plain": (dense(gradient()), ceiling * (common - 1 / n) / (common + alone)),
        "protected": (dense(protect(gradient(), [projecting()])), ceiling * d / (d + 1)),
        "damped": (dense(orthogonalised), ceiling * s / (s + 1)),
        "both": (dense(protect(orthogonalised, [projecting()])), -ceiling * (1 - h) / (n - 1 + h)),
    }


def test_protection_and_damping_leave_less_that_rows_share() -> None:
    for name, (update, part) in parts().items():
        assert comeback(-update, relearned(-update)) == pytest.approx(part, abs=1e-6), name
    found = {name: part for name, (_, part) in parts().items()}
    # The page has these figures.
    figures = {"plain": 0.899, "protected": 0.351, "damped": 0.623, "both": -0.058}
    assert found == pytest.approx(figures, abs=5e-4)
    assert found["both"] < 0 < found["protected"] < found["damped"] < found["plain"]
    # The library's estimate of the retained inputs, with its damping, is near the limit.
    for name, gradients in (("protected", gradient()), ("both", damp_spectra([gradient()], 0.5)[0])):
        update = -dense(protect(gradients, [sketched()]))
        assert comeback(update, relearned(update)) == pytest.approx(found[name], abs=0.03)


def test_with_adamw_the_order_is_the_same_on_these_rows() -> None:
    found = {
        name: comeback(-update, relearned(-update, torch.optim.AdamW, 1500)) for name, (update, _) in parts().items()
    }
    assert found["both"] < 0.1 < found["protected"] < found["damped"] < found["plain"]


def test_on_a_real_model_less_comes_back_after_protected_steps(
    memorised_model: PreTrainedModel,
    build_trainer: BuildTrainer,
    tokenizer: PreTrainedTokenizerFast,
    forget_rows: list[dict[str, object]],
    retain_rows: list[dict[str, object]],
) -> None:
    forget, retain = (
        [encode_example(tokenizer, row["question"], row["answer"]) for row in rows]
        for rows in (forget_rows, retain_rows)
    )

    def probability(model: PreTrainedModel) -> float:
        """Mean probability per token of the rows that the attacker does not have."""
        with torch.no_grad():
            losses = [model(**ForgetRetainCollator(0)([example])).loss for example in forget[2:]]
        return torch.stack(losses).neg().exp().mean().item()

    forgotten, harmless, relearnt = {}, {}, {}
    # Without protection a step of the same length would destroy more.
    for protected, rate in ((True, 0.3), (False, 0.1)):
        model = copy.deepcopy(memorised_model)
        trainer = build_trainer(model, max_steps=20, learning_rate=rate, protect_retain=protected)
        trainer.train()
        trainer.model.unload()
        forgotten[protected] = probability(model.eval())
        for found, rows in ((harmless, retain[:4]), (relearnt, forget[:2])):
            attacked = copy.deepcopy(model).requires_grad_(True)
            finetune(attacked, [rows] * 20, 1e-3, 0, seed=0, measure=list)
            found[protected] = probability(attacked)
    assert max(forgotten.values()) < 0.05
    assert harmless[True] < 0.5 * harmless[False] and relearnt[True] < 0.5 * relearnt[False]


# Depth


@pytest.mark.parametrize("truth", [0, 7])
def test_the_gradient_of_cross_entropy_in_the_logits_is_never_longer_than_root_two(truth: int) -> None:
    for scale in (0.1, 1.0, 10.0, 1000.0):
        logits = (scale * randn(1, 8, seed=5)).requires_grad_()
        nn.functional.cross_entropy(logits, torch.tensor([truth])).backward()
        assert logits.grad.norm() <= 2**0.5
    # The bound is reached by a model that is certain of one other answer, however deep the truth lies.
    for depth in (50.0, 5000.0):
        logits = torch.zeros(1, 8, dtype=torch.float64)
        logits[0, truth - 1], logits[0, truth] = depth, -depth
        logits.requires_grad_()
        nn.functional.cross_entropy(logits, torch.tensor([truth])).backward()
        torch.testing.assert_close(logits.grad.norm().item(), 2**0.5)


def test_depth_is_not_removal() -> None:
    """Two ways to make the truth unlikely: all answers to these questions, or the truth among the answers."""
    answers, words, strength = 8, 16, 8.0
    own, shared = INPUT_AXES[1 : 1 + ROWS], INPUT_AXES[0]
    truths = torch.arange(ROWS) % answers
    # The head is fixed. What the module puts along `common` raises all answers, and no other word.
    common, head = OUTPUT_AXES[0], OUTPUT_AXES[1 : 1 + words].clone()
    head[:answers] += 2 * common
    mean = head[:answers].mean(0)
    original = 2 * torch.outer(common, shared) + strength * (head[truths] - mean).T @ own
    updates = {
        "depth": -8 * torch.outer(common, shared),
        "removal": -strength * (head[truths] - mean).T @ own,
    }

    def log_probs(weight: Tensor) -> Tensor:
        return (FORGET @ weight.T @ head.T).log_softmax(-1)

    def of_others(weight: Tensor) -> float:
        """P(truth) of the rows that the attacker does not have."""
        return log_probs(weight)[torch.arange(ROWS), truths][KNOWN:].exp().mean().item()

    def truth_ratio(weight: Tensor) -> float:
        found = log_probs(weight)
        truth = found[torch.arange(ROWS), truths].tolist()
        wrong = [
            [row[k] for k in range(answers) if k != truth] for row, truth in zip(found.tolist(), truths, strict=True)
        ]
        return metrics.load("truth_ratio").compute(predictions=truth, wrong=wrong)["closer_to_1_better"]

    def attacked(weight: Tensor, rate: float = 0.5) -> float:
        relearnt = nn.Parameter(weight.clone())
        optimizer = torch.optim.SGD([relearnt], lr=rate)
        for _ in range(100):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(FORGET[:KNOWN] @ relearnt.T @ head.T, truths[:KNOWN]).backward()
            optimizer.step()
        return of_others(relearnt.detach())

    deep, removed = (original + updates[name] for name in ("depth", "removal"))
    assert of_others(deep) < 0.01 * of_others(removed) < of_others(original)
    # Before any attack the truth against the alternatives tells which of the two will last. P(truth) does not.
    assert truth_ratio(deep) == pytest.approx(truth_ratio(original))
    assert truth_ratio(removed) == pytest.approx(1)
    # A weak attack does not get out of the deep hole. A stronger one does.
    assert attacked(deep, rate=0.001) < 0.001 < 0.9 < attacked(deep)
    assert max(attacked(removed, rate=0.001), attacked(removed)) < 0.15
