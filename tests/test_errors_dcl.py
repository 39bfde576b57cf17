"""Errors, checks of values, and files that are written whole."""

import os
import stat

import pytest

from dcl_face_forgery.errors_dcl import whole_file


@pytest.fixture
def umask():
    """Set the umask of this process for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def write(path, text="new"):
    with whole_file(path) as partial:
        partial.write_text(text)
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path, umask, mask, mode):
    umask(mask)
    assert write(tmp_path / "results.json") == mode
    assert os.umask(mask) == mask


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, umask, mode):
    path = tmp_path / "results.json"
    path.write_text("old")
    path.chmod(mode)
    assert write(path) == mode and path.read_text() == "new"


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
