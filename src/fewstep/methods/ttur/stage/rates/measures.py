"""What claims may measure of the comparison of learning rates."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.methods.ttur.stage.rates.command import TRAININGS
from fewstep.pipeline import claims
from fewstep.pipeline.claims import Measurement
from fewstep.pipeline.gan import comparison


def fd_ratio(run: Path, *, of: str, to: Sequence[str]) -> list[Measurement]:
    """FD of one arm over that of others at the same budget of images, over pairs of trainings of one seed.

    Args:
        run: folder of the run.
        of: name of the arm.
        to: names of the arms that it is compared with.
    """
    frame = comparison.read_table(run / "ttur" / TRAININGS)
    level = claims.level_of_each(len(to))
    return [comparison.fd_ratio(frame, of, other, level) for other in to]
