"""The one switch: read when asked, strict about its words."""

import pytest

from vaelib import scaling


@pytest.mark.parametrize(
    ("word", "name", "epochs"),
    [
        (None, "classroom", 2),
        ("", "classroom", 2),
        ("classroom", "classroom", 2),
        ("paper", "paper", 9),
    ],
)
def test_the_variable_picks_at_call_time(monkeypatch, word, name, epochs):
    if word is None:
        monkeypatch.delenv("VAELIB_SCALE", raising=False)
    else:
        monkeypatch.setenv("VAELIB_SCALE", word)
    assert scaling.current() == name
    assert scaling.scale(classroom=2, paper=9) == epochs
    assert f"at {name} scale" in scaling.describe()


@pytest.mark.parametrize("word", ["Paper", "papers", " paper", "full", "1"])
def test_another_word_is_refused_and_both_words_are_named(monkeypatch, word):
    monkeypatch.setenv("VAELIB_SCALE", word)
    for call in (scaling.current, scaling.describe, lambda: scaling.scale(classroom=1, paper=2)):
        with pytest.raises(ValueError, match=rf"'classroom' or 'paper', got '{word}'"):
            call()


def test_values_are_named_so_that_they_cannot_be_swapped():
    with pytest.raises(TypeError):
        scaling.scale(1, 2)


def test_any_value_passes_through_untouched(monkeypatch):
    monkeypatch.setenv("VAELIB_SCALE", "paper")
    widths = [200, 500]
    assert scaling.scale(classroom=None, paper=widths) is widths
