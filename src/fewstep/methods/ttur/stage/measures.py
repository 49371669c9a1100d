"""What claims may measure of the comparison of learning rates."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fewstep.checks import DataError
from fewstep.pipeline import claims
from fewstep.pipeline.claims import Measurement
from fewstep.pipeline.gan import contest

TRAININGS = "trainings.csv"


def fd_ratio(run: Path, *, of: str, to: Sequence[str]) -> list[Measurement]:
    """FD of one arm over that of others at the same budget of images, over pairs of trainings of one seed.

    Args:
        run: folder of the run.
        of: name of the arm.
        to: names of the arms that it is compared with.
    """
    frame = read_trainings(run / "ttur" / TRAININGS)
    level = claims.level_of_each(len(to))
    return [contest.fd_ratio(frame, of, other, level) for other in to]


def read_trainings(path: Path) -> pd.DataFrame:
    """The table of trainings.
    Raises: DataError: it is missing or damaged.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=["nan"])
        return frame.astype({"arm": str, "seed": int, "fd": float, "stopped": str})
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} must be a table of trainings, but {error!r} came up; make it again."
        ) from error
