"""What a quantisation leaves for a later start: the integers of each finished part, one file each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fewstep.files import atomic_file, sha256_text
from fewstep.nets.quantised import Codes


@dataclass(frozen=True)
class Kept:
    """Finished parts of one quantisation; without a folder nothing is kept.

    Attributes: identity: all that the integers depend on, as text.
    """

    folder: Path | None = None
    identity: str = ""

    def read(self, part: str, like: Mapping[str, Codes]) -> dict[str, Codes] | None:
        """The codes of a part, with the scales of `like`; None where it is not there, of other settings or torn."""
        if self.folder is None or not (path := self._path(part)).exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
        fits = found.keys() == like.keys() and all(
            value.dtype == torch.uint8 and value.shape == like[name].integers.shape
            for name, value in found.items()
        )
        return {name: replace(like[name], integers=value) for name, value in found.items()} if fits else None

    def write(self, part: str, codes: Mapping[str, Codes]) -> None:
        """Leave a part."""
        if self.folder is not None:
            with atomic_file(self._path(part)) as temporary:
                save_file({name: one.integers.contiguous() for name, one in codes.items()}, temporary)

    def of(self, *more: object) -> "Kept":
        """The same folder for what depends on more."""
        return replace(self, identity=f"{self.identity} {more}")

    def _path(self, part: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{part}.{sha256_text(self.identity)[:16]}.safetensors"
