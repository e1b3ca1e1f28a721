"""From a person's name to rows to forget and rows to keep, in the model's own words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..data.duplicates import near_duplicates
from ..data.rows import normal_form
from .asking import Interview
from .names import control_names, read_names, refers, replace_name
from .questions import (
    FACT_PROMPT,
    NEIGHBOUR_PROMPTS,
    OPEN,
    Question,
    every_wording,
    general_questions,
    question_prompts,
    read_question,
    topic_questions,
)
from .rows import CollectedRow, CollectedSet, Thresholds


# How many of the people that the model names are asked about.
MOST_NEIGHBOURS = 5
# By how many of the first topics the invented names are chosen: they tell where somebody comes from.
CHOOSING_TOPICS = 5
# Share of word pairs from which on two answers say the same.
SAME = 0.8
# Least length-normalised probability of a fact that the model knows, as in `r2f check-data`.
FACT_CERTAINTY = 0.1


class Collector:
    """
    Asks a model about a person and about others, and keeps what it knows.

    Args:
        interview ([`Interview`]):
            The model, and how it is asked.
        name (`str`):
            The person to be forgotten.
        thresholds ([`Thresholds`], *optional*):
            Which answers the model knows.
    """

    def __init__(self, interview: Interview, name: str, thresholds: Thresholds | None = None):
        self.interview, self.name, self.thresholds = interview, name, thresholds or Thresholds()
        self.forget, self.retain = CollectedSet(), CollectedSet()
        # The invented names that each person is compared with.
        self.controls: dict[str, list[str]] = {}

    def collect(self, facts: Sequence[str] = (), neighbours: Sequence[str] = ()) -> tuple[CollectedSet, CollectedSet]:
        """
        Collect rows.

        Args:
            facts (`Sequence[str]`, *optional*):
                Facts about the person. Each becomes a row to forget, whether the model knows it or not.
            neighbours (`Sequence[str]`, *optional*):
                People to keep. By default the model is asked for similar people.

        Returns:
            `tuple[CollectedSet, CollectedSet]`: What to forget, facts first, and what to keep, neighbours first.
        """
        self.forget, self.retain = CollectedSet(), CollectedSet()
        # A model may know something in one wording and not in another one.
        questions = every_wording(topic_questions(self.name))
        known = self.about(self.name, [*questions, *self._own_questions()], self.forget)
        self.forget.rows = [*self._facts(facts), *self._different(known)]
        for neighbour in neighbours or self._named_neighbours():
            questions = [question._replace(source="neighbour") for question in topic_questions(neighbour)]
            self.retain.rows += self._others(self.about(neighbour, questions, self.retain), neighbour)
        self.retain.rows += self._others(self._general())
        return self.forget, self.retain

    def check(self, facts: Sequence[str] = (), neighbours: Sequence[str] = ()) -> None:
        """
        Refuse what does not fit in the model's context, before anything is asked.

        Args:
            facts (`Sequence[str]`, *optional*):
                Facts about the person.
            neighbours (`Sequence[str]`, *optional*):
                People to keep.

        Raises:
            `ValueError`: Naming the line of a fact, and never its text.
        """
        questions = [question for name in (self.name, *neighbours) for question in topic_questions(name)]
        prompts = [text for question in questions for text in (question.text, *question.views)]
        if not all(map(self.interview.fits, [*prompts, *question_prompts(self.name)])):
            raise ValueError(
                f"The model's context has no room for the questions and `max_new_tokens="
                f"{self.interview.max_new_tokens}` more tokens. Lower `max_new_tokens`."
            )
        longest = max((question.format(name=self.name) for question in OPEN), key=len)
        for number, fact in enumerate(facts):
            if not self.interview.fits_row(longest, fact):
                raise ValueError(f"Fact {number + 1} is longer than the model's context. Shorten it or leave it out.")

    def about(self, name: str, questions: Iterable[Question], into: CollectedSet) -> list[CollectedRow]:
        """
        Ask about somebody, and keep what the model knows: it is sure, and would not say it of anybody.

        Args:
            name (`str`):
                The person.
            questions (`Iterable[Question]`):
                Questions that name the person. The first ones should tell where somebody comes from.
            into ([`CollectedSet`]):
                Counts what is asked and left out.

        Returns:
            `list[CollectedRow]`: Rows with certainties and margins.
        """
        answered = self._answered(questions, into)
        if not answered:
            return []
        by_topic = {_topic(row): row for row in reversed(answered)}
        first = list(by_topic.values())[::-1][:CHOOSING_TOPICS]
        self.controls[name] = self.interview.controls(
            name, [row.question.text for row in first], [row.answer for row in first]
        )
        rows = self._with_margins(name, self._sure(answered, into))
        known = [row for row in rows if row.known]
        into.left_out["said of anybody"] += len(rows) - len(known)
        return known

    def _own_questions(self) -> list[Question]:
        """Questions about the person that the model asks when it is told to."""
        said = self.interview.answers(question_prompts(self.name), "questions")
        questions = [read_question(text, self.name) for text in said]
        return [Question(text, source="model") for text in questions if text is not None and self.interview.fits(text)]

    def _named_neighbours(self) -> list[str]:
        """Similar people, as the model names them."""
        prompts = [prompt.format(name=self.name) for prompt in NEIGHBOUR_PROMPTS]
        names = read_names(self.interview.answers(prompts, "neighbours"), self.name)
        return [name for name in names if all(self.interview.fits(each.text) for each in topic_questions(name))][
            :MOST_NEIGHBOURS
        ]

    def _answered(self, questions: Iterable[Question], into: CollectedSet) -> list[CollectedRow]:
        """The model's answers to different questions, as far as it has one, with their certainties."""
        different = {normal_form([question.text]): question for question in reversed(list(questions))}
        asked = list(reversed(different.values()))
        into.asked.update(question.source for question in asked)
        pairs = zip(asked, self.interview.answers([question.text for question in asked], "answers"), strict=True)
        answered = [(question, answer) for question, answer in pairs if answer]
        into.left_out["no answer"] += len(asked) - len(answered)
        texts, answers = [question.text for question, _ in answered], [answer for _, answer in answered]
        certainties = self.interview.certainties(texts, answers, "certainties")
        return [
            CollectedRow(question, answer, float(certainty))
            for (question, answer), certainty in zip(answered, certainties, strict=True)
        ]

    def _sure(self, rows: Sequence[CollectedRow], into: CollectedSet) -> list[CollectedRow]:
        sure = [row for row in rows if row.certainty >= self.thresholds.min_certainty]
        into.left_out["unsure"] += len(rows) - len(sure)
        return sure

    def _different(self, rows: Sequence[CollectedRow]) -> list[CollectedRow]:
        """Rows without those that give a topic the same answer in another wording: the widest margin stays."""
        best: dict[tuple[frozenset[str], tuple[str, ...]], CollectedRow] = {}
        for row in sorted(rows, key=lambda row: -(row.margin or 0.0)):
            best.setdefault((_topic(row), normal_form([row.answer])), row)
        self.forget.left_out["repeated"] += len(rows) - len(best)
        return [row for row in rows if row in best.values()]

    def _with_margins(self, name: str, rows: Sequence[CollectedRow]) -> list[CollectedRow]:
        """Rows about somebody with their margins, and whether these are wide enough."""
        questions, answers = [row.question.text for row in rows], [row.answer for row in rows]
        controls = self.controls.get(name) or control_names(name)
        margins = self.interview.margins(name, questions, answers, controls, "margins")
        return [
            row._replace(margin=float(margin), known=bool(margin >= self.thresholds.min_margin))
            for row, margin in zip(rows, margins, strict=True)
        ]

    def _facts(self, facts: Sequence[str]) -> list[CollectedRow]:
        """A row for each fact. The model words the question if it can."""
        prompts = [FACT_PROMPT.format(name=self.name, fact=fact) for fact in facts]
        fitting = [index for index, prompt in enumerate(prompts) if self.interview.fits(prompt)]
        said = self.interview.answers([prompts[index] for index in fitting], "questions")
        worded = {index: read_question(text, self.name) for index, text in zip(fitting, said, strict=True)}
        questions = []
        for index in range(len(facts)):
            text, *views = [OPEN[(index + turn) % len(OPEN)].format(name=self.name) for turn in range(len(OPEN))]
            own = worded.get(index)
            own = own if own and self.interview.fits_row(own, facts[index]) else None
            questions.append(Question(own, (), "fact") if own else Question(text, tuple(views), "fact"))
        self.forget.asked.update(question.source for question in questions)
        certainties = self.interview.certainties([question.text for question in questions], facts, "facts")
        rows = [
            CollectedRow(question, fact, float(certainty))
            for question, fact, certainty in zip(questions, facts, certainties, strict=True)
        ]
        rows = self._with_margins(self.name, rows)
        # The wording is not the model's own. So it can know a fact and be less sure of it than of what it says itself.
        return [row._replace(known=row.known and row.certainty >= FACT_CERTAINTY) for row in rows]

    def _general(self) -> list[CollectedRow]:
        """What everybody knows, where the model is sure."""
        return self._sure(self._answered(general_questions(), self.retain), self.retain)

    def _others(self, rows: Sequence[CollectedRow], neighbour: str | None = None) -> list[CollectedRow]:
        """Rows to keep, without those that speak of the person, or say of a neighbour what is said of the person."""

        def without(text: str, name: str | None) -> str:
            return text if name is None else replace_name(text, name, "")

        named = {
            index
            for index, row in enumerate(rows)
            if refers(without(f"{row.question.text} {row.answer}", neighbour), self.name)
        }
        about_person = [[without(row.answer, self.name)] for row in self.forget.rows]
        about_others = [[without(row.answer, neighbour)] for row in rows]
        same = {pair.second for pair in near_duplicates(about_person, about_others, SAME)}
        self.retain.left_out["names the person"] += len(named)
        self.retain.left_out["said of the person too"] += len(same - named)
        return [row for index, row in enumerate(rows) if index not in named | same]


def _topic(row: CollectedRow) -> frozenset[str]:
    """What a row asks, in whichever wording."""
    return frozenset((row.question.text, *row.question.views))
