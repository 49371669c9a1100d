import pytest

from fewstep.pipeline.report.figures import spread


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([0.5], [0.5]),
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.0, 0.0], [0.0, 0.1]),
        ([1.0, 0.99], [1.0, 0.9]),
        ([0.3, 0.9, 0.32, 0.31], [0.21, 0.9, 0.41, 0.31]),
    ],
)
def test_labels_are_spread_as_little_as_needed(positions: list[float], expected: list[float]) -> None:
    assert spread(positions, gap=0.1) == pytest.approx(expected)
