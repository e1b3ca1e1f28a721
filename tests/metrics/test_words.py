"""Words are those of every script, and of English as the usual packages split it."""

from __future__ import annotations

import json
from pathlib import Path

from rouge_score.tokenizers import DefaultTokenizer

from r2f_hf.metrics.words import WordTokenizer, cut_at, running_words


def test_english_words_are_those_of_rouge_score() -> None:
    text = "Orla's 3rd book (1871), re-printed twice, was well-liked: bakers' baking!"
    for stemming in (True, False):
        theirs = DefaultTokenizer(use_stemmer=stemming).tokenize(text)
        assert WordTokenizer(stemming=stemming).tokenize(text) == theirs


def test_running_words_are_those_of_nltk_with_its_model() -> None:
    folder = Path(__file__).parents[1] / "reference"
    texts = json.loads((folder / "generations.json").read_text())["fluency"]
    theirs = json.loads((folder / "expected.json").read_text())["entries"]["rwku.fluency.given"]["value"]["tokens"]
    assert [running_words(text) for text in texts] == theirs


def test_an_answer_is_cut_before_the_first_stop() -> None:
    assert cut_at("one\nQuestion: two\n\nthree", ("\n\n", "\nQuestion")) == "one"
    assert cut_at("one two", ("\n\n",)) == "one two"
