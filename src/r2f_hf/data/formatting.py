"""From a question and an answer (or a text) to token ids and labels: one format for training and evaluation."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_PROMPT = "Question: {prompt}\nAnswer:"
IGNORE_INDEX = -100


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """
    Token ids of a prompt, ready for an answer to follow.

    The tokenizer's chat template is used where it has one (as a single user turn), otherwise the plain
    `Question: ... Answer:` form of the TOFU benchmark. An empty prompt is plain text: only the special tokens that
    the tokenizer puts in front of a text are returned.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prompt (`str`):
            The question, without any template; `""` for plain text.

    Returns:
        `list[int]`: Token ids.
    """
    if not prompt or tokenizer.chat_template is None:
        ids = tokenizer(prompt and PLAIN_PROMPT.format(prompt=prompt))["input_ids"]
        # Some tokenizers close a text too.
        closes = tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]
        return ids[:-1] if closes else ids
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """
    What closes an answer: the token that follows it in the chat template, which need not be the tokenizer's
    end-of-sequence token (Gemma's is `<end_of_turn>`), or else that token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.

    Returns:
        `int`, *optional*: Token id.
    """
    end = None if tokenizer.chat_template is None else _end_of_turn(tokenizer, str(tokenizer.chat_template))
    return tokenizer.eos_token_id if end is None else end


@lru_cache(maxsize=8)
def _end_of_turn(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    answer = "xyzzy"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    _, found, after = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(answer)
    if not found:
        return None
    # A token of its own, and not white space, of which some tokenizers add runs.
    added = set(tokenizer.get_added_vocab().values())
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in added and tokenizer.decode([token]).strip()), None)


def encode_completion(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> list[int]:
    """
    Token ids of an answer, closed by [`end_of_answer`] where there is such a token.

    Without a chat template a space separates the answer from `Answer:`. The answer is tokenized on its own, so that
    the ids after a prompt are the same in training, in scoring and in generation.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prompt (`str`):
            The prompt that the answer follows; `""` for plain text.
        completion (`str`):
            The answer.

    Returns:
        `list[int]`: Token ids.
    """
    text = completion if not prompt or tokenizer.chat_template is not None else " " + completion
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = end_of_answer(tokenizer) if prompt else tokenizer.eos_token_id
    return ids if end is None else [*ids, end]


def encode_example(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, max_length: int | None = None
) -> dict[str, list[int]]:
    """
    Input ids and labels of a prompt and its completion; the loss is taken on the completion alone.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the model.
        prompt (`str`):
            The question; `""` for plain text, whose every token then carries a label.
        completion (`str`):
            The answer, or the text.
        max_length (`int`, *optional*):
            Tokens to keep; longer examples are cut on the right.

    Returns:
        `dict[str, list[int]]`: `input_ids` and `labels` of the same length; prompt positions hold -100 in `labels`.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    completion_ids = encode_completion(tokenizer, prompt, completion)
    input_ids = (prompt_ids + completion_ids)[:max_length]
    labels = ([IGNORE_INDEX] * len(prompt_ids) + completion_ids)[:max_length]
    return {"input_ids": input_ids, "labels": labels}
