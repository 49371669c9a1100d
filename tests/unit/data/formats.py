"""Tiny files in the official formats, made of noise that is the same every time."""

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CELEBA_ATTRIBUTES = [f"Attribute_{i}" for i in range(40)]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def can_write(form: str) -> bool:
    """Whether this Pillow writes the format; AVIF came with 11.3, QOI with 12."""
    Image.init()
    return form in Image.SAVE


def encoded(array: np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is what the official batches hold."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(value) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_batches(per_batch: int = 3) -> dict[str, tuple[np.ndarray, list[int]]]:
    """By official name: data (n, 3072) channels first, labels."""
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return {
        name: (noise(per_batch, 3072, seed=i), [(i * per_batch + j) % 10 for j in range(per_batch)])
        for i, name in enumerate(names)
    }


def write_cifar_python(path: Path, batches) -> Path:
    files = {
        f"cifar-10-batches-py/{name}": python2_pickle(
            {
                b"batch_label": name.encode(),
                b"labels": labels,
                b"data": data,
                b"filenames": [f"{name}_{i}.png".encode() for i in range(len(labels))],
            }
        )
        for name, (data, labels) in batches.items()
    }
    meta = {
        b"num_cases_per_batch": 10000,
        b"label_names": [c.encode() for c in CIFAR_CLASSES],
        b"num_vis": 3072,
    }
    files["cifar-10-batches-py/batches.meta"] = python2_pickle(meta)
    files["cifar-10-batches-py/readme.html"] = b"<meta>"
    return write_tar(path, files, "w:gz")


def write_cifar_binary(path: Path, batches) -> Path:
    files = {
        f"cifar-10-batches-bin/{name}.bin": b"".join(
            bytes([label]) + row.tobytes() for row, label in zip(data, labels, strict=True)
        )
        for name, (data, labels) in batches.items()
    }
    files["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(CIFAR_CLASSES) + "\n\n").encode()
    return write_tar(path, files, "w:gz")


def write_celeba(folder: Path, n: int = 6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}.jpg" for i in range(1, n + 1)]
    photos = {f"img_align_celeba/{name}": noise(218, 178, 3, seed=i) for i, name in enumerate(names)}
    images = {name: encoded(photo, "JPEG") for name, photo in photos.items()}
    write_zip(folder / "img_align_celeba.zip", images)
    split = "".join(f"{name} {i * 3 // n}\n" for i, name in enumerate(names))
    (folder / "list_eval_partition.txt").write_text(split)
    rows = [
        " ".join([name, *(" 1" if (i + a) % 3 == 0 else "-1" for a in range(40))])
        for i, name in enumerate(names)
    ]
    header = f"{n}\n{' '.join(CELEBA_ATTRIBUTES)} \n"
    (folder / "list_attr_celeba.txt").write_text(header + "\n".join(rows) + "\n")
    return folder


def write_lsun(folder: Path, images: dict[bytes, bytes]) -> Path:
    import lmdb

    folder.mkdir(parents=True)
    environment = lmdb.open(str(folder), map_size=1 << 24)
    with environment, environment.begin(write=True) as transaction:
        for key, value in images.items():
            transaction.put(key, value)
    return folder
