"""The one switch: read when asked, strict about its words."""

import pytest

from vaelib.teaching import scaling


@pytest.mark.parametrize("word", [None, "", "classroom", "paper"])
def test_the_variable_picks_at_call_time(monkeypatch, word):
    if word is not None:  # conftest.py deletes the variable
        monkeypatch.setenv("VAELIB_SCALE", word)
    name, widths = word or "classroom", [200, 500]
    assert scaling.current() == name
    picked = scaling.scale(classroom=None, paper=widths)
    assert picked is (widths if name == "paper" else None)  # any value, untouched
    assert f"at {name} scale" in scaling.describe()


@pytest.mark.parametrize("word", ["Paper", "papers", " paper", "full", "1"])
def test_another_word_is_refused_and_both_words_are_named(monkeypatch, word):
    monkeypatch.setenv("VAELIB_SCALE", word)
    for call in (scaling.current, scaling.describe, lambda: scaling.scale(classroom=1, paper=2)):
        with pytest.raises(ValueError, match=rf"'classroom' or 'paper', got '{word}'"):
            call()
    with pytest.raises(TypeError):  # values are named, so that they cannot be swapped
        scaling.scale(1, 2)
