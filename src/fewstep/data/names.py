"""Names of members: one form for folders, zips and tars of every system."""

import os

# Pillow's suffixes of pictures of 8 or 16 bits.
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif",
})  # fmt: skip


def member_name(raw: str) -> str:
    r"""The name with "/" between folders and nothing else to it.

    A backslash parts folders, as in zips of Windows; "." and empty parts are dropped, and ".." leads no higher than
    the root, as in `tar`. Bytes that are no UTF-8 become escapes such as \udce9.
    """
    parts: list[str] = []
    for part in raw.replace("\\", "/").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    name = "/".join(parts)
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def has_image_suffix(name: str) -> bool:
    """Whether a name ends like that of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a member, or a folder above it, is hidden or one of macOS's resource forks."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
