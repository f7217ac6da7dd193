"""Run notebooks in fresh kernels and store their outputs: the last step of an edit.

python tests/store.py                  all notebooks, then all solutions
python tests/store.py 02 04            notebooks 02 and 04, then their solutions
python tests/store.py solutions/04     a solution alone

The outputs are those that the tests expect: real data from `COURSE_MIRROR` (or the
network), `COURSE_MODEL=gpt2-mini`. Progress bars (stderr) are not stored. Plots that a
notebook saves in data/runs/ are copied to images/.
"""

import os
import shutil
import sys
import time

import nbformat
from nbclient import NotebookClient
from notebook_cells import NOTEBOOKS, notebook_paths

ROOT = NOTEBOOKS.parent
PLOTS = {
    "04_pretraining.ipynb": ("loss-plot.png", "temperature-plot.png"),
    "06_spam_finetuning.ipynb": ("spam-curve-plot.png",),
}


def store(name):
    """Execute one notebook in its own folder and write it back with its outputs."""
    path = NOTEBOOKS / name
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, resources=place, coalesce_streams=True).execute()
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
        "language_info": {"file_extension": ".py", "name": "python"},
    }
    nbformat.write(notebook, path)
    for plot in PLOTS.get(name, ()):
        shutil.copy(ROOT / "data" / "runs" / plot, ROOT / "images" / plot)
    seconds, size = time.perf_counter() - start, path.stat().st_size
    print(f"{name}: {seconds:.0f} s, {size / 1e3:.0f} kB", flush=True)


def main():
    mirror = ROOT.parent / "shared" / "mirror"
    if mirror.is_dir():
        os.environ.setdefault("COURSE_MIRROR", str(mirror))
    os.environ.setdefault("COURSE_MODEL", "gpt2-mini")
    wanted = tuple(sys.argv[1:]) or ("",)
    for folder in (NOTEBOOKS, NOTEBOOKS / "solutions"):
        for path in notebook_paths(folder):
            name = path.relative_to(NOTEBOOKS).as_posix()
            if name.startswith(wanted) or path.name.startswith(wanted):
                store(name)


if __name__ == "__main__":
    main()
