"""Makes `toy`, which tests start as a program too, importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
