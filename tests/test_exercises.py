"""The check of the exercises: right answers pass, near misses and nonsense do not."""

import math

import pytest
import torch

from vaelib.teaching.exercises import check

LN2 = math.log(2)
RIGHT = [
    (0.693147, LN2),
    (torch.tensor(0.693147, requires_grad=True), LN2),
    ([1, 2, torch.tensor(3)], torch.tensor([1.0, 2.0, 3.0])),
    (torch.ones(2, 2), [[1, 1], [1, 1]]),
    ([True, False], [True, False]),
    (2.0000001e6, 2e6),  # a small share of a large number
    (1e-7, 0.0),  # rounding errors around zero
]
WRONG = [
    (0.6933, LN2),
    (0.00143, 0.00142),  # small numbers are judged by their own size
    (1e-5, 0.0),
    (1.0, [1.0, 1.0]),  # one answer does not stand for two
    ([2.0, 1.0], [1.0, 2.0]),
    *[(value, 1.0) for value in (float("nan"), float("inf"), [], None, "1", 1j, {"a": 1})],
]


@pytest.mark.parametrize(("verdict", "cases"), [("correct", RIGHT), ("not yet", WRONG)])
def test_verdict(capsys, verdict, cases):
    for yours, true in cases:
        check(yours, true)
        assert capsys.readouterr().out.endswith(f" | {verdict}\n"), f"{yours} for {true}"


def test_an_open_answer_does_not_give_the_true_one_away(capsys):
    for answer in (..., [..., 1.0], (1.0, ...)):
        check(answer, [1.0, 2.5])
        shown = capsys.readouterr().out
        assert "not answered yet" in shown and "2.5" not in shown


def test_numbers_are_shown_as_exactly_as_they_are_judged(capsys):
    check(1447.68, 1447.68)
    check(0.123456, 0.123456, tolerance=0.01)
    check(-0.0, 0.0)
    check(103.0, 100.0, tolerance=0.05)  # a share of the true number
    check(106.0, 100.0, tolerance=0.05)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "yours: 1448 | true: 1448 | correct"
    assert shown[1] == "yours: 0.12 | true: 0.12 | correct"
    assert shown[2] == "yours: 0 | true: 0 | correct"
    assert shown[3].endswith("| correct") and shown[4].endswith("| not yet")
    for tolerance in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="expected a tolerance in"):
            check(1.0, 1.0, tolerance)
