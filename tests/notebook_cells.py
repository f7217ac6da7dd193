"""The course's notebooks as files, and the definitions in their cells.

`definitions_of("01_tokenizer")["SimpleTokenizerV1"]` is the class that a cell of that
notebook defines. Only what it needs is executed: imports, and the functions, classes
and assignments that it refers to by name.
"""

import ast
import copy
import re
import symtable
from collections.abc import Mapping
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def notebook_paths(folder=NOTEBOOKS):
    """List the notebooks of the course in a folder; copies of them don't count."""
    found = sorted(folder.glob("*.ipynb"))
    return [path for path in found if re.fullmatch(r"\d\d_[a-z_]+\.ipynb", path.name)]


def read_notebook(stem):
    """Return a notebook of the course, by its name without the ending."""
    return nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)


def global_names(node):
    """Return the names that a statement looks up outside itself."""
    top = symtable.symtable(ast.unparse(node), "a cell", "exec")
    tables, names = [top], set()
    for table in tables:  # the list grows by the functions in functions
        tables += table.get_children()
        symbols = table.get_symbols()
        names |= {s.get_name() for s in symbols if table is top or s.is_global()}
    return names


class definitions_of(Mapping):
    """Map names to what a notebook's cells define, executed when asked for."""

    def __init__(self, stem):
        self.nodes, self.namespace = {}, {"__name__": stem}
        for cell in read_notebook(stem).cells:
            if cell.cell_type == "code":
                for node in ast.parse(cell.source).body:
                    self.add(node)

    def add(self, node):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                one = copy.copy(node)
                one.names = [alias]
                self.nodes[alias.asname or alias.name.split(".")[0]] = one
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            self.nodes[node.name] = node
        elif isinstance(node, ast.Assign):
            for part in (part for target in node.targets for part in ast.walk(target)):
                if isinstance(part, ast.Name):
                    self.nodes[part.id] = node

    def __getitem__(self, name):
        if name not in self.namespace:
            node = self.nodes[name]
            self.namespace[name] = None  # being defined: it may refer to itself
            for other in global_names(node) & self.nodes.keys():
                self[other]
            code = compile(ast.Module([node], type_ignores=[]), "a cell", "exec")
            exec(code, self.namespace)
        return self.namespace[name]

    def __iter__(self):
        return iter(self.nodes)

    def __len__(self):
        return len(self.nodes)
