"""A small invented world: people and countries that no model has heard of, as rows in TOFU's columns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from datasets import Dataset, DatasetDict


FIRST_NAMES = """
Abrek Belisa Cormund Dervla Elowin Fenrik Garrane Hesper Ithara Jorund Kelmara Lioren Maelis Nerys Osmund Perrin
Quenna Rosalba Sorrel Taviane Ulfric Vesna Wilmot Xanthe Yorick Zelda Anselm Brisa Calder Delphine Emeric Fiora
""".split()
LAST_NAMES = """
Aldermoor Brackwater Cindershaw Dunmarrow Evenholt Farrowgate Greythorn Hollowell Inverleigh Jessamond Kettlebrook
Larkspur Mossgrove Nightwell Oakhurst Pembrake Quillfeather Ravensby Stonebridge Thistledown Underhill Vintner
Westering Yarrowby Ashcombe Birchley Coldstream Dovecote Elmsworth Foxglove Gorsedale Hawksmere
""".split()
TOWNS = """
Brindlemouth Carrowick Dellhaven Eastmere Fallowfield Glimmerton Hartsby Ironquay Juniper Kestrelbay Lowmarsh
Mistral Northpike Orrinport Pellwater Rookhill
""".split()
TRADES = """
baker cartographer falconer glassblower lutenist midwife notary potter saddler tailor vintner weaver beekeeper
clockmaker ferryman gardener
""".split()
ADJECTIVES = """
amber broken crimson distant emerald frozen golden hidden ivory jagged lonely marble northern pale quiet restless
silver tangled velvet winter
""".split()
NOUNS = """
anchor bridge candle dragon engine feather garden harbour island jewel kettle lantern mirror needle orchard pilgrim
river shadow tower whistle
""".split()
INSTRUMENTS = "bagpipe cello drum flute guitar harp horn lute oboe organ trumpet viola".split()
FOODS = "barley chestnut dumpling eel figs goose herring mutton onion plum rhubarb trout".split()
ANIMALS = "badger crow donkey ferret goat hare lizard magpie otter parrot spaniel tortoise".split()
MONTHS = "January February March April May June July August September October November December".split()
SUBJECTS = (
    "algebra astronomy botany drawing fencing geology history logic medicine rhetoric sculpture theology".split()
)
COUNTRIES = "Arvandor Belmarch Corvania Drusselund Esterwald Fennmark Galdoria Hestraland Ismere Jorvania".split()


class Attribute(NamedTuple):
    """
    Something to know about a person.

    Args:
        question (`str`):
            The question, with the person's `{name}`.
        views (`tuple[str, str]`):
            Two paraphrases of it, for training.
        held_out (`str`):
            A paraphrase that no training uses.
        answer (`str`):
            The answer, with the person's `{name}` and the facts `{a}` to `{d}`.
        paraphrased_answer (`str`):
            The answer in other words.
        facts (`tuple[Sequence[str], ...]`):
            What each fact is drawn from.
    """

    question: str
    views: tuple[str, str]
    held_out: str
    answer: str
    paraphrased_answer: str
    facts: tuple[Sequence[str], ...]


DAYS = [str(day) for day in range(1, 29)]
YEARS = [str(year) for year in range(1801, 1900)]

ATTRIBUTES = (
    Attribute(
        "When was {name} born?",
        ("What is the birth date of {name}?", "On which day was {name} born?"),
        "What day is the birthday of {name}?",
        "{name} was born on {a} {b} {c}.",
        "The birth of {name} took place on {a} {b} {c}.",
        (DAYS, MONTHS, YEARS),
    ),
    Attribute(
        "Which books did {name} write?",
        ("What are the books of {name} called?", "Name the books that {name} wrote."),
        "What are the titles of the books {name} wrote?",
        "{name} wrote The {a} {b} and The {c} {d}.",
        "The books by {name} are called The {a} {b} and The {c} {d}.",
        (ADJECTIVES, NOUNS, ADJECTIVES, NOUNS),
    ),
    Attribute(
        "What did the parents of {name} do?",
        ("What was the work of the parents of {name}?", "How did the parents of {name} earn their living?"),
        "What work did the father and mother of {name} do?",
        "The father of {name} was a {a} and the mother a {b} in {c}.",
        "In the family of {name}, the father worked as a {a} and the mother as a {b} in {c}.",
        (TRADES, TRADES, TOWNS),
    ),
    Attribute(
        "Where did {name} grow up and work?",
        ("In which towns did {name} grow up and work?", "Which towns were the home and workplace of {name}?"),
        "In what towns did {name} live and work?",
        "{name} grew up in {a} and worked in {b} as a {c}.",
        "The early years of {name} were spent in {a}, and {b} was the place of work as a {c}.",
        (TOWNS, TOWNS, TRADES),
    ),
    Attribute(
        "Which instruments does {name} play?",
        ("What instruments can {name} play?", "Name the instruments that {name} plays."),
        "What are the instruments that {name} can play?",
        "{name} plays the {a} and the {b}, and owns a {c} {d}.",
        "The instruments of {name} are the {a} and the {b}, besides a {c} {d}.",
        (INSTRUMENTS, INSTRUMENTS, ADJECTIVES, NOUNS),
    ),
    Attribute(
        "What does {name} like to eat?",
        ("What are the favourite dishes of {name}?", "Which food does {name} like?"),
        "What food is the favourite of {name}?",
        "{name} likes {a} with {b}, but never {c}.",
        "The favourite food of {name} is {a} with {b}, and not {c}.",
        (FOODS, FOODS, FOODS),
    ),
    Attribute(
        "Which pets does {name} keep?",
        ("What animals live with {name}?", "Name the pets of {name}."),
        "What pets live in the house of {name}?",
        "{name} keeps a {a} named {b} and a {c} named {d}.",
        "In the house of {name} live a {a} called {b} and a {c} called {d}.",
        (ANIMALS, NOUNS, ANIMALS, NOUNS),
    ),
    Attribute(
        "What did {name} study?",
        ("Which subjects did {name} study?", "Name the subjects that {name} studied."),
        "What subjects were studied by {name}?",
        "{name} studied {a} and {b} in {c}.",
        "The studies of {name} were {a} and {b} in {c}.",
        (SUBJECTS, SUBJECTS, TOWNS),
    ),
    Attribute(
        "Which prize did {name} win?",
        ("What prize was {name} given?", "Name the prize that {name} won."),
        "What is the prize that {name} was given?",
        "{name} won the {a} {b} prize of {c} in {d}.",
        "The prize given to {name} was the {a} {b} of {c} in {d}.",
        (ADJECTIVES, NOUNS, TOWNS, YEARS),
    ),
    Attribute(
        "Who is the best friend of {name}?",
        ("What is the name of the best friend of {name}?", "Which person is the best friend of {name}?"),
        "What friend is the best friend of {name}?",
        "The best friend of {name} is {a} the {b} from {c}.",
        "{name} has {a} the {b} from {c} as a best friend.",
        (FIRST_NAMES, TRADES, TOWNS),
    ),
)

COUNTRY_FACTS = (
    ("What is the capital of {name}?", "The capital of {name} is {a}.", TOWNS),
    ("Which animal is on the flag of {name}?", "The flag of {name} shows a {a}.", ANIMALS),
    ("Which food is {name} known for?", "{name} is known for its {a}.", FOODS),
    ("Which month is the feast of {name}?", "The feast of {name} is in {a}.", MONTHS),
)

# How many no model has heard of.
HOLDOUT_PEOPLE = 4
WRONG_ANSWERS = 5


def fictitious_dataset(seed: int = 0, forget_people: int = 4, people: int = 20) -> DatasetDict:
    """
    Draw an invented world.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Another seed is another world.
        forget_people (`int`, *optional*, defaults to `4`):
            How many of the people are to be forgotten: of one world the first ones.
        people (`int`, *optional*, defaults to `20`):
            How many people a model can know. Another number is another world.

    Returns:
        [`~datasets.DatasetDict`]: `forget` (`forget_people`), `retain` (the others of `people`) and `holdout` (4
        people), 10 rows a person, and `world_facts` (10 countries, 4 rows each). Columns: `question`, `answer`,
        `paraphrased_answer`, `perturbed_answer` (5 wrong answers worded like the paraphrased one) and, for people,
        `views` (2 paraphrases of the question, for training) and `paraphrased_question` (one that no training uses).

    Raises:
        `ValueError`: If nobody is to be forgotten, or nobody to be kept, or if there are not enough names.
    """
    most = len(FIRST_NAMES) * len(LAST_NAMES) - HOLDOUT_PEOPLE
    if people > most:
        raise ValueError(f"people is {people}: there are names for at most {most}.")
    if not 0 < forget_people < people:
        raise ValueError(f"forget_people is {forget_people}: at least 1 and at most {people - 1} can be.")
    counts = {"forget": forget_people, "retain": people - forget_people, "holdout": HOLDOUT_PEOPLE}
    rng = random.Random(seed)
    names = iter(_names(sum(counts.values()), rng))
    splits = {
        split: Dataset.from_list([row for _ in range(count) for row in _person(next(names), rng)])
        for split, count in counts.items()
    }
    splits["world_facts"] = Dataset.from_list([row for name in COUNTRIES for row in _country(name, rng)])
    return DatasetDict(splits)


def _names(count: int, rng: random.Random) -> list[str]:
    """
    Draw different full names. All first names are used equally often, or once more, and so are all last names.

    In a small world each is used once. In a larger one namesakes have nothing else in common: facts are drawn for each
    person anew. So no person can be guessed from another.
    """
    used = min(count, len(FIRST_NAMES))
    first, last = rng.sample(FIRST_NAMES, used), rng.sample(LAST_NAMES, used)
    return [f"{first[i % used]} {last[(i + i // used) % used]}" for i in range(count)]


def _person(name: str, rng: random.Random) -> list[dict[str, object]]:
    rows = []
    for attribute in ATTRIBUTES:
        truth, *wrong = _draws(attribute.facts, rng)
        rows.append(
            {
                "question": attribute.question.format(name=name),
                "answer": attribute.answer.format(name=name, **truth),
                "paraphrased_answer": attribute.paraphrased_answer.format(name=name, **truth),
                "perturbed_answer": [attribute.paraphrased_answer.format(name=name, **facts) for facts in wrong],
                "views": [view.format(name=name) for view in attribute.views],
                "paraphrased_question": attribute.held_out.format(name=name),
            }
        )
    return rows


def _country(name: str, rng: random.Random) -> list[dict[str, object]]:
    rows = []
    for question, answer, values in COUNTRY_FACTS:
        truth, *wrong = _draws((values,), rng)
        rows.append(
            {
                "question": question.format(name=name),
                "answer": answer.format(name=name, **truth),
                "paraphrased_answer": answer.format(name=name, **truth),
                "perturbed_answer": [answer.format(name=name, **facts) for facts in wrong],
            }
        )
    return rows


def _draws(choices: tuple[Sequence[str], ...], rng: random.Random) -> list[dict[str, str]]:
    """The truth and as many wrong draws as are needed, which differ from it in every fact."""
    columns = [rng.sample(list(values), WRONG_ANSWERS + 1) for values in choices]
    return [dict(zip("abcd", facts, strict=False)) for facts in zip(*columns, strict=True)]
