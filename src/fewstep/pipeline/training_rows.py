"""Stored conditions beside the images of a dataset, which are trained on."""

from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.checks import DataError

if TYPE_CHECKING:
    from fewstep.data.latents import Latents
    from fewstep.data.packed import Dataset
    from fewstep.diffusion.condition import Condition


def conditions_of_images(folder: Path, dataset: "Dataset | Latents", images: str) -> "Condition":
    """Stored conditions of the images of a dataset of n images: row i, and any row i + k n, is of image i.

    Raises: DataError: they are of another dataset, or not as many. `images` says in the message what is conditioned.
    """
    from fewstep.data.conditions import load_conditions, read_conditions_manifest

    rows, of = load_conditions(folder), read_conditions_manifest(folder)["source"].get("fingerprint")
    if of not in (None, dataset.of_images):
        raise DataError(
            f"--conditions must be of the images of {images}, with fingerprint {dataset.of_images:.12}..., but "
            f"{folder} is of {str(of):.12}...; make the conditions of these images."
        )
    if len(rows) % len(dataset):
        raise DataError(
            f"--conditions must have one row for each image of {images}, {len(dataset)}, or a whole number of such "
            f"blocks; {folder} has {len(rows)}; make the conditions of these images."
        )
    return rows
