import hashlib
import http.server
import threading

import pytest
from formats import noise

from fewstep.checks import DataError
from fewstep.data.download import CHUNK_BYTES, download

CONTENT = noise(2 * CHUNK_BYTES + 12345).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `mode` of the server makes it break, forget ranges or say no."""

    def do_GET(self):
        mode, asked = self.server.mode, self.headers.get("Range")
        self.server.asked.append(asked)
        if mode == "404":
            self.send_error(404)
            return
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and mode != "no ranges" else 0
        if first >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        body = CONTENT[first:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: CHUNK_BYTES + 777] if mode == "breaks" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.mode, running.asked = "", []
        running.url = f"http://127.0.0.1:{running.server_port}/data.bin"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_fetches_once_and_checks(server, tmp_path):
    path = tmp_path / "new" / "data.bin"
    for _ in range(2):
        assert download(server.url, path, size=len(CONTENT), md5=MD5, sha256=SHA256) == path
    assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


def test_broken_transfer_is_continued(server, tmp_path):
    path = tmp_path / "data.bin"
    server.mode = "breaks"
    with pytest.raises(DataError, match="call again to continue"):
        download(server.url, path, md5=MD5)
    assert not path.exists()
    have = (tmp_path / "data.bin.part").stat().st_size
    assert 0 < have < len(CONTENT)
    server.mode = ""
    chunks = []

    def count(pieces):
        for piece in pieces:
            chunks.append(len(piece))
            yield piece

    download(server.url, path, md5=MD5, progress=count)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={have}-"]
    assert sum(chunks) == len(CONTENT) - have


def test_server_without_ranges_starts_over(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(b"other bytes")
    server.mode = "no ranges"
    assert download(server.url, tmp_path / "data.bin", md5=MD5).read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [b"", b"x"])
def test_part_that_is_already_whole_or_too_long(extra, server, tmp_path):
    part = tmp_path / "data.bin.part"
    part.write_bytes(CONTENT + extra)
    if extra:
        with pytest.raises(DataError, match="must give the expected file"):
            download(server.url, tmp_path / "data.bin", md5=MD5)
        assert not part.exists()
    else:
        download(server.url, tmp_path / "data.bin", md5=MD5)
        download(server.url, tmp_path / "data.bin", size=len(CONTENT))


def test_whole_part_of_known_size_is_not_asked_for(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "data.bin", size=len(CONTENT), sha256=SHA256)
    assert server.asked == []


@pytest.mark.parametrize(
    "expected, message",
    [
        ({"md5": "0" * 32}, "its md5 is"),
        ({"sha256": "0" * 64}, "its sha256 is"),
        ({"size": 7}, "instead of 7"),
    ],
)
def test_wrong_file_is_refused_and_leaves_nothing(expected, message, server, tmp_path):
    with pytest.raises(DataError, match=message):
        download(server.url, tmp_path / "data.bin", **expected)
    assert not list(tmp_path.iterdir())


def test_own_file_that_does_not_fit_is_kept(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match="delete it to fetch it anew"):
        download(server.url, tmp_path / "data.bin", md5=MD5)
    assert (tmp_path / "data.bin").read_bytes() == b"mine"
    assert server.asked == []


def test_http_error_and_no_connection(server, tmp_path):
    server.mode = "404"
    with pytest.raises(DataError, match="answers 404"):
        download(server.url, tmp_path / "data.bin")
    with pytest.raises(DataError, match="must be reachable"):
        download("http://127.0.0.1:9/data.bin", tmp_path / "data.bin")
