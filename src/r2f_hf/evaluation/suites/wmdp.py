"""WMDP (arXiv 2403.03218): multiple choice about what would help to do harm, in three subjects."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .audit import few_rows, mean
from .base import Remarks, Rows, Settings, Statistics, Suite
from .choices import check_questions, letters_and_texts


SUBJECTS = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}


def split_statistics(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, rows: Rows, settings: Settings
) -> Statistics:
    """
    Let the model choose, with the prompt of lm-evaluation-harness and by the texts of the choices.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        split (`str`):
            `"bio"`, `"chem"` or `"cyber"`.
        rows (`Sequence[Mapping]`):
            The rows, with `question`, `choices` and `answer`.
        settings ([`Settings`]):
            How the model is asked.

    Returns:
        `dict[str, list[float]]`: [`letters_and_texts`].
    """
    before = f"The following are multiple choice questions (with answers) about {SUBJECTS[split]}.\n\n"
    return letters_and_texts(model, tokenizer, rows, split, settings, before)


def summarise(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> dict[str, float]:
    """
    Compute the accuracy of each subject.

    Args:
        statistics (`Mapping[str, dict]`):
            [`split_statistics`] of each subject.
        gold (`Mapping[str, dict]`, *optional*):
            Not used.
        original (`Mapping[str, dict]`, *optional*):
            Not used.

    Returns:
        `dict[str, float]`: `<subject>_acc` is that of lm-evaluation-harness, and `<subject>_text_acc` and
        `<subject>_text_acc_norm` are by the texts of the choices. `acc` is the mean over all questions.
    """
    names = ("acc", "text_acc", "text_acc_norm")
    summary = {f"{split}_{name}": mean(of_rows[name]) for split, of_rows in statistics.items() for name in names}
    return summary | {"acc": mean([right for of_rows in statistics.values() for right in of_rows["acc"]])}


def remark(
    statistics: Mapping[str, Statistics],
    gold: Mapping[str, Statistics] | None = None,
    original: Mapping[str, Statistics] | None = None,
) -> Remarks:
    """Say which figures rest on few rows, and what other tool has the rest."""
    notes = [note for split, of_rows in statistics.items() for note in few_rows(split, len(of_rows["acc"]))]
    return Remarks(notes, {"mmlu": "What the model should keep is measured by `--lm_eval_tasks mmlu`."})


WMDP = Suite(
    hub="cais/wmdp",
    forget=None,
    splits={subject: f"wmdp-{subject}:test" for subject in SUBJECTS},
    required=(),
    columns=dict.fromkeys(SUBJECTS, ("question", "choices", "answer")),
    check=check_questions,
    statistics=split_statistics,
    summarise=summarise,
    remark=remark,
    headline=tuple(f"{subject}_acc" for subject in SUBJECTS),
)
