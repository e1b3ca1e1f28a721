"""Wrong answers and paraphrases for a user's own rows, in a model's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.encoder import ExampleEncoder
from ..data.formatting import encode_prompt
from ..data.rendering import ChatOptions
from ..data.rows import content_hash
from ..gradients.seeds import named_seed
from ..metrics.rouge_rows import rouge_rows
from ..metrics.words import WordTokenizer
from ..runs.weights import weights_hash
from ..scoring import context_length, sample_answers, whole_answer
from .kept import kept
from .suites.audit import labelled_text
from .suites.base import Rows
from .suites.own import last_answer


# Its name says that it holds texts, which the other files do not.
FILE = "texts_written_by_the_model.json"

# Rises when other texts are written than before, so that older files are not reused.
WRITING = 1

# A model that knows an answer gives it again and again. It is then asked at a higher temperature.
TEMPERATURES = (1.0, 1.5, 2.0, 2.5)
# The least that is drawn for a row at each temperature.
LEAST_DRAWN = 8
# The likeliest tokens, which are drawn from. Without a limit, a high temperature would give no words.
TOP_K = 20

PARAPHRASE_PROMPT = "Say this in other words: {answer}"
PARAPHRASE_TEMPERATURE = 0.7
WORDS = WordTokenizer()
# How many paraphrases are drawn for a row. The one with most of the answer's words is taken.
PARAPHRASES = 4
# A paraphrase with fewer of the answer's words says something else.
LEAST_SHARED = 0.5


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Rows],
    wrong_answers: int = 3,
    paraphrases: bool = False,
    output_dir: str | Path | None = None,
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    options: ChatOptions | None = None,
    max_length: int | None = None,
) -> dict[str, Rows]:
    """
    Let a model write what the rows of the own suite lack: wrong answers to their questions, and paraphrases.

    A wrong answer is one that the model gives to the question itself. It lacks half of the words that the true answer
    adds to the question. Nobody checks that it is wrong. On several processes, all of them have to call this, and all
    get the same texts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, on its device: the one before unlearning, if it is there. It is used in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        splits (`Mapping[str, Dataset]`):
            The rows of each set. Those of the forget and the retain set that ask for an answer get what they lack.
        wrong_answers (`int`, *optional*, defaults to `3`):
            The most wrong answers per row. 0 writes none.
        paraphrases (`bool`, *optional*, defaults to `False`):
            Whether to write a paraphrase of each answer.
        output_dir (`str` or `Path`, *optional*):
            Folder for the file with the texts. A later run with the same weights, rows and settings reads it.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all that is drawn.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest text, in tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Questions per batch.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.
        max_length (`int`, *optional*):
            Tokens of an example. Defaults to what the model reads.

    Returns:
        `dict[str, list[dict]]`: The rows of each set. Rows for which the model found something have the columns
        `perturbed_answer` and `paraphrased_answer`, unless they had them before.

    Raises:
        `ValueError`: If `wrong_answers` is negative, or if a question leaves no room for an answer.
    """
    if wrong_answers < 0:
        raise ValueError(f"`wrong_answers` is {wrong_answers}, and must be at least 0.")
    encoder = ExampleEncoder(tokenizer, context_length(model), max_length=max_length, options=options)
    asked = {name: _asked(encoder, splits[name], name) for name in ("forget", "retain") if name in splits}
    drawing = (seed, max_new_tokens, batch_size, options)
    training, _ = model.training, model.eval()

    def write() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, pairs in asked.items():
            prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
            wrong = _wrong(model, tokenizer, prompts, answers, wrong_answers, name, *drawing)
            said = _paraphrased(model, tokenizer, answers if paraphrases else [], name, *drawing)
            said += [""] * (len(answers) - len(said))
            found[name] = [
                {"perturbed_answer": each, "paraphrased_answer": text} for each, text in zip(wrong, said, strict=True)
            ]
        return {"splits": found}

    template = [type(tokenizer).__name__, len(tokenizer), tokenizer.chat_template]
    rows = {name: list(splits[name]) for name in asked}
    key = content_hash(
        [WRITING, weights_hash(model.state_dict()), rows, template, wrong_answers, paraphrases, drawing]
    )
    written = kept(None if output_dir is None else Path(output_dir) / FILE, key, write)["splits"]
    model.train(training)
    return {
        name: [_with_columns(row, new) for row, new in zip(rows, written[name], strict=True)]
        if written.get(name)
        else rows
        for name, rows in splits.items()
    }


def _asked(encoder: ExampleEncoder, rows: Rows, name: str) -> list[tuple[list[int], str]]:
    """The prompt and the answer of each row, or nothing if the rows are texts."""
    row_format = encoder.format_of(rows, name)
    if row_format.kind == "text":
        return []
    pairs = []
    for index, row in enumerate(rows):
        example, start = last_answer(encoder.windows(row, row_format, f"{name}[{index}]")[0])
        answer = labelled_text(encoder.tokenizer, [{"labels": example["labels"][start:]}]).strip()
        pairs.append((example["input_ids"][:start], answer))
    return pairs


def _with_columns(row: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what was written, where it has nothing of its own."""
    return dict(row) | {column: value for column, value in written.items() if value and not row.get(column)}


def _wrong(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[str],
    count: int,
    split: str,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
    options: ChatOptions | None,
) -> list[list[str]]:
    """Up to `count` answers to each prompt that differ from the true one and from each other."""
    found: list[list[str]] = [[] for _ in prompts]
    for temperature in TEMPERATURES:
        lacking = [index for index, texts_of_row in enumerate(found) if len(texts_of_row) < count]
        if not lacking:
            break
        drawn = sample_answers(
            model,
            tokenizer,
            [prompts[index] for index in lacking],
            max(2 * count, LEAST_DRAWN),
            temperature,
            named_seed(seed, 0, split, f"wrong answers at {temperature}"),
            max_new_tokens,
            batch_size,
            f"{split}: wrong answers",
            options,
            TOP_K,
        )
        for index, samples in zip(lacking, drawn, strict=True):
            for sample in samples:
                text = whole_answer(tokenizer, sample, max_new_tokens)
                is_new = _letters(text) not in map(_letters, found[index])
                question = tokenizer.decode(prompts[index], skip_special_tokens=True)
                if len(found[index]) < count and is_new and differs(text, answers[index], question):
                    found[index].append(text)
    return found


def differs(text: str, answer: str, question: str = "") -> bool:
    """
    Whether a text says something else than an answer, as far as its words tell.

    Args:
        text (`str`):
            A text.
        answer (`str`):
            The true answer.
        question (`str`, *optional*):
            The question. What the answer repeats of it tells nothing.

    Returns:
        `bool`: `False` if the text has more than half of the words that the answer adds to the question, or if one of
        the two contains the other. White space, punctuation and case make no difference.
    """
    letters = _letters(text), _letters(answer)
    if not all(letters) or letters[0] in letters[1] or letters[1] in letters[0]:
        return False
    said, true, asked = (set(WORDS.tokenize(each)) for each in (text, answer, question))
    told = true - asked or true
    return 2 * len(told & said) <= len(told) and not said <= true


def _paraphrased(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[str],
    split: str,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
    options: ChatOptions | None,
) -> list[str]:
    """The best paraphrase of each answer, or an empty text."""
    prompts = [encode_prompt(tokenizer, PARAPHRASE_PROMPT.format(answer=answer), options) for answer in answers]
    room = context_length(model) - max_new_tokens
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= room]
    found = [""] * len(answers)
    if not fitting:
        return found
    drawn = sample_answers(
        model,
        tokenizer,
        [prompts[index] for index in fitting],
        PARAPHRASES,
        PARAPHRASE_TEMPERATURE,
        named_seed(seed, 0, split, "paraphrases"),
        max_new_tokens,
        batch_size,
        f"{split}: paraphrases",
        options,
        TOP_K,
    )
    for index, samples in zip(fitting, drawn, strict=True):
        said = [whole_answer(tokenizer, sample, max_new_tokens) for sample in samples]
        found[index] = best_paraphrase(said, answers[index])
    return found


def best_paraphrase(said: Sequence[str], answer: str) -> str:
    """
    Choose the text that says most of an answer in other words.

    Args:
        said (`Sequence[str]`):
            The texts.
        answer (`str`):
            The answer.

    Returns:
        `str`: The text with the highest ROUGE-1 F1. It is empty if none has half of the answer's words, or if those
        that have contain all of the answer as it stands.
    """
    usable = [text for text in said if _letters(text) and _letters(answer)]
    if not usable:
        return ""
    rouge = rouge_rows(usable, [answer] * len(usable), "paper")
    scored = [
        (f1, text)
        for text, f1, recall, in_order in zip(
            usable, rouge["rouge1_f1"], rouge["rouge1_recall"], rouge["rougeL_recall"], strict=True
        )
        if recall >= LEAST_SHARED and in_order < 1 and _letters(answer) not in _letters(text)
    ]
    return max(scored, default=(0.0, ""), key=lambda pair: pair[0])[1]


def _letters(text: str) -> str:
    """The letters and digits of a text, without case."""
    return re.sub(r"[\W_]", "", text.casefold())
