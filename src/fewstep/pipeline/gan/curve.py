"""The curve of a generator's training, by what it has cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fewstep.train.metrics_log import SPEED

COST_LABELS = {
    "minutes": "wall minutes",
    "d_updates": "steps of the discriminator",
    "images": "real images seen",
}
"""Columns of `cost_columns`, and what they are called in figures."""


def cost_columns(rows: Sequence[Mapping[str, Any]], *, d_steps: int) -> pd.DataFrame:
    """The rows of a `metrics.jsonl` with minutes and discriminator steps so far.

    Minutes are those of training alone, without measurements: images over the speed of each row.

    Args: rows: from `curve_rows`. d_steps: discriminator steps for each step of the generator.
    """
    curve = pd.DataFrame(list(rows))
    seconds = curve["images"].diff().fillna(curve["images"]) / curve[SPEED]
    return curve.assign(minutes=seconds.cumsum() / 60, d_updates=curve["step"] * d_steps)
