"""`fewstep maps`: masks or semantic maps of the images of a dataset as conditions, and what they are in pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.checks import ConfigError, DataError
from fewstep.files import require_replaceable
from fewstep.methods.lfm.stage.settings import MapsSettings
from fewstep.pipeline.stage.options import DeviceOption, takes_settings
from fewstep.pipeline.stage.spec import STAMP, Spec, result_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fewstep.data.packed import Dataset
    from fewstep.diffusion.condition import Condition

PARTS = ("train", "search", "report")
PIXELS = "{part}.npz"


@takes_settings()
def command(
    data: Annotated[Path, typer.Option(help="packed dataset of the images, from fewstep prepare")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    autoencoder: Annotated[
        Path | None, typer.Option(help="for a model of latents: their autoencoder")
    ] = None,
    device: DeviceOption = "auto",
    *,
    maps: MapsSettings,
    spec: Spec | None,
) -> None:
    """Write conditions of the training images, and of halves of the held-out ones to search and to report on.

    Beside each is what it shows in pixels: row, image, and its mask or map, in an .npz file of its name.

    Example: fewstep maps --data data/digits --autoencoder autoencoder --kind mask --out masks
    """
    import numpy as np

    from fewstep.data.conditions import save_conditions
    from fewstep.data.packed import load_dataset

    if maps.kind is None:
        raise ConfigError("--kind must be mask or map; got none.")
    names = {*PARTS, *(PIXELS.format(part=part) for part in PARTS), STAMP}
    require_replaceable(out, set(), names=names)
    train = load_dataset(data, "train")
    if train.heldout_split is None:
        raise DataError(f"{data} must have held-out images, a split test or valid, to search and report on.")
    if maps.kind == "map" and train.classes is None:
        raise ConfigError(f"Maps name the class of an image, but {data} has no labels; take --kind mask.")
    heldout = load_dataset(data, train.heldout_split)
    half = len(heldout) // 2
    rows = {
        "train": (train, np.tile(np.arange(len(train)), maps.per_image if maps.kind == "mask" else 1)),
        "search": (heldout, np.arange(half)),
        "report": (heldout, np.arange(half, len(heldout))),
    }
    maker = _Maker(maps, autoencoder, device)
    with result_folder(out, spec) as folder:
        for part, (dataset, images) in rows.items():
            condition, pixels = maker(dataset, images, part)
            split = "train" if part == "train" else train.heldout_split
            source = {"fingerprint": dataset.fingerprint, "split": split, "kind": maps.kind}
            save_conditions(folder / part, condition, source=source, encoder=maker.encoder)
            np.savez_compressed(folder / PIXELS.format(part=part), image=images, pixels=pixels)
    typer.echo(f"{out}: {', '.join(f'{len(images)} rows to {part}' for part, (_, images) in rows.items())}")


class _Maker:
    """Makes the conditions of some images, a batch at a time."""

    def __init__(self, settings: MapsSettings, autoencoder: Path | None, device: str) -> None:
        from fewstep.interop.autoencoder import load_autoencoder
        from fewstep.pipeline.devices import chosen_device

        self.settings, self.device = settings, chosen_device(device)
        self.autoencoder = None if autoencoder is None else load_autoencoder(autoencoder, device=self.device)
        self.factor = 1 if self.autoencoder is None else self.autoencoder.factor

    @property
    def encoder(self) -> dict[str, object] | None:
        """What the manifest says of the autoencoder."""
        own = self.autoencoder
        return None if own is None else {"name": own.name, "fingerprint": own.fingerprint}

    def __call__(
        self, dataset: "Dataset", images: "NDArray[np.int64]", part: str
    ) -> "tuple[Condition, NDArray[np.uint8]]":
        """The conditions of the images of these rows, and their masks or maps, uint8 (N, H, W)."""
        import numpy as np

        from fewstep.diffusion.condition import Condition
        from fewstep.progress import track

        make = self._masks if self.settings.kind == "mask" else self._maps
        size = self.settings.batch_size
        done = [
            make(dataset, images[first : first + size], part, first)
            for first in track(f"maps {part}", unit="batch")(range(0, len(images), size))
        ]
        condition = Condition.cat([one for one, _ in done])
        halves = {name: value.half() for name, value in condition.values.items()}
        return Condition(halves), np.concatenate([pixels.numpy().astype(np.uint8) for _, pixels in done])

    def _masks(
        self, dataset: "Dataset", rows: "NDArray[np.int64]", part: str, first: int
    ) -> "tuple[Condition, Tensor]":
        import torch

        from fewstep.data.masks import draw_mask
        from fewstep.data.pixels import to_unit
        from fewstep.methods.lfm.conditions import masked
        from fewstep.rng import generator

        _, height, width = dataset.shape
        seed = self.settings.seed
        shapes = self.settings.shapes
        drawn = [
            draw_mask(height, width, rng=generator(seed, "mask", part, first + i), shapes=shapes)
            for i in range(len(rows))
        ]
        masks = torch.stack(drawn)
        images = to_unit(dataset.batch(rows))
        encode = self._encode(f"mask-posterior/{part}", first, tuple(dataset.shape))
        return masked(images, masks, encode, self.factor), masks

    def _encode(self, stream: str, first: int, shape: tuple[int, ...]) -> "Callable[[Tensor], Tensor]":
        """Images to scaled latents, drawn with the noise of each row; the identity without an autoencoder."""
        import torch

        from fewstep.rng import generator

        own, seed, device = self.autoencoder, self.settings.seed, self.device
        if own is None:
            return lambda images: images

        def encode(images: "Tensor") -> "Tensor":
            latent = own.latent_shape(shape)
            noise = [
                torch.randn(latent, generator=generator(seed, stream, first + i)) for i in range(len(images))
            ]
            return own.encode(images.to(device), torch.stack(noise)).cpu()

        return encode

    def _maps(
        self, dataset: "Dataset", rows: "NDArray[np.int64]", part: str, first: int
    ) -> "tuple[Condition, Tensor]":
        import torch

        from fewstep.diffusion.condition import Condition
        from fewstep.methods.lfm.conditions import MAP, foreground_maps, halved, projected

        assert dataset.labels is not None and dataset.classes is not None
        maps = foreground_maps(dataset.batch(rows), torch.from_numpy(dataset.labels[rows]))
        small = halved(maps, 1 + len(dataset.classes), self.factor)
        if self.settings.encoder == "frozen":
            small = projected(small, seed=self.settings.seed)
        return Condition({MAP: small}), maps
