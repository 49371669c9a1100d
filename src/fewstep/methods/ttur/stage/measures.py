"""What claims may measure of distances of disturbed images."""

from itertools import pairwise
from pathlib import Path

from fewstep.methods.ttur.disturb import DISTURBANCES
from fewstep.methods.ttur.stage.run import read_disturbed, rising
from fewstep.metrics.uncertainty import paired_ratio
from fewstep.pipeline.claims import Measurement, level_of_each


def fd_rises(run: Path) -> list[Measurement]:
    """FD one level below over FD at each level of each disturbance, of the same images.

    Args:
        run: folder of the run.
    """
    record = read_disturbed(run / "disturb")
    pairs = [(kind, pair) for kind in DISTURBANCES for pair in pairwise(rising(record, kind))]
    level = level_of_each(len(pairs))
    return [
        Measurement(
            f"{kind}, {below['level']:g} to {above['level']:g}",
            below["value"] / above["value"],
            *paired_ratio(below["value"], above["value"], below["replicates"], above["replicates"], level),
            record["protocol"]["n"],
        )
        for kind, (below, above) in pairs
    ]
