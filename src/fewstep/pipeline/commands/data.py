"""`fewstep prepare`: raw data to the packed format."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.pipeline.config import DataSettings
from fewstep.pipeline.options import takes_settings
from fewstep.pipeline.specs import Spec, stamp


@takes_settings(hide=("dataset",))
def prepare(
    dataset: Annotated[str, typer.Argument(help="digits, cifar10, celeba, lsun-<category> or folder")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    *,
    data: DataSettings,
    spec: Spec | None,
) -> None:
    """Pack a dataset: images as one memory-mapped array, labels, and a manifest with hashes.

    Example: fewstep prepare folder --source images.tar.xz --size 32 --out data/mine
    """
    from fewstep.data import prepare as pack
    from fewstep.progress import track

    manifest = pack(
        dataset,
        out,
        source=data.source,
        name=data.name,
        size=data.size,
        limit=data.limit,
        test_fraction=data.test_fraction,
        skip_corrupt=data.skip_corrupt,
        workers=data.workers,
        progress=track(f"prepare {dataset}", unit="image"),
    )
    if spec:
        stamp(spec, out)
    splits = ", ".join(f"{last - first} {name}" for name, (first, last) in manifest["splits"].items())
    height, width, channels = manifest["shape"]
    typer.echo(f"{out}: {manifest['name']}, {splits} images of {height} x {width} x {channels}")
