"""Run notebooks in fresh kernels and store their outputs: the last step of an edit.

python tests/store.py              all notebooks and solutions
python tests/store.py 02 04        those whose names begin so

The outputs are those that the tests expect: real data from `COURSE_MIRROR` (or the
network), `COURSE_MODEL=gpt2-mini`. Progress bars (stderr) are not stored. Plots that a
notebook saves in data/runs/ are copied to images/.
"""

import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
PLOTS = {
    "04_pretraining": ("loss-plot.png", "temperature-plot.png"),
    "06_spam_finetuning": ("spam-loss-plot.png", "spam-accuracy-plot.png"),
}


def store(path):
    """Execute one notebook and write it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        notebook, timeout=1800, resources={"metadata": {"path": path.parent}}
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("metadata", {}).clear()
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)
    for name in PLOTS.get(path.stem, ()):
        shutil.copy(ROOT / "data" / "runs" / name, ROOT / "images" / name)
    seconds, size = time.perf_counter() - start, path.stat().st_size
    print(f"{path.stem}: {seconds:.0f} s, {size / 1e3:.0f} kB", flush=True)


def main():
    mirror = ROOT.parent / "shared" / "mirror"
    if mirror.is_dir():
        os.environ.setdefault("COURSE_MIRROR", str(mirror))
    os.environ.setdefault("COURSE_MODEL", "gpt2-mini")
    wanted = tuple(sys.argv[1:]) or ("",)
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        if path.name.startswith(wanted) and ".ipynb_checkpoints" not in path.parts:
            store(path)


if __name__ == "__main__":
    main()
