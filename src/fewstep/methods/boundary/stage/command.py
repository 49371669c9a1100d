"""`fewstep edit`: move pictures across a boundary, or measure what such edits do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.methods.boundary.stage.settings import EditSettings
from fewstep.pipeline.stage.options import DeviceOption, ModelOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.diffusion.denoiser import Model
    from fewstep.methods.boundary.boundary import Boundary
    from fewstep.methods.boundary.latents import Latents

FILE, SWEEP = "edit.json", "sweep"


@takes_settings()
def command(
    model: ModelOption,
    boundary: Annotated[
        list[Path],
        typer.Option(help="file of fewstep boundary fit; of a measurement also several, or folders of them"),
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    images: Annotated[Path | None, typer.Option(help="folder of pictures of any size to edit")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="A-B", help="instead of --images: edit what the model makes of these seeds"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="instead of --images: packed dataset whose held-out images are measured on"),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="with --data: what judges edits: an extractor by name, or the folder of a classifier"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="use a boundary that puts few held-out images on their side")
    ] = False,
    device: DeviceOption = "auto",
    *,
    edit: EditSettings,
    spec: Spec | None,
) -> None:
    """Edit an attribute of pictures by one move at one step of the model, which is not trained for it.

    Example: fewstep edit --model model --boundary boundaries/3-8.npz --images mine --zeta=-1,1,2 --out edited
    Measure: fewstep edit --model model --boundary boundaries --data data/digits --heldout 40 --extractor extractor
    --out measured
    """
    from fewstep.interop.load import load_model
    from fewstep.methods.boundary.boundary import load_boundary
    from fewstep.pipeline.devices import chosen_device

    require_result_folder(out, spec, {".json", ".png"})
    if sum(given is not None for given in (images, seeds, data)) != 1:
        raise ConfigError("One of --images, --seeds, and --data, to measure on, must be given.")
    loaded = load_model(model, device=chosen_device(device))
    if data is None:
        if len(boundary) != 1 or boundary[0].is_dir():
            raise ConfigError(
                f"Pictures are edited across one --boundary, a file; got {', '.join(map(str, boundary))}."
            )
        found = load_boundary(boundary[0])
        _edit(loaded, found, images, seeds, out, edit, force)
        return
    from fewstep.methods.boundary.stage.run import Editing, save
    from fewstep.metrics.extractor import load_extractor
    from fewstep.progress import track

    if edit.heldout < 1:
        raise ConfigError(f"--heldout must be 1 image or more, to be measured; got {edit.heldout}.")
    network = None if extractor is None else load_extractor(extractor, device=chosen_device(device))
    record, pictures = Editing(loaded, data, edit, network).all(boundary, track)
    with result_folder(out, spec) as folder:
        save(record, pictures, folder)
    typer.echo(f"{out}: edits across {len(pictures)} boundaries")


def _edit(
    model: "Model",
    boundary: "Boundary",
    images: Path | None,
    seeds: str | None,
    out: Path,
    settings: EditSettings,
    force: bool,
) -> None:
    """Write edited pictures, a sweep of them from left to right, and what they were made with."""
    from fewstep.files import write_json
    from fewstep.methods.boundary.edit import generated, unedited
    from fewstep.methods.boundary.latents import require_editable
    from fewstep.methods.boundary.stage.run import edited_from
    from fewstep.pipeline.pictures import as_image, stacked

    require_editable(model)
    boundary.require(model)
    if not force:
        boundary.require_accurate(settings.space)
    names, originals, latents = _latents(model, boundary, images, seeds, out, settings)
    columns = {"unedited": generated(model, boundary.plan, unedited(latents), batch_size=settings.batch_size)}
    for zeta in settings.zeta:
        start = boundary.start(latents, settings.space, zeta)
        columns[f"zeta{zeta:g}"] = edited_from(model, boundary, start, settings)
    record = {
        "schema": "fewstep.edits/1",
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "boundary": {"attribute": boundary.attribute, "t": boundary.t, "plan": boundary.plan.hash},
        "settings": settings.result_settings(),
        "pictures": [
            {
                "name": name,
                "distance": {
                    space: float(plane.distance(latents.of(space)[i : i + 1]) / plane.scale)
                    for space, plane in boundary.planes.items()
                },
            }
            for i, name in enumerate(names)
        ],
    }
    import torch

    from fewstep.pipeline.stage.spec import result_folder

    shown = [*([] if originals is None else [originals]), *columns.values()]
    with result_folder(out, None) as folder:
        for column, made in columns.items():
            for name, image in zip(names, made, strict=True):
                as_image(image).save(folder / f"{name}.{column}.png")
        stacked(list(torch.stack(shown).transpose(0, 1))).save(folder / f"{SWEEP}.png")
        write_json(folder / FILE, record)
    typer.echo(f"{out}: {len(names)} pictures at {len(settings.zeta)} distances from {boundary.attribute}")


def _latents(
    model: "Model",
    boundary: "Boundary",
    images: Path | None,
    seeds: str | None,
    out: Path,
    settings: EditSettings,
) -> "tuple[list[str], Tensor | None, Latents]":
    """Names and latents of pictures, and the pictures themselves where they are a user's own."""
    from fewstep.methods.boundary.latents import inverted, sampled
    from fewstep.pipeline.pictures import open_pictures
    from fewstep.pipeline.samples import parse_seeds
    from fewstep.progress import track

    if images is None:
        assert seeds is not None
        drawn = parse_seeds(seeds)
        made = sampled(model, boundary.plan, drawn, calls=boundary.plan.nfe, batch_size=settings.batch_size)
        return [f"seed{seed}" for seed in drawn], None, made
    if out.resolve() == images.resolve():
        raise ConfigError(
            f"--out must be another folder than --images, whose pictures stay; got {out} twice."
        )
    pictures = open_pictures(images, model.image_shape, taken=SWEEP)
    latents = inverted(
        model,
        boundary.plan,
        pictures.images,
        batch_size=settings.batch_size,
        progress=track("invert", unit="batch"),
    )
    return list(pictures.names), pictures.images, latents
