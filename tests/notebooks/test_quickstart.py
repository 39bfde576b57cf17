"""The notebook runs from top to bottom, and is stored without outputs."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.faces_dcl import YUNET_FILE
from dcl_face_forgery.tests.shared.checkpoints import save_checkpoint

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_valid_and_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    assert len(code_cells(notebook)) >= 5
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None
        compile(cell.source, cell.id, "exec")


@pytest.mark.slow
def test_it_runs_and_shows_images(notebook, tmp_path, monkeypatch):
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    shutil.copy(fetch("yunet"), checkpoint / YUNET_FILE)
    monkeypatch.setenv("DCL_MODEL", str(checkpoint))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert len(images) >= 3  # the annotated image, the crop, a frame of the video
    assert "p_fake" in text and "Person 1" in text
