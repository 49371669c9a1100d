"""`fewstep score`: images of prompts one by one: how well they meet them, and how near they are to a fine solution."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.checks import ConfigError
from fewstep.pipeline.samples import files_in, require_distinct_names
from fewstep.pipeline.stage.options import DeviceOption

if TYPE_CHECKING:
    from fewstep.metrics.paired import Mean
    from fewstep.pipeline.samples import Samples


def score(
    samples: Annotated[
        list[Path], typer.Argument(metavar="SAMPLES...", help="of fewstep sample, files or folders")
    ],
    prompts: Annotated[
        Path, typer.Option(metavar="FILE[:COLUMN]", help="the prompts that they were drawn with")
    ],
    out: Annotated[Path, typer.Option(help="file to write (.json)")],
    clip: Annotated[Path | None, typer.Option(help="folder of a CLIPModel of transformers")] = None,
    fine: Annotated[
        Path | None, typer.Option(help="samples of the same seeds by the pipeline's own many steps")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Score images under their prompts (CLIP), and measure their distance to fine solutions of the same noises.

    Intervals count prompts, not images. The floor is the score of the same images under the prompts of others. All
    samples are compared with the first, pair by pair.

    Example: fewstep score samples --prompts reported.txt --clip clip-vit-large --fine fine.npz --out scores.json
    """
    from fewstep.data.prompts import prompts_condition, read_prompts
    from fewstep.files import write_json
    from fewstep.interop.clip import ClipScore
    from fewstep.metrics.paired import mean_by_prompt, paired_distances, scored
    from fewstep.pipeline.devices import chosen_device
    from fewstep.pipeline.samples import read_samples

    if clip is None and fine is None:
        raise ConfigError("There must be something to score by; give --clip or --fine.")
    texts = read_prompts(prompts)
    identity = prompts_condition(texts).sha256
    paths = files_in(samples, ".npz")
    require_distinct_names(paths)
    sets = {path.stem: read_samples(path) for path in paths}
    solutions = None if fine is None else read_samples(fine)
    for name, one in [*sets.items(), *([] if solutions is None else [("--fine", solutions)])]:
        _require(name, one, identity, next(iter(sets.values())), prompts)
    scorer = None if clip is None else ClipScore(clip, device=chosen_device(device))
    seeds = next(iter(sets.values())).seeds
    groups = [int(seed) % len(texts) for seed in seeds]
    record: dict[str, Any] = {
        "schema": "fewstep.scores/1",
        "prompts": {"sha256": identity, "n": len(texts)},
        "samples": {},
    }
    if scorer is not None:
        record["clip"] = scorer.identity
    first: dict[str, Any] = {}
    for name, one in sets.items():
        found: dict[str, Any] = {}
        values = {}
        images = one.images[:]
        if scorer is not None:
            of_prompts = scored(images, [texts[group] for group in groups], scorer)
            found |= {"clip": _json(of_prompts.mean), "clip_floor": _json(of_prompts.floor)}
            values["clip"] = of_prompts.scores
        if solutions is not None:
            values["paired_distance"] = paired_distances(images, solutions.images[:])
            found["paired_distance"] = _json(mean_by_prompt(values["paired_distance"], groups))
        for measure, per_image in values.items():
            if measure in first:
                found[f"{measure}_less_first"] = _json(mean_by_prompt(per_image - first[measure], groups))
        first = first or values
        record["samples"][name] = found
        shown = ", ".join(
            f"{key} {v['value']:.4g} [{v['low']:.4g}, {v['high']:.4g}]" for key, v in found.items()
        )
        typer.echo(f"{name}: {shown}")
    write_json(out, record)


def _require(name: str, samples: "Samples", identity: str, like: "Samples", prompts: Path) -> None:
    """Raise ConfigError where samples are of other prompts or seeds."""
    import numpy as np

    conditions = samples.meta.get("conditions") or {}
    if conditions.get("sha256") != identity:
        raise ConfigError(
            f"{name} must be drawn with the prompts of {prompts}, but was drawn with others; name those."
        )
    if not np.array_equal(samples.seeds, like.seeds):
        raise ConfigError(f"Samples to be compared must be of the same seeds; those of {name} are others.")


def _json(mean: "Mean") -> dict[str, Any]:
    low, high = mean.interval
    return {"value": mean.value, "low": low, "high": high, "images": mean.n, "prompts": mean.prompts}
