"""Asks one model: what it answers, how sure it is, and how much of an answer is about the person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.formatting import encode_example, encode_prompt
from ..data.rendering import ChatOptions
from ..scoring import context_length, generate_answers, score_completions, whole_answer
from .names import control_names, replace_name


# How many invented names an answer is compared with.
CONTROLS = 4


@dataclass
class Interview:
    """
    Asks a model questions, and scores its answers.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, on its device and in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens. A longer one ends with its last whole sentence.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 16
    max_new_tokens: int = 64
    options: ChatOptions = field(default_factory=ChatOptions)

    def fits(self, prompt: str) -> bool:
        """Whether a prompt leaves room for an answer in the model's context."""
        length = len(encode_prompt(self.tokenizer, prompt, self.options))
        return length + self.max_new_tokens <= context_length(self.model)

    def fits_row(self, question: str, answer: str) -> bool:
        """Whether a question and an answer fit into the model's context together."""
        example = encode_example(self.tokenizer, question, answer, options=self.options)
        return len(example["input_ids"]) <= context_length(self.model)

    def answers(self, questions: Sequence[str], desc: str | None = None) -> list[str]:
        """What the model answers, greedily; empty where it has no whole sentence to say."""
        if not questions:
            return []
        said = generate_answers(
            self.model, self.tokenizer, questions, self.max_new_tokens, self.batch_size, desc, self.options
        )
        return [whole_answer(self.tokenizer, text, self.max_new_tokens) for text in said]

    def certainties(self, questions: Sequence[str], answers: Sequence[str], desc: str | None = None) -> np.ndarray:
        """
        Score answers to questions.

        Args:
            questions (`Sequence[str]`):
                The questions.
            answers (`Sequence[str]`):
                An answer to each, not empty.
            desc (`str`, *optional*):
                Title of the progress bar.

        Returns:
            `np.ndarray` of shape `(len(questions),)`: Length-normalised probabilities, from 0 to 1.
        """
        return np.exp(self._log_probs(questions, answers, desc))

    def controls(self, name: str, questions: Sequence[str], answers: Sequence[str]) -> list[str]:
        """
        Choose the invented names that are most like a person's in what the model makes of them.

        From a name a model guesses an origin, and from this a birthplace or a language. An invented name of the same
        origin shows what is only guessed.

        Args:
            name (`str`):
                The person.
            questions (`Sequence[str]`):
                A few questions about the person.
            answers (`Sequence[str]`):
                The model's answers to them.

        Returns:
            `list[str]`: The names for which the model expects these answers most.
        """
        names = control_names(name)
        log_probs = self._log_probs_of(names, name, questions, answers, "invented names").mean(1)
        return [names[index] for index in np.argsort(-log_probs)[:CONTROLS]]

    def margins(
        self,
        name: str,
        questions: Sequence[str],
        answers: Sequence[str],
        controls: Sequence[str],
        desc: str | None = None,
    ) -> np.ndarray:
        """
        Compare answers about a person with the same answers about invented people.

        Args:
            name (`str`):
                The person. It is replaced by each of the invented names, in questions and answers.
            questions (`Sequence[str]`):
                The questions.
            answers (`Sequence[str]`):
                An answer to each, not empty.
            controls (`Sequence[str]`):
                The invented names.
            desc (`str`, *optional*):
                Title of the progress bar.

        Returns:
            `np.ndarray` of shape `(len(questions),)`: Nats per token by which the model expects the answer more of the
            person than of an invented one, in the mean over the invented names. What it says of anybody is near 0.
        """
        own, *others = self._log_probs_of([name, *controls], name, questions, answers, desc)
        return own - np.mean(others, axis=0)

    def _log_probs_of(
        self, names: Sequence[str], name: str, questions: Sequence[str], answers: Sequence[str], desc: str | None
    ) -> np.ndarray:
        """Log-probabilities `(names, questions)` per token, with each of the names in the place of `name`."""
        pairs = [
            (replace_name(question, name, other), replace_name(answer, name, other))
            for other in names
            for question, answer in zip(questions, answers, strict=True)
        ]
        log_probs = self._log_probs([pair[0] for pair in pairs], [pair[1] for pair in pairs], desc)
        return log_probs.reshape(len(names), len(questions))

    def _log_probs(self, questions: Sequence[str], answers: Sequence[str], desc: str | None) -> np.ndarray:
        if len(questions) == 0:
            return np.zeros(0)
        return score_completions(
            self.model, self.tokenizer, questions, answers, self.batch_size, desc, options=self.options
        )
