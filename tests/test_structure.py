"""The course as a whole: one definition of everything, and what a reader relies on.

pytest tests/test_structure.py
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from notebook_cells import notebook_paths

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = notebook_paths()
SOLUTIONS = notebook_paths(ROOT / "notebooks" / "solutions")
HELPERS = (ROOT / "helpers.py").read_text(encoding="utf-8")
TAGS = {"helpers", "real-data", "nbval-ignore-output", "raises-exception"}

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
    """Map the headings of a notebook's exercises to their cells."""
    found, current = {}, None
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for heading in re.findall("^##+ (.*)", cell.source, flags=re.M):
                current = heading if heading.startswith("Exercise ") else None
        if current:
            found.setdefault(current, []).append(cell)
    return found


def exercise_parts(path):
    """Yield the number and the code cells of each exercise."""
    for heading, found in exercises(path).items():
        code = [cell for cell in found if cell.cell_type == "code"]
        yield heading.split(":")[0].removeprefix("Exercise "), code


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
    chapter_at = {0: 0}
    for head in re.finditer(r"^# Chapter (\d):", HELPERS, flags=re.M):
        chapter_at[HELPERS[: head.start()].count("\n")] = int(head[1])
    return {
        name: chapter_at[max(line for line in chapter_at if line < node.lineno)]
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
                    assert chapter_of[name.name] < number, name.name


def test_every_object_of_helpers_is_documented():
    chapter_of = chapters()
    for name, node in definitions(HELPERS).items():
        if not isinstance(node, ast.Assign):
            doc = ast.get_docstring(node) or ""
            assert doc and doc.split("\n")[0].endswith((".", ":")), name
            if chapter_of[name]:
                assert f"notebook {chapter_of[name]:02d}." in doc.lower(), name


def test_helpers_stays_small():
    assert len(HELPERS.splitlines()) <= 1500
    assert len(re.findall(r"^ +raise ", HELPERS, flags=re.M)) <= 25
    assert not any(name.startswith("check_") for name in definitions(HELPERS))


@each_notebook
def test_the_first_cell_tells_what_to_expect(path):
    first = cells(path, "markdown")[0].source
    assert re.match(rf"# {int(path.stem[:2])}\. ", first)
    for label in ("*You build*", "*You need*", "*Run time*", "*New in helpers.py*"):
        assert label in first
    assert re.search(r"\*Run time\*: .*\d+ (second|minute)", first)


@each_notebook
def test_exercises_have_a_stub_and_a_check_with_a_hint(path):
    number, parts = int(path.stem[:2]), list(exercise_parts(path))
    assert [k for k, _ in parts] == [f"{number}.{i + 1}" for i in range(len(parts))]
    for k, code in parts:
        stub, check = code[-2:]
        assert re.search(r"raise NotImplementedError\(.|answer = None", stub.source)
        assert not stub.outputs and not tags(stub) | tags(check)
        assert printed(check).startswith(f"Exercise {k}: "), "no hint for the stub"
        assert "solved" not in printed(check)


@each_notebook
def test_solutions_pass_the_checks_of_the_notebook(path):
    solution = path.parent / "solutions" / path.name
    assert list(exercises(solution)) == list(exercises(path))
    for (k, code), (_, solved) in zip(
        exercise_parts(path), exercise_parts(solution), strict=True
    ):
        place = [cell.source for cell in solved].index(code[-1].source)
        assert printed(solved[place]) == f"Exercise {k} is solved.\n"
        assert not tags(solved[place]), "nbval should compare it"
        assert solved[place - 1].source != code[-2].source


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
            for place in (str(ROOT.parent), str(Path.home()), tempfile.gettempdir()):
                assert f"{place}/" not in json.dumps(output)
    assert path.stat().st_size < 1_000_000
    language = nbformat.read(path, as_version=4).metadata.language_info
    assert language == {"name": "python", "file_extension": ".py"}


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
        wanted = [
            f"{n:02d}" for n in (number - 1, number + 1) if 1 <= n <= len(NOTEBOOKS)
        ]
        assert links == wanted
        assert "(../README.md" in cell.source


@pytest.mark.parametrize("folder", ("", "notebooks", "notebooks/solutions", "images"))
def test_the_first_cell_finds_the_course(folder, monkeypatch):
    (first,) = {cells(path, "code")[0].source for path in NOTEBOOKS + SOLUTIONS}
    monkeypatch.chdir(ROOT / folder)
    monkeypatch.setattr(sys, "path", [])
    exec(first, {})
    assert sys.path[:2] == [str(ROOT), str(ROOT / "notebooks" / "solutions")]


def test_tensorflow_is_imported_only_to_read_a_checkpoint():
    checks = ROOT / "notebooks" / "solutions" / "checks.py"
    for source in (HELPERS, checks.read_text(encoding="utf-8")):
        assert not re.search(r"^(import|from) tensorflow", source, flags=re.M)


def test_the_constraints_lie_in_the_ranges():
    ranges, exact = (
        dict(re.findall(rf"^([\w-]+){mark}([\d.]+)", text, flags=re.M))
        for mark, text in (
            (">=", (ROOT / "requirements.txt").read_text(encoding="utf-8")),
            ("==", (ROOT / "tests" / "constraints.txt").read_text(encoding="utf-8")),
        )
    )
    assert ranges.keys() <= exact.keys()
    for name, least in ranges.items():
        assert [*map(int, exact[name].split("."))] >= [*map(int, least.split("."))]


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
