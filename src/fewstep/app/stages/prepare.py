"""`fewstep prepare`: raw data to the packed format."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.app.settings import WITHOUT_SOURCE, PrepareSettings
from fewstep.checks import ConfigError
from fewstep.data.dataset_names import SAID
from fewstep.pipeline.stage import Stage, Value
from fewstep.pipeline.stage.options import takes_settings
from fewstep.pipeline.stage.spec import Spec, stamp


@takes_settings(hide=("dataset",))
def command(
    dataset: Annotated[str, typer.Argument(help=SAID)],
    out: Annotated[Path, typer.Option(help="folder to write")],
    *,
    prepare: PrepareSettings,
    spec: Spec | None,
) -> None:
    """Pack a dataset: images as one memory-mapped array, labels, and a manifest with hashes.

    Example: fewstep prepare folder --source images.tar.xz --size 32 --out data/mine
    """
    from fewstep.data.prepare import loader
    from fewstep.data.prepare import prepare as pack
    from fewstep.progress import track

    loader(dataset)  # another name is said before what it lacks
    if dataset not in WITHOUT_SOURCE and prepare.source is None:
        raise ConfigError(f"--source must name the file or folder that holds {dataset}, got nothing; add it.")
    manifest = pack(
        dataset,
        out,
        source=prepare.source,
        name=prepare.name,
        size=prepare.size,
        limit=prepare.limit,
        test_fraction=prepare.test_fraction,
        skip_corrupt=prepare.skip_corrupt,
        max_pixels=prepare.max_pixels,
        workers=prepare.workers,
        progress=track(f"prepare {dataset}", unit="image"),
    )
    if spec:
        stamp(spec, out)
    splits = ", ".join(f"{last - first} {name}" for name, (first, last) in manifest["splits"].items())
    height, width, channels = manifest["shape"]
    typer.echo(f"{out}: {manifest['name']}, {splits} images of {height} x {width} x {channels}")


def _md5_of_source(settings: Any) -> str | None:
    """The hash that `dvc add` has recorded for the raw data; None when it is not tracked."""
    source = settings.prepare.source
    record = None if source is None else Path(f"{source}.dvc")
    if record is None or not record.exists():
        return None
    found = re.search(r"^\s*-?\s*md5:\s*(\S+)", record.read_text(), re.MULTILINE)
    return found[1] if found else None


STAGE = Stage(
    name="prepare",
    command=command,
    makes="dataset",
    does="pack the images",
    settings=PrepareSettings,
    inputs=lambda settings, nfe: {"dataset": Value(settings.prepare.dataset)},
    applies=lambda settings, before: settings.model.zoo is None or settings.gan.network is not None,
    source=_md5_of_source,
    gpu=False,
)
