"""The metrics file: one JSON object per line, cut back to the step from which training resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fewstep import files

SPEED = "images_per_second"
OF_CLOCK = frozenset({SPEED})
"""Columns that depend on the clock; all others are the same, however often a training was interrupted."""


class MetricsLog:
    """Appends lines to a file; without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def cut_to(self, step: int) -> None:
        """Keep the lines of steps up to `step`; later ones and a torn last line go."""
        if self.path is None:
            return
        kept: list[str] = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] > step:
                        break
                except (json.JSONDecodeError, KeyError, TypeError):
                    break
                kept.append(line + "\n")
        with files.atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def append(self, values: Mapping[str, float]) -> None:
        """Add one line by a single write, so that a kill cannot interleave or lose earlier lines."""
        if self.path is None:
            return
        line = json.dumps(dict(values), allow_nan=False) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
