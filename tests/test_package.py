"""The package as it is installed: quick to import, complete, and of one version."""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import dcl_face_forgery

ROOT = Path(__file__).parents[1]
PACKAGES = ("prepared", "data_scripts", "training", "evaluation", "detection", "web")

PROGRAM = """
import sys, time
start = time.process_time()
import dcl_face_forgery
seconds = time.process_time() - start
print(seconds, *sorted({"torch", "transformers", "numpy", "PIL"} & sys.modules.keys()))
"""


def test_the_import_is_quick_and_loads_no_torch(tmp_path):
    """Processor time in a process of its own: other work on the machine does not count."""
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        taken, *loaded = done.stdout.split()
        assert loaded == []
        seconds.append(float(taken))
    assert min(seconds) < 0.3


def test_every_public_name_is_there_and_listed():
    names = dcl_face_forgery.__all__
    assert len(set(names)) == len(names) and set(names) <= set(dir(dcl_face_forgery))
    assert set(dcl_face_forgery._MODULES) == set(names) - {"__version__"}
    for name, module in dcl_face_forgery._MODULES.items():
        found = getattr(dcl_face_forgery, name)
        assert found is getattr(importlib.import_module(f"dcl_face_forgery.{module}"), name)
    with pytest.raises(AttributeError, match="no attribute 'DCLForEverything'"):
        dcl_face_forgery.DCLForEverything  # noqa: B018


def test_the_version_is_the_same_everywhere():
    version = dcl_face_forgery.__version__
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == version
    newest = re.search(r"^## \[(.+?)\] - (Unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert version == newest[1] + ".dev0" * (newest[2] == "Unreleased")


def requirements_in(path):
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def test_every_dependency_has_a_lowest_and_a_first_excluded_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = requirements_in(ROOT / "requirements.txt") + project["build-system"]["requires"]
    for requirements in project["project"]["optional-dependencies"].values():
        found += requirements
    for requirements in project["dependency-groups"].values():
        found += [entry for entry in requirements if isinstance(entry, str)]
    wrong = [entry for entry in found if not re.fullmatch(r"[\w.-]+>=[\d.]+,<[\d.]+", entry)]
    assert not wrong, "write them as name>=lowest,<first that is excluded"


@pytest.mark.slow
def test_the_wheel_holds_the_code_and_its_data(tmp_path):
    source = tmp_path / "source"
    heavy = shutil.ignore_patterns(".*", "build", "*.egg-info", "data", "runs", "tests", "__pycache__")
    shutil.copytree(ROOT, source, ignore=heavy)  # else the checkout gets a build folder
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"dcl_face_forgery-{dcl_face_forgery.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("dcl_face_forgery/") for name in archive.namelist() if ".dist-info" not in name}
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]
    files = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    data = [ROOT / "py.typed", ROOT / "reference_network.safetensors", *(ROOT / "configs").glob("*.yaml")]
    for package in PACKAGES:
        data += [
            path for path in (ROOT / package).rglob("*") if path.suffix in (".md", ".html", ".json", ".css", ".js")
        ]
    wanted = {path.relative_to(ROOT).as_posix() for path in [*files, *data]}
    assert len(data) > 10 and wanted <= names, sorted(wanted - names)
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "docs", "examples")]
    assert licences
