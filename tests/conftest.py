"""Shared by the unit tests: imports, the data's mirror, one thread, a full disk."""

import errno
import os
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


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread here: for tiny models more are slower, above all on a busy CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
