"""What the tests of the notebooks need: settings, and the meaning of our own tag.

Cells tagged `real-data` show the real text; where it can't be had, the notebooks run on
the course's own, and what such a cell prints isn't compared. Progress bars (stderr) are
never compared. Everything else is nbval's strict mode.
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MIRROR = ROOT.parent / "shared" / "mirror"
sys.path.insert(0, str(ROOT))
if MIRROR.is_dir():
    os.environ.setdefault("COURSE_MIRROR", str(MIRROR))
os.environ.setdefault("COURSE_MODEL", "gpt2-mini")
# nbval reads what a cell sends when the cell has ended, and of many thousand
# messages the last are lost, with "I am ready" among them: so the bars move less often.
os.environ.setdefault("TQDM_MININTERVAL", "2")


def has_real_data():
    """Say whether `fetch` finds the real files here."""
    from helpers import FILES, fetch

    names = [name for name in FILES if "sample" in FILES[name]]
    return all(fetch(name).name == name for name in names)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Apply the tag `real-data`, and leave stderr out of every comparison."""
    cells = [item for item in items if hasattr(item, "cell")]
    real = has_real_data() if cells else True
    for notebook in {item.parent for item in cells}:
        notebook.skip_compare += ("stderr",)
    for item in cells:
        if not real and "real-data" in item.cell.metadata.get("tags", []):
            item.options["check"] = False
