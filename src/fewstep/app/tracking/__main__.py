"""`python -m fewstep.app.tracking STORE SERVER`: the addresses of the pages that show results."""

import sys

import typer

from fewstep.app.tracking.pages import pages
from fewstep.checks import UserError

if __name__ == "__main__":
    try:
        for line in pages(sys.argv[1], sys.argv[2]):
            typer.echo(line)
    except UserError as error:
        typer.echo(f"fewstep: {error}", err=True)
        sys.exit(2)
