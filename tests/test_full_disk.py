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

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.data_scripts.prepare import main
from dcl_face_forgery.errors_dcl import InputError, report_input_errors
from dcl_face_forgery.prepared.dataset import explained_failure

NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)


def raise_from(*arguments):
    raise OSError(*arguments)


def fail_in_datasets(path):
    try:
        raise_from(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise DatasetGenerationError("An error occurred while generating the dataset") from error


def fail_in_the_cache(path):
    with explained_failure("mine", "train", "/tmp"):
        fail_in_datasets(path)


def to_file(write):
    """Let something be written to an open file."""

    def writer(path):
        with open(path, "wb") as file:
            write(file)

    return writer


WRITERS = {
    "json": lambda path: path.write_text(json.dumps(NOISE.tolist())),
    "pyarrow": lambda path: pq.write_table(pa.table({"x": NOISE.ravel()}), path, compression="none"),
    "pyarrow to a file": to_file(lambda file: pq.write_table(pa.table({"x": NOISE.ravel()}), file)),
    "pandas": lambda path: pd.DataFrame({"x": NOISE.ravel()}).to_csv(path),
    "pillow": lambda path: Image.fromarray(NOISE).save(path, "PNG"),
    "safetensors": lambda path: save_file({"x": torch.from_numpy(NOISE)}, path),
    "torch": lambda path: torch.save(torch.from_numpy(NOISE), path),
    "torch to a file": to_file(lambda file: torch.save(torch.from_numpy(NOISE), file)),
    "datasets": fail_in_datasets,
    "the cache of datasets": fail_in_the_cache,
    "quota": lambda path: raise_from(errno.EDQUOT, "Disk quota exceeded"),
    "a copy": lambda path: raise_from(errno.ENOSPC, "No space left on device", "/from", None, "/x/y"),
    "read-only": lambda path: raise_from(errno.EROFS, "Read-only file system", "/x/y"),
}


@pytest.fixture
def grow_again():
    """Files of this process cannot grow beyond 20 kB until this is called."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_gets_one_sentence(writer, tmp_path, grow_again):
    with pytest.raises(SystemExit) as stop:
        report_input_errors(lambda: WRITERS[writer](tmp_path / "file"))()
    grow_again()
    message = str(stop.value.code)
    assert message.startswith("error: ") and "\n" not in message and " disk" in message
    assert "run the same command again" in message
    if writer in ("a copy", "read-only"):
        assert "that contains /x/y. Free some space" in message


def test_the_disk_that_is_full_is_named(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0 if "out" in str(path) else 1 << 40))

    @report_input_errors
    def command(arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit, match=r"No space is left on the disk that contains /.*/out/new\. Free some space"):
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


def test_a_preparation_without_room_goes_on_when_there_is_some(tmp_path, grow_again):
    for person in (1, 2):
        (tmp_path / "photos" / f"s{person}").mkdir(parents=True)
        for number in (1, 2):
            shutil.copy(fetch("orl") / f"s{person}" / f"{number}.pgm", tmp_path / "photos" / f"s{person}")
    command = ["blend", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--size", "160"]
    with pytest.raises(SystemExit, match="error: A file exceeds the size limit on the disk"):
        main(command)
    assert not list((tmp_path / "out").iterdir())
    grow_again()
    main(command)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.parquet"]


def test_a_buffer_in_memory_is_no_disk():
    report_input_errors(lambda: Image.fromarray(NOISE).save(io.BytesIO(), "PNG"))()
