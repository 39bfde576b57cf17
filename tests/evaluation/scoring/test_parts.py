"""Predictions in parts: what survives a kill, what does not, and how several processes share them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dcl_face_forgery import evaluate_dcl
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluation.evaluate_models import find_device
from dcl_face_forgery.evaluation.results import evaluate_checkpoint, open_work_folder
from dcl_face_forgery.evaluation.robustness import evaluate_robustness
from dcl_face_forgery.evaluation.scoring import parts
from dcl_face_forgery.evaluation.scoring.checkpoints import Checkpoint, find_checkpoint
from dcl_face_forgery.evaluation.scoring.predictions import (
    PREDICTIONS_SCHEMA,
    PredictedBatch,
    load_checkpoint,
    predict,
)
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.prepared.dataset import metadata
from dcl_face_forgery.prepared.splits import load_splits
from dcl_face_forgery.tests.shared.prepared_data import CROP, make_rows, write_split

ROWS = 36  # of `textures`, in parts of eight: the last one has four
RESULTS = ["metrics.json", "predictions.parquet", "run.json"]
LEFT_BY_THE_COMMAND = [*RESULTS, "table.csv", "table.json", "table.md"]

#: The command with small parts; a "slow" one takes a moment for each batch, so that it can be killed inside.
COMMAND = """
import sys, time
from dcl_face_forgery import evaluate_dcl
from dcl_face_forgery.evaluation.scoring import parts
parts.ROWS_PER_PART = 8
pause, *arguments = sys.argv[1:]
predict = parts.predict
def slow(*args, **kwargs):
    for batch in predict(*args, **kwargs):
        time.sleep(float(pause))
        yield batch
parts.predict = slow
evaluate_dcl.main(arguments)
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A `checkpoint`, `textures`, and `broken`, of which row 10 is."""
    folder = tmp_path_factory.mktemp("here")
    torch.manual_seed(0)
    model = DCLForPreTraining(DCLConfig(backbone="test_efficientnet", image_size=96, queue_size=16, hard_samples=2))
    torch.nn.init.normal_(model.classifier.linear.weight, std=2)
    model.save_pretrained(folder / "checkpoint")
    DCLImageProcessor(size={"height": 96, "width": 96}, crop=CROP).save_pretrained(folder / "checkpoint")
    rows = make_rows(range(6), methods=("swap", "warp"))
    write_split(folder / "textures", "test", rows)
    rows[10] = {**rows[10], "image": {"bytes": rows[10]["image"]["bytes"][:40], "path": None}}
    write_split(folder / "broken", "test", rows)
    (folder / "command.py").write_text(COMMAND)
    return folder


@pytest.fixture(scope="module")
def loaded(here):
    return load_checkpoint(find_checkpoint(str(here / "checkpoint")), torch.device("cpu"))


@pytest.fixture
def textures(here):
    return load_splits([str(here / "textures")], "test")[0]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(parts, "ROWS_PER_PART", 8)


@pytest.fixture
def asked(monkeypatch):
    """Count the rows that the model is asked for; raise `KeyboardInterrupt` at row `asked.stop`."""

    class Asked:
        rows, stop = 0, None

    def counted(*args, batches, **kwargs):
        for batch, found in zip(batches, predict(*args, batches=batches, **kwargs), strict=True):
            Asked.rows += len(batch)
            if Asked.stop is not None and Asked.rows >= Asked.stop:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(parts, "predict", counted)
    return Asked


def evaluate(loaded, data, folder, revision="abc", labels=None, **options):
    options = {"batch_size": 4, "bootstrap": 20} | options
    checkpoint = Checkpoint("some/model", folder, revision, classes=labels)
    return evaluate_checkpoint(checkpoint, *loaded, [data], folder, {}, **options)


def interrupt(asked, stop, *args, **options):
    asked.rows, asked.stop = 0, stop
    with pytest.raises(KeyboardInterrupt):
        evaluate(*args, **options)
    asked.rows, asked.stop = 0, None


def work_folders(folder):
    return sorted(folder.glob(".predictions-*"))


def contents(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


# --------------------------------------------------------------------------------------------------- one process


def test_parts_are_the_whole_and_nothing_of_them_is_left(loaded, textures, tmp_path, monkeypatch):
    metrics = evaluate(loaded, textures, tmp_path / "parts")
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == RESULTS
    monkeypatch.setattr(parts, "ROWS_PER_PART", 1000)
    assert evaluate(loaded, textures, tmp_path / "whole") == metrics
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert metrics["textures"]["localisation"]["auc"] is not None


def test_an_interrupted_run_goes_on_where_it_was(loaded, textures, tmp_path, asked, capsys):
    evaluate(loaded, textures, tmp_path / "whole")
    interrupt(asked, 22, loaded, textures, tmp_path / "out")  # in the third part
    (work,) = work_folders(tmp_path / "out")
    assert sorted(path.name for path in work.glob("*/*")) == ["part-000000.parquet", "part-000001.parquet"]
    assert not set(RESULTS) & set(os.listdir(tmp_path / "out"))
    capsys.readouterr()
    evaluate(loaded, textures, tmp_path / "out")
    assert "textures: 2 of 5 parts already scored." in capsys.readouterr().out
    assert asked.rows == ROWS - 16
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not work_folders(tmp_path / "out")


def test_a_part_that_is_not_whole_is_predicted_again(loaded, textures, tmp_path, asked):
    evaluate(loaded, textures, tmp_path / "whole")
    interrupt(asked, 22, loaded, textures, tmp_path / "out")
    first, second = sorted(tmp_path.glob("out/.predictions-*/*/part-*"))
    first.write_bytes(first.read_bytes()[:-7])  # as a machine leaves it that lost its power
    second.write_bytes(b"")
    evaluate(loaded, textures, tmp_path / "out")
    assert asked.rows == ROWS
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    [
        {"revision": "other"},
        {"batch_size": 2},
        {"group_by": "compression"},
        {"seed": 1},
        {"data": "fingerprint"},
        {"data": "name"},
        {"labels": [("real", 0), ("fake", 1)]},
    ],
    ids=str,
)
def test_a_run_of_other_settings_begins_anew(here, textures, tmp_path, asked, change):
    fresh = load_checkpoint(find_checkpoint(str(here / "checkpoint")), torch.device("cpu"))
    interrupt(asked, 22, fresh, textures, tmp_path)
    (work,) = work_folders(tmp_path)
    options = {name: value for name, value in change.items() if name != "data"}
    if "data" in change:
        setattr(textures, change["data"], "another")
    evaluate(fresh, textures, tmp_path, keep_parts=True, **options)
    assert asked.rows == ROWS
    assert work.exists() == ("group_by" in change or "data" in change)  # of other rows, in the folder of the same run
    assert len(work_folders(tmp_path)) == 1


def test_only_folders_of_its_own_making_are_removed(loaded, textures, tmp_path):
    kept = [tmp_path / name for name in (".predictions-mine", ".predictions-0123456789abcdef", "predictions-old")]
    for folder in kept:
        folder.mkdir()
        (folder / "notes.txt").touch()
    stale = tmp_path / ".predictions-fedcba9876543210"
    (stale / "0123456789abcdef").mkdir(parents=True)
    evaluate(loaded, textures, tmp_path)
    assert all((folder / "notes.txt").exists() for folder in kept)
    assert not stale.exists()


def test_a_corrupt_row_leaves_the_parts_before_it_to_a_run_that_skips_it(loaded, here, tmp_path, asked):
    (data,) = load_splits([str(here / "broken")], "test")
    with pytest.raises(InputError, match=r"row 10 \(the first is 0\) of"):
        evaluate(loaded, data, tmp_path)
    asked.rows = 0
    evaluate(loaded, data, tmp_path, skip_corrupt=True, keep_parts=True)
    assert asked.rows == ROWS - 8
    record = json.loads((tmp_path / "run.json").read_text())["datasets"]["broken"]
    assert record["skipped_corrupt"] == {"count": 1, "rows": [10]}
    with pytest.raises(InputError, match=r"row 10 \(the first is 0\) of"):  # what was skipped before is not forgiven
        evaluate(loaded, data, tmp_path)


def test_two_runs_do_not_share_a_folder(loaded, textures, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PATIENCE", 0.1)
    checkpoint = Checkpoint("some/model", tmp_path, "abc")
    with open_work_folder(tmp_path, checkpoint, loaded[0], 4, 0):
        for options in ({}, {"batch_size": 2}):  # the same run, and another that would clear it away
            with pytest.raises(InputError, match="is in use by another run"):
                evaluate(loaded, textures, tmp_path, **options)


def test_perturbed_predictions_go_on_by_type_and_level(loaded, textures, tmp_path, asked):
    def run(folder):
        checkpoint = Checkpoint("some/model", folder, "abc")
        clean = evaluate(loaded, textures, folder, keep_parts=True)
        asked.rows = 0
        types = ["color_contrast", "gaussian_noise"]
        return evaluate_robustness(checkpoint, *loaded, [textures], clean, folder, types, batch_size=4)

    whole = run(tmp_path / "whole")
    assert asked.rows == 10 * ROWS
    assert not work_folders(tmp_path / "whole")
    asked.rows, asked.stop = 0, 6 * ROWS + 22
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out")
    asked.stop = None
    assert run(tmp_path / "out") == whole
    assert asked.rows == 4 * ROWS - 16
    for name in ("robustness.json", "robustness.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_of_several_models_those_that_are_through_are_not_run_again(here, tmp_path, asked):
    other = tmp_path / "other"
    other.mkdir()
    for path in (here / "checkpoint").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    arguments = [
        "--model",
        str(here / "checkpoint"),
        str(other),
        "--dataset",
        str(here / "textures"),
        "--device",
        "cpu",
    ]
    arguments += ["--output_dir", str(tmp_path / "out"), "--bootstrap", "0"]
    asked.stop = ROWS + 22
    with pytest.raises(KeyboardInterrupt):
        evaluate_dcl.main(arguments)
    asked.rows, asked.stop = 0, None
    evaluate_dcl.main(arguments)
    assert asked.rows == ROWS - 16
    assert not list(tmp_path.glob("out/*/.predictions-*"))


# ------------------------------------------------------------------------------------------------- killed, several


def command(here, out, *options, processes=1, pause=0.0, dataset="textures"):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    arguments = ["--model", here / "checkpoint", "--dataset", here / dataset, "--output_dir", out, "--device", "cpu"]
    fixed = ["--batch_size", "4", "--bootstrap", "20"]
    return [*map(str, [*launcher, here / "command.py", pause, *arguments, *fixed, *options])]


def finish(*args, **kwargs):
    return subprocess.run(command(*args, **kwargs), capture_output=True, text=True, timeout=300)


def assert_same_results(folder, other):
    table, expected = (pd.read_parquet(path / "predictions.parquet") for path in (folder, other))
    scores = ["logit", "p_fake"]
    pd.testing.assert_frame_equal(table.drop(columns=scores), expected.drop(columns=scores))
    np.testing.assert_allclose(table["p_fake"], expected["p_fake"], atol=1e-6)
    metrics, wanted = (json.loads((path / "metrics.json").read_text()) for path in (folder, other))
    assert_close(metrics, wanted)


def assert_close(value, expected):
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            assert_close(value[key], expected[key])
    elif isinstance(expected, list):
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            assert_close(one, other)
    else:
        assert value == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(here, loaded, textures, tmp_path):
    done = finish(here, tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Metrics, predictions and record of the run:") == 1
    evaluate(loaded, textures, tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == LEFT_BY_THE_COMMAND
    assert_same_results(tmp_path / "two", tmp_path / "one")
    assert json.loads((tmp_path / "two/run.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_a_corrupt_row_of_the_second_process_ends_both_with_one_sentence(here, tmp_path):
    """Row 10 is in the second part; the first process is kept busy meanwhile, and shall not go on to its end."""
    start = time.perf_counter()
    done = finish(here, tmp_path, processes=2, pause=1.0, dataset="broken")
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, done.stderr[-3000:]
    assert "row 10 (the first is 0) of" in said[0] and "--skip_corrupt" in said[0]
    assert done.returncode != 0
    assert "Traceback" not in done.stderr.split("error: ")[0]
    assert not set(RESULTS) & set(os.listdir(tmp_path))
    assert time.perf_counter() - start < 120


def kill_inside(here, out, least, **options):
    """Kill the command, and what it started, as soon as so many parts are there."""
    process = subprocess.Popen(
        command(here, out, **options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 200
        while len(list(out.glob(".predictions-*/*/part-*"))) < least:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_run_killed_at_random_moments_gives_the_same_bytes(here, tmp_path):
    assert finish(here, tmp_path / "whole").returncode == 0
    moments = random.Random(0)
    for least in (0, 1, 3):
        kill_inside(here, tmp_path / "out", least, pause=0.3 * moments.random())
    start = len(list(tmp_path.glob("out/.predictions-*/*/part-*")))
    assert start >= 3
    done = finish(here, tmp_path / "out")
    assert f"textures: {start} of 5 parts already scored." in done.stdout
    for name in ("metrics.json", "predictions.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == LEFT_BY_THE_COMMAND


@pytest.mark.slow
def test_more_processes_than_before_go_on_with_what_one_left(here, loaded, textures, tmp_path):
    kill_inside(here, tmp_path / "out", 2, pause=0.2)
    done = finish(here, tmp_path / "out", processes=3)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of 5 parts already scored." in done.stdout
    evaluate(loaded, textures, tmp_path / "one")
    assert_same_results(tmp_path / "out", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_share_perturbed_pictures(here, tmp_path):
    options = ["--perturbations", "gaussian_noise"]
    for processes, out in ((1, "one"), (2, "two")):
        done = finish(here, tmp_path / out, *options, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / out / "robustness.json").read_text()) for out in ("one", "two"))
    assert_close(two, one)
    assert not list(tmp_path.glob("*/.predictions-*"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(loaded, textures, tmp_path, monkeypatch):
    """Of a row with a map of 32 x 32 cells, 5 kB, stays what the metrics read."""
    table = metadata(textures.dataset).to_pandas()

    def predict_much(model, processor, data, batch_size, num_workers, skip_corrupt, group_by, change, batches):
        for batch in batches:
            rng = np.random.default_rng(batch.start)
            rows = table.iloc[[index % ROWS for index in batch]].assign(dataset=data.name, split=data.split)
            rows = rows.assign(logit=0.0, p_fake_raw=0.5, p_fake=rng.random(len(rows)))[PREDICTIONS_SCHEMA.names]
            evidence = rng.normal(size=len(rows) * 1024).astype(np.float32)
            yield PredictedBatch(pa.Table.from_pandas(rows, PREDICTIONS_SCHEMA), evidence, evidence > 1, [])

    monkeypatch.setattr(parts, "predict", predict_much)
    short, peaks = textures.dataset, []
    evaluate(loaded, textures, tmp_path, bootstrap=0)  # what is made once
    for times in (2, 12):
        textures.dataset = short.select([*range(ROWS)] * times)
        tracemalloc.start()
        evaluate(loaded, textures, tmp_path, bootstrap=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 10 * ROWS * 1000


def test_nothing_of_a_row_is_held_while_parts_are_predicted(loaded, textures, tmp_path, monkeypatch):
    """Batches of a part are let go when it is written."""
    alive, most = [], [0]

    class Tracked:
        def __init__(self, batch):
            self.batch = batch
            alive.append(1)
            most[0] = max(most[0], len(alive))

        def __getattr__(self, name):
            return getattr(self.batch, name)

        def __del__(self):
            alive.pop()

    monkeypatch.setattr(parts, "predict", lambda *args, **kwargs: map_closing(Tracked, predict(*args, **kwargs)))
    evaluate(loaded, textures, tmp_path)
    assert most[0] <= 3  # of nine: two of a part, and one of the part before
    assert not alive


def map_closing(function, generator):
    for item in generator:
        yield function(item)


# ----------------------------------------------------------------------------------------------------------- devices


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: asked.append(device) or np.zeros(1))
    monkeypatch.setenv("LOCAL_RANK", "1")
    names = (None, "cuda", "cuda:0", "cpu")
    assert [str(find_device(name)) for name in names] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    assert asked == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    monkeypatch.delenv("LOCAL_RANK")
    assert str(find_device(None)) == "cuda"
