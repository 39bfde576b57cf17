"""One thread, no network, a tiny backbone."""

import gc
import os
import tempfile

_caches = tempfile.TemporaryDirectory(prefix="dcl-tests-")  # removed at exit
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_CACHE=f"{_caches.name}/datasets",
    HF_MODULES_CACHE=f"{_caches.name}/modules",  # remote code of one test must not serve another run
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

import pytest
import torch
import transformers

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.media_dcl import open_picture
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.tests.shared.prepared_data import write_prepared

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
gc.freeze()  # the Trainer collects garbage at every start, and what was imported takes half a second of that


def pytest_collection_modifyitems(items):
    """Skip tests that need a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def config():
    """A network of 0.1 million parameters with a 3x3 map."""
    return DCLConfig(backbone="test_efficientnet", image_size=96, queue_size=16, hard_samples=2)


@pytest.fixture
def model(config):
    return DCLForPreTraining(config)


@pytest.fixture
def write(tmp_path):
    """Write bytes into a file, and return its path."""

    def write(data, name="picture.jpg"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def opened(write):
    """Open a picture whose file holds these bytes."""
    return lambda data: open_picture(write(data, "picture"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A prepared data set `textures` of 48 training and 24 validation faces, 64 px."""
    return write_prepared(tmp_path_factory.mktemp("data") / "textures")
