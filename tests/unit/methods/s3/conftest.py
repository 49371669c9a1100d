"""Makes the mixtures of the sampling tests importable."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "sampling"), str(Path(__file__).parents[3])]
