"""Layers: imports run down only, and what ships with a checkpoint needs little."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("training", "evaluation", "detection", "data_scripts", "web")
ENTRY_POINTS = {"app", "train", "evaluate_dcl", "detect", "detection.export", "data_scripts.prepare"}
PACKAGES_OF_A_CHECKPOINT = {
    *("torch", "torchvision", "timm", "transformers", "safetensors", "huggingface_hub", "numpy", "PIL"),
}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(
        [*ROOT.glob("*.py"), *(path for package in ("prepared", *PACKAGES) for path in (ROOT / package).rglob("*.py"))]
    )
    if path.name != "__init__.py"
}
SHIPPED = sorted(name for name in FILES if "." not in name and name not in ENTRY_POINTS)


def package(name):
    return name.split(".")[0] if "." in name else None


def layer(name):
    """How high up a module is: 0 ships, 1 is prepared data, 2 the other packages, 3 the entry points."""
    if name in ENTRY_POINTS:
        return 3
    return {None: 0, "prepared": 1}.get(package(name), 2)


def imports(name, skip_try=False):
    """Return what a module imports anywhere in it, as (module, is of this project)."""
    found = []

    def visit(node):
        if skip_try and isinstance(node, ast.Try):
            for part in (*node.handlers, *node.orelse, *node.finalbody):
                visit(part)
            return
        if isinstance(node, ast.Import):
            found.extend(
                (alias.name.removeprefix("dcl_face_forgery."), alias.name.startswith("dcl_face_forgery."))
                for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = name.split(".")[: -node.level]
            found.append((".".join([*folder, *([node.module] if node.module else [])]), True))
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("dcl_face_forgery", "web"):
            module = node.module.removeprefix("dcl_face_forgery").removeprefix(".")
            submodules = [".".join(filter(None, (module, alias.name))) for alias in node.names]
            found.extend((submodule if submodule in FILES else module, True) for submodule in submodules)
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module, False))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(FILES[name].read_text()))
    return found


def test_the_modules_that_are_checked_are_all_there():
    assert set(FILES) >= ENTRY_POINTS
    assert {"web.gate", "web.uploads", "web.analysis", "web.answers"} <= set(FILES)
    assert {"configuration_dcl", "modeling_dcl", "image_processing_dcl", "faces_dcl", "hub_dcl", "errors_dcl"} <= set(
        SHIPPED
    )
    assert "decision_dcl" in SHIPPED and ("decision_dcl", True) in imports("modeling_dcl")
    assert ("configuration_dcl", True) in imports("modeling_dcl")
    assert ("errors_dcl", True) in imports("training.backbone")


@pytest.mark.parametrize("name", FILES)
def test_imports_run_down_only(name):
    for imported, ours in imports(name):
        if not ours:
            continue
        assert imported in FILES, f"{name} imports {imported}, which is no file of the project"
        assert imported not in ENTRY_POINTS, f"{name} imports the entry point {imported}"
        lower = layer(imported) < layer(name)
        same = layer(imported) == layer(name) and package(imported) == package(name)
        assert lower or same, f"{name} imports {imported}, which is not below it"


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_needs_little(name):
    """The loader of remote code refuses a file whose imports outside of `try` are not installed."""
    for imported, ours in imports(name, skip_try=True):
        top = imported.split(".")[0]
        if not ours and top not in sys.stdlib_module_names:
            assert top in PACKAGES_OF_A_CHECKPOINT, f"{name} imports {top} outside of try"


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_found_by_the_loader_of_remote_code(name):
    """It looks for siblings by this pattern, in docstrings too, and for nothing written in another way."""
    text = FILES[name].read_text()
    siblings = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE))
    assert siblings == {imported for imported, ours in imports(name) if ours}
    assert siblings <= set(SHIPPED)


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is(name):
    assert (ast.get_docstring(ast.parse(FILES[name].read_text())) or "").strip()


def test_a_checkpoint_brings_few_files():
    assert len(SHIPPED) <= 13


@pytest.mark.parametrize("name", FILES)
def test_files_are_of_a_size_to_read(name):
    """A file of a few lines belongs to its neighbour; one that takes long to read says at its head why it is long."""
    text = FILES[name].read_text()
    lines = text.count("\n")
    assert lines >= 40 or name.startswith("data_scripts.layouts.")  # each data set has a file
    assert lines <= 450 or re.search(r"^Long because \w+", ast.get_docstring(ast.parse(text)), re.MULTILINE), lines
