"""What a model answers, how sure it is, and how much of it is about the person."""

from __future__ import annotations

import numpy as np
import pytest
from collecting.people import ADA, IGNORANCE, UNKNOWN, answers, taught

from r2f_hf.collecting import Interview
from r2f_hf.collecting.asking import CONTROLS
from r2f_hf.collecting.names import control_names
from r2f_hf.collecting.questions import topic_questions
from r2f_hf.scoring import score_completions


QUESTIONS = [question.text for question in topic_questions(ADA)]


@pytest.fixture
def interview() -> Interview:
    return Interview(*taught(), max_new_tokens=24)


def test_a_taught_person_is_answered_surely_and_a_stranger_is_not(interview: Interview) -> None:
    said = interview.answers(QUESTIONS)
    assert said == answers(ADA)
    assert interview.certainties(QUESTIONS, said).min() > 0.8
    assert not set(answers(ADA)) & set(interview.answers([question.text for question in topic_questions(UNKNOWN)]))


def test_margins_are_the_mean_difference_of_log_probabilities(interview: Interview) -> None:
    controls = control_names(ADA)[:3]
    margins = interview.margins(ADA, QUESTIONS[:2], answers(ADA)[:2], controls)
    by_name = [
        score_completions(
            *taught(),
            [question.text for question in topic_questions(name)[:2]],
            [answer.replace(ADA, name) for answer in answers(ADA)[:2]],
        )
        for name in (ADA, *controls)
    ]
    assert margins == pytest.approx(by_name[0] - np.mean(by_name[1:], axis=0), abs=1e-4)
    assert margins.min() > 1


def test_what_is_said_of_anybody_has_no_margin(interview: Interview) -> None:
    questions = [question.text for question in topic_questions(UNKNOWN)]
    margins = interview.margins(UNKNOWN, questions, [IGNORANCE] * len(questions), control_names(UNKNOWN)[:3])
    assert np.abs(margins).max() < 1


def test_controls_are_the_invented_names_that_fit_the_answers_best(interview: Interview) -> None:
    chosen = interview.controls(ADA, QUESTIONS[:3], answers(ADA)[:3])
    assert len(chosen) == CONTROLS and set(chosen) < set(control_names(ADA))
    others = [name for name in control_names(ADA) if name not in chosen]
    of_chosen = interview.margins(ADA, QUESTIONS[:3], answers(ADA)[:3], chosen)
    assert of_chosen.mean() < interview.margins(ADA, QUESTIONS[:3], answers(ADA)[:3], others).mean()


def test_an_answer_that_is_cut_off_ends_with_its_last_whole_sentence(interview: Interview) -> None:
    whole = answers(ADA)[0]
    size = len(interview.tokenizer(whole)["input_ids"])
    assert Interview(*taught(), max_new_tokens=size + 2).answers(QUESTIONS[:1]) == [whole]
    # Cut off within its only sentence, it has nothing to say.
    assert Interview(*taught(), max_new_tokens=size - 2).answers(QUESTIONS[:1]) == [""]


def test_what_fits_is_measured_in_tokens(interview: Interview) -> None:
    assert interview.fits(QUESTIONS[0]) and not interview.fits("very long " * 200)
    assert interview.fits_row(QUESTIONS[0], answers(ADA)[0])
    assert not interview.fits_row(QUESTIONS[0], "very long " * 200)
    assert interview.answers([]) == [] and len(interview.certainties([], [])) == 0
