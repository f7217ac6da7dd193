"""Shared by every test: the repository's root to import from, and the data's mirror."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIRROR = ROOT.parent / "shared" / "mirror"

sys.path.insert(0, str(ROOT))
if MIRROR.is_dir():
    os.environ.setdefault("COURSE_MIRROR", str(MIRROR))
