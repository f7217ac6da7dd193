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
TRAINING_LOOPS = {
    "train_model_simple",
    "train_model",
    "train_classifier",
    "tune_model",
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem[:2])
each_stored = pytest.mark.parametrize(
    "path", NOTEBOOKS + SOLUTIONS, ids=lambda p: f"{p.parent.name[:3]}-{p.stem[:2]}"
)


def cells(path, kind):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def exercises(path):
    """Map the headings of a notebook's exercises to their cells, heading included."""
    found, current = {}, None
    for cell in nbformat.read(path, as_version=4).cells:
        heading = cell.cell_type == "markdown" and re.match("##+ (.*)", cell.source)
        if heading:
            current = heading[1] if heading[1].startswith("Exercise ") else None
        if current:
            found.setdefault(current, []).append(cell)
    return found


def exercise_parts(path):
    """Yield the number, the first text and the code cells of each exercise."""
    for heading, (text, *others) in exercises(path).items():
        code = [cell for cell in others if cell.cell_type == "code"]
        yield heading.split(":")[0].removeprefix("Exercise "), text.source, code


def printed(cell):
    return "".join(o.get("text", "") for o in cell.outputs)


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


@each_stored
def test_a_notebook_imports_only_from_chapters_before_it(path):
    chapter_of, number = chapters(), int(path.stem[:2]) + (path in SOLUTIONS)
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
    lengths = [cell.source.count("\n") + 1 for cell in cells(path, "code")]
    assert statistics.median(lengths) <= 6
    assert sum(n <= 20 for n in lengths) >= 0.9 * len(lengths)
    assert sum(n > 40 for n in lengths) <= 1


@each_notebook
def test_prose_outweighs_code(path):
    words = sum(len(cell.source.split()) for cell in cells(path, "markdown"))
    lines = [line for cell in cells(path, "code") for line in cell.source.split("\n")]
    assert words >= 7.5 * sum(bool(line.strip()) for line in lines)


@each_stored
def test_code_cells_are_narrow_and_define_one_thing(path):
    for cell in cells(path, "code"):
        assert max(map(len, cell.source.split("\n"))) <= 88
        found = [
            node.name
            for node in ast.parse(cell.source).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        assert len(found) <= 1, f"several definitions in a cell: {found}"


@each_notebook
def test_claims_are_asserted(path):
    in_exercises = {cell.id for part in exercises(path).values() for cell in part}
    asserts = sum(
        isinstance(node, ast.Assert)
        for cell in cells(path, "code")
        if cell.id not in in_exercises
        for node in ast.walk(ast.parse(cell.source))
    )
    assert asserts >= 5


def test_each_notebook_has_a_solution():
    assert [path.name for path in SOLUTIONS] == [path.name for path in NOTEBOOKS]


@each_notebook
def test_exercises_have_a_task_a_stub_and_a_check(path):
    number, parts = int(path.stem[:2]), list(exercise_parts(path))
    assert 3 <= len(parts) <= 5
    assert [k for k, _, _ in parts] == [f"{number}.{i + 1}" for i in range(len(parts))]
    kinds = []
    for k, text, code in parts:
        kinds += re.findall(r"^\*(Check|Build|Explore)\.\* \S", text, flags=re.M)
        stub, check = code[-2:]
        assert re.search(r"raise NotImplementedError\(.|^answer = None$", stub.source)
        assert not stub.outputs and not tags(stub) | tags(check)
        assert printed(check).startswith(f"Exercise {k}: "), "no hint for the stub"
        assert "solved" not in printed(check)
    assert len(kinds) == len(parts) and set(kinds) == {"Check", "Build", "Explore"}


@each_notebook
def test_solutions_pass_the_checks_of_the_notebook(path):
    solution = path.parent / "solutions" / path.name
    assert list(exercises(solution)) == list(exercises(path))
    for (k, _, code), (_, why, solved) in zip(
        exercise_parts(path), exercise_parts(solution), strict=True
    ):
        place = [cell.source for cell in solved].index(code[-1].source)
        assert printed(solved[place]) == f"Exercise {k} is solved.\n"
        assert not tags(solved[place]), "nbval should compare it"
        assert solved[place - 1].source != code[-2].source
        assert len(why.split()) > 20, f"solution {k} isn't explained"


@each_notebook
def test_notebook_and_solution_lead_to_each_other(path):
    there, back = f"](solutions/{path.name})", f"](../{path.name})"
    intro = [c.source for c in cells(path, "markdown") if "## Exercises\n" in c.source]
    assert len(intro) == 1 and there in intro[0]
    first = cells(path.parent / "solutions" / path.name, "markdown")[0].source
    assert first.startswith(f"# Solutions {int(path.stem[:2])}. ") and back in first


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
                assert place.exists(), target


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
