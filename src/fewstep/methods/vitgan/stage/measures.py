"""What claims may measure of ViTGAN's ablations."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.files import read_json
from fewstep.methods.vitgan.stage.command import RECORD, TRAININGS
from fewstep.pipeline import claims
from fewstep.pipeline.claims import Measurement
from fewstep.pipeline.gan import comparison


def fd_ratio(run: Path, *, of: str, to: Sequence[str]) -> list[Measurement]:
    """FD of one variant over that of others after as many steps, over pairs of trainings of one seed.

    Args:
        run: folder of the run.
        of: name of the variant.
        to: names of those that it is compared with.
    """
    frame = comparison.read_table(run / "vitgan" / TRAININGS)
    level = claims.level_of_each(len(to))
    return [comparison.fd_ratio(frame, of, other, level) for other in to]


def jacobian_growth(run: Path, *, kind: str) -> list[Measurement]:
    """Spectral norm of the Jacobian of attention at the largest inputs over that at the smallest, with its range.

    Args:
        run: folder of the run.
        kind: `l2` or `dot`.
    """
    found = read_json(run / "vitgan" / RECORD)["jacobian"]
    growths = sorted(norms[-1] / norms[0] for norms in found[kind])
    factor = found["scales"][-1] / found["scales"][0]
    return [
        Measurement(
            f"inputs {factor:g} times as large, {len(growths)} random attentions",
            growths[len(growths) // 2],
            growths[0],
            growths[-1],
        )
    ]
