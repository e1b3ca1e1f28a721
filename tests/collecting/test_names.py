"""A name in a text, and an invented one in its place."""

from __future__ import annotations

import pytest

from r2f_hf.collecting.names import control_names, mentions, read_names, refers, replace_name


@pytest.mark.parametrize("name", ["Plato", "Mei Tan", "Ana Ruiz Soto", "Jan van der Meer", "李白"])
def test_invented_names_have_as_many_words_and_share_none(name: str) -> None:
    names = control_names(name)
    assert len(names) == len(set(names)) >= 20
    assert {len(other.split()) for other in names} == {min(3, len(name.split()))}
    assert not any(set(other.casefold().split()) & set(name.casefold().split()) for other in names)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("Where was Ana Ruiz Soto born?", "Where was Leila Noor Hamzari born?"),
        ("ANA  Ruiz Soto's books", "Leila Noor Hamzari's books"),
        ("Soto wrote, and Ana read. Ruiz?", "Hamzari wrote, and Leila read. Noor?"),
        ("Anabel Sotomayor likes ana.", "Anabel Sotomayor likes ana."),
    ],
)
def test_a_name_is_replaced_whole_and_in_parts(text: str, result: str) -> None:
    assert replace_name(text, "Ana Ruiz Soto", "Leila Noor Hamzari") == result
    assert refers(text, "Ana Ruiz Soto") == (text != result)


def test_particles_and_short_parts_are_words_of_others_too() -> None:
    assert replace_name("De Li van der Meer is van hier.", "Li van der Meer", "Mei Lin Zhaobei") == (
        "De Mei Lin Zhaobei is van hier."
    )
    assert replace_name("Li said so to Meer.", "Li van der Meer", "Mei Lin Zhaobei") == "Li said so to Zhaobei."


def test_a_script_without_spaces_has_names_too() -> None:
    assert mentions("你知道李白的诗吗？", "李白") and not mentions("你知道杜甫的诗吗？", "李白")
    assert replace_name("李白是诗人。", "李白", "王五") == "王五是诗人。"


def test_names_are_read_from_lists_and_sentences() -> None:
    texts = [
        "1. Omar Kelani\n2. Jun-Ho Baek, Ana Ruiz Soto and Ulla O'Dell.",
        "Among them are Omar Kelani, who is well known, and The Rita Meyer. Rita lives in Ruiz.",
    ]
    assert read_names(texts, "Eva Ruiz") == ["Omar Kelani", "Jun-Ho Baek", "Ulla O'Dell", "Rita Meyer"]
