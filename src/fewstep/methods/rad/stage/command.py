"""`fewstep inpaint`: fill the holes of a user's own pictures, or measure how well held-out images are filled."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError
from fewstep.methods.rad.stage.settings import InpaintSettings
from fewstep.pipeline.stage.options import DeviceOption, ModelOption, takes_settings
from fewstep.pipeline.stage.spec import Spec, require_result_folder, result_folder

if TYPE_CHECKING:
    from fewstep.diffusion.denoiser import Model

log = logging.getLogger(__name__)


@takes_settings()
def command(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="folder to write")],
    plan: Annotated[
        list[Path],
        typer.Option(help="plan file; of a measurement also several, or folders of them"),
    ],
    images: Annotated[
        Path | None, typer.Option(help="folder of pictures of any size, whose holes are filled")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="KIND|FILE",
            help="with --images: box, half, lines, strokes, perlin, perlin:PERIOD, or a black and white image, whose "
            "white is the hole",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="instead of --images: packed dataset whose held-out images are measured on"),
    ] = None,
    base: Annotated[Path | None, typer.Option(help="model that the baselines take (default: MODEL)")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="with --data: statistics, from fewstep stats, or a name in the zoo")
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help="with --data: an extractor by name, or the folder of a classifier")
    ] = None,
    device: DeviceOption = "auto",
    *,
    inpaint: InpaintSettings,
    spec: Spec | None,
) -> None:
    """Fill holes with a model that has times per pixel; what is known comes back as it is, to the bit.

    Example: fewstep inpaint --model rad --plan plan.json --images my-images --mask my-mask.png --out filled
    Measure: fewstep inpaint --model rad --plan plans --data data/digits --heldout 300 --reference stats.npz
    --extractor extractor --base model --out inpaint
    """
    from fewstep.interop.load import load_model
    from fewstep.pipeline.devices import chosen_device

    require_result_folder(out, spec, {".json", ".png"})
    if (images is None) == (data is None):
        raise ConfigError("One of --images, pictures to fill, and --data, to measure on, must be given.")
    loaded = load_model(model, device=chosen_device(device))
    if data is None:
        assert images is not None
        if len(plan) != 1 or mask is None:
            raise ConfigError(
                f"Pictures are filled by one --plan and with a --mask; got {len(plan)} and {mask}."
            )
        _fill(loaded, plan[0], images, mask, out, inpaint)
        return
    from fewstep.interop.zoo import find_reference
    from fewstep.methods.rad.stage.run import Filling, save
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import load_reference
    from fewstep.progress import track

    if mask is not None or reference is None or extractor is None:
        raise ConfigError("With --data there must be --reference and --extractor, and no --mask but --masks.")
    if inpaint.heldout < 4:
        raise ConfigError(f"--heldout must be 4 images or more, to be measured; got {inpaint.heldout}.")
    network = load_extractor(extractor, device=chosen_device(device))
    filling = Filling(
        loaded,
        loaded if base is None else load_model(base, device=chosen_device(device)),
        data,
        load_reference(find_reference(reference, network.id), extractor=network),
        network,
        inpaint,
    )
    record, pictures = filling.all(plan, track)
    with result_folder(out, spec) as folder:
        save(record, pictures, folder)
    typer.echo(f"{out}: {len(record['results'])} fillings of {record['protocol']['n']} images")


def _fill(
    model: "Model", plan_path: Path, images: Path, mask: str, out: Path, settings: InpaintSettings
) -> None:
    """Write filled pictures, a strip of them, and what they were made with."""
    from fewstep.files import write_json
    from fewstep.methods.rad.inpaint import inpaint
    from fewstep.methods.rad.stage.pictures import FILLED, STRIP, open_holed
    from fewstep.methods.rad.stage.strips import before_mask_after
    from fewstep.pipeline.pictures import as_image
    from fewstep.progress import track
    from fewstep.sampling.plan import load_plan

    if out.resolve() == images.resolve():
        raise ConfigError(
            f"--out must be another folder than --images, whose pictures stay; got {out} twice."
        )
    plan = load_plan(plan_path)
    pictures = open_holed(images, mask, model.image_shape, seed=settings.seed)
    seeds = range(settings.seed, settings.seed + len(pictures.names))
    filled = inpaint(
        model,
        plan,
        pictures.images,
        pictures.masks,
        seeds=seeds,
        batch_size=settings.batch_size,
        progress=track("inpaint", unit="batch"),
    )
    shares = pictures.masks.float().mean((1, 2, 3)).tolist()
    record = {
        "schema": "fewstep.filled/1",
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "plan": {"name": plan.name, "hash": plan.hash, "nfe": plan.nfe},
        "mask": mask,
        "pictures": [
            {"name": name, "seed": seed, "hole": share}
            for name, seed, share in zip(pictures.names, seeds, shares, strict=True)
        ],
    }
    with result_folder(out, None) as folder:
        for name, image in zip(pictures.names, filled, strict=True):
            as_image(image).save(folder / f"{name}.png")
        before_mask_after(pictures.images, pictures.masks, [filled]).save(folder / STRIP)
        write_json(folder / FILLED, record)
    typer.echo(f"{out}: {len(pictures.names)} pictures, {plan.nfe} network calls each")
