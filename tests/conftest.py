"""Shared by the unit tests: imports, the data's mirror, one thread, a full disk."""

import errno
import os
import select
import signal
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
MIRROR = ROOT.parent / "shared" / "mirror"

sys.path.insert(0, str(ROOT))
if MIRROR.is_dir():
    os.environ.setdefault("COURSE_MIRROR", str(MIRROR))


class FullDisk:
    """A file whose disk is full after 4,096 bytes."""

    def __init__(self, *args):
        self.file = open(*args)

    def write(self, data):
        if self.file.tell() + len(data) >= 4096:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.fixture
def full_disk():
    """What stands in for `open` where the disk is nearly full."""
    return FullDisk


class Child:
    """A process forked off to run an action.

    Forking is quick, since everything is imported already, but only Linux does it well.
    """

    def __init__(self, action):
        if not sys.platform.startswith("linux"):
            pytest.skip("needs Linux, to fork")
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                said = str(action())
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode("utf-8"))
            os._exit(0)
        os.close(writer)

    def result(self, timeout=60):
        """Wait for the process; return what its action returned or raised, as text."""
        if not select.select([self.reader], [], [], timeout)[0]:
            os.kill(self.pid, signal.SIGKILL)
        with open(self.reader, encoding="utf-8") as pipe:
            said = pipe.read()
        os.waitpid(self.pid, 0)
        return said


@pytest.fixture
def child():
    """The class `Child`: two files named conftest make it no module to import from."""
    return Child


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread here: for tiny models more are slower, above all on a busy CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
