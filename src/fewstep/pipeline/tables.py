"""Tables between stages, as parquet files."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fewstep.checks import DataError


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table that has at least these columns.
    Raises: DataError: it is missing, damaged, or lacks a column.
    """
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path} must exist, but there is no such file; make it again.") from None
    except Exception as error:  # the reader of parquet has errors of its own
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} must be a table, but it is damaged ({reason}).") from None
    missing = [name for name in columns if name not in table]
    if missing:
        raise DataError(f"{path} must be a whole table, but it lacks {', '.join(missing)}; make it again.")
    return table
