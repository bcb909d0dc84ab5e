"""The check of the exercises: right answers pass, near misses and nonsense do not."""

import math

import pytest
import torch

from vaelib.exercises import check


def verdict(capsys, *given, **settings) -> str:
    check(*given, **settings)
    return capsys.readouterr().out.strip().rsplit(" | ", 1)[-1]


@pytest.mark.parametrize(
    ("yours", "true"),
    [
        (0.693147, math.log(2)),
        (torch.tensor(0.693147, requires_grad=True), math.log(2)),
        ([1, 2, torch.tensor(3)], torch.tensor([1.0, 2.0, 3.0])),
        (torch.ones(2, 2), [[1, 1], [1, 1]]),
        ([True, False], [True, False]),
        (2.0000001e6, 2e6),  # one part in ten thousand of a large number
        (1e-7, 0.0),  # rounding errors around zero
    ],
)
def test_right_answers(capsys, yours, true):
    assert verdict(capsys, yours, true) == "correct"


@pytest.mark.parametrize(
    ("yours", "true"),
    [
        (0.6933, math.log(2)),
        (0.00143, 0.00142),  # small numbers are judged by their own size
        (1e-5, 0.0),
        (1.0, [1.0, 1.0]),  # one answer does not stand for two
        ([2.0, 1.0], [1.0, 2.0]),
        (float("nan"), 1.0),
        (float("inf"), 1.0),
        ([], 1.0),
        (None, 0.0),
        ("1", 1.0),
        (1j, 0.0),
        ({"a": 1}, 1.0),
    ],
)
def test_wrong_answers(capsys, yours, true):
    assert verdict(capsys, yours, true) == "not yet"


def test_an_open_answer_does_not_give_the_true_one_away(capsys):
    for answer in (..., [..., 1.0], (1.0, ...)):
        check(answer, [1.0, 2.5])
        shown = capsys.readouterr().out
        assert "not answered yet" in shown and "2.5" not in shown


def test_numbers_are_shown_as_exactly_as_they_are_judged(capsys):
    check(1447.68, 1447.68)
    check(0.123456, 0.123456, tolerance=0.01)
    check(-0.0, 0.0)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "yours: 1448 | true: 1448 | correct"
    assert second == "yours: 0.12 | true: 0.12 | correct"
    assert third == "yours: 0 | true: 0 | correct"


def test_tolerance_is_a_share_of_the_true_number(capsys):
    assert verdict(capsys, 103.0, 100.0, tolerance=0.05) == "correct"
    assert verdict(capsys, 106.0, 100.0, tolerance=0.05) == "not yet"
    for tolerance in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="expected a tolerance in"):
            check(1.0, 1.0, tolerance)
