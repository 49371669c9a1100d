"""The leaderboard in the terminal: a coloured table for people, plain aligned text for pipes."""

import math
import sys
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from fewstep.app.report.headline import headline
from fewstep.checks import ConfigError
from fewstep.pipeline.report.numbers import number
from fewstep.pipeline.report.results import Results, distinguishable
from fewstep.pipeline.report.words import interval

_HEADERS = (
    "NFE", "#", "sampler", "grid", "FD", "", "of preset", "fitted FD", "prec.", "recall", "KID×10³", "ms/image",
)  # fmt: skip
_NUMERIC = {"NFE", "#", "fitted FD", "prec.", "recall", "KID×10³", "ms/image"}
_NARROW, _WIDE_ONLY = 92, 2


def print_leaderboard(
    results: Results, *, top: int | None = 5, nfe: int | None = None, stream: TextIO | None = None
) -> None:
    """Print the best rows of every number of evaluations, and the answer in words.

    Args:
        results: What to show.
        top: Rows per NFE; None shows all.
        nfe: Show this number of evaluations alone.
        stream: Where to; standard output unless given. Colours and rules appear on terminals only.

    Raises:
        ConfigError: Nothing was measured at `nfe`.
    """
    if nfe is not None and nfe not in results.steps:
        measured = ", ".join(map(str, results.steps))
        raise ConfigError(f"--nfe must be one of the measured numbers of calls, {measured}; got {nfe}.")
    stream = sys.stdout if stream is None else stream
    rows = leaderboard_rows(results, top=top, nfe=nfe)
    absent = {"of preset": not results.own, "fitted FD": results.fitted_metric is None}
    kept = [i for i, header in enumerate(_HEADERS) if not absent.get(header, False)]
    headers, *rows = (tuple(row[i] for i in kept) for row in (_HEADERS, *rows))
    if not stream.isatty():
        stream.write(_plain(headers, rows))
        return
    console = Console(file=stream, highlight=False)
    # A table cut off in the middle of its numbers says less than one without its last columns.
    shown = len(headers) - (_WIDE_ONLY if console.width < _NARROW else 0)
    table = Table(
        title=results.metric,
        caption="= not distinguishable from the best of its NFE"
        + ("; of preset: FD of a plan made for the model over that of the best preset" if results.own else "")
        + ("" if results.fitted_metric is None else f"; fitted FD: {results.fitted_metric}"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for header in headers[:shown]:
        table.add_column(header, justify="right" if header in _NUMERIC else "left", no_wrap=True)
    for i, row in enumerate(rows):
        last = i + 1 == len(rows) or rows[i + 1][0] != row[0]
        table.add_row(*row[:shown], style="bold" if row[1] == "1" else None, end_section=last)
    console.print(table)
    console.print(" ".join(headline(results)), soft_wrap=True)


def leaderboard_rows(results: Results, *, top: int | None, nfe: int | None) -> list[tuple[str, ...]]:
    """Printable cells, one tuple per row, in the order of the headers."""
    cells: list[tuple[str, ...]] = []
    for steps in results.steps if nfe is None else [nfe]:
        rows = results.at(steps).to_dict("records")
        cells += [_cells(row, rows[0]) for row in rows[:top]]
    return cells


def _cells(row: dict[str, Any], best: dict[str, Any]) -> tuple[str, ...]:
    tie = "=" if row is not best and not distinguishable(row, best) else ""
    ratio = row["of_preset"]
    verdict = "fitted only" if row["fitted_only"] else "significant" if row["significant"] else "tie"
    of_preset = "" if math.isnan(ratio) else f"{ratio:.2f} {verdict}"
    fitted = "–" if math.isnan(row["fitted"]) else number(row["fitted"])
    place = (str(row["nfe"]), str(row["rank"]), row["sampler"], row["grid"], interval(row, "fd"))
    quality = (_share(row["precision"]), _share(row["recall"]), number(1000 * row["kid"]))
    return (*place, tie, of_preset, fitted, *quality, number(row["ms"]))


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _plain(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    table = [tuple(header or "tie" for header in headers), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(headers))]
    lines = (
        "  ".join(
            cell.rjust(width) if header in _NUMERIC else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        ).rstrip()
        for row in table
    )
    return "\n".join(lines) + "\n"
