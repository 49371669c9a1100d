"""The command line as a user types it, in this process or as one of its own."""

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from fewstep.app import keys
from fewstep.app.cli import main
from fewstep.app.stages import STAGES
from fewstep.files import write_json

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


def made_as_run(settings, *, cwd):
    """The names of the stages of a run in the order in which their commands were run, all but tracking."""
    results = [result for result in STAGES.results(settings) if result.stage.name != "track"]
    with contextlib.chdir(cwd):
        for place, spec in keys.make_specs("r", {"r": settings}).items():
            write_json(keys.spec_path("r", place), spec.as_json())
        for result in results:
            made(*STAGES.words(result, "r", settings), "--spec", keys.spec_path("r", result.place))
    return [result.stage.name for result in results]


def refused(*arguments, cwd="."):
    """The sentence of a command that must fail by the user's mistake."""
    done = fewstep(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("fewstep: ")
    return sentence
