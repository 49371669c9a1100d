import io
from pathlib import Path

import pytest
from unit.app.report.study import write_all

from fewstep.app.report.terminal import print_leaderboard
from fewstep.checks import ConfigError
from fewstep.pipeline.report.results import read_results


def test_terminal_table_without_a_terminal_is_plain_text(tmp_path: Path) -> None:
    stream = io.StringIO()
    print_leaderboard(read_results([write_all(tmp_path)]), top=2, stream=stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 3 * 2
    assert lines[0].split()[:4] == ["NFE", "#", "sampler", "grid"]
    assert lines[3].split()[:6] == ["10", "1", "dpmpp-2m", "uniform-t", "3.05", "[2.85,"]
    assert "=" in lines[4]
    assert "\x1b" not in stream.getvalue()


def test_terminal_table_for_people(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    print_leaderboard(read_results([write_all(tmp_path)]), nfe=10, stream=stream)
    assert "At 10 evaluations the best known sampler is dpmpp-2m" in stream.getvalue()
    assert "FD of ddim at 50 is 3.00 [2.80, 3.20]." in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


def test_nfe_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5, 10, 50"):
        print_leaderboard(read_results([write_all(tmp_path)]), nfe=11, stream=io.StringIO())
