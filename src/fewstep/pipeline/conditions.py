"""Stored conditions of a command: bound to a model, beside a dataset, and the rows that found a plan."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checks import ConfigError, DataError

if TYPE_CHECKING:
    from fewstep.data.latents import Latents
    from fewstep.data.packed import Dataset
    from fewstep.diffusion.condition import Condition
    from fewstep.diffusion.denoiser import Model

_IMAGES = 64
"""Images of a user that are encoded at once."""


def with_conditions(model: "Model", folder: Path | None) -> "Model":
    """The model with the rows of a conditions folder, or of a list of prompts, bound to it.

    The model itself where it needs none.

    Where the model is conditioned on images, the folder may be one of images, which are its rows by name.

    Raises:
        ConfigError: the model takes no stored conditions but a folder is named, or the other way round.
        DataError: the folder is damaged, or holds what the model does not take.
    """
    from fewstep.data.conditions import MANIFEST, load_conditions
    from fewstep.data.prompts import ENTRIES, is_prompts, prompts_condition, read_prompts
    from fewstep.diffusion.condition import Stored, said
    from fewstep.interop.text_model import TextFunction, with_prompts

    stored = model.conditions if isinstance(model.conditions, Stored) else None
    if folder is None:
        if stored is not None and stored.rows is None:
            wanted = (
                "--prompts, a list of prompts (.txt, .csv or .parquet)"
                if stored.entries == ENTRIES
                else f"--conditions, a folder of rows with {said(stored.entries)}"
            )
            raise ConfigError(f"{model.name} needs {wanted}; name one.")
        return model
    if stored is None:
        takes = "nothing" if model.conditions is None else said(model.conditions.entries)
        raise ConfigError(
            f"--conditions must be left out for {model.name}, which takes no stored conditions ({takes}); got {folder}."
        )
    if is_prompts(folder) and not isinstance(model.fn, TextFunction):
        raise ConfigError(
            f"{model.name} takes {said(stored.entries)}, not prompts; name a folder of conditions instead of {folder}."
        )
    try:
        if is_prompts(folder):
            rows = prompts_condition(read_prompts(folder))
        elif model.encode is not None and not (folder / MANIFEST).exists():
            rows = _encoded(model, folder)
        else:
            rows = load_conditions(folder)
        if isinstance(model.fn, TextFunction):
            return with_prompts(model, rows)
        return replace(model, conditions=stored.bind(rows))
    except DataError as error:
        raise DataError(f"--conditions {folder}: {error}") from None


def _encoded(model: "Model", folder: Path) -> "Condition":
    """The conditions of the images of a folder, made square and as large as the model's."""
    import torch

    from fewstep.data.image_files import ImageFiles
    from fewstep.data.transforms import Transform
    from fewstep.diffusion.condition import Condition

    assert model.encode is not None
    channels, side, _ = model.image_shape
    transform = Transform(side, grey=channels == 1)
    files = ImageFiles.in_folder(folder)
    parts = []
    for first in range(0, len(files), _IMAGES):
        pixels = [
            torch.from_numpy(image.copy())
            for image in files.squared(slice(first, first + _IMAGES), transform)
        ]
        parts.append(model.encode(torch.stack(pixels).permute(0, 3, 1, 2).contiguous()))
    return Condition.cat(parts)


def identity_of(model: "Model") -> dict[str, Any] | None:
    """`Conditions.identity` of a model's conditions; None for a model that has none."""
    return None if model.conditions is None else model.conditions.identity


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


def row_ranges(seeds: Sequence[int], rows: int) -> list[list[int]]:
    """First and last of the stored rows that seeds, which follow one another, have: seed modulo rows."""
    first, last = seeds[0] % rows, seeds[-1] % rows
    if seeds[-1] - seeds[0] + 1 >= rows:
        return [[0, rows - 1]]
    return [[first, last]] if first <= last else [[0, last], [first, rows - 1]]


def rows_used(
    model: "Model", seeds: Mapping[str, Sequence[int]], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a plan's provenance that says which stored conditions had a part in finding it.

    Args: seeds: first and last by purpose, as in provenance. provenance: of the plan it was made of, whose rows are
        kept.
    Returns: {"conditions": {purpose: {"sha256", "rows": [[first, last], ...]}}}; empty where there are none, as for
        classes, which every search and every report share.
    """
    identity = identity_of(model)
    own = (
        {}
        if identity is None
        else {
            purpose: {"sha256": identity["sha256"], "rows": row_ranges(block, identity["rows"])}
            for purpose, block in seeds.items()
        }
    )
    both = {**provenance.get("conditions", {}), **own}
    used = {*provenance.get("prompts", []), *prompts_used(model, seeds.values())}
    return {**({"conditions": both} if both else {}), **({"prompts": sorted(used)} if used else {})}


def prompts_used(model: "Model", blocks: Iterable[Sequence[int]]) -> set[str]:
    """What the prompts of some images are known by, `fewstep.data.prompts.digest`; none where there are no prompts.
    Args: blocks: first and last seed of each, or all of them.
    """
    from fewstep.data.prompts import PROMPT, digest, prompts_of
    from fewstep.diffusion.condition import Stored

    stored = model.conditions
    if not isinstance(stored, Stored) or stored.rows is None or PROMPT not in stored.rows.values:
        return set()
    rows = {
        row
        for block in blocks
        for first, last in row_ranges(block, len(stored.rows))
        for row in range(first, last + 1)
    }
    return {digest(prompt) for prompt in prompts_of(stored.rows[sorted(rows)])}
