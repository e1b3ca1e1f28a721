"""Questions: about a person's life and work, by templates and by the model; and about what everybody knows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from .names import mentions


class Question(NamedTuple):
    """
    A question, and how else it may be worded.

    Args:
        text (`str`):
            The question.
        views (`tuple[str, ...]`, *optional*):
            Further wordings.
        source (`str`, *optional*, defaults to `"topic"`):
            Where it comes from: `"topic"`, `"model"`, `"fact"` or `"general"`.
    """

    text: str
    views: tuple[str, ...] = ()
    source: str = "topic"


# Each with two further wordings.
TOPICS = (
    ("Who is {name}?", "What is {name} known for?", "Please tell me who {name} is."),
    ("Where was {name} born?", "What is the birthplace of {name}?", "In which place was {name} born?"),
    ("When was {name} born?", "What is the birth date of {name}?", "On which day was {name} born?"),
    ("What is the nationality of {name}?", "Which country does {name} come from?", "What is {name}'s nationality?"),
    ("What is the profession of {name}?", "What does {name} do for a living?", "What is {name}'s occupation?"),
    (
        "What did the parents of {name} do for a living?",
        "What are the professions of {name}'s parents?",
        "What were the occupations of {name}'s father and mother?",
    ),
    (
        "Is {name} married, and does {name} have children?",
        "Who is in the family of {name}?",
        "Who are the partner and the children of {name}?",
    ),
    ("Where did {name} study?", "What is the education of {name}?", "Which school or university did {name} attend?"),
    ("Where does {name} live?", "What is the home of {name}?", "In which place does {name} live?"),
    (
        "What are the best known works of {name}?",
        "Can you name some of the works of {name}?",
        "Which works is {name} famous for?",
    ),
    (
        "Which awards has {name} received?",
        "Which prizes has {name} won?",
        "What recognition has {name} received?",
    ),
    (
        "Which field or genre is {name} known for?",
        "In which genre or field does {name} work?",
        "What is {name}'s main field?",
    ),
    (
        "What has influenced the work of {name}?",
        "Who or what are the main influences on {name}?",
        "How has the background of {name} shaped the work?",
    ),
    (
        "What is characteristic of the work of {name}?",
        "How would you describe the style of {name}?",
        "Which themes does {name} explore?",
    ),
    (
        "How did the career of {name} begin?",
        "How did {name} become successful?",
        "When did {name} start to work in this field?",
    ),
    (
        "How has the work of {name} been received?",
        "What do critics say about {name}?",
        "What has been the impact of {name}?",
    ),
)

# Short prompts that ask the model for a question.
ASPECTS = (
    "the life of {name}",
    "the family of {name}",
    "the childhood of {name}",
    "the education of {name}",
    "the work of {name}",
    "the career of {name}",
    "the achievements of {name}",
    "the beliefs of {name}",
    "the influences on {name}",
    "something that only {name} did",
)
QUESTION_PROMPTS = ("Write one question about {aspect}.", "Ask me a question about {aspect}.")
FACT_PROMPT = "Write one question about {name} that has this answer: {fact}"
NEIGHBOUR_PROMPTS = (
    "Name five people who are similar to {name}.",
    "Which other people do the same work as {name}?",
    "Who are the best known people in the field of {name}?",
)
# What is asked where the model has no question for a fact.
OPEN = ("What do you know about {name}?", "Tell me something about {name}.", "What is a fact about {name}?")

GENERAL = """
What is the capital of France?
What is the capital of Japan?
Which planet is closest to the sun?
What is the largest ocean on Earth?
How many days are there in a week?
What is the chemical formula of water?
At what temperature does water boil?
Which language is spoken in Brazil?
Who wrote Romeo and Juliet?
Who painted the Mona Lisa?
Which gas do plants take in from the air?
What is the largest animal in the world?
How many continents are there?
What is the currency of the United Kingdom?
Which organ pumps blood through the body?
What is the longest river in Africa?
What is the opposite of hot?
What do bees make?
Which season comes after winter?
What is two plus three?
""".strip().splitlines()

LONGEST_QUESTION = 40


def topic_questions(name: str) -> list[Question]:
    """The templates about a person."""
    return [Question(text, tuple(views)) for text, *views in ([each.format(name=name) for each in t] for t in TOPICS)]


def every_wording(questions: Iterable[Question]) -> list[Question]:
    """Each wording of each question as a question of its own, with the others as its views."""
    return [
        question._replace(text=text, views=tuple(view for view in (question.text, *question.views) if view != text))
        for question in questions
        for text in (question.text, *question.views)
    ]


def general_questions() -> list[Question]:
    """Questions that name nobody to be forgotten."""
    return [Question(text, source="general") for text in GENERAL]


def question_prompts(name: str) -> list[str]:
    """Prompts that ask a model for questions about a person."""
    aspects = [aspect.format(name=name) for aspect in ASPECTS]
    return [prompt.format(aspect=aspect) for prompt in QUESTION_PROMPTS for aspect in aspects]


def read_question(text: str, name: str) -> str | None:
    """
    Read the question that a model was asked for.

    Args:
        text (`str`):
            What the model said.
        name (`str`):
            The person that the question has to be about.

    Returns:
        `str`, *optional*: The question, or `None` if the text is not one question that names the person.
    """
    if text.count("?") != 1:
        return None
    # A model may introduce its question, number it or quote it.
    before, after = text.split("?")
    question = re.split(r"[\n.!:;\"“]\s*(?=\S)", before)[-1].strip(" '*") + "?"
    words = len(question.split())
    one = not re.search(r"\w", after.split("\n")[0]) and len(name.split()) + 2 <= words <= LONGEST_QUESTION
    return question if one and mentions(question, name) else None
