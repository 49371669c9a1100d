"""What plans are measured by while one is being found: a reference, an extractor, and features of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checks import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fewstep.metrics.extractor import Extractor
    from fewstep.metrics.reference import Reference
    from fewstep.sampling.plan import Plan
    from fewstep.sampling.task import Task


def reference_and_extractor(
    reference: Path | None, data: Path | None, extractor: str, device: str, task: "Task"
) -> tuple["Reference | None", "Extractor | None"]:
    """The reference images, from a statistics file or a packed dataset, and the extractor whose features are compared.

    Returns:
        Both, or neither where no images are named.

    Raises:
        ConfigError: both ways are used, or the extractor takes other images. DataError: a file is damaged.
    """
    if reference is None and data is None:
        return None, None
    if reference is not None and data is not None:
        raise ConfigError("--reference and --data say the same thing in two ways; leave out one of the two.")
    from fewstep.interop.zoo import find_reference
    from fewstep.metrics.extractor import load_extractor
    from fewstep.metrics.reference import build_reference, load_reference
    from fewstep.pipeline.devices import chosen_device
    from fewstep.progress import track

    network = load_extractor(extractor, device=chosen_device(device))
    shape = task.model.image_shape
    if network.shape not in (None, shape):
        raise ConfigError(
            f"The extractor must take the model's images, (C, H, W) = {shape}; {network.id} takes {network.shape}; "
            "use another extractor."
        )
    if reference is not None:
        return load_reference(find_reference(reference, network.id), extractor=network), network
    assert data is not None
    return build_reference(data, network, progress=track("stats", unit="batch")), network


def features_of(task: "Task", plan: "Plan", seeds: Sequence[int], extractor: "Extractor") -> "NDArray[Any]":
    """Features of the images that a plan makes of some seeds, (len(seeds), dim)."""
    import numpy as np

    from fewstep.data.pixels import to_u8
    from fewstep.metrics.extractor import extract
    from fewstep.sampling.task import batches

    return np.concatenate(
        [
            extract(to_u8(task.images(task.solve(plan, part))).cpu(), extractor)
            for part in batches(seeds, task.batch_size)
        ]
    )
