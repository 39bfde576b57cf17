"""What the modules of the evaluation import."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

EVALUATION = Path(__file__).parents[2] / "evaluation"


def imported_by(path):
    """Return the modules of the evaluation that a module imports, inside of functions, too."""
    folder = path.relative_to(EVALUATION).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(folder) + 1:
            place = EVALUATION.joinpath(*folder[: len(folder) + 1 - node.level], *(node.module or "").split("."))
            found |= {place.with_suffix(".py"), *(place / f"{alias.name}.py" for alias in node.names)}
    return {other for other in found if other.is_file()}


def test_no_module_imports_one_that_imports_it():
    graph = {path: imported_by(path) for path in EVALUATION.rglob("*.py")}
    assert EVALUATION / "scoring" / "processes.py" in graph[EVALUATION / "run.py"]
    TopologicalSorter(graph).prepare()  # raises if there is a circle


def test_a_run_of_tables_alone_begins_without_torch():
    code = "import sys, dcl_face_forgery.evaluation.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
