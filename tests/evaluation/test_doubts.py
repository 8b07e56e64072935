"""An evaluation that means nothing says so."""

from dataclasses import replace

import numpy as np
import pytest

from allmrec.evaluation.doubts import doubts, thin_cases
from allmrec.evaluation.report import render
from tests.evaluation.test_report import report


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        ([[5, 1, 2], [6, 2, 3]], []),
        ([[5, 1, 2], [6, 2, 0]], ["1 of 2 cases have fewer than 2 negatives"]),
        ([[1, 0, 0]], ["1 of 1 cases have no other item"]),
        ([[1, 0, 0], [6, 2, 0], [6, 2, 1]], ["1 of 3 cases have no other", "2 of 3 cases have fewer"]),
    ],
)
def test_cases_with_too_few_candidates_are_told(candidates: list[list[int]], said: list[str]) -> None:
    cases = np.array(candidates)
    found = doubts([thin_cases(cases[:1]), thin_cases(cases[1:])], 2)
    assert len(found) == len(said) and all(text.startswith(start) for text, start in zip(found, said, strict=True))


def test_the_report_says_them() -> None:
    assert "1 of 1 cases" in render(replace(report(), doubts=doubts([thin_cases(np.array([[1, 0]]))], 1)))
    assert "mean nothing" not in render(report())
