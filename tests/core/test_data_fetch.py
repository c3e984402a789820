"""Download, resume, import: against a server on this machine."""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from iclr18cli.data import fetch as fetching
from iclr18cli.data.fetch import fetch
from iclr18cli.errors import UserError
from iclr18cli.plugin import DatasetSpec, File

CONTENT = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Serve `files`; note every request; cut, fail or refuse ranges when told."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/a.bin": CONTENT}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.cut_after: list[int] = []
        self.fail: list[int] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server: Server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if server.fail:
            return self.send_error(server.fail.pop(0))
        if self.path not in server.files:
            return self.send_error(404)
        body = server.files[self.path]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(body) > 0:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + server.cut_after.pop(0) if server.cut_after else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = Server()
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def toy(server, content=CONTENT, **changes):
    file = {"path": "toy/a.bin", "bytes": len(content), "sha256": sha256(content), "url": f"{server.url}/a.bin"}
    return DatasetSpec(name="toy", task="classify", summary="", load="m:f", files=(File(**{**file, **changes}),))


def everything(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_file_arrives_whole_and_progress_is_told(tmp_path, server):
    seen = []
    paths = fetch(toy(server), tmp_path, progress=lambda *state: seen.append(state))
    assert paths == [tmp_path / "toy/a.bin"]
    assert paths[0].read_bytes() == CONTENT
    assert everything(tmp_path) == ["toy/a.bin"]
    assert seen[-1] == ("a.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_what_is_there_and_right_is_not_fetched_again(tmp_path, server):
    fetch(toy(server), tmp_path)
    fetch(toy(server), tmp_path)
    assert len(server.requests) == 1
    (tmp_path / "toy/a.bin").write_bytes(b"damaged")
    fetch(toy(server), tmp_path)
    assert (tmp_path / "toy/a.bin").read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path, server):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/a.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(toy(server), tmp_path)[0].read_bytes() == CONTENT
    assert server.requests == [("/a.bin", "bytes=1000-")]
    assert everything(tmp_path) == ["toy/a.bin"]


@pytest.mark.parametrize("known_size", [True, False])
def test_a_broken_connection_is_resumed_in_the_same_call(tmp_path, server, known_size):
    server.cut_after = [5000, 7000]
    spec = toy(server) if known_size else toy(server, bytes=0)
    assert fetch(spec, tmp_path)[0].read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=5000-", "bytes=12000-"]


def test_a_server_that_cannot_resume_is_read_from_the_start(tmp_path, server):
    server.ranges = False
    server.cut_after = [5000]
    assert fetch(toy(server), tmp_path)[0].read_bytes() == CONTENT


def test_a_part_of_another_version_is_given_up(tmp_path, server):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/a.bin.part").write_bytes(bytes(2 * len(CONTENT)))
    assert fetch(toy(server), tmp_path)[0].read_bytes() == CONTENT
    (tmp_path / "toy/a.bin").unlink()
    (tmp_path / "toy/a.bin.part").write_bytes(bytes(2 * len(CONTENT)))
    assert fetch(toy(server, bytes=0), tmp_path)[0].read_bytes() == CONTENT


def test_a_complete_part_is_taken_without_the_network(tmp_path, server):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/a.bin.part").write_bytes(CONTENT)
    assert fetch(toy(server), tmp_path)[0].read_bytes() == CONTENT
    assert server.requests == []


def test_a_passing_fault_of_the_server_is_tried_again(tmp_path, server):
    server.fail = [503, 500]
    assert fetch(toy(server), tmp_path)[0].read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(tmp_path, server):
    server.files["/a.bin"] = CONTENT[:-1] + b"!"
    with pytest.raises(UserError, match="not the official file") as caught:
        fetch(toy(server), tmp_path)
    assert sha256(CONTENT) in caught.value.why
    assert everything(tmp_path) == []


@pytest.mark.parametrize("content", [CONTENT + b"more", CONTENT[:-1]])
def test_a_wrong_size_leaves_nothing(tmp_path, server, content):
    server.files["/a.bin"] = content
    with pytest.raises(UserError, match="not the official file") as caught:
        fetch(toy(server), tmp_path)
    assert str(len(CONTENT)) in caught.value.why
    assert everything(tmp_path) == []


def test_an_absent_file_or_server_is_an_error_with_the_offline_way(tmp_path, server):
    with pytest.raises(UserError) as caught:
        fetch(toy(server, url=f"{server.url}/none"), tmp_path)
    assert "404" in caught.value.why
    assert "--from DIR" in caught.value.fix
    with pytest.raises(UserError, match="Could not download"):
        fetch(toy(server, url="http://127.0.0.1:9/none"), tmp_path)
    assert everything(tmp_path) == []


def test_a_dead_connection_keeps_the_part_for_next_time(tmp_path, server):
    server.cut_after = [10] * fetching.ATTEMPTS
    with pytest.raises(UserError, match="Could not download"):
        fetch(toy(server), tmp_path)
    assert everything(tmp_path) == ["toy/a.bin.part"]
    assert fetch(toy(server), tmp_path)[0].read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to the data folder"):
        fetch(toy(server), tmp_path / "file" / "data")


def test_two_processes_do_not_write_one_part(tmp_path, server):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "toy").mkdir()
    with (tmp_path / "toy/a.bin.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"x")
        other.flush()
        with pytest.raises(UserError, match="another process"):
            fetch(toy(server), tmp_path)


def tar_of(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def archived(server, names=("one.bin", "two.bin")):
    files = tuple(
        File(path=f"toy/{name}", sha256=sha256(name.encode()), url=f"{server.url}/toy.tar.gz#inner/{name}")
        for name in names
    )
    return DatasetSpec(name="toy", task="classify", summary="", load="m:f", files=files)


def test_of_an_archive_only_expected_members_are_unpacked(tmp_path, server):
    root = tmp_path / "data"
    members = {"inner/one.bin": b"one.bin", "../../evil": b"!", "/abs": b"!", "inner/two.bin": b"two.bin", "x": b""}
    server.files["/toy.tar.gz"] = tar_of(members)
    fetch(archived(server), root)
    assert everything(tmp_path) == ["data/toy/one.bin", "data/toy/two.bin"]
    assert (root / "toy/two.bin").read_bytes() == b"two.bin"
    assert len(server.requests) == 1


def test_a_member_that_points_outside_is_never_written_outside(tmp_path, server):
    root = tmp_path / "deep" / "data"
    server.files["/toy.tar.gz"] = tar_of({"../../one.bin": b"wrong", "../two.bin": b"two.bin"})
    with pytest.raises(UserError, match="does not hold the official one"):
        fetch(archived(server), root)
    assert everything(tmp_path) == []


@pytest.mark.parametrize("cut", [10, 60])
def test_a_damaged_archive_leaves_nothing(tmp_path, server, cut):
    server.files["/toy.tar.gz"] = tar_of({"inner/one.bin": b"one.bin" * 999})[:cut]
    with pytest.raises(UserError):
        fetch(archived(server), tmp_path)
    assert everything(tmp_path) == []
