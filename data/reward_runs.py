"""The long runs of notebook 08, written to data/reward-runs.csv.

    python data/reward_runs.py [--seconds 360] [--seeds 3] [--part 0/1] [--log FILE]

With every seed, each method is trained for `--seconds`, the policy gradient also on
other orders and, three times as long, on reversals. The code is that of the notebook's
cells. What the log has already isn't made again, so a run that was stopped goes on with
the same command. `--part 1/2` makes every second run only, for a process beside another
one (with a log of its own, if both may end at once). On a CPU the seconds are the
process's own.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from time import process_time

import nbformat
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "data" / "reward-runs.csv"


def definitions():
    """Run the notebook's cells up to the live runs; return what they define."""
    notebooks = ROOT / "notebooks"
    os.chdir(notebooks)
    sys.path += [str(ROOT), str(notebooks / "solutions")]
    book = {"__name__": "notebook_08", "display": print}
    notebook = nbformat.read(notebooks / "08_learning_from_rewards.ipynb", 4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    for source in code:
        if "experiment" not in book or "def careful(" in source:  # no live runs
            exec(source, book)
        if "def careful(" in source:
            return book


def read_log(path):
    columns = ["model", "method", "seed"]
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=columns)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--log", type=Path, default=LOG)
    args = parser.parse_args()
    path = args.log.resolve()
    book = definitions()
    if book["device"].type == "cpu":
        book["perf_counter"] = process_time  # of one thread, with OMP_NUM_THREADS=1
    size = sum(p.numel() for p in book["start"].parameters())
    model, gradient = f"{Path(book['FOLDER']).name}, {size} parameters", book["PG"]
    longer, orders = f"{gradient}, long", f"{gradient}, orders"
    book["METHODS"] |= {name: book["METHODS"][gradient] for name in (longer, orders)}
    any_order = partial(book["any_order"], verify=book["careful"])
    part, parts = map(int, args.part.split("/"))
    seeds = range(book["SEED"], book["SEED"] + args.seeds)
    planned = [(method, seed) for seed in seeds for method in book["METHODS"]]
    for method, seed in planned[part::parts]:
        log = read_log(path)
        done = (log["model"] == model) & (log["method"] == method)
        if (done & (log["seed"] == seed)).any():
            continue
        task = {"task": any_order, "levels": range(3, 7)} if method == orders else {}
        seconds = args.seconds * (3 if method == longer else 1)
        _, table = book["experiment"](method, seconds, seed, **task)
        table = table.assign(model=model, device=book["device"].type).round(4)
        pd.concat([read_log(path), table]).to_csv(path, index=False)
        print(table.tail(1).T.to_string(), flush=True)


if __name__ == "__main__":
    main()
