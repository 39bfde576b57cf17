"""The worked examples of CONTRIBUTING.md are true of the code."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from dcl_face_forgery.data_scripts import layouts
from dcl_face_forgery.prepared.names import FAKE, REAL

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def block_with(words):
    (found,) = (block for block in re.findall(r"^```python\n(.+?)^```$", TEXT, re.M | re.S) if words in block)
    return found


def test_names_are_in_the_files_they_are_said_to_be_in():
    pairs = re.findall(r"`([A-Za-z_]+)`\s+in\s+`([\w/]+\.py)`", TEXT)
    assert len(pairs) >= 10
    for name, file in pairs:
        new = name.startswith("write_duo")
        assert new or re.search(rf"\b{name}\b", (ROOT / file).read_text()), f"{name} is not in {file}"


def test_files_that_are_named_exist():
    files = re.findall(r"`([\w./]+\.(?:py|toml|md|yaml)|(?:tests|docs|data_scripts)/[\w./]*)`", TEXT)
    assert len(files) > 20
    for file in files:
        assert (ROOT / file).exists() or file in ("duo.py", "uadfv.py", "celeb_df.py", "_dcl.py"), file


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """The layout of the example, as a module beside the others."""
    path = tmp_path / "duo.py"
    path.write_text(block_with("def find("))
    name = "dcl_face_forgery.data_scripts.layouts.duo"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_layout_finds_clips_and_splits(layout, tmp_path):
    root = tmp_path / "Duo"
    for name in ("real/0001", "real/0002", "fake/swap/0001", "fake/swap/0002", "fake/warp/0001"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.mp4").touch()  # layouts decode nothing
    (root / "test.txt").write_text("0001\n")
    found = layout.find(root)
    clips = {
        split: {clip.name: (clip.source, clip.method, clip.label) for family in families for clip in family.clips}
        for split, families in found.splits.items()
    }
    assert clips == {
        "train": {"real/0002": ("real/0002", "real", REAL), "swap/0002": ("real/0002", "swap", FAKE)},
        "test": {
            "real/0001": ("real/0001", "real", REAL),
            "swap/0001": ("real/0001", "swap", FAKE),
            "warp/0001": ("real/0001", "warp", FAKE),
        },
    }
    assert [len(families) for families in found.splits.values()] == [1, 1] and not found.failures


def test_a_layout_in_the_tuple_is_a_command_with_its_docstring_as_help(layout, monkeypatch, capsys):
    path = re.search(r"`_LAYOUTS` in `(.+?)`", TEXT)[1]
    text = (
        (ROOT / path)
        .read_text()
        .replace("_LAYOUTS = (", "_LAYOUTS = (duo, ")
        .replace("    dfdc,\n", "    dfdc,\n    duo,\n")
    )
    monkeypatch.setattr(layouts, "duo", layout, raising=False)
    names = {"__name__": "prepare"}
    exec(compile(text, path, "exec"), names)
    parser = names["make_parser"]()
    assert parser.parse_args(["check", "duo", "--root", "x"]).layout == "duo"
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert layout.__doc__.splitlines()[0] in " ".join(capsys.readouterr().out.split())


def test_the_backbone_has_the_map_that_is_printed(capsys):
    code = block_with("create_backbone")
    exec(compile(code, "CONTRIBUTING.md", "exec"), {})
    (promised,) = re.findall(r"^print\(.+\)  # (.+)$", code, re.M)
    assert capsys.readouterr().out.strip() == promised


def test_the_loss_is_one_value_per_image_and_teaches_the_evidence():
    names = {"torch": torch, "F": torch.nn.functional}
    exec(compile(block_with("def localisation_loss"), "CONTRIBUTING.md", "exec"), names)
    share = torch.zeros(2, 3, 3)
    share[0, 0] = 1.0
    evidence = torch.zeros(2, 3, 3, requires_grad=True)
    loss = names["localisation_loss"](evidence, share)
    assert loss.shape == (2,) and loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), torch.full((2,), 2.0).log())
    loss.sum().backward()
    assert ((evidence.grad < 0) == (share > 0)).all()
