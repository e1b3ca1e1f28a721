"""Our metrics on the inputs for which other projects' own code has given values, entry by entry of `expected.json`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from r2f_hf import metrics
from r2f_hf.metrics.words import cut_at
from r2f_hf.scoring import (
    TokenStatistics,
    generate_answers,
    gradient_norms,
    key_words,
    patching_falls,
    score_choices,
    score_examples,
    token_statistics,
)


MODELS = ("model_a", "model_b", "model_c")
GOLD = "model_b"
PADDING = 2
STOPS = ("\n\n", "\nQuestion", "Question:")
BATCH_SIZE = 4
GROUPS = {"retain": slice(0, 4), "real_authors": slice(4, 8), "world_facts": slice(8, 12)}

# Entries that no metric answers to, and why.
NOT_APPLICABLE = {
    r"ou\.bug\.gradnorm_batch": "an error message of theirs; ours takes any number of rows",
    r"muse\.bug\.short_text": "NaN in theirs; ours takes at least one token",
    r"uds\.bug\.mem_score_of_full_memory": "no number in theirs where a term is 0; ours gives 0",
}
# Differences of two losses of about 8. fp32 holds each to 1e-6, and how it is rounded depends on the processor.
# Where the tolerance of an entry is finer than that, a number may be off by so much.
ROUNDED = {
    r"ou\.mia\.reference\..*": 3e-6,
    r"(ou|tofu)\.model_utility\..*": 5e-7,
    # Sums of some 100 log-probabilities.
    r"formula\.dpo_idk\..*": 5e-6,
    r"ou\.pdu\..*": 2e-6,
    # Its tolerance holds where nothing is rounded. One bit in fp32 is 2.4e-7, and processors round differently.
    r"formula\.kl_retain\.model_a": 5e-7,
    # Their probabilities are clamped at 1e-9, and ours are not.
    r"jensun\.loss\.kl_forget_.*": 2e-5,
    r"jensun\.loss\.forget_.*": 3e-7,
}
# Leaves of an entry that are inputs, texts or measures that are no metrics here.
IGNORED_LEAVES = re.compile(
    r"(^|\.)(responses|references|predictions|tokens|spans|first_context_token|num_token_\w+|labels_kept|labels_lost"
    r"|same_input_ids|rouge-2.*|rouge-\w+ p|all|Model Utility without.*)(\.|$)"
)

Statistics = list[TokenStatistics]
Handler = Callable[..., Any]
HANDLERS: dict[str, Handler] = {}


def entry(pattern: str) -> Callable[[Handler], Handler]:
    """Register a method of [`Reference`] for the entries whose names match; groups become its arguments."""

    def register(handler: Handler) -> Handler:
        HANDLERS[pattern] = handler
        return handler

    return register


def why_not(name: str) -> str | None:
    """Why an entry is not applicable, if it is not."""
    return next((why for pattern, why in NOT_APPLICABLE.items() if re.fullmatch(pattern, name)), None)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers of a nested value, with their places in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for name, inner in items:
        yield from leaves(inner, f"{path}.{name}" if path else str(name))


def counted_leaves(value: Any) -> dict[str, float]:
    """The numbers of an entry that a metric answers to."""
    return {path: number for path, number in leaves(value) if not IGNORED_LEAVES.search(path)}


def rounding(name: str) -> float:
    """How far a number of an entry may be off by the rounding of fp32 alone."""
    return next((floor for pattern, floor in ROUNDED.items() if re.fullmatch(pattern, name)), 0.0)


def difference(ours: float, theirs: float, rtol: float, atol: float) -> tuple[float, float]:
    """How far two numbers are apart, and how far they may be."""
    return abs(ours - theirs), max(atol, rtol * abs(theirs))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def plain(ids: list[int]) -> dict[str, list[int]]:
    """An example of a plain text, of which every token but the first can be predicted."""
    return {"input_ids": ids, "labels": [-100, *ids[1:]]}


class Reference:
    """
    The inputs of a folder, and our values for them.

    Args:
        folder (`Path`):
            A folder with `rows.json`, `batch.json`, `generations.json`, `expected.json` and the models.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows, self.batch, self.generations, expected = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("rows", "batch", "generations", "expected")
        )
        self.entries: dict[str, dict[str, Any]] = expected["entries"]
        self.sequences = self.batch["sequences"]
        self.answers = [row["answer"] for row in self.rows["rows"]]
        self.metric = cache(metrics.load)
        self.model = cache(self._model)
        self.statistics = cache(self._statistics)
        self.text_losses = cache(self._text_statistics)
        self.norms = cache(self._norms)
        self.falls = cache(self._falls)
        self.ratios = cache(self._ratios)

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
        for pattern, handler in HANDLERS.items():
            found = re.fullmatch(pattern, name)
            if found:
                return handler(self, *found.groups())
        raise KeyError(name)

    # The models' part.

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder / "model_a")

    def _model(self, name: str) -> PreTrainedModel:
        if name == "half_a_half_c":
            model = AutoModelForCausalLM.from_pretrained(self.folder / "model_a", dtype=torch.float32).eval()
            other = self.model("model_c").state_dict()
            state = {key: (weight + other[key]) / 2 for key, weight in model.state_dict().items()}
            model.load_state_dict(state)
            return model
        return AutoModelForCausalLM.from_pretrained(self.folder / name, dtype=torch.float32).eval()

    def _statistics(self, model: str, rows: str) -> Statistics:
        examples = self.sequences[rows]
        if rows == "wrong":
            examples = [each for row in examples for each in row]
        return token_statistics(self.model(model), examples, PADDING, BATCH_SIZE, disable=True)

    def losses(self, model: str, rows: str) -> list[float]:
        return [row.loss for row in self.statistics(model, rows)]

    def log_probs(self, model: str, rows: str) -> list[float]:
        return [-loss for loss in self.losses(model, rows)]

    def wrong(self, model: str) -> list[list[float]]:
        flat = iter(self.log_probs(model, "wrong"))
        return [[next(flat) for _ in row] for row in self.sequences["wrong"]]

    def _text_statistics(self, model: str, texts: str, lower: bool = False) -> Statistics:
        chosen = self.texts(texts)
        ids = [self.tokenizer(text.lower() if lower else text)["input_ids"] for text in chosen]
        return token_statistics(self.model(model), [plain(row) for row in ids], PADDING, BATCH_SIZE, disable=True)

    def texts(self, name: str) -> list[str]:
        if name == "retain":
            return [passage["text"] for passage in self.rows["passages"]]
        rows = self.rows["rows" if name == "forget" else "holdout"]
        return [f"{row['question']} {row['answer']}" for row in rows]

    def attacked(self, rows: str) -> tuple[tuple[str, slice], tuple[str, slice]]:
        """Which sequences are the forget set of an attack, and which the holdout set."""
        if rows == "rows":
            return ("answer", slice(None)), ("holdout", slice(None))
        return ("passage", slice(0, 3)), ("passage", slice(3, 6))

    def decoded(self, rows: str) -> list[str]:
        labels = [[label for label in example["labels"] if label != -100] for example in self.sequences[rows]]
        return self.tokenizer.batch_decode(labels, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _norms(self, model: str, rows: str, last: bool) -> list[list[float]]:
        examples = [
            example if last else example | {"labels": [*example["labels"][:-1], -100]}
            for example in self.sequences[rows]
        ]
        return gradient_norms(self.model(model), examples, PADDING, disable=True)

    def _falls(self, source: str, final_norm: bool) -> list[list[float]]:
        return patching_falls(
            self.model("model_c"), self.model(source), self.entities, PADDING, BATCH_SIZE, final_norm, disable=True
        )

    @cached_property
    def entities(self) -> list[dict[str, Any]]:
        return [
            key_words(self.tokenizer, example, row["entity"])
            for example, row in zip(self.sequences["answer"], self.rows["rows"], strict=True)
        ]

    # The numbers' part.

    def membership(self, attack: str, model: str, rows: str, definition: str = "paper") -> dict[str, Any]:
        sets = self.attacked(rows)
        forget, holdout = ([*self.statistics(model, name)][part] for name, part in sets)
        kind, _, share = attack.partition("@")
        if kind == "loss":
            return self.metric("mia_loss").compute(
                predictions=[row.loss for row in forget], holdout=[row.loss for row in holdout]
            )
        if kind == "zlib":
            texts, holdout_texts = (self.decoded(name)[part] for name, part in sets)
            return self.metric("mia_zlib").compute(
                predictions=[row.loss for row in forget],
                texts=texts,
                holdout=[row.loss for row in holdout],
                holdout_texts=holdout_texts,
            )
        if kind == "min_k":
            return self.metric("mia_min_k").compute(
                predictions=[row.log_probs for row in forget],
                holdout=[row.log_probs for row in holdout],
                k=float(share),
                definition=definition,
            )
        if kind == "min_k_plus_plus":
            return self.metric("mia_min_k_plus_plus").compute(
                predictions=[row.log_probs for row in forget],
                means=[row.means for row in forget],
                deviations=[row.deviations for row in forget],
                holdout=[row.log_probs for row in holdout],
                holdout_means=[row.means for row in holdout],
                holdout_deviations=[row.deviations for row in holdout],
                k=float(share),
                definition=definition,
            )
        if kind == "gradnorm":
            norms = [self.norms(model, name, definition == "paper")[part] for name, part in sets]
            return self.metric("mia_gradnorm").compute(predictions=norms[0], holdout=norms[1], definition=definition)
        others = [self.losses(GOLD, name)[part] for name, part in sets]
        return self.metric("mia_reference").compute(
            predictions=[row.loss for row in forget],
            reference=others[0],
            holdout=[row.loss for row in holdout],
            holdout_reference=others[1],
        )

    def _ratios(self, model: str, definition: str, of: str = "paraphrase") -> dict[str, Any]:
        return self.metric("truth_ratio").compute(
            predictions=self.log_probs(model, of), wrong=self.wrong(model), definition=definition
        )

    def rouge(self, predictions: list[str], references: list[str], definition: str) -> dict[str, list[float]]:
        compute = self.metric("rouge").compute
        return compute(predictions=predictions, references=references, definition=definition)["rows"]

    # open-unlearning

    @entry(r"ou\.probability\.(model_.)\.(\w+)")
    def probability(self, model: str, rows: str) -> Any:
        log_probs = self.log_probs(model, rows)
        found = self.metric("probability").compute(predictions=log_probs)
        values = {"mean": found["probability"], "rows": found["rows"], "avg_loss": [-each for each in log_probs]}
        if rows == "wrong":
            values |= {name: [values[name][i : i + 3] for i in range(0, 36, 3)] for name in ("rows", "avg_loss")}
        return values

    @entry(r"ou\.probability_w_options\.(model_.)")
    def probability_with_options(self, model: str) -> Any:
        found = self.metric("probability").compute(
            predictions=self.log_probs(model, "answer"), wrong=self.wrong(model), definition="open-unlearning"
        )
        return {"mean": found["probability"], "rows": found["rows"]}

    @entry(r"ou\.truth_ratio\.(model_.)\.(\w+)")
    def truth_ratio(self, model: str, aggregator: str) -> Any:
        found = self.ratios(model, "open-unlearning")
        return {"mean": found[aggregator], "rows": self.aggregated_rows(model, aggregator)}

    def aggregated_rows(self, model: str, aggregator: str) -> list[float]:
        """open-unlearning's rows are the ratios, and for `prob_mean` what is averaged."""
        if aggregator != "prob_mean":
            return self.ratios(model, "open-unlearning")["rows"]
        true, wrong = self.log_probs(model, "paraphrase"), self.wrong(model)
        return [
            self.metric("truth_ratio").compute(predictions=[a], wrong=[b], definition="open-unlearning")["prob_mean"]
            for a, b in zip(true, wrong, strict=True)
        ]

    @entry(r"formula\.truth_ratio_arithmetic\.(model_.)")
    def truth_ratio_of_the_paper(self, model: str) -> Any:
        found = self.ratios(model, "paper")
        return {"forget": found["closer_to_1_better"], "keep": found["true_better"], "rows": found["rows"]}

    @entry(r"(ou|formula)\.(exact_memorization|extraction_strength)\.(model_.)\.(\w+)")
    def teacher_forced(self, whose: str, kind: str, model: str, rows: str) -> Any:
        hits = [row.hits for row in self.statistics(model, rows)]
        name = {"exact_memorization": "exact_memorisation"}.get(kind, kind)
        definition = "open-unlearning" if whose == "ou" else "paper"
        found = self.metric(name).compute(predictions=hits, definition=definition)
        values = {"mean": found[name], "rows": found["rows"]}
        if whose == "formula" and kind == "extraction_strength":
            shortened = self.metric(name).compute(predictions=[row[:-1] for row in hits])
            values["rows_without_last_label"] = shortened["rows"]
        return values

    @entry(r"ou\.mia\.(\w+?)(_20)?\.(model_.)\.(rows|passages)")
    def open_unlearning_attack(self, attack: str, share: str | None, model: str, rows: str) -> Any:
        kind = f"{attack}@{0.2 if share else 0.4}" if attack.startswith("min_k") else attack
        definition = "paper" if attack in ("loss", "zlib", "reference") else "open-unlearning"
        found = self.membership(kind, model, rows, definition)
        return {name: found[name] for name in ("auc", "forget", "holdout")}

    @entry(r"formula\.mia\.gradnorm\.(model_.)")
    def gradnorm(self, model: str) -> Any:
        found = self.membership("gradnorm", model, "rows")
        return {name: found[name] for name in ("auc", "forget", "holdout")}

    @entry(r"formula\.mia\.(min_k|min_k_plus_plus)_(\d+)\.(all|without_last)\.(model_.)\.(rows|passages)")
    def min_k(self, attack: str, percent: str, labels: str, model: str, rows: str) -> Any:
        definition = "paper" if labels == "all" else "open-unlearning"
        found = self.membership(f"{attack}@{int(percent) / 100}", model, rows, definition)
        return {name: found[name] for name in ("auc", "forget", "holdout")}

    @entry(r"ou\.rouge\.greedy\.(model_.)")
    def greedy(self, model: str) -> Any:
        questions = [row["question"] for row in self.rows["rows"]]
        written = generate_answers(self.model(model), self.tokenizer, questions, 64, BATCH_SIZE)
        rows = self.rouge(written, self.answers, "open-unlearning")
        return {"mean": mean(rows["rougeL_recall"])} | {name: rows[name] for name in rows if name != "rouge1_f1"}

    @entry(r"(ou\.rouge\.given|tofu\.rouge\.given|ou\.rouge\.given_stopwords)")
    def given(self, name: str) -> Any:
        written = self.generations["answers"]
        definition = name.split(".")[0].replace("ou", "open-unlearning")
        if name.endswith("stopwords"):
            written = [cut_at(text, STOPS) for text in written]
        rows = self.rouge(written, self.answers, definition)
        if name.endswith("stopwords"):
            found = self.metric("knowledge_memorisation").compute(
                predictions=self.generations["answers"], references=self.answers, definition=definition
            )
            rows["rougeL_f1"] = [row / 100 for row in found["rows"]]
        whole = {"mean_rougeL_recall": mean(rows["rougeL_recall"])}
        whole |= {kind: rows[kind] for kind in rows if kind != "rouge1_f1"}
        return whole if name.startswith("ou") else {kind: rows[kind] for kind in ("rouge1_recall", "rougeL_recall")}

    @entry(r"ou\.verbmem\.given")
    def verbatim_stemmed(self) -> Any:
        references = [passage["rest"] for passage in self.rows["passages"]]
        found = self.metric("verbatim_memorisation").compute(
            predictions=self.generations["continuations"], references=references, definition="open-unlearning"
        )
        rows = self.rouge(self.generations["continuations"], references, "open-unlearning")
        return {"mean_rougeL_f1": found["verbatim_memorisation"] / 100} | {
            name: rows[name] for name in rows if name != "rouge1_f1"
        }

    def utility(self, model: str, definition: str, rouge: list[float]) -> dict[str, float]:
        """The nine parts of model utility."""
        parts = {}
        wrong = self.wrong(model)
        for group, part in GROUPS.items():
            choice = None if group == "retain" else wrong[part]
            of = "paraphrase" if group == "retain" else "answer"
            probability = self.metric("probability").compute(
                predictions=self.log_probs(model, "answer")[part],
                wrong=choice,
                definition="open-unlearning" if definition == "open-unlearning" else "paper",
            )
            ratio = self.metric("truth_ratio").compute(
                predictions=self.log_probs(model, of)[part], wrong=wrong[part], definition=definition
            )
            parts[f"{group}_prob"] = probability["probability"]
            parts[f"{group}_rouge"] = mean(rouge[part])
            parts[f"{group}_truth_ratio"] = ratio["true_better"]
        return parts

    @entry(r"ou\.model_utility\.(model_.)")
    def model_utility(self, model: str) -> Any:
        written = self.generations["greedy_answers"][model]
        rouge = self.rouge(written, self.answers, "open-unlearning")["rougeL_recall"]
        parts = self.utility(model, "open-unlearning", rouge)
        found = self.metric("model_utility").compute(predictions=list(parts.values()))
        return {"model_utility": found["model_utility"], "parts": parts}

    def forget_quality(self, model: str, definition: str, gold: list[float] | None = None) -> dict[str, float]:
        return self.metric("forget_quality").compute(
            predictions=self.ratios(model, definition)["rows"], gold=gold or self.ratios(GOLD, definition)["rows"]
        )

    @entry(r"ou\.forget_quality(?:_util)?\.(model_.)(?:\.\w+)?")
    def forget_quality_by_rows(self, model: str) -> Any:
        return self.forget_quality(model, "open-unlearning")["forget_quality"]

    @entry(r"ou\.forget_quality\.(model_.)_vs_5_rows_of_(model_.)")
    def forget_quality_of_few(self, model: str, gold: str) -> Any:
        few = self.ratios(gold, "open-unlearning")["rows"][:5]
        return self.forget_quality(model, "open-unlearning", few)["forget_quality"]

    @entry(r"ou\.(privleak|rel_diff)\.(\w+)\.(model_.)")
    def privleak(self, kind: str, attack: str, model: str) -> Any:
        attack = f"{attack}@0.4" if attack.startswith("min_k") else attack
        areas = [self.membership(attack, name, "rows", "open-unlearning")["auc"] for name in (model, GOLD)]
        definition = "paper" if kind == "privleak" else "open-unlearning"
        compute = self.metric("privleak").compute
        return {
            f"against_{name}": compute(predictions=areas[:1], gold=[gold], definition=definition)["privleak"]
            for name, gold in ((GOLD, areas[1]), ("0.5", 0.5))
        }

    @entry(r"(?:ou\.privleak_of_muse_auc|muse_fork\.privleak)\.(forget_holdout_[\w%-]+)\.(model_.)")
    def privleak_of_muse(self, key: str, model: str) -> Any:
        areas = [self.areas_of_texts(name)[key] for name in (model, GOLD)]
        found = self.metric("privleak").compute(predictions=[1 - areas[0]], gold=[1 - areas[1]])
        return found["privleak"]

    @entry(r"(ou\.bug|formula)\.epsilon")
    def tiny_probabilities(self, whose: str) -> Any:
        definition = "open-unlearning" if whose == "ou.bug" else "paper"
        inputs = {"predictions": [-30.0], "wrong": [[-30.0] * 3], "definition": definition}
        found = self.metric("truth_ratio").compute(**inputs)
        options = self.metric("probability").compute(**inputs)["probability"]
        names = ("closer_to_1_better", "true_better", "prob_mean")
        return {name: found[name] for name in names} | {"probability_w_options": options}

    @entry(r"ou\.bug\.trailing_space")
    def first_token_unlabelled(self) -> Any:
        rows = [row.log_probs for row in self.statistics("model_c", "answer")]
        found, whole = (
            self.metric("probability").compute(predictions=[mean(row) for row in each])
            for each in ([row[1:] for row in rows], rows)
        )
        return {
            "mean": found["probability"],
            "rows": found["rows"],
            "mean_all_labels": whole["probability"],
            "rows_all_labels": whole["rows"],
        }

    @entry(r"ou\.utils\.batch_nll\.(model_.)")
    def summed_losses(self, model: str) -> Any:
        def losses(name: str, rows: str) -> list[float]:
            batch = self.batch["train"][rows]
            lengths = [sum(mask) for mask in batch["attention_mask"]]
            examples = [
                {name: batch[name][row][:length] for name in ("input_ids", "labels")}
                for row, length in enumerate(lengths)
            ]
            sums, _ = score_examples(self.model(name), examples, PADDING, BATCH_SIZE, disable=True)
            return (-sums).tolist()

        return {
            "forget": losses(model, "forget"),
            "retain": losses(model, "retain"),
            "forget_reference": losses(GOLD, "forget"),
        }

    # TOFU

    @entry(r"tofu\.eval_logs\.(model_.)")
    def eval_logs(self, model: str) -> Any:
        return {
            "avg_gt_loss": self.losses(model, "answer"),
            "gt_loss": [-math.fsum(row.log_probs) for row in self.statistics(model, "answer")],
            "average_perturb_loss": [[-each for each in row] for row in self.wrong(model)],
            "avg_paraphrased_loss": self.losses(model, "paraphrase"),
            "truth_ratio": self.ratios(model, "tofu")["rows"],
        }

    @entry(r"tofu\.normalized_gt_loss\.(model_.)\.(\w+)")
    def normalised_loss(self, model: str, group: str) -> Any:
        part = GROUPS[group]
        found = self.metric("probability").compute(
            predictions=self.log_probs(model, "answer")[part], wrong=self.wrong(model)[part]
        )
        return [-math.log(row) for row in found["rows"]]

    @entry(r"tofu\.model_utility\.(utils|aggregate_eval_stat)\.(model_.)")
    def tofu_utility(self, script: str, model: str) -> Any:
        definition = "paper" if script == "utils" else "tofu"
        rouge = self.rouge(self.generations["answers"], self.answers, "tofu")["rougeL_recall"]
        parts = self.utility(model, definition, rouge)
        ratio = self.ratios(model, definition)["closer_to_1_better"]
        probability = self.metric("probability").compute(predictions=self.log_probs(model, "answer"))["probability"]
        parts |= {"forget_rouge": mean(rouge), "forget_prob": probability, "forget_truth_ratio": ratio}
        sets = {"real_authors": "Real Authors", "world_facts": "Real World", "retain": "Retain", "forget": "Forget"}
        kinds = {"rouge": "ROUGE", "prob": "Probability" if script == "utils" else "Prob."}
        kinds["truth_ratio"] = "Truth Ratio"
        values = {}
        for part, number in parts.items():
            group = next(name for name in sets if part.startswith(name))
            kind = kinds[part.removeprefix(f"{group}_")]
            values[f"{sets[group]} {kind}" if script == "utils" else f"{kind} {sets[group]}"] = number
        kept = [number for part, number in parts.items() if not part.startswith("forget")]
        values["Model Utility"] = self.metric("model_utility").compute(predictions=kept)["model_utility"]
        return values

    @entry(r"tofu\.forget_quality\.\w+\.(model_.)")
    def tofu_forget_quality(self, model: str) -> Any:
        found = self.forget_quality(model, "tofu")
        value = found["forget_quality"]
        return {"Forget Quality": value, "KS Test PVal Forget": value, "KS Test Forget": found["statistic"]}

    @entry(r"formula\.forget_quality_arithmetic\.(model_.)")
    def forget_quality_of_the_paper(self, model: str) -> Any:
        found = self.forget_quality(model, "paper")
        return {"p": found["forget_quality"], "statistic": found["statistic"]}

    # MUSE

    def text_scores(self, model: str, texts: str, reference: bool = True) -> dict[str, list[float]]:
        """MUSE's scores of plain texts, by its names."""
        own, lower, gold = (
            self.text_losses(name, texts, small) for name, small in ((model, False), (model, True), (GOLD, False))
        )
        losses = [row.loss for row in own]
        spread = {
            "PPL": self.metric("mia_loss").compute(predictions=losses, holdout=losses),
            "PPL/lower": self.metric("mia_reference").compute(
                predictions=losses,
                reference=[row.loss for row in lower],
                holdout=losses,
                holdout_reference=[row.loss for row in lower],
                definition="muse",
            ),
            "PPL/zlib": self.metric("mia_zlib").compute(
                predictions=losses, texts=self.texts(texts), holdout=losses, holdout_texts=self.texts(texts)
            ),
        }
        if reference:
            spread["PPL/ref"] = self.metric("mia_reference").compute(
                predictions=losses,
                reference=[row.loss for row in gold],
                holdout=losses,
                holdout_reference=[row.loss for row in gold],
                definition="muse",
            )
        rows = [row.log_probs for row in own]
        for percent in (5, 10, 20, 30, 40, 50, 60):
            spread[f"Min-{percent}%"] = self.metric("mia_min_k").compute(
                predictions=rows, holdout=rows, k=percent / 100
            )
        return {name: found["forget"] for name, found in spread.items()}

    @entry(r"muse\.privleak_scores\.(model_.)")
    def privleak_scores(self, model: str) -> Any:
        return {texts: self.text_scores(model, texts) for texts in ("forget", "holdout", "retain")}

    def areas_of_texts(self, model: str, reference: bool = False) -> dict[str, float]:
        """MUSE counts how often the second set looks the more familiar one."""
        scores = {texts: self.text_scores(model, texts, reference) for texts in ("forget", "retain", "holdout")}
        return {
            f"{first}_{second}_{name}": 1 - self.area(scores[first][name], scores[second][name])
            for first in scores
            for second in scores
            for name in scores[first]
        }

    def area(self, forget: list[float], holdout: list[float]) -> float:
        return self.metric("mia_loss").compute(predictions=forget, holdout=holdout)["auc"]

    @entry(r"muse\.auc_forget_holdout\.(model_.)")
    def muse_areas(self, model: str) -> Any:
        areas = self.areas_of_texts(model, reference=True)
        start = "forget_holdout_"
        return {name.removeprefix(start): area for name, area in areas.items() if name.startswith(start)}

    @entry(r"muse_fork\.auc\.(model_.)")
    def fork_areas(self, model: str) -> Any:
        return self.areas_of_texts(model)

    def muse_rouge(self, predictions: list[str], references: list[str], metric: str) -> dict[str, Any]:
        found = self.metric(metric).compute(predictions=predictions, references=references, definition="muse")
        stops = STOPS if metric.startswith("knowledge") else ()
        cut = [cut_at(text, stops) for text in predictions]
        scores = self.rouge(cut, references, "muse")
        rows = {name.removesuffix("_f1"): values for name, values in scores.items()}
        means = {f"mean_{name}": mean(values) for name, values in rows.items()}
        return rows | means | {"mean_rougeL": found[metric] / 100, "rougeL": [row / 100 for row in found["rows"]]}

    @entry(r"muse\.knowmem\.given")
    def knowledge(self) -> Any:
        return self.muse_rouge(self.generations["answers"], self.answers, "knowledge_memorisation")

    @entry(r"muse\.verbmem\.(given\.128|given\.1000|greedy\.model_.)")
    def verbatim(self, what: str) -> Any:
        kind, _, detail = what.partition(".")
        budget = int(detail) if kind == "given" else 48
        written = self.generations["continuations"] if kind == "given" else self.continuations(detail)
        return self.muse_rouge(written, self.cut_references(budget), "verbatim_memorisation")

    def continuations(self, model: str) -> list[str]:
        return self.generations["greedy_continuations"][model]

    def cut_references(self, budget: int) -> list[str]:
        """MUSE cuts the true continuation to as many tokens as are generated, the one that begins a text included."""
        rests = [self.tokenizer(passage["rest"])["input_ids"][:budget] for passage in self.rows["passages"]]
        return self.tokenizer.batch_decode(rests, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @entry(r"muse_fork\.verbmem_knowmem\.(model_.)")
    def verbatim_of_the_fork(self, model: str) -> Any:
        return {"verbmem_f": 100 * self.verbatim(f"greedy.{model}")["mean_rougeL"]}

    # RWKU

    @entry(r"rwku\.(forget|neighbor)\.given")
    def rwku(self, kind: str) -> Any:
        size = 4 if kind == "forget" else 6
        found = self.metric("rwku_recall").compute(
            predictions=self.generations["answers"],
            references=self.answers,
            levels=[1 + row // size for row in range(12)],
            definition="rwku",
        )
        return {name: found[name] for name in found if name.startswith("level")}

    @entry(r"rwku\.rouge_rows\.given")
    def rouge_package(self) -> Any:
        rows = self.rouge(self.generations["answers"], self.answers, "rwku")
        names = {"rouge1_recall": "rouge-1 r", "rouge1_f1": "rouge-1 f", "rougeL_recall": "rouge-l r"}
        return {ours: rows[name] for name, ours in (names | {"rougeL_f1": "rouge-l f"}).items()}

    @entry(r"formula\.rouge_score\.given\.stem_(True|False)")
    def rouge_score(self, stemmed: str) -> Any:
        return self.rouge(self.generations["answers"], self.answers, "tofu" if stemmed == "True" else "muse")

    def passage_scores(self, model: str, attack: str) -> list[float]:
        found = self.membership(attack, model, "passages")
        return [-score for score in found["forget"] + found["holdout"]]

    @entry(r"rwku\.mia\.(model_.)")
    def rwku_attack(self, model: str) -> Any:
        rows = {name: self.passage_scores(model, name) for name in ("loss", "zlib")}
        for share in ("0.2", "0.4", "1.0"):
            rows[f"mink_{share}"] = self.passage_scores(model, f"min_k@{share}")
            rows[f"mink++_{share}"] = self.passage_scores(model, f"min_k_plus_plus@{share}")
        return {
            "loss": mean(rows["loss"]),
            "zlib": mean(rows["zlib"]),
            "reported_as_mink20": mean(rows["mink++_0.2"]),
            "mink_0.2_mean": mean(rows["mink_0.2"]),
            "rows": rows,
        }

    @entry(r"rwku\.fluency\.given")
    def fluency(self) -> Any:
        found = self.metric("fluency").compute(predictions=self.generations["fluency"])
        return {
            "mean": found["fluency"],
            "rows": found["rows"],
            "bigram": found["bigrams"],
            "trigram": found["trigrams"],
        }

    # Min-K% and Min-K%++

    @entry(r"mink_pp\.(model_.)")
    def min_k_plus_plus(self, model: str) -> Any:
        names = {"loss": "loss", "zlib": "zlib"}
        for tenths in range(1, 11):
            names |= {f"mink_{tenths / 10}": f"min_k@{tenths / 10}"}
            names |= {f"mink++_{tenths / 10}": f"min_k_plus_plus@{tenths / 10}"}
        return {
            "rows": {name: self.passage_scores(model, attack) for name, attack in names.items()},
            "auc": {name: self.membership(attack, model, "passages")["auc"] for name, attack in names.items()},
        }

    @entry(r"mink_prob\.(model_.)")
    def min_k_prob(self, model: str) -> Any:
        losses, lower = ([row.loss for row in self.text_losses(model, "retain", small)] for small in (False, True))
        shares = {f"min_{percent}": f"min_k@{percent / 100}" for percent in (5, 10, 20, 30, 40, 50, 60)}
        names = {"loss_per_zlib_byte": "zlib", "loss_minus_reference": "reference"} | shares
        found = {name: self.membership(attack, model, "passages") for name, attack in names.items()}
        quotients = self.metric("mia_reference").compute(
            predictions=[-each for each in lower[:3]],
            reference=losses[:3],
            holdout=[-each for each in lower[3:]],
            holdout_reference=losses[3:],
            definition="muse",
        )
        perplexities = [math.exp(loss) for loss in losses]
        rows = {name: each["forget"] + each["holdout"] for name, each in (found | {"quotients": quotients}).items()}
        areas = {name: each["auc"] for name, each in found.items()}
        return {
            "rows": {name: rows[name] for name in names}
            | {"perplexity": perplexities, "minus_lower_case_quotient": rows["quotients"]},
            "auc": areas
            | {
                "perplexity": self.area(perplexities[:3], perplexities[3:]),
                "minus_lower_case_quotient": quotients["auc"],
            },
        }

    # Unlearning depth

    @entry(r"uds\.prob_em_es\.(model_.)\.(\w+)")
    def at_once(self, model: str, rows: str) -> Any:
        return {
            "avg_loss": self.losses(model, rows),
            "prob": self.probability(model, rows)["rows"],
            "em": self.teacher_forced("ou", "exact_memorization", model, rows)["rows"],
            "es": self.teacher_forced("ou", "extraction_strength", model, rows)["rows"],
        }

    @entry(r"uds\.truth_ratio\.(model_.)")
    def geometric_truth_ratio(self, model: str) -> Any:
        return self.ratios(model, "tofu")["rows"]

    @entry(r"uds\.mem_score\.(model_.)")
    def memorisation_score(self, model: str) -> Any:
        parts = [
            self.teacher_forced("ou", "extraction_strength", model, "answer")["mean"],
            self.teacher_forced("ou", "exact_memorization", model, "answer")["mean"],
            self.probability(model, "paraphrase")["mean"],
            self.ratios(model, "tofu")["prob_mean"],
        ]
        return self.metric("memorisation_score").compute(predictions=parts)["memorisation_score"]

    ATTACKS = ("loss", "zlib", "min_k", "min_k++")

    def uds_areas(self, model: str) -> list[float]:
        names = ("loss", "zlib", "min_k@0.4", "min_k_plus_plus@0.4")
        return [self.membership(name, model, "rows", "open-unlearning")["auc"] for name in names]

    @entry(r"uds\.mia_auc\.(model_.)")
    def areas(self, model: str) -> Any:
        return dict(zip(self.ATTACKS, self.uds_areas(model), strict=True))

    @entry(r"uds\.s_mia\.(model_.)")
    def nearness(self, model: str) -> Any:
        found = self.metric("privacy_score").compute(predictions=self.uds_areas(model), gold=self.uds_areas(GOLD))
        return dict(zip(self.ATTACKS, found["rows"], strict=True))

    @entry(r"(uds|formula\.uds)\.s1")
    def gold_falls(self, whose: str) -> Any:
        values: dict[str, Any] = {"deltas": self.falls(GOLD, whose == "uds")}
        if whose == "uds":
            rows = token_statistics(self.model("model_c"), self.entities, PADDING, BATCH_SIZE, disable=True)
            values["full_score"] = [-row.loss for row in rows]
        return values

    @entry(r"(uds|formula\.uds)\.score\.(\w+)")
    def depth(self, whose: str, model: str) -> Any:
        final_norm = whose == "uds"
        found = self.metric("unlearning_depth").compute(
            predictions=self.falls(model, final_norm), gold=self.falls(GOLD, final_norm)
        )
        return {"mean": found["unlearning_depth"], "rows": found["rows"]}

    @entry(r"uds\.bug\.final_norm_twice")
    def final_norm_twice(self) -> Any:
        model = self._model("model_c")
        weight = model.model.norm.weight
        weight.data *= 1 + 0.5 * torch.sin(torch.arange(len(weight)))
        values = {}
        for name, final_norm in (("as_run", True), ("layer_outputs", False)):
            falls, gold = (
                patching_falls(model, source, self.entities, PADDING, BATCH_SIZE, final_norm, disable=True)
                for source in (model, self.model(GOLD))
            )
            found = self.metric("unlearning_depth").compute(predictions=falls, gold=gold)
            values[name] = found["unlearning_depth"]
        return values

    # lm-evaluation-harness

    @entry(r"lm_eval\.(letters|texts)\.(model_.)\.(bos|no_bos)")
    def multiple_choice(self, kind: str, model: str, bos: str) -> Any:
        prompts, choices = [], []
        for row in self.rows["rows"]:
            listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
            letters = f"{row['question']}\n{listed}\nAnswer:"
            prompts.append(letters if kind == "letters" else f"Question: {row['question']}\nAnswer:")
            choices.append(list("ABCD") if kind == "letters" else row["choices"])
        scores = score_choices(self.model(model), self.tokenizer, prompts, choices, BATCH_SIZE, add_bos=bos == "bos")
        labels = [row["label"] for row in self.rows["rows"]]
        found = self.metric("multiple_choice").compute(
            predictions=scores, labels=labels, choices=choices, definition="lm-eval"
        )
        names = ("acc", "acc_norm") if kind == "letters" else ("acc", "acc_norm", "acc_bytes")
        return (
            {name: found[name] for name in names}
            | {"rows": {name: found["rows"][name] for name in names}}
            | {"log_likelihoods": scores}
        )
