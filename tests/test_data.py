"""Data files: fetch, load_text, atomic_write, and a local server that misbehaves.

Run it with `python -m pytest tests/test_data.py`.
"""

import base64
import errno
import hashlib
import io
import os
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import helpers
from helpers import DataFile, atomic_write, fetch, load_text

TEXT = "".join(f"line {i} of a small invented file\n" for i in range(600))
GOOD = TEXT.encode("utf-8")
ALTERED = GOOD[:5000] + b"#" + GOOD[5001:]
PAGE = b"<!DOCTYPE html><html><body>Log in to this network</body></html>"
SAMPLE = "the embedded sample\n"
ELSEWHERE = {  # redirects that lead nowhere
    "endless": "/endless/tiny.txt",
    "nobody": "http://127.0.0.1:9/tiny.txt",
    "no-scheme": "gopher://127.0.0.1/tiny.txt",
}
UNSAID = {  # half of the file, and no length
    "no-length": ("Content-Type", "text/plain"),
    "not-gzip": ("Content-Encoding", "gzip"),
    "not-chunked": ("Transfer-Encoding", "chunked"),
}


class Handler(BaseHTTPRequestHandler):
    """Answer /MODE/file: the first part of the path says how to misbehave."""

    def do_GET(self):
        _, mode, name = self.path.split("/", 2)
        self.server.asked.append(mode)
        if name != "tiny.txt":
            self.send_error(404)
        elif mode == "redirect":
            self.send_response(302)
            self.send_header("Location", "/good/tiny.txt")
            self.end_headers()
        elif mode in ELSEWHERE:
            self.send_response(301)
            self.send_header("Location", ELSEWHERE[mode])
            self.end_headers()
        elif mode in ("404", "500"):
            self.send_error(int(mode))
        elif mode == "dropped" or (
            mode == "back" and self.server.asked.count(mode) == 1
        ):
            self.close_connection = True  # nothing is answered
        else:
            self.send_file(mode)

    def send_file(self, mode):
        served = {"altered": ALTERED, "page": PAGE, "cut": GOOD[:9000], "empty": b""}
        body = served.get(mode, GOOD[:9000] if mode in UNSAID else GOOD)
        said = {"cut": len(GOOD), "says-more": len(GOOD) + 99, "says-less": 7000}
        if mode == "slow":
            threading.Event().wait(0.2)
        if mode == "both":
            self.server.both.wait(timeout=20)  # until there are two of them
        self.send_response(200)
        if mode in UNSAID:
            self.send_header(*UNSAID[mode])
        else:
            self.send_header("Content-Length", str(said.get(mode, len(body))))
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:  # says-less: the client has what it was promised
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.both = [], threading.Barrier(2)
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    """Give the course empty folders and a sample; no mirror and no files yet."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample.txt").write_text(SAMPLE, encoding="utf-8")
    monkeypatch.setattr(helpers, "DATA", tmp_path / "data")
    monkeypatch.setattr(helpers, "DOWNLOADS", tmp_path / "data" / "downloads")
    monkeypatch.setattr(helpers, "FILES", {})
    monkeypatch.setattr(helpers, "_said", set())
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("COURSE_MIRROR", raising=False)
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)


def know(server, *modes, sample="sample.txt"):
    """Tell the course of tiny.txt at one public address for each mode."""
    urls = tuple(f"{server.address}/{mode}/tiny.txt" for mode in modes)
    digest = hashlib.sha256(GOOD).hexdigest()
    helpers.FILES["tiny.txt"] = DataFile(urls, len(GOOD), digest, sample)


def know_zip(folder, member, content=GOOD, **others):
    """Put pack.zip into a folder, tell the course of it, return the folder."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in ({member: content} | others.get("more", {})).items():
            zipped.writestr(name, data)
    data = others.get("damage", lambda data: data)(stream.getvalue())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pack.zip").write_bytes(data)
    helpers.FILES["pack"] = DataFile(
        ("http://127.0.0.1:9/pack.zip",),
        len(data),
        hashlib.sha256(data).hexdigest(),
        others.get("sample"),
        others.get("wanted", member),
    )
    return str(folder)


def downloads():
    """List the names in the folder of downloads, hidden ones too."""
    folder = helpers.DOWNLOADS
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def put(folder, content):
    """Write tiny.txt into a folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.txt").write_bytes(content)
    return folder / "tiny.txt"


# ---------------------------------------------------------------- one address


@pytest.mark.parametrize("mode", ["good", "redirect", "slow", "back"])
def test_a_good_address_gives_the_whole_file(server, mode):
    know(server, mode)
    path = fetch("tiny.txt")
    assert path == helpers.DOWNLOADS / "tiny.txt"
    assert path.read_bytes() == GOOD
    assert downloads() == ["tiny.txt"]


def test_a_dropped_connection_is_tried_again(server):
    know(server, "back")
    fetch("tiny.txt")
    assert server.asked == ["back", "back"]


BROKEN = ["cut", "says-more", "says-less", "altered", "page", "404", "500", "dropped"]
BROKEN += ["empty", *ELSEWHERE, *UNSAID]


@pytest.mark.parametrize("mode", BROKEN)
def test_a_broken_address_falls_through_to_the_sample(server, mode, capsys):
    know(server, mode)
    assert fetch("tiny.txt").read_text(encoding="utf-8") == SAMPLE
    assert downloads() == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert f"/{mode}/tiny.txt" in lines[0] and "next source" in lines[0]
    assert "sample.txt" in lines[1]


@pytest.mark.parametrize("mode", BROKEN)
def test_a_broken_address_falls_through_to_the_next(server, mode):
    know(server, mode, "good")
    assert fetch("tiny.txt").read_bytes() == GOOD
    assert server.asked[-1] == "good"
    assert downloads() == ["tiny.txt"]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("page", "an HTML page of"),
        ("says-less", "got 7,000 bytes"),
        ("altered", "SHA-256"),
    ],
)
def test_the_line_says_what_was_wrong(server, mode, words, capsys):
    know(server, mode)
    fetch("tiny.txt")
    assert words in capsys.readouterr().out


def test_nobody_listens(server):
    know(server, "good")
    server.shutdown()
    server.server_close()
    assert fetch("tiny.txt").read_text(encoding="utf-8") == SAMPLE
    assert downloads() == []


# ---------------------------------------------------------------- order of sources


def test_downloads_come_before_the_mirror_and_the_network(
    server, tmp_path, monkeypatch
):
    know(server, "good")
    have = put(helpers.DOWNLOADS, GOOD)
    put(tmp_path / "mirror", GOOD)
    monkeypatch.setenv("COURSE_MIRROR", str(tmp_path / "mirror"))
    assert fetch("tiny.txt") == have
    assert server.asked == []


def test_a_mirror_folder_comes_before_the_network(server, tmp_path, monkeypatch):
    know(server, "good")
    there = put(tmp_path / "mirror", GOOD)
    monkeypatch.setenv("COURSE_MIRROR", str(tmp_path / "mirror"))
    assert fetch("tiny.txt") == there
    assert server.asked == [] and downloads() == []


@pytest.mark.parametrize("end", ["", "/"])
def test_a_mirror_address_comes_before_the_public_ones(server, monkeypatch, end):
    know(server, "slow")
    monkeypatch.setenv("COURSE_MIRROR", f"{server.address}/good{end}")
    assert fetch("tiny.txt").read_bytes() == GOOD
    assert server.asked == ["good"]


def test_a_broken_mirror_address_gives_way_to_the_public_ones(server, monkeypatch):
    know(server, "good")
    monkeypatch.setenv("COURSE_MIRROR", f"{server.address}/altered")
    assert fetch("tiny.txt").read_bytes() == GOOD
    assert server.asked[0] == "altered" and server.asked[-1] == "good"


def test_a_mirror_folder_without_the_file_is_passed_over(server, tmp_path, monkeypatch):
    know(server, "good")
    monkeypatch.setenv("COURSE_MIRROR", str(tmp_path / "no such folder"))
    assert fetch("tiny.txt").read_bytes() == GOOD


def test_public_addresses_are_tried_in_order(server):
    know(server, "404", "page", "good", "slow")
    fetch("tiny.txt")
    assert list(dict.fromkeys(server.asked)) == ["404", "page", "good"]


def test_a_second_fetch_asks_nobody(server):
    know(server, "good")
    assert fetch("tiny.txt") == fetch("tiny.txt")
    assert server.asked == ["good"]


def test_the_sample_is_said_once(server, capsys):
    know(server, "404")
    paths = {fetch("tiny.txt") for _ in range(3)}
    assert paths == {helpers.DATA / "sample.txt"}
    out = capsys.readouterr().out
    assert out.count("sample.txt is used") == 1
    assert len(out.splitlines()) == 2


def test_offline_opens_no_connection(server, tmp_path, monkeypatch, capsys):
    know(server, "good")
    put(helpers.DOWNLOADS, GOOD)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.setenv("COURSE_MIRROR", f"{server.address}/good")
    for _ in range(2):
        assert fetch("tiny.txt") == helpers.DATA / "sample.txt"
    assert server.asked == []
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and "COURSE_OFFLINE" in out[0]


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_sample_the_error_says_what_to_do(server, monkeypatch, offline):
    know(server, "404", sample=None)
    monkeypatch.setenv("COURSE_OFFLINE", offline)
    with pytest.raises(FileNotFoundError, match="tiny.txt.*COURSE_MIRROR"):
        fetch("tiny.txt")
    assert downloads() == []


def test_an_unknown_name_is_named_with_the_known_ones(server):
    know(server, "good")
    with pytest.raises(ValueError, match=r"'tinny.txt'.*'tiny.txt'"):
        fetch("tinny.txt")


# ---------------------------------------------------------------- broken copies


@pytest.mark.parametrize("content", [b"", GOOD[:9000], ALTERED, PAGE])
def test_a_broken_download_is_replaced(server, content, capsys):
    know(server, "good")
    put(helpers.DOWNLOADS, content)
    assert fetch("tiny.txt").read_bytes() == GOOD
    assert downloads() == ["tiny.txt"]
    assert "tiny.txt in downloads/" in capsys.readouterr().out


def test_a_broken_download_is_removed_even_if_nothing_replaces_it(server):
    know(server, "404")
    put(helpers.DOWNLOADS, ALTERED)
    assert fetch("tiny.txt") == helpers.DATA / "sample.txt"
    assert downloads() == []


def test_a_broken_file_in_a_mirror_is_passed_over_and_left(
    server, tmp_path, monkeypatch
):
    know(server, "good")
    broken = put(tmp_path / "mirror", ALTERED)
    monkeypatch.setenv("COURSE_MIRROR", str(tmp_path / "mirror"))
    assert fetch("tiny.txt") == helpers.DOWNLOADS / "tiny.txt"
    assert broken.read_bytes() == ALTERED


def test_a_mirror_that_may_not_be_read_is_passed_over(server, tmp_path, monkeypatch):
    know(server, "good")
    locked = put(tmp_path / "mirror", GOOD)
    monkeypatch.setenv("COURSE_MIRROR", str(tmp_path / "mirror"))
    fault = helpers._fault

    def refuse(path, file):
        if path == locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        return fault(path, file)

    monkeypatch.setattr(helpers, "_fault", refuse)
    assert fetch("tiny.txt") == helpers.DOWNLOADS / "tiny.txt"


# ---------------------------------------------------------------- disks


def test_a_disk_that_fills_up_leaves_nothing(server, monkeypatch, full_disk):
    know(server, "good")
    monkeypatch.setattr("pooch.downloaders.open", full_disk, raising=False)
    assert fetch("tiny.txt") == helpers.DATA / "sample.txt"
    assert "good" in server.asked
    assert downloads() == []


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing(
    tmp_path, monkeypatch, full_disk
):
    content = os.urandom(200_000)  # more than shutil writes at once
    mirror = know_zip(tmp_path / "mirror", "tiny.txt", content, sample="sample.txt")
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    monkeypatch.setattr(helpers, "open", full_disk, raising=False)
    assert fetch("pack") == helpers.DATA / "sample.txt"
    assert downloads() == []


@pytest.fixture
def locked(server, without_rights, monkeypatch):
    """Downloads in a folder that only root may write; run actions as somebody else."""
    folder, as_nobody = without_rights
    know(server, "good")
    fetch("tiny.txt")  # in this process, so that everything is imported
    shutil.copytree(helpers.DATA, folder / "data", dirs_exist_ok=True)
    monkeypatch.setattr(helpers, "DATA", folder / "data")
    monkeypatch.setattr(helpers, "DOWNLOADS", folder / "data" / "downloads")
    helpers._said.clear()
    return folder / "data", as_nobody


def test_a_folder_that_may_not_be_written(locked, monkeypatch):
    data, as_nobody = locked
    assert as_nobody(lambda: fetch("tiny.txt").name) == "tiny.txt"  # read it may be
    (data / "downloads" / "tiny.txt").write_bytes(ALTERED)
    said = as_nobody(lambda: (fetch("tiny.txt").name, sorted(helpers._said)))
    assert "'sample.txt'" in said and "tiny.txt: Permission denied" in said
    monkeypatch.setenv("COURSE_MIRROR", know_zip(data / "mirror", "a", sample="b"))
    said = as_nobody(lambda: (fetch("pack").name, sorted(helpers._said)))
    assert said.startswith("('b'") and "pack.zip: Permission denied" in said
    write = atomic_write(data / "sample.txt")
    assert "PermissionError" in as_nobody(lambda: write.__enter__().write_text("new"))
    assert downloads() == ["tiny.txt"]
    assert (data / "sample.txt").read_text(encoding="utf-8") == SAMPLE


def test_a_file_that_may_not_be_read(locked):
    data, as_nobody = locked
    (data / "downloads" / "tiny.txt").chmod(0)
    said = as_nobody(lambda: (fetch("tiny.txt").name, sorted(helpers._said)))
    assert "'sample.txt'" in said and "tiny.txt: Permission denied" in said
    (data / "sample.txt").chmod(0)
    said = as_nobody(lambda: load_text(data / "sample.txt"))
    assert said.startswith("PermissionError") and "sample.txt" in said


def test_a_folder_that_cannot_be_made_falls_through(server, tmp_path, monkeypatch):
    know(server, "good")
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setattr(helpers, "DOWNLOADS", tmp_path / "file" / "downloads")
    assert fetch("tiny.txt") == helpers.DATA / "sample.txt"
    mirror = know_zip(tmp_path / "mirror", "tiny.txt", sample="sample.txt")
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    assert fetch("pack") == helpers.DATA / "sample.txt"


# ---------------------------------------------------------------- archives


def test_the_member_of_an_archive_is_unpacked(tmp_path, monkeypatch):
    mirror = know_zip(
        tmp_path / "mirror", "inner/tiny.txt", more={"readme": b"another"}
    )
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    path = fetch("pack")
    assert path == helpers.DOWNLOADS / "tiny.txt"
    assert path.read_bytes() == GOOD
    assert downloads() == ["tiny.txt"]


def test_a_whole_member_is_not_unpacked_again(locked, monkeypatch):
    """So it serves in a folder that may not be written, too."""
    data, as_nobody = locked
    monkeypatch.setenv("COURSE_MIRROR", know_zip(data / "mirror", "tiny.txt"))
    assert as_nobody(lambda: fetch("pack").read_bytes() == GOOD) == "True"
    (helpers.DOWNLOADS / "tiny.txt").write_bytes(ALTERED)
    assert "FileNotFoundError" in as_nobody(lambda: fetch("pack"))
    assert fetch("pack").read_bytes() == GOOD  # by one who may write: unpacked anew


def test_an_archive_without_its_member_is_named(tmp_path, monkeypatch):
    mirror = know_zip(tmp_path / "mirror", "other.txt", wanted="tiny.txt")
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    with pytest.raises(ValueError, match="pack.zip .*no item named 'tiny.txt'"):
        fetch("pack")
    assert downloads() == []


@pytest.mark.parametrize("spare", [0, 1])
def test_a_member_may_not_be_larger_than_the_limit(tmp_path, monkeypatch, spare):
    monkeypatch.setattr(helpers, "_MEMBER_LIMIT", len(GOOD) - 1 + spare)
    monkeypatch.setenv("COURSE_MIRROR", know_zip(tmp_path / "mirror", "tiny.txt"))
    if spare:
        assert fetch("pack").read_bytes() == GOOD
        return
    with pytest.raises(ValueError, match="pack.zip .*tiny.txt is larger"):
        fetch("pack")
    assert downloads() == []


@pytest.mark.parametrize(
    "member",
    ["../evil", "../../evil", "/tmp/course/evil", "C:\\evil", "C:evil", "..\\evil"],
)
def test_a_member_never_climbs_out(tmp_path, monkeypatch, member):
    mirror = know_zip(tmp_path / "mirror", member, more={"../worse": b"worse"})
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    assert fetch("pack") == helpers.DOWNLOADS / Path(member).name
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*evil")] == [
        Path("data/downloads") / Path(member).name
    ]
    assert list(tmp_path.rglob("worse")) == []
    assert not Path("/tmp/course/evil").exists()


def test_a_member_that_is_a_link_is_unpacked_as_a_file(tmp_path, monkeypatch):
    link = zipfile.ZipInfo("tiny.txt")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    mirror = know_zip(tmp_path / "mirror", link, b"/etc/passwd", wanted="tiny.txt")
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    assert not fetch("pack").is_symlink()
    assert fetch("pack").read_bytes() == b"/etc/passwd"


def patch(offset, value):
    """Damage a zip file in both its headers of a member (local, directory)."""

    def damage(data):
        for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
            at = data.rindex(mark) + offset + shift
            data = data[:at] + value + data[at + len(value) :]
        return data

    return damage


ZIP_FAULTS = {
    "a page": (lambda data: PAGE, "not a zip file"),
    "nothing but its end": (lambda data: data[-22:], "Bad|no item"),
    "cut short": (lambda data: data[: len(data) // 2], "not a zip file"),
    "wrong CRC": (patch(14, b"\0\0\0\1"), "Bad CRC-32"),
    "encrypted": (patch(6, b"\1\0"), "encrypted"),
    "unknown compression": (patch(8, b"\x63\0"), "compression"),
    "another compression": (patch(8, b"\x0e\0"), "options"),  # LZMA
    "larger than it says": (patch(22, b"\x10\0\0\0"), "Bad CRC-32"),
}


@pytest.mark.parametrize("fault", ZIP_FAULTS)
def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path, monkeypatch, fault):
    damage, words = ZIP_FAULTS[fault]
    mirror = know_zip(tmp_path / "mirror", "tiny.txt", bytes(10**7), damage=damage)
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    with pytest.raises(ValueError, match=f"pack.zip can't be unpacked .*{words}"):
        fetch("pack")
    assert downloads() == []


def test_of_many_members_one_is_unpacked(tmp_path, monkeypatch):
    more = {f"{i}/tiny.txt": b"x" for i in range(2000)}
    mirror = know_zip(tmp_path / "mirror", "tiny.txt", more=more)
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    assert fetch("pack").read_bytes() == GOOD
    assert downloads() == ["tiny.txt"]


# ---------------------------------------------------------------- two at once


def at_once(n, action):
    """Start `n` threads that call `action` at the same moment; return the results."""
    barrier = threading.Barrier(n)

    def wait_and_act(_):
        barrier.wait()
        return action()

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(wait_and_act, range(n)))


def test_threads_download_the_same_file(server):
    know(server, "slow")
    assert at_once(4, lambda: fetch("tiny.txt").read_bytes()) == [GOOD] * 4
    assert downloads() == ["tiny.txt"]


def test_threads_unpack_the_same_archive(tmp_path, monkeypatch):
    content = os.urandom(3_000_000)
    mirror = know_zip(tmp_path / "mirror", "tiny.txt", content)
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    for _ in range(3):
        assert at_once(4, lambda: fetch("pack").read_bytes()) == [content] * 4
    assert downloads() == ["tiny.txt"]


def test_processes_download_the_same_file(server, child):
    know(server, "both")
    both = [child(lambda: fetch("tiny.txt").read_bytes() == GOOD) for _ in range(2)]
    assert [each.result() for each in both] == ["True", "True"]
    assert server.asked == ["both", "both"] and downloads() == ["tiny.txt"]


def test_processes_unpack_the_same_archive(tmp_path, monkeypatch, child):
    content = os.urandom(3_000_000)
    mirror = know_zip(tmp_path / "mirror", "tiny.txt", content)
    monkeypatch.setenv("COURSE_MIRROR", mirror)
    many = [child(lambda: fetch("pack").read_bytes() == content) for _ in range(4)]
    assert [each.result() for each in many] == ["True"] * 4
    assert downloads() == ["tiny.txt"]


# ---------------------------------------------------------------- atomic_write


def test_what_killed_downloads_left_is_removed_after_an_hour(server):
    know(server, "good")
    helpers.DOWNLOADS.mkdir()
    for name, age in (("tmpabcdefgh", 4000), ("tmpijklmnop", 60)):
        (helpers.DOWNLOADS / name).write_bytes(b"half")
        then = time.time() - age
        os.utime(helpers.DOWNLOADS / name, (then, then))
    fetch("tiny.txt")
    assert downloads() == ["tiny.txt", "tmpijklmnop"]


def test_atomic_write_makes_the_folder_and_the_file(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with atomic_write(str(target)) as temporary:
        temporary.write_text("whole", encoding="utf-8")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "whole"
    assert os.listdir(target.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(error), atomic_write(target) as temporary:
        temporary.write_text("half of the n", encoding="utf-8")
        raise error
    assert target.read_text(encoding="utf-8") == "old"
    assert not list(tmp_path.glob(".file*"))


def test_atomic_write_in_threads_leaves_one_whole_file(tmp_path):
    target = tmp_path / "file.txt"

    def write():
        name = str(threading.get_ident()) * 1000
        with atomic_write(target) as temporary:
            temporary.write_text(name, encoding="utf-8")
        return name

    names = at_once(8, write)
    assert target.read_text(encoding="utf-8") in names
    assert not list(tmp_path.glob(".file*"))


# ---------------------------------------------------------------- load_text


def test_load_text_takes_a_name_of_the_course(server):
    know(server, "good")
    assert load_text("tiny.txt") == TEXT


@pytest.mark.parametrize("kind", [str, Path])
def test_load_text_takes_a_path(tmp_path, kind):
    (tmp_path / "mine.txt").write_text("grün\n", encoding="utf-8")
    assert load_text(kind(tmp_path / "mine.txt")) == "grün\n"


def test_load_text_leaves_out_the_byte_order_mark(tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"\xef\xbb\xbfHello\xef\xbb\xbf")
    assert load_text(tmp_path / "mine.txt") == "Hello\ufeff"


def test_load_text_names_the_byte_that_is_not_utf8(tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"x" * 1234 + "grün".encode("latin-1"))
    with pytest.raises(ValueError, match="mine.txt.*byte 1,236 is 0xfc"):
        load_text(tmp_path / "mine.txt")


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf"])
def test_load_text_refuses_a_file_without_text(tmp_path, content):
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(ValueError, match="mine.txt holds no text"):
        load_text(tmp_path / "mine.txt")


@pytest.mark.parametrize("name", ["missing.txt", "data"])
def test_load_text_without_a_file_names_it_and_the_known_ones(server, tmp_path, name):
    know(server, "good")
    with pytest.raises(FileNotFoundError, match=f"(?s){name}.*tiny.txt"):
        load_text(tmp_path / name)


# ---------------------------------------------------------------- the real files

REAL = dict(helpers.FILES)
MIRROR = os.environ.get("COURSE_MIRROR", "")


@pytest.mark.skipif(not Path(MIRROR or "-").is_dir(), reason="needs a mirror folder")
@pytest.mark.parametrize("name", ["the-verdict.txt", "instruction-data.json"])
def test_the_mirror_holds_the_real_file(monkeypatch, name):
    monkeypatch.setattr(helpers, "FILES", REAL)
    monkeypatch.setenv("COURSE_MIRROR", MIRROR)
    assert fetch(name) == Path(MIRROR) / name


@pytest.mark.skipif(not Path(MIRROR or "-").is_dir(), reason="needs a mirror folder")
def test_the_mirror_holds_the_real_messages(monkeypatch):
    monkeypatch.setattr(helpers, "FILES", REAL)
    monkeypatch.setenv("COURSE_MIRROR", MIRROR)
    lines = fetch("SMSSpamCollection").read_text(encoding="utf-8").splitlines()
    assert downloads() == ["SMSSpamCollection"]
    assert len(lines) == 5574
    assert sum(line.startswith("spam\t") for line in lines) == 747


def test_every_known_file_is_described_in_full():
    for name, file in REAL.items():
        assert file.urls and all(url.startswith("https://") for url in file.urls), name
        assert file.size > 0 and len(bytes.fromhex(file.sha256)) == 32, name


def test_the_embedded_merge_table_is_whole():
    path = Path(helpers.__file__).parent / "data" / "gpt2.tiktoken"
    pairs = [line.split() for line in path.read_bytes().splitlines()]
    assert [int(rank) for _, rank in pairs] == list(range(50_256))
    tokens = {base64.b64decode(token, validate=True) for token, _ in pairs}
    assert len(tokens) == 50_256
    assert tokens >= {bytes([byte]) for byte in range(256)}
