"""The opening of helpers.py: fetch from a local server that misbehaves, devices.

Run it with `python -m pytest tests/test_data.py`.
"""

import hashlib
import io
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

import helpers
from helpers import (
    fetch,
    load_text,
    pick_device,
    pick_precision,
    set_seed,
    slider_plot,
)

TEXT = "".join(f"line {i} of a small invented file\n" for i in range(600))
GOOD = TEXT.encode("utf-8")
ALTERED = GOOD[:5000] + b"#" + GOOD[5001:]
PAGE = b"<!DOCTYPE html><html><body>Log in to this network</body></html>"
SAMPLE = "the embedded sample\n"
REAL, MIRROR = dict(helpers.FILES), os.environ.get("COURSE_MIRROR", "")


class Handler(BaseHTTPRequestHandler):
    """Answer /MODE/file: the first part of the path says how to misbehave."""

    def do_GET(self):
        mode = self.path.split("/")[1]
        self.server.asked.append(mode)
        if mode == "dropped" or self.server.asked == ["back"]:
            self.close_connection = True  # nothing is answered
            return
        if mode in ("404", "500"):
            self.send_error(int(mode))
            return
        if mode == "both":
            self.server.both.wait(timeout=20)  # until there are two of them
        body = {"altered": ALTERED, "page": PAGE, "cut": GOOD[:9000], "empty": b""}
        body = body.get(mode, GOOD)
        said = {"cut": len(GOOD), "says-less": 7000}.get(mode, len(body))
        self.send_response(200)
        self.send_header("Content-Length", str(said))
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
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("COURSE_MIRROR", raising=False)
    monkeypatch.delenv("COURSE_OFFLINE", raising=False)
    helpers.sample_of.cache_clear()


def know(server, *modes, **others):
    """Tell the course of tiny.txt at one public address for each mode."""
    urls = [f"{server.address}/{mode}/tiny.txt" for mode in modes]
    digest = hashlib.sha256(GOOD).hexdigest()
    helpers.FILES["tiny.txt"] = {"urls": urls, "sha256": digest} | others


def know_zip(folder, content=GOOD):
    """Put pack.zip with tiny.txt into a folder and tell the course of both."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        zipped.writestr("readme", "another")
        zipped.writestr("tiny.txt", content)
    folder.mkdir()
    (folder / "pack.zip").write_bytes(stream.getvalue())
    hashes = [hashlib.sha256(x).hexdigest() for x in (stream.getvalue(), content)]
    helpers.FILES["pack.zip"] = {"urls": [], "sha256": hashes[0]}
    helpers.FILES["tiny.txt"] = {"archive": "pack.zip", "sha256": hashes[1]}
    return str(folder)


def put(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.txt").write_bytes(content)
    return folder / "tiny.txt"


def downloads():
    return sorted(os.listdir(helpers.DOWNLOADS)) if helpers.DOWNLOADS.is_dir() else []


# Addresses

BROKEN = ["cut", "says-less", "altered", "page", "404", "500", "dropped", "empty"]


@pytest.mark.parametrize("mode", ["good", "back"])
def test_a_good_address_gives_the_whole_file(server, mode):
    know(server, mode)
    for _ in range(2):
        assert fetch("tiny.txt") == helpers.DOWNLOADS / "tiny.txt"
    assert (helpers.DOWNLOADS / "tiny.txt").read_bytes() == GOOD
    assert downloads() == ["tiny.txt"]
    asked = ["back", "back"] if mode == "back" else ["good"]  # tried again, or once
    assert server.asked == asked


@pytest.mark.parametrize("mode", BROKEN)
def test_a_broken_address_falls_through_to_the_next_and_the_sample(
    server, mode, capsys
):
    know(server, mode, sample="sample.txt")
    for _ in range(2):
        assert fetch("tiny.txt").read_text(encoding="utf-8") == SAMPLE
    (line,) = capsys.readouterr().out.splitlines()  # it is said once
    assert f"/{mode}/tiny.txt: " in line and "sample.txt is used" in line
    assert downloads() == []
    know(server, mode, "good")
    assert fetch("tiny.txt").read_bytes() == GOOD
    assert server.asked[-1] == "good" and downloads() == ["tiny.txt"]


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_sample_the_error_names_the_file(server, monkeypatch, offline):
    know(server, "404")
    monkeypatch.setenv("COURSE_OFFLINE", offline)
    with pytest.raises(FileNotFoundError, match="tiny.txt: .*data/downloads"):
        fetch("tiny.txt")


def test_offline_opens_no_connection(server, monkeypatch, capsys):
    know(server, "good", sample="sample.txt")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.setenv("COURSE_MIRROR", f"{server.address}/good")
    assert fetch("tiny.txt") == helpers.DATA / "sample.txt"
    assert server.asked == [] and "COURSE_OFFLINE" in capsys.readouterr().out


# Folders

MIRRORS = {  # whom it asks
    "~/whole/": [],
    "~/altered": ["good"],
    "~/none": ["good"],
    "http/back/": ["back"],
    "http/404": ["404", "good"],
}


@pytest.mark.parametrize("mirror", MIRRORS)
def test_a_mirror_comes_first(server, tmp_path, monkeypatch, mirror):
    know(server, "good")
    put(tmp_path / "whole", GOOD)
    put(tmp_path / "altered", ALTERED)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COURSE_MIRROR", mirror.replace("http", server.address))
    assert fetch("tiny.txt").read_bytes() == GOOD
    assert list(dict.fromkeys(server.asked)) == MIRRORS[mirror]


@pytest.mark.parametrize("content", [b"", GOOD[:9000], ALTERED])
def test_a_broken_download_is_replaced(server, content):
    know(server, "good")
    put(helpers.DOWNLOADS, content)
    assert fetch("tiny.txt").read_bytes() == GOOD and downloads() == ["tiny.txt"]


def test_a_member_is_unpacked_and_unpacked_again_if_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_MIRROR", know_zip(tmp_path / "mirror"))
    for _ in range(2):
        assert fetch("tiny.txt").read_bytes() == GOOD
        assert downloads() == ["pack.zip", "tiny.txt"]
        put(helpers.DOWNLOADS, ALTERED)
    (helpers.DOWNLOADS / "pack.zip").write_bytes(PAGE)
    assert fetch("tiny.txt").read_bytes() == GOOD


def test_a_full_disk_leaves_nothing_that_is_taken_for_whole(
    server, tmp_path, monkeypatch, full_disk
):
    know(server, "good", sample="sample.txt")
    with monkeypatch.context() as full:
        full.setattr("pooch.downloaders.open", full_disk, raising=False)
        assert fetch("tiny.txt") == helpers.DATA / "sample.txt"
    assert fetch("tiny.txt").read_bytes() == GOOD
    monkeypatch.setenv("COURSE_MIRROR", know_zip(tmp_path / "mirror", ALTERED))
    with monkeypatch.context() as full:
        full.setattr("zipfile.open", full_disk, raising=False)
        with pytest.raises(FileNotFoundError, match="OSError"):
            fetch("tiny.txt")
    assert fetch("tiny.txt").read_bytes() == ALTERED


def test_two_processes_at_once(server, tmp_path, monkeypatch, child):
    know(server, "both")
    both = [child(lambda: fetch("tiny.txt").read_bytes() == GOOD) for _ in range(2)]
    assert [each.result() for each in both] == ["True", "True"]
    assert server.asked == ["both", "both"] and downloads() == ["tiny.txt"]
    content = os.urandom(3_000_000)
    monkeypatch.setenv("COURSE_MIRROR", know_zip(tmp_path / "mirror", content))
    many = [child(lambda: fetch("tiny.txt").read_bytes() == content) for _ in range(4)]
    assert [each.result() for each in many] == ["True"] * 4


# Texts, and the real files


def test_load_text_takes_a_name_or_a_path(server, tmp_path):
    know(server, "good")
    assert load_text("tiny.txt") == TEXT
    (tmp_path / "mine.txt").write_bytes(b"\xef\xbb\xbfgr\xc3\xbcn\n")  # with a mark
    for path in (tmp_path / "mine.txt", str(tmp_path / "mine.txt")):
        assert load_text(path) == "grün\n"
    with pytest.raises(FileNotFoundError, match="none.txt"):
        load_text("none.txt")


def test_every_known_file_is_described_in_full():
    for name, file in REAL.items():
        urls = REAL[file.get("archive", name)]["urls"]
        assert urls and all(url.startswith("https://") for url in urls), name
        # OpenAI gives no SHA-256 of larger sizes; the two TinyStories are two excerpts
        if not name.startswith(("gpt2/", "TinyStories")):
            assert file["bytes"] > 0 and len(bytes.fromhex(file["sha256"])) == 32, name
        sample = Path(helpers.__file__).parent / "data" / file.get("sample", "")
        assert sample.exists() and file["licence"]


@pytest.mark.skipif(not Path(MIRROR or "-").is_dir(), reason="needs a mirror folder")
@pytest.mark.parametrize("name", [name for name in REAL if "sample" in REAL[name]])
def test_the_mirror_holds_the_real_files(monkeypatch, name):
    monkeypatch.setattr(helpers, "FILES", REAL)
    monkeypatch.setenv("COURSE_MIRROR", MIRROR)
    assert REAL[name]["bytes"] in (None, fetch(name).stat().st_size)
    assert fetch(name).parent == helpers.DOWNLOADS


# Devices


@pytest.mark.parametrize("off", [0.0, 0.5, float("nan"), None])
def test_a_device_is_used_if_it_gives_the_cpus_logits(monkeypatch, capsys, off):
    def logits(device):
        if off is None and device == "cuda":
            raise RuntimeError("no kernel image is available for execution")
        return torch.full((2, 3), off if device == "cuda" else 0.0)

    monkeypatch.setattr(helpers, "small_model_logits", logits)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device().type == ("cuda" if off == 0 else "cpu")
    assert ("cuda gives logits" in capsys.readouterr().out) == (off != 0)


def test_nothing_here_moves_the_random_numbers():
    set_seed(5)
    expected = torch.rand(3)
    set_seed(5)
    assert pick_precision("cpu") in (torch.float32, torch.bfloat16)
    helpers.small_model_logits("cpu")
    assert torch.equal(torch.rand(3), expected)


def test_a_slider_redraws_its_picture():
    box = slider_plot(lambda h=1.0, n=2: plt.bar(range(n), h), h=(0.5, 3.0), n=(1, 5))
    *sliders, picture = box.children
    before = picture.value
    assert [slider.value for slider in sliders] == [1.0, 2] and before[1:4] == b"PNG"
    sliders[1].value = 4
    assert picture.value != before and not plt.get_fignums()
