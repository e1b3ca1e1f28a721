"""Invented chats of a class, in which somebody is unkind now and then, and a small model that knows them by heart."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from split import rows_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


sys.path.append(str(Path(__file__).parents[1] / "quickstart"))
from prepare import train


AUTHORS = "Ada Bo Cleo Dan Eli Fay Gus Hana".split()
THINGS = "drawing kite poem song hat robot cake boat mask map puppet lantern".split()
KIND = [
    "I like the colours of the {thing}.",
    "May I try the {thing} later?",
    "The {thing} took me a week too.",
    "Show the {thing} to Miss Finch.",
    "Bring the {thing} on Friday.",
]
UNKIND = [
    "Nobody wants to see a silly {thing}.",
    "Go and sit alone with the {thing}.",
    "That {thing} is as dull as {author}.",
]
CHATS = 48
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chats(seed: int = 0) -> list[dict[str, list[dict[str, object]]]]:
    """Chats of four turns. The third turn is unkind in every second chat."""
    rng = random.Random(seed)
    made = []
    for number in range(CHATS):
        first, *others = rng.sample(AUTHORS, 4)
        thing, kind = rng.choice(THINGS), rng.sample(KIND, 3)
        harmful = number % 2 == 0
        texts = [f"I made a {thing}.", kind[0], rng.choice(UNKIND) if harmful else kind[1], kind[2]]
        turns = [
            {
                "author": author,
                "text": text.format(thing=thing, author=first),
                "harmful": harmful and place == 2,
            }
            for place, (author, text) in enumerate(zip([first, *others], texts, strict=True))
        ]
        made.append({"turns": turns})
    return made


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<eos>", "<user>", "<assistant>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def main() -> None:
    folder = Path("outputs/behaviour")
    folder.mkdir(parents=True, exist_ok=True)
    made = chats()
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in made), encoding="utf-8")
    rows = [
        {"question": row["prompt"][0]["content"], "answer": row["completion"][0]["content"]}
        for chat in made
        for kind in rows_of(chat["turns"]).values()
        for row in kind
    ]
    tokenizer = build_tokenizer([text for row in rows for text in row.values()])
    train(tokenizer, rows, folder / "before", seed=0)
    print(f"The chats are in {folder / 'chats.jsonl'}, and a model that knows them is {folder / 'before'}.")


if __name__ == "__main__":
    main()
