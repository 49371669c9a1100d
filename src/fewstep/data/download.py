"""Fetch one file over HTTP: resumed after an interruption, accepted only when its checksum fits."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fewstep.checks import DataError
from fewstep.files import require_space

CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
    progress: Callable[[Iterable[bytes]], Iterable[bytes]] = iter,
) -> Path:
    """Have `url` at `path`; nothing is fetched when a file that fits is there.

    A broken transfer stays as `<path>.part` and the next call continues it with an HTTP range.
    Args: size: bytes. md5, sha256: hex digests, as published. progress: wraps the chunks of 1 MiB.
    Returns: `path`.
    Raises: DataError: no connection, an HTTP error, a broken transfer, or a file of another size or checksum,
        which is deleted if it was fetched here and kept if it was there before.
    """
    path = Path(path)
    if path.exists():
        problem = mismatch(path, size=size, md5=md5, sha256=sha256)
        if problem is not None:
            raise DataError(
                f"{path} must be the file behind {url}, but {problem}; delete it to fetch it anew."
            )
        return path
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    if size is not None:
        require_space(path, max(size - have, 0))
    if have == 0 or have != size:
        _fetch(url, part, have, progress)
    problem = mismatch(part, size=size, md5=md5, sha256=sha256)
    if problem is not None:
        part.unlink()
        raise DataError(
            f"{url} must give the expected file, but {problem}; try again or fetch it by hand to {path}."
        )
    part.replace(path)
    return path


def mismatch(path: Path, *, size: int | None, md5: str | None, sha256: str | None) -> str | None:
    """How a file differs from what is expected; None when it does not."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found} bytes instead of {size}"
    for name, expected in (("md5", md5), ("sha256", sha256)):
        if expected is not None:
            with path.open("rb") as file:
                # md5 here guards against broken transfers, and is what publishers of 2009 give.
                digest = hashlib.file_digest(file, partial(hashlib.new, name, usedforsecurity=False))
            if digest.hexdigest() != expected:
                return f"its {name} is {digest.hexdigest()} instead of {expected}"
    return None


def _fetch(url: str, part: Path, have: int, progress: Callable[[Iterable[bytes]], Iterable[bytes]]) -> None:
    """Append to `part` from byte `have` on, or start over when the server does not continue there."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            continues = response.status == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            )
            with part.open("ab" if continues else "wb") as file:
                for chunk in progress(_chunks(response)):
                    file.write(chunk)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is as long as the file, or longer: its checksum decides
            return
        raise DataError(
            f"{url} must be reachable, but the server answers {error.code} {error.reason}; check it."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{url} must be reachable, but {error}; call again to continue where it broke."
        ) from None


def _chunks(response: Any) -> Iterator[bytes]:
    """The body; fails when it ends before the promised length."""
    left = response.length  # None when the server does not tell
    while chunk := response.read(CHUNK_BYTES):
        yield chunk
        left = None if left is None else left - len(chunk)
    if left:
        raise http.client.IncompleteRead(b"", left)
