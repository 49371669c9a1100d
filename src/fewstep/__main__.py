"""Where the command `fewstep` starts, and `python -m fewstep`."""

from fewstep import process


def main() -> None:
    """Set the process up, then load and run the command line."""
    process.set_up()
    from fewstep.app.cli import main  # loads torch, which reads what was set up

    main()


if __name__ == "__main__":
    main()
