"""The course as a whole: one definition of everything, and the countable house rules.

pytest tests/test_structure.py
"""

import ast
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
HELPERS = (ROOT / "helpers.py").read_text(encoding="utf-8")
TAGS = {"helpers", "real-data", "nbval-ignore-output", "raises-exception"}
TRAINING_LOOPS = {"train_model_simple", "train_model", "train_classifier"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem[:2])
each_stored = pytest.mark.parametrize(
    "path", NOTEBOOKS + SOLUTIONS, ids=lambda p: f"{p.parent.name[:3]}-{p.stem[:2]}"
)


def cells(path, kind):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def without_docstrings(node):
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(part):
            part.body = part.body[1:]
    return ast.dump(node)


def definitions(source):
    """Map the names that a source defines at its top level to their syntax trees."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
    return found


def chapters():
    """Map each name of helpers.py to its chapter; 0 is the opening."""
    starts = [
        (HELPERS[: match.start()].count("\n"), int(match[1]))
        for match in re.finditer(r"^# Chapter (\d):", HELPERS, flags=re.M)
    ]
    return {
        name: max((n for line, n in starts if line < node.lineno), default=0)
        for name, node in definitions(HELPERS).items()
    }


@each_notebook
def test_tagged_definitions_equal_those_of_helpers(path):
    ours, number = definitions(HELPERS), int(path.stem[:2])
    built = {}
    for cell in cells(path, "code"):
        if "helpers" in tags(cell):
            built |= definitions(cell.source)
    for name, node in built.items():
        assert name in ours, f"{name} is tagged, and helpers.py lacks it"
        assert without_docstrings(node) == without_docstrings(ours[name]), name
    expected = {name for name, chapter in chapters().items() if chapter == number}
    assert set(built) == expected


@each_notebook
def test_a_notebook_imports_only_from_chapters_before_it(path):
    chapter_of, number = chapters(), int(path.stem[:2])
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module == "helpers":
                for name in node.names:
                    assert chapter_of.get(name.name, 0) < number, name.name


def test_every_object_of_helpers_is_documented():
    chapter_of = chapters()
    for name, node in definitions(HELPERS).items():
        if isinstance(node, ast.Assign):
            continue
        doc = ast.get_docstring(node) or ""
        assert doc and doc.split("\n")[0].endswith((".", ":")), name
        if chapter_of[name]:
            assert f"Built in notebook {chapter_of[name]:02d}." in doc, name
        for method in getattr(node, "body", []):
            if isinstance(method, ast.FunctionDef) and isinstance(node, ast.ClassDef):
                own = method.name.startswith("__")
                assert own or ast.get_docstring(method), f"{name}.{method.name}"


def test_functions_are_short():
    for node in ast.walk(ast.parse(HELPERS)):
        if isinstance(node, ast.FunctionDef):
            has_doc = ast.get_docstring(node) is not None
            first = node.body[0].end_lineno + 1 if has_doc else node.body[0].lineno
            limit = 60 if node.name in TRAINING_LOOPS else 40
            assert node.end_lineno - first < limit, node.name


@each_notebook
def test_the_first_cell_tells_what_to_expect(path):
    first = cells(path, "markdown")[0].source
    assert re.match(rf"# {int(path.stem[:2])}\. ", first)
    for label in ("*You build*", "*You need*", "*Run time*", "*New in helpers.py*"):
        assert label in first
    assert re.search(r"\*Run time\*: \d+ (seconds|minutes)", first)


@each_notebook
def test_code_cells_are_small(path):
    code = cells(path, "code")
    lengths = [cell.source.count("\n") + 1 for cell in code]
    assert statistics.median(lengths) <= 6
    assert sum(n <= 20 for n in lengths) >= 0.9 * len(lengths)
    assert sum(n > 40 for n in lengths) <= 1
    assert max(len(line) for c in code for line in c.source.split("\n")) <= 88
    for cell in code:
        found = [
            node.name
            for node in ast.parse(cell.source).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        assert len(found) <= 1, f"several definitions in a cell: {found}"


@each_notebook
def test_claims_are_asserted(path):
    asserts = sum(
        isinstance(node, ast.Assert)
        for cell in cells(path, "code")
        for node in ast.walk(ast.parse(cell.source))
    )
    assert asserts >= 5


@each_stored
def test_outputs_are_those_of_one_clean_run(path):
    code = cells(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert tags(cell) <= TAGS
        for output in cell.outputs:
            assert output.get("name") != "stderr"
            assert output.output_type != "error" or "raises-exception" in tags(cell)
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            assert text.count("\n") <= 30
            for place in (str(ROOT.parent), str(Path.home()), tempfile.gettempdir()):
                assert f"{place}/" not in json.dumps(output)
    assert path.stat().st_size < 1_000_000


@each_stored
def test_links_and_pictures_are_there(path):
    for cell in cells(path, "markdown"):
        links = re.findall(r"(!?)\[([^\]]*)\]\(([^)]+)\)", cell.source)
        for mark, text, target in links:
            if mark:
                assert len(text) > 20, f"{target} has no alternative text"
            if not target.startswith(("http://", "https://", "#")):
                place = (path.parent / target.split("#")[0]).resolve()
                number = re.match(r"(\d\d)_", place.name)
                later = number and int(number[1]) > len(NOTEBOOKS)
                assert later or place.exists(), target


@each_notebook
def test_navigation_leads_to_the_neighbours(path):
    number = int(path.stem[:2])
    texts = cells(path, "markdown")
    for cell in (texts[0], texts[-1]):
        links = re.findall(r"\]\((\d\d)_\w+\.ipynb\)", cell.source)
        wanted = [f"{n:02d}" for n in (number - 1, number + 1) if 1 <= n <= 7]
        assert links == wanted
        assert "(../README.md" in cell.source


def test_svgs_describe_themselves():
    figures = sorted((ROOT / "images").glob("*.svg"))
    assert figures
    for figure in figures:
        source = figure.read_text(encoding="utf-8")
        assert "<title" in source and "<desc" in source, figure.name


def test_the_top_level_is_the_agreed_one():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    top = {name.split("/")[0] for name in listed if name and not name.startswith(".")}
    if not top:
        pytest.skip("not a git checkout")
    expected = {"README.md", "LICENSE", "requirements.txt", "helpers.py"}
    assert top == expected | {"notebooks", "data", "images", "tests"}


@pytest.mark.parametrize("action", (["check"], ["format", "--check"]))
def test_ruff_is_content(action):
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", *action, "--quiet", str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr
