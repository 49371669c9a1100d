"""What a finished detection left behind, for those who show it: its record, its table, and the outcome in words."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from fewstep.checks import DataError
from fewstep.files import read_json, write_json
from fewstep.methods.multilid.protocol import NULL
from fewstep.pipeline.report.numbers import percent

SCHEMA = "fewstep.detection/3"
RECORD, TABLE = "detection.json", "detection.parquet"
FAIR, PUBLISHED = "fair", "published"
POOLED = "pooled"


@dataclass(frozen=True)
class Detection:
    """A finished detection.

    Attributes: record: the content of `detection.json`. table: one row per generator, and per null control, seen
        through a network's features under a protocol by a classifier.
    """

    record: dict[str, Any]
    table: pd.DataFrame

    def save(self, folder: Path) -> None:
        """Write both files into a folder."""
        write_json(folder / RECORD, self.record)
        self.table.to_parquet(folder / TABLE, index=False)

    def headline(self) -> pd.DataFrame:
        """Rows of the generators under the protocol that counts: leak-free, richest features, first classifier."""
        return self.rows(**self.record["protocol"]["headline"])

    def rows(self, **wanted: str) -> pd.DataFrame:
        """Rows of the generators, without the null control, whose columns have the wanted values."""
        chosen = self.table["generator"] != NULL
        for name, value in wanted.items():
            chosen &= self.table[name] == value
        return self.table[chosen]


def read_detection(folder: Path) -> Detection:
    """Read what `Detection.save` wrote.
    Raises: DataError: a file is missing, damaged or of another program.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise DataError(
            f"{folder / RECORD} must be a detection ({SCHEMA}); make it again with fewstep detect."
        )
    try:
        table = pd.read_parquet(folder / TABLE)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder / TABLE} must be a table of detections, but {error}; make it again."
        ) from None
    return Detection(record, table)


def leak(detection: Detection) -> pd.DataFrame:
    """The published protocol's null control, one row per network and classifier: 0.5 if it had no leak."""
    table = detection.table
    return table[(table["generator"] == NULL) & (table["protocol"] == PUBLISHED)]


def print_detection(detection: Detection, stream: TextIO | None = None) -> None:
    """A short table: every generator beside the null control, and the baselines."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    stream = sys.stdout if stream is None else stream
    head, n = detection.record["protocol"]["headline"], detection.record["protocol"]["images"]
    table = Table(
        title=f"{head['features']} of {head['network']}, {head['classifier']}, {n} images a class",
        caption="accuracy in %, of the null control, and the difference; AUROC; TPR at 5 % false positives",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for header in ("generator", "accuracy", "null", "minus null", "AUROC", "TPR", "pooled", "published"):
        table.add_column(header, justify="left" if header == "generator" else "right", no_wrap=True)
    for row in detection.headline().to_dict("records"):
        others = [
            detection.rows(generator=row["generator"], classifier=head["classifier"], **wanted)
            for wanted in ({"features": POOLED}, {"protocol": PUBLISHED, "network": head["network"]})
        ]
        table.add_row(
            row["generator"], percent(row["accuracy"]), percent(row["null_accuracy"]),
            f"{percent(row['accuracy_minus_null'])} [{percent(row['accuracy_minus_null_low'])}, "
            f"{percent(row['accuracy_minus_null_high'])}]",
            f"{row['auroc']:.3f}", percent(row["tpr"]),
            *(percent(found["accuracy"].iloc[0]) if len(found) else "–" for found in others),
        )  # fmt: skip
    Console(file=stream, highlight=False, width=None if stream.isatty() else 140).print(table)
    for sentence in sentences(detection):
        print(sentence, file=stream)


def sentences(detection: Detection) -> list[str]:
    """The outcome in words."""
    record, rows = detection.record, detection.headline().set_index("generator")
    identified, extremes = record["identification"], record["extremes"]
    easiest, hardest = (_extreme(extremes[which], rows) for which in ("easiest", "hardest"))
    leaks = leak(detection)
    leaks = leaks[leaks["classifier"] == record["protocol"]["headline"]["classifier"]]
    return [
        f"Easiest to distinguish from real images is {easiest}; hardest is {hardest}; points are above the null "
        f"control, with {record['protocol']['images']} images of each and {record['data']['n_bank']} real ones to "
        "compare with.",
        f"Of {len(identified['classes'])} classes, {percent(identified['accuracy']['value'])} % of all images are "
        f"assigned to their own; chance is {percent(identified['chance'])} %.",
        *(
            f"Through {row['network']} the published protocol distinguishes real images from real images in "
            f"{percent(row['accuracy'])} % [{percent(row['accuracy_low'])}, {percent(row['accuracy_high'])}] of "
            "cases, where 50 % would be right."
            for row in leaks.to_dict("records")
        ),
    ]


def _extreme(found: Mapping[str, Any], rows: pd.DataFrame) -> str:
    row, like = rows.loc[found["name"]], found["not_distinguishable_from"]
    bounds = (row["accuracy_minus_null_low"], row["accuracy_minus_null_high"])
    points = (
        f"{found['name']}, {percent(row['accuracy_minus_null'])} points [{', '.join(map(percent, bounds))}]"
    )
    return f"{points}, not distinguishable from {', '.join(like)}" if like else points


def agreement(auroc: Sequence[float], fd: Sequence[float]) -> list[str]:
    """Whether what is nearer to real images is also harder to distinguish; Spearman's, of five generators and more."""
    if len(auroc) < 5:
        return []
    rank = pd.Series(auroc).rank().corr(pd.Series(fd).rank())
    return [f"Over {len(auroc)} plans the rank correlation of AUROC and FD is {rank:.2f}."]
