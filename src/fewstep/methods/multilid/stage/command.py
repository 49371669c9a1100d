"""`fewstep detect`: how well generated images can be distinguished from real ones, and one sampler from another."""

from pathlib import Path
from typing import Annotated

import typer

from fewstep.files import atomic_dir, require_replaceable
from fewstep.methods.multilid.stage.settings import DetectSettings
from fewstep.pipeline.samples import files_in
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, stamp


@takes_settings(hide=("nfe",))
def command(
    samples: Annotated[
        list[Path], typer.Argument(metavar="SAMPLES...", help="samples files (.npz), or folders of them")
    ],
    data: Annotated[Path, typer.Option(help="packed dataset of the real images")],
    features: Annotated[
        str, typer.Option(help="effnet-lite0, resnet18-random, or the folder of a classifier")
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    device: DeviceOption = "auto",
    *,
    detect: DetectSettings,
    spec: Spec | None,
) -> None:
    """Distinguish generated images from real ones, and samplers from each other, by distances to real images.

    Every number stands beside a null control: real images in the place of the generated ones. The published protocol,
    which distinguishes even those, is measured, too.

    Example: fewstep detect samples/nfe5 --data data/digits --features extractor --out detection
    """
    from fewstep.methods.multilid.stage.record import RECORD, TABLE, print_detection
    from fewstep.methods.multilid.stage.run import run_detection
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    require_replaceable(out, set(), names={RECORD, TABLE, STAMP})
    found = run_detection(
        files_in(samples, ".npz"),
        data,
        features,
        detect,
        device=chosen_device(device),
        track=track,
        spec_key=spec.key if spec else None,
    )
    with atomic_dir(out) as folder:
        found.save(folder)
        if spec:
            stamp(spec, folder)
    print_detection(found)
    typer.echo(f"{out}: {len(found.record['generators'])} generators against {found.record['data']['name']}")
