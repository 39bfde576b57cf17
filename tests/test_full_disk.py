"""A disk that fills up: one sentence and exit status 1 from every kind of writer, and what is finished is kept."""

import errno
import io
import json
import resource
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from PIL import Image
from safetensors.torch import save_file

from dcl.data_scripts.assets import fetch
from dcl.data_scripts.prepare import main
from dcl.dataset_dcl import explained_failure
from dcl.errors_dcl import InputError, report_input_errors

FULL = "/dev/full"  # every write to it fails for want of space
NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)


def write_wrapped():
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise DatasetGenerationError("An error occurred while generating the dataset") from error


def write_cache():
    with explained_failure("mine", "train", "/tmp"):
        write_wrapped()


def write_json():
    with open(FULL, "w") as file:
        json.dump([0] * 100_000, file)


WRITERS = {
    "json": write_json,
    "pyarrow": lambda: pq.write_table(pa.table({"x": NOISE.ravel()}), FULL),
    "pandas": lambda: pd.DataFrame({"x": NOISE.ravel()}).to_csv(FULL),
    "pillow": lambda: Image.fromarray(NOISE).save(FULL, "PNG"),
    "safetensors": lambda: save_file({"x": torch.from_numpy(NOISE)}, FULL),
    "torch": lambda: torch.save(torch.from_numpy(NOISE), FULL),
    "torch to a file object": lambda: torch.save(torch.from_numpy(NOISE), open(FULL, "wb")),  # noqa: SIM115
    "datasets": write_wrapped,
    "the cache of datasets": write_cache,
    "quota": lambda: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Disk quota exceeded")),
    "read-only": lambda: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system", "/x/y")),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_gets_one_sentence(writer):
    with pytest.raises(SystemExit) as stop:
        report_input_errors(WRITERS[writer])()
    message = str(stop.value.code)
    assert message.startswith("error: ") and "\n" not in message and " disk" in message
    assert "give the same command again" in message
    if writer == "read-only":
        assert "/x/y" in message


def test_the_disk_that_is_full_is_named(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0 if "out" in str(path) else 1 << 40))

    @report_input_errors
    def command(arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit, match=r"No space left on the disk that holds /.*/out/new: make room"):
        (tmp_path / "out").mkdir()
        command(["--source", str(tmp_path), "--output", str(tmp_path / "out" / "new")])


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError(errno.ENOENT, "No such file"), KeyError("x")])
def test_other_errors_keep_their_traceback(error):
    def command():
        raise error

    with pytest.raises(type(error)):
        report_input_errors(command)()
    with pytest.raises(SystemExit, match="a file is missing"):
        report_input_errors(lambda: (_ for _ in ()).throw(InputError("a file is missing")))()


@pytest.fixture
def smallest_files():
    """Files of this process cannot grow beyond 20 kB."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_preparation_without_room_goes_on_when_there_is_some(tmp_path, smallest_files):
    for person in (1, 2):
        (tmp_path / "photos" / f"s{person}").mkdir(parents=True)
        for number in (1, 2):
            shutil.copy(fetch("orl") / f"s{person}" / f"{number}.pgm", tmp_path / "photos" / f"s{person}")
    command = ["blend", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--size", "160"]
    with pytest.raises(SystemExit, match="error: A file would be larger than allowed on the disk"):
        main(command)
    assert not list((tmp_path / "out").iterdir())
    smallest_files()
    main(command)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.parquet"]


def test_a_buffer_in_memory_is_no_disk():
    report_input_errors(lambda: Image.fromarray(NOISE).save(io.BytesIO(), "PNG"))()
