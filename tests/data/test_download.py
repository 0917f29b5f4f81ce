"""Downloads from a server on this machine: what is whole gets its name, what is not leaves nothing behind."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hydraprune.data import DATASETS, DatasetInfo
from hydraprune.data.download import download, download_dataset
from hydraprune.data.load import read_dataset
from hydraprune.errors import DataError, UserError

ARCHIVE = "tiny.tar.gz"


class Server:
    """Serves `files` on 127.0.0.1 and writes down what was asked for; `promise_more` lies about the length."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.promise_more = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/")
                outer.asked.append(name)
                if name not in outer.files:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(outer.files[name]) + outer.promise_more))
                self.end_headers()
                self.wfile.write(outer.files[name])

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    serving = Server()
    thread = threading.Thread(target=serving.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield serving
    serving.http.shutdown()
    serving.http.server_close()
    thread.join()


@pytest.fixture
def refusing(monkeypatch) -> str:
    """An address at which nobody listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def packed(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """Make a tar.gz of files (name -> content) and of members that are no files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.name = name
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                tar.addfile(member)
    return buffer.getvalue()


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, target
    return member


@pytest.fixture
def contents(cifar10_folder) -> dict[str, bytes]:
    """The files of a tiny CIFAR-10."""
    return {path.name: path.read_bytes() for path in sorted(cifar10_folder.iterdir())}


@pytest.fixture
def archived(contents, server) -> Callable[..., DatasetInfo]:
    """Describe the tiny CIFAR-10 in an archive of `members` that the server has."""

    def make(**other_members: bytes | tarfile.TarInfo) -> DatasetInfo:
        members = {f"tiny/{name}": content for name, content in contents.items()} | other_members
        server.files[ARCHIVE] = packed(members)
        return dataclasses.replace(
            DATASETS["cifar10"],
            train_size=10,
            test_size=3,
            subfolder="tiny",
            files=tuple((name, md5(content)) for name, content in contents.items()),
            mirrors=(server.url,),
            archive=(ARCHIVE, md5(server.files[ARCHIVE])),
        )

    return make


@pytest.fixture
def loose(mnist_folder, server) -> DatasetInfo:
    """Describe a tiny MNIST of four gzipped files that the server has, known unpacked too."""
    for path in sorted(mnist_folder.iterdir()):
        content = path.read_bytes()
        server.files[f"{path.stem}.gz"] = content if path.suffix else gzip.compress(content, mtime=0)
    return dataclasses.replace(
        DATASETS["mnist"],
        in_shape=(1, 2, 3),
        train_size=3,
        test_size=2,
        subfolder="tiny/raw",
        files=tuple((name, md5(content)) for name, content in server.files.items()),
        unpacked=tuple((name[:-3], md5(gzip.decompress(content))) for name, content in server.files.items()),
        mirrors=(server.url,),
    )


@pytest.fixture
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("root")


def written(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def test_an_archive_is_fetched_and_only_its_expected_files_stay(archived, contents, root):
    info = archived(**{"tiny/readme.html": b"x"})
    got = download_dataset(info, root)
    assert (got.state, got.folder) == ("downloaded", root / "tiny")
    assert written(root) == {f"tiny/{name}" for name in contents}
    assert len(read_dataset(info, root).train) == 10


def test_single_files_are_fetched_under_their_names(loose, server, root):
    assert download_dataset(loose, root).state == "downloaded"
    assert written(root) == {f"tiny/raw/{name}" for name in server.files}
    assert len(read_dataset(loose, root).test) == 2


def test_what_is_there_is_not_fetched_again(archived, server, root):
    info = archived()
    download_dataset(info, root)
    assert server.asked == [ARCHIVE]
    for place in (root, root / "tiny"):
        again = download_dataset(info, place)
        assert (again.state, again.folder) == ("present", root / "tiny")
    assert server.asked == [ARCHIVE]


def test_files_that_lie_there_unpacked_are_not_fetched_again(loose, server, root):
    folder = root / "tiny" / "raw"
    folder.mkdir(parents=True)
    for name, content in server.files.items():
        (folder / name[:-3]).write_bytes(gzip.decompress(content))
    assert download_dataset(loose, root).state == "present"
    assert server.asked == []


def test_only_missing_and_damaged_files_are_fetched(loose, server, root):
    download_dataset(loose, root)
    server.asked.clear()
    missing, damaged = (name for name, _ in loose.files[:2])
    (root / "tiny" / "raw" / missing).unlink()
    (root / "tiny" / "raw" / damaged).write_bytes(b"cut")
    assert download_dataset(loose, root).state == "downloaded"
    assert server.asked == [missing, damaged]
    assert len(read_dataset(loose, root).train) == 3


def test_an_archive_that_came_by_hand_is_unpacked_without_a_network(archived, server, refusing, root):
    info = dataclasses.replace(archived(), mirrors=(refusing,))
    (root / ARCHIVE).write_bytes(server.files[ARCHIVE])
    assert download_dataset(info, root).state == "downloaded"


def test_the_next_mirror_is_asked_where_the_first_does_not_answer_or_has_something_else(
    archived, server, refusing, root
):
    info = archived()
    server.files[f"other/{ARCHIVE}"] = b"an error page"
    mirrors = (refusing, server.url + "nowhere/", server.url + "other/", server.url)
    assert download_dataset(dataclasses.replace(info, mirrors=mirrors), root).state == "downloaded"
    assert server.asked == [f"nowhere/{ARCHIVE}", f"other/{ARCHIVE}", ARCHIVE]


def test_without_a_network_it_says_what_was_tried_and_what_would_work(archived, refusing, root):
    info = dataclasses.replace(archived(), mirrors=(refusing,))
    with pytest.raises(DataError) as caught:
        download_dataset(info, root)
    assert str(caught.value) == (
        f"cannot download data set 'cifar10': {refusing}{ARCHIVE} (Connection refused); instead, get that file by "
        f"hand, put it at '{root / ARCHIVE}' and run the same command again"
    )
    assert list(root.iterdir()) == []


def test_a_single_file_got_by_hand_belongs_among_the_others(loose, refusing, root):
    with pytest.raises(DataError, match=f"put it at '{root / 'tiny' / 'raw' / loose.files[0][0]}'"):
        download_dataset(dataclasses.replace(loose, mirrors=(refusing,)), root)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("wrong checksum", "what came has another md5 than 00000000000000000000000000000000"),
        ("not there", "404"),
        ("cut off", "IncompleteRead"),
    ],
)
def test_what_does_not_come_whole_leaves_nothing_behind(archived, server, root, fault, says):
    info = archived()
    if fault == "wrong checksum":
        info = dataclasses.replace(info, archive=(ARCHIVE, "0" * 32))
    elif fault == "not there":
        server.files.clear()
    else:
        server.promise_more = 1
    with pytest.raises(DataError, match=says) as caught:
        download_dataset(info, root)
    assert f"{server.url}{ARCHIVE}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(root.iterdir()) == []


def test_paths_that_lead_out_of_the_folder_and_links_are_never_written(archived, contents, root):
    evil = {
        "../evil": b"x",
        "tiny/../../evil": b"x",
        str(root.parent / "evil"): b"x",
        "tiny/link": link(tarfile.SYMTYPE, "/etc/passwd"),
        "tiny/hard": link(tarfile.LNKTYPE, "tiny/test_batch"),
        "tiny/pipe": link(tarfile.FIFOTYPE, ""),
    }
    download_dataset(archived(**evil), root)
    assert written(root) == {f"tiny/{name}" for name in contents}
    assert not list(root.parent.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_a_link_in_place_of_an_expected_file_is_refused(archived, root, kind):
    info = archived(**{"tiny/data_batch_1": link(kind, "tiny/test_batch")})
    with pytest.raises(DataError, match=r"'tiny/data_batch_1' in 'tiny.tar.gz' is not the file with md5"):
        download_dataset(info, root)
    assert written(root) == set()


def test_a_file_of_an_archive_is_checked_before_it_gets_its_name(archived, root):
    info = archived(**{"tiny/test_batch": b"something else"})
    with pytest.raises(DataError, match=r"'tiny/test_batch' in 'tiny.tar.gz' is not the file"):
        download_dataset(info, root)
    assert "tiny/test_batch" not in written(root)


def test_an_archive_without_an_expected_file_is_named(archived, contents, server, root):
    info = archived()
    server.files[ARCHIVE] = packed({f"tiny/{name}": content for name, content in list(contents.items())[1:]})
    with pytest.raises(DataError, match=r"'tiny.tar.gz' lacks tiny/data_batch_1"):
        download_dataset(dataclasses.replace(info, archive=(ARCHIVE, md5(server.files[ARCHIVE]))), root)


@pytest.mark.parametrize("content", [b"no archive", gzip.compress(b"no tar"), b""], ids=["text", "gzip", "empty"])
def test_an_archive_that_cannot_be_unpacked_is_one_line(archived, server, root, content):
    info = dataclasses.replace(archived(), archive=(ARCHIVE, md5(content)))
    server.files[ARCHIVE] = content
    with pytest.raises(DataError, match=r"'tiny.tar.gz' (cannot be unpacked|lacks)") as caught:
        download_dataset(info, root)
    assert "\n" not in str(caught.value)


def test_missing_data_names_the_command_that_gets_it_in_the_folder_that_was_searched(archived, root):
    for place, written_as in ((root, str(root)), (root / "my data", f"'{root / 'my data'}'")):
        with pytest.raises(DataError, match="'cifar10' not found") as caught:
            read_dataset(archived(), place)
        assert str(caught.value).endswith(f"; get it: hydraprune data download cifar10 --root {written_as}")


def test_a_file_under_the_name_of_another_is_recognised(archived, loose, root):
    for info, name, other in (
        (archived(), "data_batch_1", "test_batch"),
        (loose, "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        (loose, "t10k-images-idx3-ubyte.gz", "train-images-idx3-ubyte.gz"),
    ):
        folder = root / info.subfolder
        download_dataset(info, root)
        (folder / name).write_bytes((folder / other).read_bytes())
        with pytest.raises(DataError, match=f"is not '{name}' but '{other}' under its name") as caught:
            read_dataset(info, root)
        assert "\n" not in str(caught.value)
        assert download_dataset(info, root).state == "downloaded"
        read_dataset(info, root)


class Recorder:
    """A screen that remembers; where `interrupt` is set, the user presses Ctrl-C at the first block."""

    def __init__(self, interrupt: bool = False) -> None:
        self.interrupt = interrupt
        self.said: list[str] = []
        self.bars: list[list[object]] = []

    @contextlib.contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator["Recorder"]:
        self.bars.append([title, total, done])
        yield self

    def advance(self, steps: int = 1) -> None:
        if self.interrupt:
            raise KeyboardInterrupt
        self.bars[-1][2] += steps

    def note(self, text: str) -> None:
        raise AssertionError("nothing to note")

    def say(self, text: str) -> None:
        self.said.append(text)


def test_an_interrupted_download_leaves_nothing_and_the_same_call_completes_it(archived, contents, root):
    info = archived()
    with pytest.raises(KeyboardInterrupt):
        download_dataset(info, root, Recorder(interrupt=True))
    assert list(root.iterdir()) == []
    assert download_dataset(info, root).state == "downloaded"
    assert written(root) == {f"tiny/{name}" for name in contents}


def test_the_screen_sees_each_address_and_megabytes_up_to_the_whole(loose, server, root):
    name = loose.files[0][0]
    server.files[name] = bytes(2_400_000)
    screen = Recorder()
    with pytest.raises(DataError, match="another md5"):
        download_dataset(loose, root, screen)
    assert screen.said == [f"fetching {server.url}{name}"]
    assert screen.bars == [[f"{name} (MB)", 3, 3]]


def test_a_folder_that_cannot_be_written_is_one_line(archived, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot write into folder"):
        download_dataset(archived(), tmp_path / "file" / "data")


def test_embedded_data_needs_no_download(tmp_path):
    got = download("digits", tmp_path)
    assert (got.state, got.folder) == ("embedded", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("imagenet", r"'imagenet' cannot be downloaded: its terms .* ROOT/train/CLASS/\*.JPEG .*--data.root"),
        ("cifar11", r"unknown data set 'cifar11' \(did you mean 'cifar10'\?\)"),
    ],
)
def test_what_cannot_be_downloaded_is_one_clear_line(name, says, tmp_path):
    with pytest.raises(UserError, match=says) as caught:
        download(name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in DATASETS if not DATASETS[name].embedded])
def test_every_data_set_on_disk_says_where_it_comes_from(name):
    info = DATASETS[name]
    assert info.mirrors
    assert all(mirror.startswith(("https://", "http://")) and mirror.endswith("/") for mirror in info.mirrors)
    assert info.archive is None or (info.archive[0].endswith(".tar.gz") and len(info.archive[1]) == 32)
