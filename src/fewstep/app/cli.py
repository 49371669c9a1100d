"""The command `fewstep`: parse, call, write, and say in one line what was made or what is wrong."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache

import typer
from typer.main import get_command

import fewstep
from fewstep.checks import UserError
from fewstep.pipeline.processes import leave

app = typer.Typer(
    name="fewstep",
    help="For this diffusion model and this step budget: what is the best sampler, and how sure are we?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_LONGEST = 1200  # characters of a line of an error
_MENDABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
"""What a user can do something about: a full disk, or a place that cannot be written to."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fewstep {fewstep.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="print it and stop"
    ),
) -> None:
    """For this diffusion model and this step budget: what is the best sampler, and how sure are we?"""


@cache
def commands() -> Callable[[], None]:
    """The command line: a command for each stage, in their order, and those that are no part of the workflow.

    It is built once: a command that is added to `app` twice is there twice.

    Raises:
        ConfigError: The list of stages is wrong.
    """
    from fewstep.app.commands import certificates, doctor, export, leaderboard, plan, score
    from fewstep.app.stages import STAGES

    others: dict[str, Callable[..., None]] = {
        "plan": plan.plan,
        "doctor": doctor.doctor,
        "export": export.export,
        "score": score.score,
        "verify": certificates.verify,
        "compare": certificates.compare,
        "protocols": certificates.protocols,
        "leaderboard": leaderboard.leaderboard,
    }
    for name, command in ({stage.name: stage.command for stage in STAGES} | others).items():
        app.command(name)(command)
    return get_command(app)


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        commands()()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        place = f" at {error.filename2 or error.filename}" if error.filename else ""
        _fail(f"Writing{place} must be possible, but: {error.strerror}; free space or choose another place.")


def _shortened(line: str) -> str:
    """A line without its middle, where a damaged file made it too long to read."""
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 300]} [...] {line[-300:]}"


def _fail(sentence: str) -> None:
    if os.environ.get("FEWSTEP_TRACEBACK"):
        traceback.print_exc()
    lines = "\n".join(map(_shortened, sentence.splitlines()))
    if not leave(f"fewstep: {lines}\n"):
        print(f"fewstep: {lines}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
