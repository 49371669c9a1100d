import math

import pytest

from fewstep.pipeline.report.numbers import count, number, percent, ratio


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.03123, "0.0312"), (3.125, "3.12"), (31.25, "31.2"), (312.4, "312"), (31241.0, "31241"), (0.0, "0"),
     (-0.0042, "-0.00420"), (math.nan, "–")],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_what_is_no_number_is_a_dash():
    assert [write(math.nan) for write in (number, count, ratio, percent)] == ["–"] * 4


def test_counts_ratios_and_shares():
    assert count(1234567.0) == "1\u202f234\u202f567"
    assert ratio(0.4567) == "0.46×"
    assert percent(0.8125) == "81.2"
