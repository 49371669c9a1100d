"""CelebA from its official aligned images, partition and attribute lists."""

from functools import partial
from pathlib import Path

from fewstep.checks import DataError
from fewstep.data.archives import archive_errors, zip_members, zip_reader
from fewstep.data.source import Item, Source
from fewstep.data.transforms import Transform
from fewstep.files import sha256_file

IMAGES, PARTITION, ATTRIBUTES = "img_align_celeba.zip", "list_eval_partition.txt", "list_attr_celeba.txt"
DEFAULT_SIZE = 64
_SPLITS = {"0": "train", "1": "valid", "2": "test"}


def celeba_source(
    source: Path | None, *, size: int | None = None, grey: bool = False, test_fraction: float = 0.0
) -> Source:
    """CelebA [liu2015celeba] with the crop of the DDIM literature: 128 x 128 at row 121, column 89; bilinear.

    Args: source: folder with the aligned zip and the two lists. size: 64 when None. grey: one channel.
    test_fraction: has no say, the partition list tells the splits.
    Its 40 attributes become `attributes.npy`; an image has no single class, so there are no labels.
    Raises: DataError: a file is missing, damaged, or the lists and the zip name different images.
    """
    files = [source / name if source is not None else Path(name) for name in (IMAGES, PARTITION, ATTRIBUTES)]
    for path in files:
        if not path.is_file():
            raise DataError(
                f"source must be a folder with {IMAGES}, {PARTITION} and {ATTRIBUTES}, but {path} is missing."
            )
    images, partition, attributes = files
    splits = read_partition(partition)
    names, values = read_attributes(attributes)
    with archive_errors(images):
        members = {name.rsplit("/", 1)[-1]: name for name, _, _ in zip_members(images)}
    for known, path in ((splits, partition), (values, attributes)):
        odd = sorted(set(members) ^ set(known))
        if odd:
            raise DataError(
                f"{path} and {images} must name the same images, "
                f"but {odd[0]} is in one only; fetch both again."
            )
    items = [
        Item(name, splits[name], None, members[name], attributes=values[name]) for name in sorted(members)
    ]  # fmt: skip
    return Source(
        name="celeba",
        items=items,
        open_reader=partial(zip_reader, images),
        transform=Transform(size=DEFAULT_SIZE if size is None else size, fit="celeba-crop", grey=grey),
        origin={"kind": "celeba", "sha256": {path.name: sha256_file(path) for path in files}},
        attributes=names,
    )


def read_partition(path: Path) -> dict[str, str]:
    """Lines of "000001.jpg 0": the split of every image."""
    splits = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in _SPLITS:
            raise DataError(
                f"{path} line {number} must be a file name and 0, 1 or 2, but is {line!r}; fetch it again."
            )
        splits[words[0]] = _SPLITS[words[1]]
    return splits


def read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """A count, a line of attribute names, then per image its name and -1 or 1 for each: as 0 and 1."""
    lines = path.read_text(encoding="utf-8").splitlines()
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    values = {}
    for number, line in enumerate(lines[2:], 3):
        words = line.split()
        if not words:
            continue
        if len(words) != 1 + len(names) or not set(words[1:]) <= {"-1", "1"}:
            raise DataError(
                f"{path} line {number} must be a file name and {len(names)} times -1 or 1; fetch it again."
            )
        values[words[0]] = tuple(int(word == "1") for word in words[1:])
    return names, values
