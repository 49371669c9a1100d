"""Every file of a source is an image of its class, or counted: links, names of other systems, damaged archives."""

import gzip
import io
import os
import stat
import tarfile
import zipfile

import numpy as np
import pytest
from formats import encoded, noise, write_files, write_tar, write_zip

from fewstep.checks import DataError
from fewstep.data.archives import list_folder
from fewstep.data.engine import prepare_source
from fewstep.data.folder import folder_source
from fewstep.data.left_out import DANGLING, HIDDEN, LOOP, NOT_IMAGES, REPLACED, SPECIAL
from fewstep.data.names import member_name
from fewstep.data.packed import load_dataset
from fewstep.data.prepare import prepare


def png(seed):
    return encoded(noise(4, 4, 3, seed=seed))


def classes_of(source):
    """Name in the source -> class and split; counts of what was left out."""
    found = folder_source(source, test_fraction=0.0)
    names = {item.name: found.classes[item.label] if found.classes else None for item in found.items}
    return names, {reason: entry["count"] for reason, entry in found.left_out.items()}


def packed(source, out, **options):
    """Pixels of each image by class, and the manifest."""
    manifest = prepare_source(folder_source(source, test_fraction=0.0), out, workers=1, **options)
    return load_dataset(out), manifest


# links in a folder


def test_linked_classes_and_splits_are_followed(tmp_path):
    write_files(tmp_path / "store", {"c1/1.png": png(1), "c1/2.png": png(2), "t/cat/3.png": png(3)})
    raw = write_files(tmp_path / "raw", {"train/dog/4.png": png(4)})
    (raw / "train" / "cat").symlink_to(tmp_path / "store" / "c1")
    (raw / "test").symlink_to(tmp_path / "store" / "t")
    data, manifest = packed(raw, tmp_path / "out")
    assert manifest["splits"] == {"train": [0, 3], "test": [3, 4]}
    assert [data.classes[label] for label in data.labels] == ["cat", "cat", "dog", "cat"]
    assert np.array_equal(data.images[0], noise(4, 4, 3, seed=1))
    assert manifest["left_out"] == {}


def test_two_links_to_one_folder_are_two_classes(tmp_path):
    write_files(tmp_path / "store", {"1.png": png(1)})
    (tmp_path / "raw").mkdir()
    for name in ("a", "b"):
        (tmp_path / "raw" / name).symlink_to("../store")
    assert classes_of(tmp_path / "raw") == ({"a/1.png": "a", "b/1.png": "b"}, {})


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_a_link_to_a_folder_above_is_a_loop_and_counted(target, tmp_path):
    raw = write_files(tmp_path / "raw", {"a/1.png": png(1), "b/2.png": png(2)})
    (raw / "a" / "round").symlink_to(target)
    assert classes_of(raw) == ({"a/1.png": "a", "b/2.png": "b"}, {LOOP: 1})


def test_links_that_multiply_without_end_are_refused(tmp_path):
    raw = write_files(tmp_path / "raw", {"0/1.png": png(1)})
    for i in range(8):
        (raw / f"{i}").mkdir(exist_ok=True)
        for j in range(8):
            (raw / f"{i}" / f"to{j}").symlink_to(f"../{j}")
    with pytest.raises(DataError, match="at most 100 ways"):
        list_folder(raw)


def test_links_to_nothing_are_said(tmp_path):
    raw = write_files(tmp_path / "raw", {"a/1.png": png(1), "b/2.png": png(2)})
    (raw / "notes.txt").symlink_to("gone.txt")
    (raw / ".lock").symlink_to("gone")
    (raw / "b" / "3.png").symlink_to("gone.png")
    (raw / "b" / "4.png").symlink_to("4.png")  # to itself
    with pytest.raises(DataError, match=r"b/3\.png must be a readable image"):
        packed(raw, tmp_path / "out")
    _, manifest = packed(raw, tmp_path / "out", skip_corrupt=True)
    assert manifest["skipped"] == ["b/3.png", "b/4.png"] and manifest["n"] == 2
    assert {reason: found["count"] for reason, found in manifest["left_out"].items()} == {
        HIDDEN: 1,
        DANGLING: 1,
    }
    (raw / "c").symlink_to("gone")
    with pytest.raises(DataError, match="c must not be a link to nothing, but gone is not there"):
        folder_source(raw)


def test_what_is_no_file_is_counted(tmp_path):
    raw = write_files(tmp_path / "raw", {"1.png": png(1)})
    os.mkfifo(raw / "2.png")
    assert classes_of(raw) == ({"1.png": None}, {SPECIAL: 1})


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    raw = write_files(tmp_path / "raw", {"a/1.png": png(1), "b/2.png": png(2)})
    real = os.scandir

    def scandir(path):
        if str(path).endswith("raw/a"):  # the superuser may read all, whatever the rights
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="raw/a must be a folder that can be read"):
        folder_source(raw)


# links in archives


def linked_tar(path, files, links, mode="w", hard=()):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.LNKTYPE if name in hard else tarfile.SYMTYPE
            member.linkname = target
            archive.addfile(member)
    return path


@pytest.mark.parametrize("suffix, mode", [("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz")])
def test_links_in_a_tar_are_followed(suffix, mode, tmp_path):
    files = {
        "raw/cat/1.png": png(1),
        "raw/cat/2.png": png(2),
        "raw/blobs/x.bmp": encoded(noise(4, 4, 3, seed=5), "BMP"),
    }
    links = {
        "raw/dog": "cat",
        "raw/cow/3.png": "../blobs/x.bmp",
        "raw/cow/4.png": "raw/cat/1.png",  # hard: another name of an earlier member
        "raw/cat/up": "..",
        "raw/cat/notes.txt": "gone",
    }
    path = linked_tar(tmp_path / f"raw.{suffix}", files, links, mode, hard=("raw/cow/4.png",))
    data, manifest = packed(path, tmp_path / "out")
    names, left_out = classes_of(path)
    assert list(names) == [f"raw/{name}" for name in (
        "blobs/x.bmp", "cat/1.png", "cat/2.png", "cow/3.png", "cow/4.png", "dog/1.png", "dog/2.png",
    )]  # fmt: skip
    for row, seed in enumerate((5, 1, 2, 5, 1, 1, 2)):
        assert np.array_equal(data.images[row], noise(4, 4, 3, seed=seed))
    # `raw/cat` and, reached by the link, `raw/dog` hold both links
    assert left_out == {DANGLING: 2, LOOP: 2}
    assert manifest["left_out"][LOOP]["examples"] == ["raw/cat/up", "raw/dog/up"]


@pytest.mark.parametrize("suffix, mode", [("tar", "w"), ("tar.gz", "w:gz")])
def test_a_link_in_a_tar_to_nothing_is_an_image_that_cannot_be_read(suffix, mode, tmp_path):
    path = linked_tar(tmp_path / f"a.{suffix}", {"1.png": png(1)}, {"0.png": "/data/0.png"}, mode)
    with pytest.raises(DataError, match=r"0\.png must be a readable image, but is not \(a link to nothing\)"):
        packed(path, tmp_path / "out")
    assert packed(path, tmp_path / "out", skip_corrupt=True)[1]["skipped"] == ["0.png"]
    path = linked_tar(tmp_path / f"b.{suffix}", {"a/1.png": png(1)}, {"b": "../elsewhere"}, mode)
    with pytest.raises(DataError, match="b must not be a link to nothing"):
        folder_source(path)


def test_links_in_a_zip_are_followed(tmp_path):
    path = tmp_path / "raw.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", png(1))
        for name, target in (("dog", "cat"), ("cow/2.png", "../cat/1.png")):
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    assert classes_of(path) == ({"cat/1.png": "cat", "cow/2.png": "cow", "dog/1.png": "dog"}, {})
    data, _ = packed(path, tmp_path / "out")
    assert all(np.array_equal(image, noise(4, 4, 3, seed=1)) for image in data.images)


# names


@pytest.mark.parametrize(
    "raw, name",
    [
        ("cat\\1.png", "cat/1.png"), ("./a//b/./1.png", "a/b/1.png"), ("../a/1.png", "a/1.png"),
        ("/a/../b/1.png", "b/1.png"), ("caf\udce9/1.png", "caf\\udce9/1.png"), ("café/1.png", "café/1.png"),
    ],
)  # fmt: skip
def test_names_have_one_form(raw, name):
    assert member_name(raw) == name
    name.encode()  # and can be hashed and printed


@pytest.mark.parametrize("kind", ["zip", "tar", "folder"])
def test_backslashes_part_folders(kind, tmp_path):
    files = {f"{split}\\{name}\\1.png": png(1) for split in ("train", "test") for name in ("cat", "dog")}
    if kind == "folder":  # as some tools unpack a zip of Windows
        path = write_files(tmp_path / "raw", files)
    else:
        path = (write_zip if kind == "zip" else write_tar)(tmp_path / f"raw.{kind}", files)
    source = folder_source(path)
    assert source.classes == ("cat", "dog") and source.origin["split"] == "by folder"
    assert {item.name: item.split for item in source.items} == {
        name.replace("\\", "/"): name.split("\\")[0] for name in files
    }
    assert packed(path, tmp_path / "out")[1]["n"] == 4


def test_two_files_of_one_name_are_refused_in_a_folder_and_counted_in_an_archive(tmp_path):
    both = {"a\\1.png": png(1), "a/1.png": png(2)}
    with pytest.raises(DataError, match=r"must hold a/1\.png once"):
        folder_source(write_files(tmp_path / "raw", both))
    for path in (write_zip(tmp_path / "raw.zip", both), write_tar(tmp_path / "raw.tar", both)):
        data, manifest = packed(path, tmp_path / "out")
        assert np.array_equal(data.images[0], noise(4, 4, 3, seed=2))
        assert manifest["left_out"] == {REPLACED: {"count": 1, "examples": ["a/1.png"]}}


def test_names_above_the_root_of_a_tar_are_taken_as_tar_takes_them(tmp_path):
    files = {"../raw/cat/1.png": png(1), "/raw/dog/2.png": png(2)}
    assert classes_of(write_tar(tmp_path / "raw.tar", files)) == (
        {"raw/cat/1.png": "cat", "raw/dog/2.png": "dog"},
        {},
    )


def test_one_class_in_two_spellings_is_one(tmp_path):
    """`é` as one character and as `e` with an accent, as macOS writes it."""
    files = {"caf\u00e9/1.png": png(1), "cafe\u0301/2.png": png(2), "tea/3.png": png(3)}
    source = folder_source(write_files(tmp_path / "raw", files))
    assert source.classes == ("caf\u00e9", "tea") and [item.label for item in source.items] == [0, 0, 1]
    only = folder_source(
        write_files(tmp_path / "only", {name: data for name, data in files.items() if "1" not in name})
    )
    assert only.classes == ("cafe\u0301", "tea"), "what has one spelling keeps it, and so its place"


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_names_need_not_be_utf8(kind, tmp_path):
    raw = tmp_path / "raw"
    for name, seed in ((b"caf\xe9", 1), (b"tea", 2)):
        folder = os.path.join(os.fsencode(raw), name)
        os.makedirs(folder)
        with open(os.path.join(folder, b"\xfc.png"), "wb") as file:
            file.write(png(seed))
    path = raw
    if kind == "tar":
        path = tmp_path / "raw.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(raw, "raw")
    manifest = prepare("folder", tmp_path / "out", source=path, workers=1)
    assert manifest["classes"] == ["caf\\udce9", "tea"] and manifest["n"] == 2


def test_suffixes_of_jpeg(tmp_path):
    files = {f"1{suffix}": encoded(noise(4, 4, 3), "JPEG") for suffix in (".jfif", ".JPE", ".jpg")}
    assert classes_of(write_files(tmp_path, files)) == (dict.fromkeys(sorted(files)), {})


# what is left out is counted


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "gz"])
def test_what_is_left_out_is_in_the_manifest_and_logged(kind, tmp_path, caplog):
    files = {"a/1.png": png(1), "b/2.png": png(2), "a/.DS_Store": b"", "b/photo.heic": b"", "README": b""}
    files |= {f"notes/{i}.txt": b"" for i in range(9)}
    modes = {"tar": ("raw.tar", "w"), "gz": ("raw.tar.gz", "w:gz")}
    if kind == "folder":
        path = write_files(tmp_path / "raw", files)
    else:
        path = write_zip(tmp_path / "raw.zip", files) if kind == "zip" else write_tar(tmp_path / modes[kind][0], files, modes[kind][1])  # fmt: skip  # noqa: E501
    manifest = prepare("folder", tmp_path / "out", source=path, workers=1)
    assert manifest["left_out"] == {
        HIDDEN: {"count": 1, "examples": ["a/.DS_Store"]},
        NOT_IMAGES: {
            "count": 11,
            "examples": ["README", "b/photo.heic", *(f"notes/{i}.txt" for i in range(3))],
        },
    }
    assert (
        "11 no image by its suffix (README, b/photo.heic, notes/0.txt, notes/1.txt, notes/2.txt, ...)"
        in caplog.text
    )
    only = write_files(tmp_path / "only", {"photo.heic": b""})
    with pytest.raises(DataError, match=r"holds none, only 1 no image by its suffix \(photo\.heic\)"):
        folder_source(only)


def test_unreadable_images_that_are_skipped_are_logged(tmp_path, caplog):
    path = write_files(tmp_path / "raw", {"1.png": png(1), "2.png": b"text"})
    prepare("folder", tmp_path / "out", source=path, workers=1, skip_corrupt=True)
    assert "left out: 1 unreadable images (2.png)" in caplog.text


# archives that are not whole


def members_of(path):
    with tarfile.open(path) as archive:
        return archive.getmembers()


@pytest.mark.parametrize("cut", ["at a header", "within a header", "damaged header"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_tar_that_ends_too_early_is_refused(cut, compressed, tmp_path):
    """`tarfile` takes all of these for the end of the archive."""
    path = write_tar(tmp_path / "raw.tar", {f"{i}.png": png(i) for i in range(4)})
    data, third = path.read_bytes(), members_of(path)[2].offset
    changed = {
        "at a header": data[:third],
        "within a header": data[: third + 100],
        "damaged header": data[: third + 148] + b"99999999" + data[third + 156 :],
    }[cut]
    path.write_bytes(gzip.compress(changed) if compressed else changed)
    with pytest.raises(DataError, match=f"raw.tar must be a whole .* at byte {third}"):
        folder_source(path)


def test_a_tar_after_the_end_of_another_is_not_left_out(tmp_path):
    one = write_tar(tmp_path / "1.tar", {"1.png": png(1)})
    other = write_tar(tmp_path / "2.tar", {"2.png": png(2)})
    both = tmp_path / "both.tar"
    both.write_bytes(one.read_bytes() + other.read_bytes())
    with pytest.raises(DataError, match="more bytes follow its end"):
        folder_source(both)
    both.write_bytes(gzip.compress(one.read_bytes()) + gzip.compress(other.read_bytes()))
    with pytest.raises(DataError, match="more bytes follow its end"):
        folder_source(both)


def test_a_gzip_of_many_streams_is_one(tmp_path):
    """As bgzip writes it; `tarfile` alone stops after the first."""
    data = write_tar(tmp_path / "raw.tar", {f"{i}.png": png(i) for i in range(4)}).read_bytes()
    path = tmp_path / "raw.tar.gz"
    path.write_bytes(
        b"".join(gzip.compress(data[start : start + 1000]) for start in range(0, len(data), 1000))
    )
    assert packed(path, tmp_path / "out")[1]["n"] == 4


def test_a_gzip_whose_sum_does_not_fit_is_refused(tmp_path):
    data = gzip.compress(write_tar(tmp_path / "raw.tar", {"1.png": png(1)}).read_bytes())
    (tmp_path / "raw.tar.gz").write_bytes(data[:-8] + bytes(4) + data[-4:])
    with pytest.raises(DataError, match="CRC"):
        folder_source(tmp_path / "raw.tar.gz")


def test_a_zip_whose_list_hides_members_is_refused(tmp_path):
    """One length of a comment swallows the entry after it."""
    path = write_zip(tmp_path / "raw.zip", {f"{i}.png": png(i) for i in range(3)})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + 32 : entry + 34] = (46 + len("1.png")).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="lists 2 members and not 3"):
        folder_source(path)
    path = tmp_path / "commented.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"c" * 300
        archive.writestr("1.png", png(1))
    assert classes_of(path) == ({"1.png": None}, {})


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
    inner = write_zip(tmp_path / "in.zip", {"other.png": png(9)}).read_bytes()
    path = write_tar(tmp_path / "raw.tar", {"1.png": png(1), "in.zip": inner})
    assert classes_of(path) == ({"1.png": None}, {NOT_IMAGES: 1})
