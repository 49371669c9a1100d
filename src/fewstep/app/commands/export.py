"""`fewstep export`: plans, and models with their plans, for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from fewstep.checks import ConfigError
from fewstep.pipeline.stage.options import CallOption

TARGETS = ("diffusers", "onnx")


def export(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="model folder, name in the zoo, or a pipeline of diffusers"),
    ],
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="plan file")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    call: CallOption = None,
    to: Annotated[str, typer.Option(help=f"what it is for: {', '.join(TARGETS)}")] = "diffusers",
    precision: Annotated[
        Literal["f32", "bf16"], typer.Option(help="of a bundle: arithmetic of what is not integers")
    ] = "f32",
    backend: Annotated[
        Literal["openvino", "onnxruntime"], typer.Option(help="of a bundle: what it is checked with")
    ] = "openvino",
) -> None:
    """Write a plan as a scheduler of diffusers, or a model with its plan as a bundle that runs without PyTorch.

    Example: fewstep export my-pipeline plan.json --to diffusers --out scheduler
    Example: fewstep export model quantised/plan.json --to onnx --out bundle, then python bundle/run.py --seeds 0-63
    --out images.npz, or fewstep sample bundle --seeds 0-63 --out images.npz
    """
    if to not in TARGETS:
        raise ConfigError(f"--to must be one of {', '.join(TARGETS)}; got {to!r}.")
    if to == "onnx":
        _bundle(model, plan, out, precision, backend)
        return
    from fewstep.interop.diffusers_model import require_diffusers
    from fewstep.interop.load import load_model
    from fewstep.sampling.plan import load_plan

    require_diffusers()
    from fewstep.interop.diffusers_plan import export_diffusers

    scheduler = export_diffusers(load_plan(plan), load_model(model, call=call), out)
    typer.echo(
        f"{out}: scheduler of diffusers, num_inference_steps={scheduler.num_inference_steps}, "
        f"starts at noise of std {scheduler.config.init_noise_sigma:.6g}"
    )


def _bundle(
    model: Path,
    plan: Path,
    out: Path,
    precision: Literal["f32", "bf16"],
    backend: Literal["openvino", "onnxruntime"],
) -> None:
    from fewstep.files import require_replaceable
    from fewstep.interop.bundle import PLAN, export_bundle
    from fewstep.interop.load import load_model
    from fewstep.sampling.plan import load_plan
    from fewstep.sampling.quantised import attached, read_integers

    loaded, one = load_model(model), load_plan(plan)
    require_replaceable(out, {".json", ".npz", ".onnx", ".py"}, names={PLAN})
    integers = None if one.integers is None else read_integers(plan, one, loaded)
    if integers is not None:
        loaded = attached(loaded, integers)
    parity = export_bundle(loaded, one, out, integers=integers, precision=precision, backend=backend)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    said = (
        f"outputs {parity.runtime:.2g} from PyTorch's"
        if parity.ratio is None
        else f"error {parity.runtime:.2g} of the outputs, {parity.ratio:.3g} times that of simulated integers"
    )
    kind = precision if one.quant_bits is None else f"{one.quant_bits}, the rest in {precision}"
    typer.echo(f"{out}: bundle, {kind}, {size:.3g} MB, {said} over {parity.images} images by {backend}")
