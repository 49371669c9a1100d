"""The command line as a user types it, in this process or as one of its own."""

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from fewstep.app.cli import main

COMMAND = Path(sys.executable).with_name("fewstep")


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def fewstep(*arguments, cwd="."):
    """Run the command line in this process: a start of Python for each case would take longer than all the rest."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["fewstep", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def made(*arguments, cwd="."):
    """What a command that must succeed says."""
    done = fewstep(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments, cwd="."):
    """The sentence of a command that must fail by the user's mistake."""
    done = fewstep(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("fewstep: ")
    return sentence
