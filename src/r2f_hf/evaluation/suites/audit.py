"""What several suites compute: memorisation of the answers, membership attacks, and how much their rows can show."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ... import metrics
from ...data.collator import pad_token_id
from ...data.formatting import IGNORE_INDEX, Encoded, encode_opening
from ...data.windows import cut_into_windows
from ...metrics.membership import attack, lowest
from ...metrics.privacy.mia_min_k_plus_plus import standardised
from ...scoring import TokenStatistics, context_length, gradient_norms, key_words, token_statistics
from .base import Remarks, Rows, Settings, Statistics, is_text, no_text


# The attacks that need one forward pass. Each is a score per row, higher for rows that look less like seen ones.
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
# The share of the tokens that the last two look at, as in MUSE.
K = 0.4

# An area under the curve is called uncertain if it may be this far from the truth.
UNCERTAIN = 0.1

# With fewer rows, the Kolmogorov-Smirnov test sees only differences of more than 0.4 between the distributions.
FEW_ROWS = 24

Splits = Mapping[str, Statistics]


def answer_statistics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[Encoded]],
    split: str,
    settings: Settings,
) -> Statistics:
    """
    Compute what the memorisation metrics and the membership attacks take.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows (`Sequence[Sequence[dict]]`):
            The encoded examples of each row: one, or the windows of a long text. All windows count as one row.
        split (`str`):
            Name of the split, for messages and progress bars.
        settings ([`Settings`]):
            How the model is asked.

    Returns:
        `dict[str, list]`: A number per row: how many `tokens` the answer has; the score of each of the [`ATTACKS`],
        where `loss` is the mean loss per token; `exact_memorisation`; and `extraction_strength`. If it is asked for,
        also `gradnorm` of the splits `forget` and `holdout`, unless a row has several windows.
    """
    items = [index for index, windows in enumerate(rows) for _ in windows]
    examples = [window for windows in rows for window in windows]
    names, padding = [f"{split}[{index}]" for index in items], pad_token_id(tokenizer, model)
    found = token_statistics(model, examples, padding, settings.batch_size, f"{split}: tokens", names)
    whole = [TokenStatistics([], [], [], []) for _ in rows]
    for index, window in zip(items, found, strict=True):
        for values, more in zip(whole[index], window, strict=True):
            values.extend(more)
    log_probs = [np.array(row.log_probs) for row in whole]
    deviating = standardised(log_probs, [row.means for row in whole], [row.deviations for row in whole], split)
    hits = [row.hits for row in whole]
    sizes = [len(zlib.compress(labelled_text(tokenizer, windows).encode())) for windows in rows]
    statistics = {
        "tokens": [len(row.log_probs) for row in whole],
        "loss": [row.loss for row in whole],
        "zlib": [row.loss / size for row, size in zip(whole, sizes, strict=True)],
        "min_k": lowest(log_probs, K, "paper"),
        "min_k_plus_plus": lowest(deviating, K, "paper"),
        "exact_memorisation": metrics.load("exact_memorisation").compute(predictions=hits)["rows"],
        "extraction_strength": metrics.load("extraction_strength").compute(predictions=hits)["rows"],
    }
    # The norms of several windows do not add up to that of their row.
    if settings.gradnorm and split in ("forget", "holdout") and len(examples) == len(rows):
        norms = gradient_norms(model, examples, padding, f"{split}: gradients", names)
        statistics["gradnorm"] = [float(np.linalg.norm(row)) for row in norms]
    return statistics


def plain_example(tokenizer: PreTrainedTokenizerBase, text: str, prompt: str = "") -> Encoded:
    """A text as it stands, after a prompt as it stands. No template is used, and no token closes it."""
    given = encode_opening(tokenizer, prompt)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {"input_ids": given + ids, "labels": [IGNORE_INDEX] * len(given) + ids}


def text_statistics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], split: str, settings: Settings
) -> Statistics:
    """[`answer_statistics`] of texts as they stand, long ones in windows."""
    context = context_length(model)
    size = min(settings.max_length or context, context)
    rows = [cut_into_windows(plain_example(tokenizer, text), size, 0) for text in texts]
    return answer_statistics(model, tokenizer, rows, split, settings)


def labelled_text(tokenizer: PreTrainedTokenizerBase, windows: Sequence[Encoded]) -> str:
    """The text of a row's labelled tokens."""
    ids = [label for window in windows for label in window["labels"] if label != IGNORE_INDEX]
    return tokenizer.decode(ids, skip_special_tokens=True)


def at_key_words(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Encoded], rows: Rows) -> list[Encoded]:
    """Examples with labels only at the `key_words` of their rows, or at all of the answer where a row names none."""
    return [
        key_words(tokenizer, example, row["key_words"], f"forget[{index}]") if row.get("key_words") else example
        for index, (example, row) in enumerate(zip(examples, rows, strict=True))
    ]


def check_key_words(rows: Rows, split: str) -> None:
    """
    Refuse key words that are no text.

    Raises:
        `ValueError`: For the first such row.
    """
    for index, row in enumerate(rows):
        if row.get("key_words") not in (None, "") and not is_text(row["key_words"]):
            raise no_text(split, index, "key_words")


def probability(of_rows: Statistics) -> float:
    """The mean probability of the answers, each to the power of one over its tokens."""
    answers = [-loss for loss in of_rows["loss"]]
    return metrics.load("probability").compute(predictions=answers)["probability"]


def memorisation(split: str, of_rows: Statistics) -> dict[str, float]:
    """Exact memorisation and extraction strength of a split."""
    return {f"{split}_{name}": mean(of_rows[name]) for name in ("exact_memorisation", "extraction_strength")}


def truth_ratio(of_rows: Statistics) -> dict[str, Any]:
    """The truth ratios of a split's rows, from the log-probabilities of paraphrases and wrong answers."""
    return metrics.load("truth_ratio").compute(predictions=of_rows["paraphrase"], wrong=of_rows["wrong"])


def forget_quality(forget: Statistics, gold: Statistics) -> dict[str, float]:
    """Forget quality, unless there is only one row, which says nothing about a distribution."""
    rows, reference = truth_ratio(forget)["rows"], truth_ratio(gold)["rows"]
    if min(len(rows), len(reference)) < 2:
        return {}
    quality = metrics.load("forget_quality").compute(predictions=rows, gold=reference)
    return {"forget_quality": quality["forget_quality"]}


def few_for_quality(rows: int) -> list[str]:
    """A note if the test of forget quality has few rows."""
    if rows >= FEW_ROWS:
        return []
    # The critical value of the test for two sets of this size, at 5%.
    distance = min(1.36 * np.sqrt(2 / rows), 1)
    return [
        f"forget_quality: with {rows} rows, the test sees only differences of more than {distance:.2f} between "
        "the two distributions. A high value then says little."
    ]


def memorisation_score(summary: Mapping[str, float], forget: Statistics) -> dict[str, float]:
    """The score of the meta-evaluation. The truth has a share of the probability of all answers."""
    remembered = [summary[f"forget_{name}"] for name in ("extraction_strength", "exact_memorisation")]
    remembered += [mean(np.exp(forget["paraphrase"])), truth_ratio(forget)["prob_mean"]]
    return metrics.load("memorisation_score").compute(predictions=remembered)


def mean(values: Sequence[float]) -> float:
    """The mean as a plain number."""
    return float(np.mean(values))


def membership(statistics: Splits, gold: Splits | None = None) -> dict[str, float]:
    """
    Run the membership attacks on the forget set, and compare with gold.

    Args:
        statistics (`Mapping[str, dict]`):
            [`answer_statistics`] of the splits `forget` and `holdout`. If one is not there, nothing is computed.
        gold (`Mapping[str, dict]`, *optional*):
            The same for a model that never saw the forget set.

    Returns:
        `dict[str, float]`: `mia_<attack>_auc` of each attack. With gold, also `privleak_<attack>` of each; the attack
        with gold as its reference model; and `privacy_score`.
    """
    if not can_attack(statistics):
        return {}
    areas = _areas(statistics)
    found = {f"mia_{name}_auc": area for name, area in areas.items()}
    if gold is None or not can_attack(gold):
        return found
    losses = [of_split[split]["loss"] for split in ("forget", "holdout") for of_split in (statistics, gold)]
    names = ("predictions", "reference", "holdout", "holdout_reference")
    reference = metrics.load("mia_reference").compute(**dict(zip(names, losses, strict=True)))
    found["mia_reference_auc"] = reference["auc"]
    references = _areas(gold)
    privleak = metrics.load("privleak")
    for name in areas:
        if references.get(name, 1) < 1:
            leak = privleak.compute(predictions=[areas[name]], gold=[references[name]])
            found[f"privleak_{name}"] = leak["privleak"]
    if min(references[name] for name in ATTACKS) > 0:
        score = metrics.load("privacy_score").compute(
            predictions=[areas[name] for name in ATTACKS], gold=[references[name] for name in ATTACKS]
        )
        found["privacy_score"] = score["privacy_score"]
    return found


def can_attack(statistics: Splits) -> bool:
    """Whether there are at least two rows of the forget set, and two that the model never saw."""
    return all(len(statistics.get(split, {}).get("loss", ())) > 1 for split in ("forget", "holdout"))


def _areas(statistics: Splits) -> dict[str, float]:
    forget, holdout = statistics["forget"], statistics["holdout"]
    names = [name for name in (*ATTACKS, "gradnorm") if name in forget and name in holdout]
    return {name: attack(forget[name], holdout[name])["auc"] for name in names}


def remark_on_membership(statistics: Splits, gold: Splits | None = None) -> Remarks:
    """
    Say which attacks are left out, and how far the others can be trusted.

    Args:
        statistics (`Mapping[str, dict]`):
            [`answer_statistics`] of the splits.
        gold (`Mapping[str, dict]`, *optional*):
            The same for a model that never saw the forget set.

    Returns:
        [`Remarks`]
    """
    left_out = {}
    if not all("gradnorm" in statistics.get(split, {}) for split in ("forget", "holdout")):
        left_out["mia_gradnorm"] = (
            "It takes a backward pass per row, and has to be asked for (`gradnorm`). A row must fit into one window."
        )
    if not can_attack(statistics):
        reason = "It needs at least two forget rows, and two holdout rows that the model never saw."
        return Remarks([], left_out | dict.fromkeys(("mia", "privleak", "privacy_score"), reason))
    forget, holdout = (statistics[split] for split in ("forget", "holdout"))
    notes = [
        *_few_to_compare(len(forget["loss"]), len(holdout["loss"])),
        *_lengths(forget["tokens"], holdout["tokens"]),
    ]
    if gold is None or not can_attack(gold):
        reason = "It needs a gold model."
        return Remarks(notes, left_out | dict.fromkeys(("mia_reference", "privleak", "privacy_score"), reason))
    for name in _areas(gold):
        found = attack(gold["forget"][name], gold["holdout"][name])
        if found["p_value"] < 0.01:
            notes.append(
                f"mia_{name}: gold has an `auc` of {found['auc']:.2f}. The forget set and the holdout set differ in "
                "more than whether they were seen. Only the comparison with gold means something."
            )
        if found["auc"] == 1:
            left_out[f"privleak_{name}"] = "Gold tells the two sets apart perfectly, and is divided by."
        if found["auc"] == 0 and name in ATTACKS:
            left_out["privacy_score"] = f"Gold's `auc` of {name} is 0, and is divided by."
    return Remarks(notes, left_out)


def _few_to_compare(forget: int, holdout: int) -> list[str]:
    # The standard deviation of the area if the attack cannot tell, times that of a 95% interval.
    half = 1.96 * np.sqrt((forget + holdout + 1) / (12 * forget * holdout))
    if half <= UNCERTAIN:
        return []
    return [
        f"mia: with {forget} forget rows and {holdout} holdout rows, an `auc` from {max(0.5 - half, 0):.2f} to "
        f"{min(0.5 + half, 1):.2f} cannot be told from 0.5."
    ]


def _lengths(forget: Sequence[int], holdout: Sequence[int]) -> list[str]:
    """A warning if an attacker who looks at nothing but the length could tell the sets apart."""
    by_length = attack(forget, holdout)
    if abs(by_length["auc"] - 0.5) < 0.15 or by_length["p_value"] > 0.05:
        return []
    return [
        f"mia: the holdout rows have another length than the forget rows (medians of {np.median(holdout):.0f} and "
        f"{np.median(forget):.0f} tokens). This biases the attacks: length alone tells the sets apart with an `auc` "
        f"of {by_length['auc']:.2f}. Choose holdout rows of the same length."
    ]


def few_rows(split: str, rows: int) -> list[str]:
    """A note if a mean over a split, of numbers from 0 to 1, is uncertain."""
    # The widest 95% interval of such a mean.
    half = 0.98 / np.sqrt(rows)
    if half <= UNCERTAIN:
        return []
    counted = "1 row" if rows == 1 else f"{rows} rows"
    return [f"{split}: {counted}. A mean over so few is uncertain by up to {min(half, 1):.2f} (95%)."]


def joined(*remarks: Remarks) -> Remarks:
    """Several remarks as one."""
    left_out: dict[str, Any] = {}
    for remark in remarks:
        left_out |= remark.left_out
    return Remarks([note for remark in remarks for note in remark.notes], left_out)
