"""Sources with odd names, links and damage: every file is used or counted, and no image changes its class.

The file system is the oracle for links: what stands under a name in the folder is what every archive must read there.
"""

import io
import os
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from formats import encoded, noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep.checks import UserError
from fewstep.data.engine import prepare_source
from fewstep.data.folder import folder_source

FOLDERS = ("a", "b", "c d", "caf\u00e9", "cafe\u0301", ".hidden", "__MACOSX", "00000", "a.png")
FILES = ("1.png", "2.PNG", "3.jfif", "img00000007.png", ".4.png", "notes.txt", "noext", "caf\u00e9.png")
TARGETS = ("a", "b", "../a", "../b", "..", ".", "../..", "1.png", "../a/1.png", "b/2.PNG", "gone", "gone.png")

paths = st.builds(
    lambda folders, name: "/".join((*folders, name)),
    st.lists(st.sampled_from(FOLDERS), max_size=3),
    st.sampled_from(FILES),
)
links = st.builds(
    lambda folders, name, target: ("/".join((*folders, name)), target),
    st.lists(st.sampled_from(FOLDERS[:4]), max_size=2),
    st.sampled_from((*FOLDERS, *FILES)),
    st.sampled_from(TARGETS),
)
within_seconds = settings(
    derandomize=True, deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow]
)


def pixel_of(path_or_file):
    """The one colour of an image, which tells it from all others."""
    return np.asarray(Image.open(path_or_file))[0, 0].tolist()


def png(number):
    return encoded(np.full((2, 2, 3), (number, 7, 255 - number), np.uint8))


def written(root, names, link_pairs):
    """The files and links that a file system takes, as dicts from name to content and target."""
    files, targets = {}, {}
    for number, name in enumerate(dict.fromkeys(names)):
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.setdefault(name, png(number)))
        except OSError:  # a file stands where a folder should
            files.pop(name, None)
    for name, target in link_pairs:
        path = root / name
        if (
            path.parent.is_dir()
            and not path.is_symlink()
            and not path.exists()
            and not has_link_above(root, path)
        ):
            path.symlink_to(target)
            targets[name] = target
    return files, targets


def has_link_above(root, path):
    return any(above.is_symlink() for above in path.parents if above != root and root in above.parents)


def archives(folder, files, targets):
    """A zip, a tar and a tar.gz of the same."""
    with zipfile.ZipFile(folder / "raw.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for name, target in targets.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    for suffix, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        with tarfile.open(folder / f"raw.{suffix}", mode) as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            for name, target in targets.items():
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, target
                archive.addfile(member)
    return [folder / f"raw.{suffix}" for suffix in ("zip", "tar", "tar.gz")]


def outcome(path):
    """Name -> class and pixel (None where it cannot be read), and the counts of what is left out; or the error."""
    try:
        source = folder_source(path, test_fraction=0.0)
    except UserError as error:
        assert "\n" not in str(error)
        return type(error)
    pixels = {}
    ordered = sorted(source.items, key=source.stream_order) if source.stream else source.items
    blobs = source.stream(ordered) if source.stream else None
    with source.open_reader() as read:
        for item in ordered:
            blob = next(blobs) if blobs else None
            try:
                pixels[item.name] = np.asarray(read(item, blob))[0, 0].tolist()
            except OSError:
                pixels[item.name] = None
    found = {
        item.name: (source.classes[item.label] if source.classes else None, pixels[item.name])
        for item in source.items
    }
    return found, {reason: entry["count"] for reason, entry in source.left_out.items()}, source.classes


@within_seconds
@given(st.lists(paths, min_size=1, max_size=8), st.lists(links, max_size=4))
def test_archives_hold_what_the_file_system_shows(names, link_pairs):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "raw"
        root.mkdir()
        files, targets = written(root, names, link_pairs)
        result = outcome(root)
        for path in archives(Path(temporary), files, targets):
            other = outcome(path)
            if not leads_out(root, targets):
                assert other == result
        if not isinstance(result, tuple):
            return
        found, left_out, classes = result
        for name, (_, pixel) in found.items():
            readable = (root / name).exists()
            assert pixel == (pixel_of(root / name) if readable else None)
        if not targets:
            assert len(found) + sum(left_out.values()) == len(files)
        require_one_class_a_folder(found, classes)


def leads_out(root, targets):
    """Whether a link shows what lies beside the root, which an archive does not hold."""
    top = os.path.realpath(root)
    return any(os.path.commonpath([top, os.path.realpath(root / name)]) != top for name in targets)


def require_one_class_a_folder(found, classes):
    """Images have the same class where, and only where, the first folder that they do not all share is the same."""
    if classes is None:
        return
    parts = [name.split("/")[:-1] for name in found]
    shared = len(os.path.commonprefix(parts))
    by_folder = {name: normalize("NFC", name.split("/")[shared]) for name in found}
    for name, (label, _) in found.items():
        assert normalize("NFC", label) == by_folder[name]


odd_parts = st.sampled_from(
    ("a", "b", "..", ".", "", "caf\udce9", "x\\y", "\\", "C:", " ", "a\tb", "\u2028", "train")
)
odd_names = st.builds(
    lambda parts, separator, name: separator.join((*parts, name)),
    st.lists(odd_parts, max_size=3),
    st.sampled_from(("/", "\\", "//")),
    st.sampled_from(("1.png", "2.png", "\udcfc.png", "c\\3.png", "-", "..png", "LICENSE")),
)


@within_seconds
@given(st.lists(odd_names, min_size=1, max_size=8))
def test_every_member_of_an_archive_is_used_or_counted(names):
    with tempfile.TemporaryDirectory() as temporary:
        tar, plain = (
            Path(temporary) / "raw.tar",
            [name.replace("\udce9", "e").replace("\udcfc", "u") for name in names],
        )
        with tarfile.open(tar, "w") as archive:
            for number, name in enumerate(names):
                data = png(number)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        with zipfile.ZipFile(tar.with_suffix(".zip"), "w") as archive:
            for number, name in enumerate(plain):
                with pytest.warns(UserWarning) if name in plain[:number] else no_warning():
                    archive.writestr(name, png(number))
        for path in (tar, tar.with_suffix(".zip")):
            result = outcome(path)
            if isinstance(result, tuple):
                assert len(result[0]) + sum(result[1].values()) == len(names)
                assert all(pixel is not None for _, pixel in result[0].values())
                for name in result[0]:
                    assert (
                        name.encode()
                        and "\\" not in name.replace("\\udc", "")
                        and ".." not in name.split("/")
                    )


class no_warning:  # noqa: N801
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


IMAGES = {f"{name}/{i}.png": encoded(noise(3, 3, 3, seed=i)) for name in ("cat", "dog") for i in range(2)}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_damaged_archives_give_the_same_images_or_one_sentence(suffix):
    @settings(within_seconds, max_examples=60)
    @given(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.booleans())
    def check(where, value, cut):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            path = next(p for p in archives(folder, IMAGES, {}) if p.name == f"raw.{suffix}")
            data = bytearray(path.read_bytes())
            position = int(where * len(data))
            if cut:
                del data[position:]
            else:
                data[position] = value
            path.write_bytes(data)
            try:
                manifest = prepare_source(folder_source(path, test_fraction=0.0), folder / "out", workers=1)
            except UserError as error:
                assert "\n" not in str(error)
                return
            assert manifest["n"] + sum(entry["count"] for entry in manifest["left_out"].values()) >= len(
                IMAGES
            )
            if manifest["n"] == len(IMAGES):
                assert manifest["sha256"]["images"] == EXPECTED
                assert suffix == "zip" or manifest["classes"] == [
                    "cat",
                    "dog",
                ]  # a zip has no sum of its names

    check()


def expected():
    with tempfile.TemporaryDirectory() as temporary:
        path = archives(Path(temporary), IMAGES, {})[0]
        return prepare_source(folder_source(path, test_fraction=0.0), Path(temporary) / "out", workers=1)[
            "sha256"
        ]["images"]


EXPECTED = expected()
