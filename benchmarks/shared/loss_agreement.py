"""Our training losses on the inputs for which other projects' own code has given values, entry by entry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r2f_hf.data.collator import ForgetRetainCollator
from r2f_hf.data.formatting import IGNORE_INDEX, Encoded
from r2f_hf.objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES, ForgetObjective, build_objective
from r2f_hf.training.loss import COUNTED, count_items, forget_retain_loss
from r2f_hf.training.references import (
    References,
    reference_hidden_states,
    reference_token_log_probs,
    reference_top_tokens,
)

from .agreement import GOLD, PADDING, Reference


LOSSES = re.compile(
    r".*\.loss\.(?!model_.\.(rows|passages)$).*(?<!\.rows)(?<!\.passages)"
    r"|formula\.(dpo_idk|jensun|kl_retain|pdu|rmu|tnpo|undial).*|ou\.pdu\..*|input\..*|loku\.bug.*|jensun\.bug.*"
)
METRICS = re.compile(r"ou\.(mia|privleak|rel_diff)\..*|.*\.mia\..*")

# Entries that no loss of ours answers to, and why.
EVERYWHERE = "their mean is over prompts and padding too; ours is over labelled tokens, see `formula.*`"
NO_LOSS: dict[str, str] = {
    r"ou\.loss\.undial\..*|undial\..*|tofu\.loss\.KL\..*|geffect\.loss\.(KL|npo_kl)_.*|npo_repo\.loss\.npo_KL\..*"
    r"|altpo\.loss\.npo_2\..*": EVERYWHERE,
    r"ou\.loss\.rmu_.*": "their mean over rows of sums, times the mean over rows of 1/tokens; see `formula.rmu_*`",
    r"geffect\.loss\.rmu_.*": "the outputs that predict the answer's tokens; ours are those that have read them",
    r"muse\.loss\.(npo.*|ga_klr)\..*": "a fault of theirs: raw logits in the place of log-probabilities",
    r"geffect\.loss\.tnpo_.*": "a fault of theirs: 1e-5 that is not small against p^beta; see `formula.tnpo_*`",
    r"geffect\.loss\.wtnpo_.*|npo_repo\.loss\.kto_.*": "an objective that is not here",
    r"tofu\.loss\.dpo\..*|jensun\.bug\.import": "an error of theirs in the place of a number",
    r"loku\.bug.*": "a fault of theirs: logits from 0 to 1 are taken for probabilities",
}


@dataclass(frozen=True)
class Term:
    """A forget objective with its weight, its options, and the set that its second answers are from."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    second: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Case:
    """
    What an entry is made of.

    Args:
        terms (`tuple[Term, ...]`):
            The forget part.
        retain (`str`, *optional*):
            The retain objective.
        retain_options (`Mapping`, *optional*):
            Its options.
        retain_weight (`float`, *optional*, defaults to `1.0`):
            Its weight.
        parts (`tuple[str, ...]`, *optional*):
            What of the entry is compared.
        gradients_only (`bool`, *optional*):
            Whether the losses are the same only up to a constant, so that the values of their sums are not compared.
        without_first (`bool`, *optional*):
            Whether the first token of each answer carries no label.
        shift (`float`, *optional*):
            What is taken off the retain loss.
    """

    terms: tuple[Term, ...]
    retain: str | None = None
    retain_options: Mapping[str, Any] = field(default_factory=dict)
    retain_weight: float = 1.0
    parts: tuple[str, ...] = ("forget", "retain", "total")
    gradients_only: bool = False
    without_first: bool = False
    shift: float = 0.0


def one(name: str, retain: str | None = None, second: str | None = None, weight: float = 1.0, **options: Any) -> Case:
    """A case with one forget objective."""
    return Case((Term(name, options, second, weight),), retain)


TOKENS = {"mean_over": "tokens"}
OPEN_UNLEARNING = {"definition": "open-unlearning"}
TARGETS = {"phrase": [296, 81, 283, 70, 71, 67], "eos": [1], "two": [40, 300]}
CASES: dict[str, Case] = {
    r"(ou\.loss\.grad_ascent|tofu\.loss\.grad_ascent|muse\.loss\.ga|rwku\.loss\.ga|geffect\.loss\.ga_None)": one("ga"),
    r"((ou|tofu)\.loss\.grad_diff|muse\.loss\.ga_gdr|geffect\.loss\.gd_None|loku\.loss\.grad_diff_total)": (
        one("grad_diff", "nll")
    ),
    r"ou\.loss\.grad_diff_kl": Case((Term("grad_diff"),), "nll", parts=("forget",)),
    r"(ou\.loss\.npo|npo_repo\.loss\.npo_grad_diff|altpo\.loss\.npo_1)": one("npo", "nll", beta=0.1),
    r"(rwku\.loss\.npo|geffect\.loss\.npo_0\.1|simple\.loss\.npo|npo_repo\.loss\.npo)": one("npo", beta=0.1),
    r"ou\.loss\.npo_beta1": one("npo", "nll", beta=1.0),
    r"geffect\.loss\.npo_None": one("npo", beta=0.5),
    r"(ou\.loss\.simnpo|simple\.loss\.simnpo_grad_diff)": one("simnpo", "nll", weight=0.125, beta=4.5),
    # Their margin stands inside the bracket.
    r"ou\.loss\.simnpo_delta": one("simnpo", "nll", weight=0.125, beta=2.5, gamma=2.5 * 1.5),
    r"simple\.loss\.simnpo_0": one("simnpo", beta=4.5),
    r"simple\.loss\.simnpo_1": one("simnpo", beta=2.5, gamma=2.5 * 1.5),
    r"ou\.loss\.dpo_idk": one("dpo", "nll", "idk", beta=0.1, **OPEN_UNLEARNING),
    r"npo_repo\.loss\.dpo": one("dpo", None, "idk", beta=0.1, **OPEN_UNLEARNING),
    r"formula\.dpo_idk": one("dpo", None, "idk", beta=0.1),
    r"(ou\.loss\.dpo_alternate|altpo\.loss\.dpo)": one("altpo", "nll", "alternate", beta=0.1),
    r"altpo\.loss\.sub": one("idk", "nll", "alternate"),
    r"altpo\.loss\.subnpo": Case((Term("npo", {"beta": 0.1}), Term("idk", {}, "alternate")), "nll"),
    r"altpo\.loss\.subdiff": Case((Term("idk", {}, "alternate"), Term("ga", weight=0.5)), "nll"),
    r"tofu\.loss\.idk": Case((Term("idk", {}, "idk"),), "nll", parts=("shared",)),
    # p^beta log p with constant weights: the gradient is that of p^beta / beta.
    r"ou\.loss\.wga": Case((Term("wga", {"beta": 1.0, **TOKENS}),), "nll", gradients_only=True),
    r"ou\.loss\.wga_beta025": Case((Term("wga", {"beta": 0.25, **TOKENS}),), "nll", gradients_only=True),
    r"geffect\.loss\.wga_1\.0": Case((Term("wga", {"beta": 1.0, **TOKENS}),), gradients_only=True),
    r"geffect\.loss\.wga_0\.25": Case((Term("wga", {"beta": 0.25, **TOKENS}),), gradients_only=True),
    r"geffect\.loss\.wga_None": Case((Term("wga", {"beta": 5.0, **TOKENS}),), gradients_only=True),
    r"ou\.loss\.satimp": one("satimp", "nll", weight=0.1, **TOKENS),
    r"ou\.loss\.satimp_soft": one("satimp", "nll", beta1=0.3, beta2=2.0, **TOKENS),
    r"ou\.loss\.ceu": Case((Term("ce_u"),), without_first=True),
    r"ou\.loss\.ceu_all": one("ce_u"),
    r"ou\.loss\.pdu": Case((Term("pdu"),), "nll", parts=("retain",)),
    r"ou\.loss\.pdu_eps": Case((Term("pdu"),), "nll", parts=("retain",), shift=0.5),
    r"jensun\.loss\.retain": Case((), "jensen_shannon", {"k": None}),
    r"jensun\.loss\.kl_retain": Case((), "kl", {"k": None}),
    r"loku\.loss\.ihl_forget": one("inverted_hinge"),
    r"loku\.loss\.ihl_total": one("inverted_hinge", "nll"),
} | {
    rf"(?:jensun\.loss|formula\.jensun)\.{prefix}forget_{name}": one("jensun", divergence=kind, token_ids=ids)
    for name, ids in TARGETS.items()
    for prefix, kind in (("", "jensen_shannon"), ("kl_", "kl"))
}


def is_loss(name: str) -> bool:
    """Whether an entry is a training loss, or an input of one."""
    return LOSSES.fullmatch(name) is not None and METRICS.fullmatch(name) is None


def why_no_loss(name: str) -> str | None:
    """Why no loss of ours answers to an entry, if none does."""
    return next((why for pattern, why in NO_LOSS.items() if re.fullmatch(pattern, name)), None)


class LossReference:
    """
    Our losses on the inputs of a [`Reference`], by the code that training uses.

    Args:
        reference ([`Reference`]):
            The inputs.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.collator = ForgetRetainCollator(PADDING)
        self.of_gold = cache(self._of_gold)

    def ours(self, name: str) -> Any:
        """
        Compute our value of an entry.

        Args:
            name (`str`):
                Name of the entry.

        Returns:
            A number, or a mapping or list of numbers, nested as in `expected.json`.

        Raises:
            `KeyError`: If there is nothing of ours for this entry.
        """
        kind, _, model = name.rpartition(".")
        if name == "input.rmu_direction":
            return FORGET_OBJECTIVES["rmu"](seed=77)._direction(torch.zeros(64)).tolist()
        if name == "ou.pdu.preference_after_one_step":
            return self.dual_variable()
        if kind.startswith(("formula.kl_retain", "formula.undial", "formula.pdu", "formula.rmu", "formula.tnpo")):
            return getattr(self, kind.split(".")[1].split("_")[0])(kind, model)
        case = next((case for pattern, case in CASES.items() if re.fullmatch(pattern, kind)), None)
        if case is None:
            raise KeyError(name)
        found = self.parts(case, model)
        if name.startswith("formula."):
            return found["total"].item()
        theirs = self.reference.entries[name]["value"]
        if case.parts == ("shared",):
            case = Case(case.terms, case.retain)
        wanted = [part for part in case.parts if part in theirs]
        values = {} if case.gradients_only else {part: found[part].item() for part in wanted}
        if "retain" in values:
            values["retain"] -= case.shift
        if case.gradients_only and "retain" in theirs:
            values["retain"] = found["retain"].item()
        graded = [part for part in wanted if part in theirs.get("gradient", {})]
        return values | {"gradient": {part: self.gradient(found[part], model) for part in graded}}

    def parts(self, case: Case, model: str) -> dict[str, Tensor]:
        """The forget part, the retain part and the weighted sum of a case, with gradients."""
        found: dict[str, Tensor] = {"forget": torch.zeros(())}
        weighted = torch.zeros(())
        for term in case.terms:
            parts = self.losses(self.objective(term), term.second, case, model)
            found["forget"] = found["forget"] + parts["forget_loss"]
            weighted = weighted + term.weight * parts["forget_loss"]
        if case.retain is not None:
            parts = self.losses(self.objective(Term("ga")), None, case, model)
            found["retain"] = parts["retain_loss"]
            weighted = weighted + case.retain_weight * found["retain"]
        found["total"] = weighted
        if case.parts == ("shared",):
            # One mean over the tokens of both sets.
            second = case.terms[0].second
            counts = count_items(self.batch([("forget", "forget"), ("second", second), ("retain", "retain")]))
            taught, kept = (counts[COUNTED.index(each)] for each in ("second_tokens", "retain_tokens"))
            found["total"] = (taught * found["forget"] + kept * found["retain"]) / (taught + kept)
        return found

    def objective(self, term: Term) -> ForgetObjective:
        """The forget objective of a term."""
        options = dict(term.options)
        token_ids = options.pop("token_ids", None)
        objective = build_objective(FORGET_OBJECTIVES, term.name, options, "forget objective")
        if token_ids is not None:
            objective.token_ids = token_ids
        return objective

    def losses(self, objective: ForgetObjective, second: str | None, case: Case, model: str) -> dict[str, Tensor]:
        """The forget and the retain loss of a batch, by the code that training uses."""
        sets = [("forget", "forget"), *([("second", second)] if second else []), ("retain", "retain")]
        batch = self.batch(sets, case)
        retain = None
        if case.retain is not None:
            retain = build_objective(RETAIN_OBJECTIVES, case.retain, case.retain_options, "retain objective")
        tensors = {"forget_log_probs": self.of_gold("log_probs", "forget")}
        if second:
            tensors["second_log_probs"] = self.of_gold("log_probs", second)
        if retain is not None and retain.needs_reference:
            tensors["retain_top_log_probs"] = self.of_gold("distribution", "retain")
        if objective.needs_distribution:
            tensors["forget_top_log_probs"] = self.of_gold("distribution", "forget")
        if not objective.needs_reference:
            tensors.pop("forget_log_probs")
        if retain is not None and retain.needs_hidden_states:
            tensors["retain_hidden_states"] = self.of_gold("states", "retain")
        references = References(
            tensors, self.examples("forget"), self.examples("retain"), self.examples(second) if second else ()
        )
        model_now = self.reference.model(model)
        return forget_retain_loss(model_now, batch, objective, retain, references, count_items(batch))[0]

    def batch(self, sets: list[tuple[str, str]], case: Case | None = None) -> dict[str, Tensor]:
        """Sets of the reference as one batch of training."""
        item: dict[str, list[Encoded]] = {
            kind: [example | {"row": row} for row, example in enumerate(self.examples(name))] for kind, name in sets
        }
        if case is not None and case.without_first:
            item["forget"] = [self.without_first(example) for example in item["forget"]]
        return self.collator([item])

    @staticmethod
    def without_first(example: Encoded) -> Encoded:
        """An example whose first answer token carries no label."""
        first = next(index for index, label in enumerate(example["labels"]) if label != IGNORE_INDEX)
        labels = [IGNORE_INDEX if index == first else label for index, label in enumerate(example["labels"])]
        return example | {"labels": labels}

    def examples(self, name: str) -> list[Encoded]:
        """The rows of a set without their padding."""
        train = self.reference.batch["train"][name]
        lengths = [sum(mask) for mask in train["attention_mask"]]
        return [
            {key: train[key][row][:length] for key in ("input_ids", "labels")} for row, length in enumerate(lengths)
        ]

    def _of_gold(self, what: str, name: str, layer: int = 1) -> Tensor:
        """What the reference model says of a set, by the code that training uses."""
        model: PreTrainedModel = self.reference.model(GOLD)
        common = (model, self.examples(name), self.collator, 4)
        if what == "log_probs":
            return reference_token_log_probs(*common, disable=True)
        if what == "states":
            return torch.cat([*reference_hidden_states(*common, layer=layer, disable=True)])
        return reference_top_tokens(*common, k=None, disable=True)[1]

    def gradient(self, loss: Tensor, model: str) -> dict[str, Any]:
        """Norms of a loss's gradient, and its product with a fixed direction."""
        names, weights = zip(*self.reference.model(model).named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        whole = torch.cat([gradient.flatten() for gradient in gradients]).double()
        return {
            "norm": whole.norm().item(),
            "dot_cos": (whole * torch.arange(len(whole), dtype=torch.float64).cos()).sum().item(),
            "norms": {name: gradient.norm().item() for name, gradient in zip(names, gradients, strict=True)},
        }

    # Definitions that are not one loss.

    def kl(self, kind: str, model: str) -> Any:
        found = self.parts(Case((), "kl", {"k": None}), model)
        return {"labelled_tokens": found["retain"].item()}

    def undial(self, kind: str, model: str) -> Any:
        return {"labelled_tokens": self.parts(one("undial", k=None), model)["forget"].item()}

    def pdu(self, kind: str, model: str) -> Any:
        found = self.parts(Case((Term("pdu"),), "nll"), model)
        return {"predicting_positions": found["forget"].item()}

    def tnpo(self, kind: str, model: str) -> Any:
        found = self.parts(one("tnpo", beta=float(kind.split("_")[1]), **TOKENS), model)
        return {"npo_of_tokens": found["forget"].item(), "gradient": {"total": self.gradient(found["total"], model)}}

    def rmu(self, kind: str, model: str) -> Any:
        term = Term("rmu", {"layer": 1, "coefficient": float(kind.split("_")[1]), "seed": 77})
        found = self.parts(Case((term,), "hidden_states", {"layer": 1}), model)
        return {name: {"mean_of_tokens": found[name].item()} for name in ("forget", "retain")}

    def dual_variable(self) -> float:
        """The dual variable of PDU after a step of model_a."""
        objective = FORGET_OBJECTIVES["pdu"](retain_limit=0.5, dual_step=0.7)
        found = self.parts(Case((Term("pdu"),), "nll"), "model_a")
        objective.after_step({"forget_loss": found["forget"].item(), "retain_loss": found["retain"].item()})
        return objective.retain_factor
