"""The one switch: read when asked, strict about its words."""

import pytest

from vaelib.teaching import scaling


@pytest.mark.parametrize("word", ["", "classroom", "paper"])
def test_the_variable_picks_at_call_time(monkeypatch, word):
    assert scaling.current() == "classroom"  # conftest.py deletes the variable
    monkeypatch.setenv("VAELIB_SCALE", word)
    assert scaling.current() == (word or "classroom") and f"at {word}" in scaling.describe()
    assert scaling.scale(classroom=None, paper=[200, 500]) == ([200, 500] if "p" in word else None)


@pytest.mark.parametrize("word", ["Paper", "papers", " paper", "full", "1"])
def test_another_word_is_refused_and_both_words_are_named(monkeypatch, word):
    monkeypatch.setenv("VAELIB_SCALE", word)
    for call in (scaling.current, scaling.describe, lambda: scaling.scale(classroom=1, paper=2)):
        with pytest.raises(ValueError, match=rf"'classroom' or 'paper', got '{word}'"):
            call()
