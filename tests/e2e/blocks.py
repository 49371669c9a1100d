"""The blocks of commands and Python of a page, run in order as a reader would.

A block of `bash` or `python` is run by a test; one that is not has the reason in a comment above it,
`<!-- not run: REASON -->`, and shows its commands as `console`.
"""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from e2e.shell import fewstep

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*?) -->\n\s*)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    language: str
    text: str
    reason: str | None = None

    @property
    def commands(self):
        """The command lines of a block of bash, which have no other syntax than words."""
        return [shlex.split(line, comments=True) for line in self.text.splitlines() if line.strip()]


def fences(page):
    """All blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(f["language"], f["text"], f["reason"]) for f in _FENCE.finditer(text)]


def blocks(page):
    """Those that are run."""
    return [block for block in fences(page) if block.language in ("bash", "python") and block.reason is None]


def run(page, *, cwd, smaller=None, may_fail=()):
    """Run a page; smaller: options at the end of a command, where the last one of a name counts, by its name."""
    for block in blocks(page):
        if block.language == "python":
            with (
                contextlib.chdir(cwd),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
                mock.patch.object(sys, "path", list(sys.path)),
            ):
                exec(compile(block.text, page, "exec"), {})
            sys.modules.pop("fewstep_scheduler", None)
            continue
        for program, name, *arguments in block.commands:
            assert program == "fewstep", f"{page}: the test can run fewstep alone, got {program}"
            done = fewstep(name, *arguments, *shlex.split((smaller or {}).get(name, "")), cwd=cwd)
            assert done.returncode == 0 or (name in may_fail and done.returncode == 1), done.stderr
