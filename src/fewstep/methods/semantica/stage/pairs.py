"""`fewstep pairs`: which images an image is conditioned on in training, with what there is to know of the table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.checks import ConfigError, DataError
from fewstep.methods.semantica.stage.settings import PairsSettings
from fewstep.pipeline.stage.options import takes_settings
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.data.packed import Dataset
    from fewstep.data.pairs import Pairs

AUDIT, EXAMPLES = "audit.json", "examples.png"
_SHOWN = 8
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@takes_settings()
def command(
    data: Annotated[Path, typer.Option(help="packed dataset of the images, from fewstep prepare")],
    tokens: Annotated[
        Path, typer.Option(help="tokens of its training images, from fewstep encode: OUT/train")
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    *,
    pairs: PairsSettings,
    spec: Spec | None,
) -> None:
    """Write pairs.csv, an audit of it, and examples; images of classes that were held out are in no pair.

    Example: fewstep pairs --data data/cifar10 --tokens tokens/train --mode neighbours --quantiles 0.2,0.95 --out pairs
    """
    import numpy as np

    from fewstep.data.conditions import read_conditions_manifest
    from fewstep.data.packed import load_dataset
    from fewstep.data.pairs import FILE, save_pairs
    from fewstep.diffusion.condition import CONTEXT
    from fewstep.files import write_json
    from fewstep.methods.semantica.pairing import pooled, similarity_of
    from fewstep.pipeline.conditions import conditions_of_images

    if pairs.mode is None:
        raise ConfigError("--mode must be class, neighbours, image or table; got none.")
    require_result_folder(out, spec, {".csv", ".json", ".png"})
    dataset = load_dataset(data, "train")
    rows = conditions_of_images(tokens, dataset, str(data))
    heldout = read_conditions_manifest(tokens)["source"].get("heldout_classes", [])
    if heldout and dataset.labels is None:
        raise DataError(
            f"{tokens} has classes that are held out, but {data} has no labels; prepare it with labels."
        )
    seen = (
        np.arange(len(dataset))
        if dataset.labels is None
        else np.flatnonzero(~np.isin(dataset.labels, heldout))
    )
    features = pooled(rows.values[CONTEXT][seen])
    table = _table(pairs, dataset, features, seen)
    table.require_within(len(rows), len(dataset))
    whole = np.zeros(len(dataset), np.int64)
    whole[seen] = np.arange(len(seen))
    similarity = similarity_of(features, whole[table.cond_id], whole[table.target_id])
    audit = _audit(pairs, table, similarity, dataset, len(seen))
    with result_folder(out, spec) as folder:
        save_pairs(folder / FILE, table)
        write_json(folder / AUDIT, audit)
        _examples(table, dataset).save(folder / EXAMPLES)
    same = "" if audit["same_class"] is None else f", {audit['same_class']:.1%} of one class"
    typer.echo(f"{out}: {len(table)} pairs of {len(table.targets)} images by {pairs.mode}{same}")


def _table(settings: PairsSettings, dataset: "Dataset", features: "Tensor", seen: Any) -> "Pairs":
    """The pairs of the images that are seen, by their rows in the dataset."""
    import numpy as np

    from fewstep.data.pairs import load_pairs
    from fewstep.methods.semantica.pairing import (
        balanced,
        kept,
        mutual_neighbours,
        of_class,
        require_no_self_pairs,
        similarity_of,
    )
    from fewstep.rng import generator

    if settings.mode == "table":
        assert settings.source is not None
        table = load_pairs(settings.source)
        require_no_self_pairs(table)
        if not np.isin(table.target_id, seen).all() or not np.isin(table.cond_id, seen).all():
            raise DataError(
                f"{settings.source} must not pair images of classes that are held out; leave them out."
            )
        return table
    if settings.mode == "image":
        return balanced(seen, seen, np.ones(len(seen)))
    if settings.mode == "class":
        if dataset.labels is None:
            raise ConfigError(
                f"--mode class needs labels, but {dataset.name} has none; take --mode neighbours."
            )
        rng = generator(settings.seed, "pairs")
        conditions, targets = of_class(dataset.labels[seen], limit=settings.limit, rng=rng)
        return balanced(seen[conditions], seen[targets], similarity_of(features, conditions, targets))
    conditions, targets = mutual_neighbours(features, settings.neighbours)
    if not len(conditions):
        raise DataError(
            "No two images are among the nearest neighbours of each other; take more --neighbours."
        )
    similarity = similarity_of(features, conditions, targets)
    inside = kept(similarity, (settings.quantiles[0], settings.quantiles[1]))
    if not inside.any():
        raise DataError(
            f"--quantiles {settings.quantiles} leave no pair; the similarities are "
            f"{', '.join(f'{value:.3f}' for value in np.quantile(similarity, _QUANTILES))} at {list(_QUANTILES)}."
        )
    return balanced(seen[conditions[inside]], seen[targets[inside]], similarity[inside])


def _audit(
    settings: PairsSettings, table: "Pairs", similarity: Any, dataset: "Dataset", n_seen: int
) -> dict[str, Any]:
    """What a reader wants to know of a table."""
    import numpy as np

    _, uses = np.unique(table.cond_id, return_counts=True)
    same = None
    if dataset.labels is not None:
        same = float((dataset.labels[table.cond_id] == dataset.labels[table.target_id]).mean())
    return {
        "mode": settings.mode,
        "pairs": len(table),
        "images": n_seen,
        "targets": len(table.targets),
        "conditions": len(uses),
        "most_used": int(uses.max()),
        "same_class": same,
        "similarity": dict(
            zip(map(str, _QUANTILES), np.quantile(similarity, _QUANTILES).tolist(), strict=True)
        ),
        "quantiles": list(settings.quantiles) if settings.mode == "neighbours" else None,
        "sha256": table.sha256,
    }


def _examples(table: "Pairs", dataset: "Dataset") -> Any:
    """Conditions above the images that they are paired with, evenly spaced through the table."""
    import numpy as np
    from PIL import Image

    chosen = np.linspace(0, len(table) - 1, min(2 * _SHOWN, len(table))).astype(int)
    rows = [
        np.concatenate(list(dataset.images[ids[chosen]]), axis=1) for ids in (table.cond_id, table.target_id)
    ]
    picture = np.concatenate(rows, axis=0)
    return Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
