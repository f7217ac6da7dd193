"""Shared by the unit tests: where to import from, the data's mirror, one thread."""

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


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread here: for tiny models more are slower, above all on a busy CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
