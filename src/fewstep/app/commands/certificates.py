"""`fewstep verify` and `compare`: what certificates are worth, and which of two is better."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.checks import ConfigError
from fewstep.pipeline.stage.options import DeviceOption

_MARKS = {"held": "[green]held[/]", "failed": "[red]failed[/]", "not reached": "[yellow]not reached[/]"}


def verify(
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="certificate file")],
    model: Annotated[Path | None, typer.Option(help="the model, where it stands elsewhere")] = None,
    images: Annotated[Path | None, typer.Option(help="the images, where they stand elsewhere")] = None,
    reference: Annotated[Path | None, typer.Option(help="the statistics, where they stand elsewhere")] = None,
    extractor: Annotated[
        Path | None, typer.Option(help="the classifier's folder, where it stands elsewhere")
    ] = None,
    fitted_reference: Annotated[
        Path | None, typer.Option(help="the statistics in the fitted features, where they stand elsewhere")
    ] = None,
    fitted_extractor: Annotated[
        Path | None,
        typer.Option(
            help="the folder of the classifier that plans were fitted by, where it stands elsewhere"
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="the packed dataset, where it stands elsewhere")] = None,
    conditions: Annotated[
        Path | None, typer.Option(help="the conditions folder, where it stands elsewhere")
    ] = None,
    call: Annotated[
        Path | None,
        typer.Option(help="the file of what the pipeline is called with, where it stands elsewhere"),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="folder in which fewstep evaluate kept features; spares the network")
    ] = None,
    resample: Annotated[
        bool, typer.Option("--resample", help="draw the images again from model, plan and seeds")
    ] = False,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="pixels of the largest image file that is read, as in evaluate")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Derive everything again that a certificate names and that can be reached, and say what held.

    Hashes of all files, the images' facts, every metric from the images or their features. Ends with status 1 where
    anything failed; what cannot be reached is said, and is no failure.

    Example: fewstep verify results/digits/evaluate/plans/nfe10/ddim.uniform-t.to-zero.nfe10.json --resample
    """
    from rich.console import Console

    from fewstep.interop.zoo import find, find_reference
    from fewstep.metrics.certificate import read_certificate
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.verification import Verifier

    given = {
        "model": None if model is None else find(model),
        "images": images,
        "reference": None if reference is None else find_reference(reference),
        "extractor": extractor,
        "fitted_reference": None if fitted_reference is None else find_reference(fitted_reference),
        "fitted_extractor": fitted_extractor,
        "data": data,
        "conditions": conditions,
        "call": call,
    }
    places = {role: place for role, place in given.items() if place is not None}
    for role, place in places.items():
        if not place.exists():
            raise ConfigError(
                f"--{role.replace('_', '-')} must exist, but there is no {place}; check the path."
            )
    verifier = Verifier(
        read_certificate(certificate),
        certificate.parent,
        places,
        chosen_device(device),
        features,
        max_pixels,
    )
    console, counts = Console(), dict.fromkeys(_MARKS, 0)
    for line in verifier.lines(resample=resample):
        counts[line.outcome] += 1
        console.print(f"{_MARKS[line.outcome]}  {line.what}: ", end="")
        console.print(line.detail, markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"{certificate}: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if counts["failed"]:
        raise typer.Exit(1)


def compare(
    certificates: Annotated[
        list[Path],
        typer.Argument(metavar="CERTIFICATE...", help="two or more; all are compared with the first"),
    ],
) -> None:
    """Say which of the images are better, worse, or not distinguishable: differences with paired intervals.

    Example: fewstep compare eval/ddim.uniform-t.nfe10.json eval/unipc-2.uniform-t.nfe10.json
    """
    from rich.console import Console
    from rich.table import Table

    from fewstep.metrics.certificate import compare as difference_of
    from fewstep.metrics.certificate import not_known, read_certificate

    if len(certificates) < 2:
        raise ConfigError(
            f"There must be two certificates to compare, got {len(certificates)}; name another."
        )
    first, *others = [(path, read_certificate(path)) for path in certificates]
    rows: dict[str, list[tuple[str, ...]]] = {}
    for path, other in others:
        for name, found in difference_of(other, first[1]).items():
            low, high = found.interval
            verdict = "better" if high < 0 else "worse" if low > 0 else "not distinguishable"
            difference = f"{found.value:+.4g} [{low:+.4g}, {high:+.4g}]"
            value = f"{other['results'][name]['value']:.4g}"
            rows.setdefault(name, []).append((path.stem, value, difference, verdict, _pace(first[1], other)))
    for name, lines in rows.items():
        value = f"{first[1]['results'][name]['value']:.4g}"
        table = Table(
            title=f"{name}: {value} for {first[0].stem}; the others:", title_justify="left", box=None
        )
        for heading in ("images", "value", "difference", "verdict", "time"):
            table.add_column(
                heading, justify="right" if heading in ("value", "time") else "left", no_wrap=True
            )
        for line in lines:
            table.add_row(*line)
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    for path, other in others:
        if unknown := not_known(first[1], other):
            typer.echo(
                f"not known of both {first[0].stem} and {path.stem}, taken as equal: {', '.join(unknown)}"
            )


def protocols() -> None:
    """List published protocols: what must hold for a number to be comparable with those of their papers.

    Example: fewstep protocols
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fewstep.metrics.protocols import PROTOCOLS

    table = Table(box=None, show_lines=True)
    for heading in ("protocol", "images", "extractor", "metrics", "reference", "runs", "what it means"):
        table.add_column(heading, justify="right" if heading in ("images", "runs") else "left")
    for one in PROTOCOLS.values():
        runs = f"{one.reported} of {one.runs}" if one.runs > 1 else "1"
        reference = f"{one.dataset}, {one.split}"
        extractors, metrics = ", ".join(one.extractors), ", ".join(one.metrics)
        table.add_row(one.name, f"{one.n:,}", extractors, metrics, reference, runs, escape(one.note))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _pace(first: dict[str, Any], other: dict[str, Any]) -> str:
    """Network time an image as a ratio, where both say it of one device."""
    one, another = first["costs"], other["costs"]
    if not one or not another or one["device"] != another["device"] or not one["network_ms_per_image"]:
        return ""
    return f"{another['network_ms_per_image'] / one['network_ms_per_image']:.2f}x"
