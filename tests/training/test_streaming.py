"""Streamed rows are the loaded ones, draw for draw; and every reader keeps to row groups of its own."""

import errno
import gc
import io
import os
import pickle
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset, Features, Value
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dcl_face_forgery import train
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.prepared import dataset
from dcl_face_forgery.prepared.dataset import FEATURES, find_crop, fingerprint, load_prepared, metadata
from dcl_face_forgery.prepared.names import FAKE, REAL
from dcl_face_forgery.tests.shared.prepared_data import CROP, SIZE, make_rows, training_flags
from dcl_face_forgery.tests.shared.training import build_trainer
from dcl_face_forgery.tests.training.test_distributed import launch
from dcl_face_forgery.tests.training.test_train import StoppedError, assert_same_run, stop_after
from dcl_face_forgery.training.arguments import parse_training_run
from dcl_face_forgery.training.pairs import BalancedSampler, FaceDataset, PairDataset, collate, keys_of, load_rows
from dcl_face_forgery.training.run import load_data
from dcl_face_forgery.training.settings import ViewSettings
from dcl_face_forgery.training.streaming import CACHED, OPEN, RowGroup, RowGroupSampler, StreamedRows, stream_prepared


def write_groups(path, groups, schema=FEATURES.arrow_schema):
    """Write a Parquet file whose row groups are given, as lists of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in groups:
            table = pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)
            writer.write_table(table, row_group_size=len(rows))


def write_shards(folder, split, groups, shards=2, first=0):
    for shard in range(shards):
        write_groups(folder / f"{split}-{shard:05}-of-{shards:05}.parquet", groups[shard::shards])


def families(videos, **settings):
    """Return the rows of each video: a row group each."""
    return [make_rows(range(video, video + 1), **settings) for video in videos]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Eight families of 8 training faces, a row group each, in two shards; and four of validation."""
    folder = tmp_path_factory.mktemp("streamed") / "textures"
    write_shards(folder, "train", families(range(8)))
    write_shards(folder, "validation", families(range(8, 12)), shards=1)
    return folder


@pytest.fixture(scope="module")
def plainer(tmp_path_factory):
    """Another set: no masks, other types of numbers, one file, reals without fakes in its last row group."""
    features = {name: kind for name, kind in FEATURES.items() if name not in ("mask", "landmarks")}
    features |= {"frame": Value("int64"), "method": Value("large_string"), "note": Value("string")}
    features["crop"] = features["crop"] | {"margin": Value("float64"), "size": Value("int64")}
    groups = families(range(20, 22), methods=("swap",)) + families([22], methods=())
    for rows in groups:
        for row in rows:
            row |= {"dataset": "plainer", "note": "x" * 9}
    folder = tmp_path_factory.mktemp("plainer")
    write_groups(folder / "train.parquet", groups, Features(features).arrow_schema)
    return folder


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """Note every row group that is read, by any process; the function returns (process, shard, number) of each."""
    log, read = tmp_path / "reads.txt", RowGroup.read

    def noted(self):
        with log.open("a") as file:
            file.write(f"{os.getpid()} {self.shard.url} {self.index}\n")
        return read(self)

    monkeypatch.setattr(RowGroup, "read", noted)
    return lambda: [tuple(line.split()) for line in log.read_text().splitlines()] if log.exists() else []


def place(rows, number):
    group = rows.groups[number]
    return group.shard.url, str(group.index)


def memory_in_use():
    """Return the resident memory of this process in MB."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# -------------------------------------------------------------------------------------------------- the same rows


@pytest.mark.parametrize("methods", [None, ["warp", "swap"]])
def test_streamed_rows_are_the_loaded_ones(sharded, plainer, methods):
    names = [str(sharded), str(plainer)]
    loaded, streamed = (load_rows(names, "train", methods=methods, streaming=streaming) for streaming in (False, True))
    assert isinstance(streamed, StreamedRows) and isinstance(loaded, Dataset)
    assert len(streamed) == len(loaded) and sorted(streamed.column_names) == sorted(loaded.column_names)
    for row in range(len(loaded)):
        assert streamed[row] == loaded[row]
    assert (
        metadata(streamed)
        .select(sorted(metadata(loaded).column_names))
        .equals(metadata(loaded).select(sorted(metadata(loaded).column_names)))
    )
    assert keys_of(streamed)[sorted(keys_of(loaded))].equals(keys_of(loaded)[sorted(keys_of(loaded))])
    assert find_crop(streamed, "both") == find_crop(loaded, "both") == CROP
    some = [11, 3, len(loaded) - 1, 3]
    assert [streamed.select(some)[row] for row in range(4)] == [loaded.select(some)[row] for row in range(4)]


def test_streamed_samples_are_the_loaded_ones_draw_for_draw(sharded, plainer):
    views = ViewSettings(
        frame_shift_probability=0.6, mix_probability=0.6, corresponding_pair_probability=0.3, srm_probability=0.5
    )
    one, other = (
        PairDataset(load_rows([str(sharded), str(plainer)], "train", streaming=streaming), SIZE, views, seed=4)
        for streaming in (False, True)
    )
    assert len(one) == len(other) and (one.source == other.source).all() and (one.labels == other.labels).all()
    for epoch in range(2):
        for row in range(len(one)):
            expected, got = one[epoch, row], other[epoch, row]
            assert expected.keys() == got.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(value, got[name], err_msg=f"{name} of {epoch}, {row}")


def test_validation_faces_of_streamed_rows_are_those_of_loaded_ones(sharded):
    processor = DCLImageProcessor(size={"height": 64, "width": 64})
    one, other = (
        FaceDataset(load_rows([str(sharded)], "train", streaming=streaming), processor, skip_corrupt=True)
        for streaming in (False, True)
    )
    assert len(one) == len(other)
    for row in range(0, len(one), 7):
        for name, value in one[row].items():
            np.testing.assert_array_equal(value, other[row][name])


def test_no_image_is_read_before_it_is_asked_for(sharded, reads):
    rows = load_rows([str(sharded)], "train", streaming=True)
    dataset = PairDataset(rows, SIZE)
    find_crop(rows, "it")
    rows.fingerprint()
    assert reads() == [] and len(dataset) == 64
    dataset[0, 40]
    assert {(url, number) for _, url, number in reads()} == {place(rows, rows.group[40])}


def test_no_more_row_groups_than_promised_are_kept(sharded, reads, monkeypatch):
    monkeypatch.setattr("dcl_face_forgery.training.streaming.CACHED", 6)
    rows = load_rows([str(sharded)], "train", streaming=True)
    held = []
    for row in [*range(64), *range(64)]:
        rows[row]
        held.append(len(rows._recent))
    assert max(held) == 6 < len(rows.groups) == 8
    assert len(reads()) == 16  # the second time, the first ones were gone
    for row in range(63, 15, -1):
        rows[row]
    assert len(reads()) == 16


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kept_images_are_not_in_memory(tmp_path):
    rng, faces = np.random.default_rng(0), 8 * make_rows(range(1))
    groups = [[row | {"image": {"bytes": rng.bytes(160_000), "path": None}} for row in faces] for _ in range(12)]
    write_groups(tmp_path / "train.parquet", groups)
    expected = groups[3][7]["image"]
    del groups
    rows = stream_prepared(str(tmp_path), "train")
    used = []
    for row in range(0, len(rows), 64):
        rows[row]
        used.append(memory_in_use())
    assert len(rows._recent) == 12 and rows[3 * 64 + 7]["image"] == expected
    assert used[-1] - used[0] < 40 < 12 * 64 * 0.16  # MB


def test_an_image_that_is_only_a_path_stays_one(tmp_path):
    rows = make_rows(range(1))
    rows[3]["image"] = {"bytes": None, "path": "a.png"}
    write_groups(tmp_path / "train.parquet", [rows])
    assert stream_prepared(str(tmp_path), "train")[3]["image"] == {"bytes": None, "path": "a.png"}


def test_a_full_disk_is_named_in_one_sentence(sharded, monkeypatch):
    class Full(io.RawIOBase):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def tell(self):
            return 0

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **how: Full())
    said = rf"^Streamed images cannot be kept in {tempfile.gettempdir()} \(.*No space left.*\)\. Free some space there"
    with pytest.raises(InputError, match=said) as error:
        stream_prepared(str(sharded), "train")[0]
    assert "\n" not in str(error.value)


def test_streamed_rows_can_be_sent_to_another_process(sharded):
    rows = stream_prepared(str(sharded), "train")
    expected = rows[9]
    sent = pickle.loads(pickle.dumps(rows))
    assert not sent._recent and rows._recent
    assert sent[9] == expected and sent.fingerprint() == rows.fingerprint()


# ------------------------------------------------------------------------------------------------------ fingerprint


def fingerprint_of(folder, groups, **options):
    write_groups(folder / "train.parquet", groups)
    return load_rows([str(folder)], "train", streaming=True, **options).fingerprint()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("method", "other"),
        ("frame", 99),
        ("source_id", "x"),
        ("crop", CROP | {"margin": 0.4}),
        ("mask", None),
        ("image", 0),
    ],
)
def test_a_change_of_a_row_changes_the_fingerprint_of_streamed_rows(tmp_path, column, value):
    groups = families(range(2))
    before = fingerprint_of(tmp_path, groups)
    assert fingerprint_of(tmp_path, groups) == before
    groups[1][3][column] = groups[0][0]["image"] if column == "image" else value
    assert fingerprint_of(tmp_path, groups) != before


def test_rows_that_are_not_chosen_and_other_row_groups_change_the_fingerprint(tmp_path):
    groups = families(range(2))
    before = fingerprint_of(tmp_path, groups)
    assert fingerprint_of(tmp_path, groups, methods=["swap"]) != before
    assert fingerprint_of(tmp_path, [[*groups[0], *groups[1]]]) != before  # drawn in another order


# ------------------------------------------------------------------------------------------------------- bad input


def without(column):
    features = Features({name: kind for name, kind in FEATURES.items() if name != column})
    return lambda folder: write_groups(folder / "train.parquet", families([0]), features.arrow_schema)


def of_kind(column, kind, value):
    def write(folder):
        rows = [row | {column: value} for row in make_rows(range(1))]
        write_groups(folder / "train.parquet", [rows], Features(FEATURES | {column: kind}).arrow_schema)

    return write


def with_null(column):
    def write(folder):
        rows = make_rows(range(1))
        rows[3][column] = None
        write_groups(folder / "train.parquet", [rows])

    return write


def incomplete(folder):
    write_shards(folder, "train", families(range(3)), shards=3)
    (folder / "train-00001-of-00003.parquet").unlink()


def damaged(folder):
    write_shards(folder, "train", families(range(2)))
    path = folder / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:999])


def unlike(folder):
    write_groups(folder / "train-00000-of-00002.parquet", families([0]))
    pq.write_table(pa.table({"frame": ["third"]}), folder / "train-00001-of-00002.parquet")


BROKEN = {
    "no column": (without("video_id"), r"has no column 'video_id'\. A prepared data set has image"),
    "no images": (without("image"), r"has no column 'image'\. A prepared data set has image"),
    "another type": (of_kind("frame", Value("string"), "3"), r"the column 'frame' is .*, not .*\. Cast it"),
    "image of another type": (of_kind("image", Value("string"), "a.png"), r"the column 'image' .* Cast it"),
    "mask of another type": (of_kind("mask", Value("int64"), 1), r"the column 'mask' .* Cast it"),
    "landmarks of another type": (of_kind("landmarks", Value("float32"), 0.5), r"the column 'landmarks' .* Cast it"),
    "no value": (with_null("source_id"), "the column 'source_id' has rows without a value. Fill them"),
    "no image": (with_null("image"), "the column 'image' has rows without a value. Fill them"),
    "no rows": (lambda folder: write_groups(folder / "train.parquet", []), "is empty. Prepare or download it again"),
    "no split": (lambda folder: write_groups(folder / "test.parquet", []), "no split 'train': it has test"),
    "no files": (lambda folder: None, "it contains no Parquet files"),
    "incomplete": (incomplete, "the split 'train' is incomplete \\(2 of 3 shards\\). Run"),
    "damaged": (damaged, "is not a complete Parquet file"),
    "unlike": (
        unlike,
        r"the split 'train' cannot be loaded .*third.*\. Prepare or download it again",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_used_is_refused_in_the_same_words(tmp_path, case):
    write, words = BROKEN[case]
    write(tmp_path)
    sentences = []
    for streaming in (False, True):
        with pytest.raises(InputError, match=words) as error:
            load_rows([str(tmp_path)], "train", streaming=streaming)
        sentences.append(str(error.value))
        assert "\n" not in sentences[-1]
    assert sentences[0] == sentences[1]


@pytest.mark.parametrize("columns", ["typed", "none"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_shard_without_rows_does_no_harm(tmp_path, streaming, columns):
    write_groups(tmp_path / "train-00001-of-00003.parquet", families([1]))
    write_groups(tmp_path / "train-00002-of-00003.parquet", families([2]))
    empty = FEATURES.arrow_schema.empty_table() if columns == "typed" else pa.table({"image": pa.nulls(0)})
    pq.write_table(empty, tmp_path / "train-00000-of-00003.parquet")
    rows = load_rows([str(tmp_path)], "train", streaming=streaming)
    assert len(rows) == 16 and rows[15]["video_id"] == "unseen/002"


def test_a_row_group_that_cannot_be_read_any_more_is_named(sharded, tmp_path):
    write_groups(tmp_path / "train.parquet", families(range(2)))
    rows = stream_prepared(str(tmp_path), "train")
    (tmp_path / "train.parquet").write_bytes(b"gone")
    with pytest.raises(
        InputError, match=r"Row group 1 of .*train\.parquet: cannot be read \(.+\)\. Check the file"
    ) as error:
        rows[10]
    assert "\n" not in str(error.value)


def test_optional_columns_may_be_empty_or_missing_in_a_shard(tmp_path):
    groups = families(range(2))
    for row in groups[0]:
        row["mask"] = None
    write_groups(tmp_path / "train-00000-of-00002.parquet", groups[:1])
    features = Features({name: kind for name, kind in FEATURES.items() if name not in ("mask", "compression")})
    write_groups(tmp_path / "train-00001-of-00002.parquet", groups[1:], features.arrow_schema)
    one, other = (load_rows([str(tmp_path)], "train", streaming=streaming) for streaming in (False, True))
    assert [one[row] for row in range(16)] == [other[row] for row in range(16)]
    assert other[3]["mask"] is None is other[12]["mask"]


# ----------------------------------------------------------------------------------------------------------- the Hub


class FarFile(AbstractBufferedFile):
    """Reads as the files of the Hub do: by requests for a range of bytes, each of which is noted."""

    def _fetch_range(self, start, end):
        FarFileSystem.requests.append((Path(self.path).name, end - start))
        return Path(self.path).read_bytes()[start:end]


class FarFileSystem(AbstractFileSystem):
    protocol, requests = "far", []

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}

    def _open(self, path, mode="rb", **kwargs):
        return FarFile(self, path, mode, **kwargs)


fsspec.register_implementation("far", FarFileSystem, clobber=True)


@pytest.fixture
def on_the_hub(monkeypatch, sharded):
    """The data set `someone/faces`: the files of its splits. `datasets` reads the other file system online only."""
    files = {
        "train": [f"far://{path}" for path in sorted(sharded.glob("train-*.parquet"))],
        "validation": [str(path) for path in sorted(sharded.glob("validation-*.parquet"))],
    }
    builder = SimpleNamespace(config=SimpleNamespace(data_files=files))
    monkeypatch.setattr(dataset, "hub_is_reachable", lambda: True)
    monkeypatch.setattr(dataset, "load_dataset_builder", lambda name: {"someone/faces": builder}[name])
    FarFileSystem.requests.clear()
    return files


def test_a_data_set_is_streamed_from_the_hub(on_the_hub, sharded):
    rows, here = (load_rows([name], "train", streaming=True) for name in ("someone/faces", str(sharded)))
    total = sum(path.stat().st_size for path in sharded.glob("train-*.parquet"))
    assert 0 < sum(size for _, size in FarFileSystem.requests) < total / 2  # nothing of the images, which take most
    assert rows.fingerprint() == here.fingerprint()
    FarFileSystem.requests.clear()
    assert len(rows) == len(here) == 64 and rows[17] == here[17]
    ((name, size),) = FarFileSystem.requests  # one request for a row group, and not for its metadata again
    group = rows.groups[rows.group[17]]
    assert group.shard.url.endswith(name)
    chunks = group.shard.footer.row_group(group.index)
    images = [column for column in map(chunks.column, range(4)) if column.path_in_schema.endswith(("bytes", "path"))]
    assert len(images) == 4 and size == pytest.approx(sum(column.total_compressed_size for column in images), rel=0.02)
    dataset = PairDataset(rows, SIZE)
    loader = DataLoader(dataset, 4, sampler=[(0, row) for row in range(64)], num_workers=2, collate_fn=collate)
    expected = PairDataset(here, SIZE)
    for number, batch in enumerate(loader):
        assert (batch["pixel_values"][1].numpy() == expected[0, 4 * number + 1]["pixel_values"]).all()


def test_of_a_streamed_data_set_of_the_hub_the_validation_split_is_loaded_alone(on_the_hub, sharded, tmp_path):
    on_the_hub["test"] = ["far:///nobody/may/look/at/this.parquet"]
    run = parse_training_run([*training_flags("someone/faces", tmp_path), "--streaming"])
    train_rows, validation_rows = load_data(run)
    assert isinstance(train_rows, StreamedRows) and isinstance(validation_rows, Dataset)
    assert len(train_rows) == 48 and len(validation_rows) == 24
    alone = load_prepared("someone/faces", "validation", split_alone=True)
    assert fingerprint(alone) == fingerprint(load_prepared(str(sharded), "validation"))


def test_a_data_set_of_the_hub_that_is_not_whole_is_refused(on_the_hub):
    on_the_hub["train"].pop()
    with pytest.raises(InputError, match=r"Data set someone/faces: the split 'train' is incomplete \(1 of 2 shards\)"):
        stream_prepared("someone/faces", "train")
    with pytest.raises(InputError, match=r"someone/faces has no split 'test': it has train, validation"):
        stream_prepared("someone/faces", "test")
    on_the_hub["test"] = ["far:///faces/test.csv"]
    with pytest.raises(InputError, match=r"'someone/faces' is not a prepared one: it contains far:///faces/test\.csv"):
        stream_prepared("someone/faces", "train")


def test_a_data_set_cannot_be_streamed_without_the_hub():
    for options in ({"streaming": True}, {"split_alone": True}):
        with pytest.raises(InputError, match=r"'nobody/nothing': the split 'train' cannot be loaded \(.") as error:
            load_rows(["nobody/nothing"], "train", **options)
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------ the sampler


def draw_batches(sampler, epoch=0):
    sampler.set_epoch(epoch)
    draws = list(sampler)
    assert len(draws) == len(sampler) and {drawn for drawn, _ in draws} == {epoch}
    rows = np.array([row for _, row in draws])
    return rows.reshape(-1, sampler.batch_size)


@st.composite
def grouped_labels(draw):
    """Row groups with some rows of either class each."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=6, max_size=30))
    labels = [[REAL] * reals + [FAKE] * fakes for reals, fakes in sizes]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    groups = np.repeat(np.arange(len(sizes)), [len(part) for part in labels])
    return np.concatenate([rng.permutation(part) for part in labels]), groups


@given(grouped_labels(), st.integers(1, 3), st.integers(1, 4), st.integers(2, 7), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_every_batch_holds_both_classes_and_comes_from_the_lane_of_its_reader(rows, processes, workers, size, epoch):
    labels, groups = rows
    sampler = RowGroupSampler(labels, groups, size, processes, workers, seed=5)
    lanes = [set(lane.tolist()) for lane in sampler.lanes]
    assert sorted(group for lane in lanes for group in lane) == list(range(groups.max() + 1))  # each in one lane
    used = len(lanes) // processes
    assert workers % used == 0 and len(lanes) == used * processes
    readers = {}
    for number, batch in enumerate(draw_batches(sampler, epoch)):
        assert abs((labels[batch] == FAKE).sum() * 2 - size) <= 1
        reader = number % processes, number // processes % workers
        readers.setdefault(reader, set()).update(groups[batch].tolist())
    for (process, worker), seen in readers.items():
        assert seen <= lanes[process * used + worker % used]
    # As long as an epoch of the balanced sampler.
    assert abs(len(sampler) - 2 * min(Counter(labels.tolist()).values())) <= max(
        size * len(lanes) / 2, size * len(lanes) - 1
    )


def families_in_batches(batches, family):
    return np.array([len(set(family[batch].tolist())) for batch in batches])


@pytest.mark.parametrize(
    ("batch_size", "workers", "share"),
    [(16, 1, 0.9), (16, 8, 0.9), (32, 1, 0.85), (32, 4, 0.8), (32, 8, 0.8), (32, 16, 0.8), (64, 1, 0.7), (64, 8, 0.6)],
)
def test_a_batch_meets_most_of_the_families_that_a_loaded_one_meets(batch_size, workers, share):
    """In training on FaceForensics++: 720 families of 160 rows each, two in each row group."""
    labels, family = np.tile(np.repeat([REAL, FAKE], [32, 128]), 720), np.repeat(np.arange(720), 160)
    batches = draw_batches(RowGroupSampler(labels, family // 2, batch_size, workers=workers))
    streamed = families_in_batches(batches, family)
    drawn = np.array([row for _, row in BalancedSampler(labels)]).reshape(-1, batch_size)
    loaded = families_in_batches(drawn, family).mean()
    print(f"batches of {batch_size}: {loaded:.1f} families loaded, {streamed.mean():.1f} with {workers} workers")
    assert streamed.mean() > share * loaded and streamed.min() > share * loaded / 2
    # The batches that a worker draws one after the other are of different families, too.
    used = len(batches) // workers // 8 * 8
    runs = np.concatenate([batches[worker::workers][:used].reshape(-1, 8 * batch_size) for worker in range(workers)])
    assert families_in_batches(runs, family).mean() > 1.3 * streamed.mean()


def most_open(drawn):
    """Return how many row groups have been drawn from and will be drawn from again, at most, in a list of them."""
    first, last = ({group: place for place, group in numbered} for numbered in _both_ways(drawn))
    return max(sum(first[group] <= place <= last[group] for group in first) for place in first.values())


def _both_ways(drawn):
    numbered = list(enumerate(drawn.tolist()))
    return numbered[::-1], numbered


def alike(rng):
    return np.full(150, 0.2)


def of_one_class(rng):
    return (rng.random(150) < 0.2).astype(float)


def unlike_each_other(rng):
    return rng.beta(1, 2, 150)


def of_two_sets(rng):
    return np.repeat([0.5, 0.125], 75)


@pytest.mark.parametrize("shares_of_reals", [alike, of_one_class, unlike_each_other, of_two_sets])
def test_a_lane_draws_from_as_many_row_groups_at_a_time_as_are_kept(shares_of_reals):
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(150), 64)
    labels = (rng.random(len(groups)) > np.repeat(shares_of_reals(rng), 64)).astype(int)
    for epoch in range(3):
        batches = draw_batches(RowGroupSampler(labels, groups, 8, seed=5), epoch)
        assert OPEN - 2 <= most_open(groups[batches.ravel()]) <= CACHED


def test_row_groups_are_read_once_an_epoch(tmp_path, reads, monkeypatch):
    monkeypatch.setattr("dcl_face_forgery.training.streaming.OPEN", 4)
    monkeypatch.setattr("dcl_face_forgery.training.streaming.CACHED", 6)
    write_groups(tmp_path / "train.parquet", families(range(12), frames=4))  # 96 draws
    rows = stream_prepared(str(tmp_path), "train")
    dataset = PairDataset(rows, SIZE)
    sampler = RowGroupSampler(dataset.labels, rows.group, 4)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        rows._recent.clear()
        before = len(reads())
        for draw in sampler:
            dataset[draw]
        numbers = [number for _, _, number in reads()[before:]]
        assert len(numbers) == len(set(numbers)) == 12


def test_over_the_epochs_every_row_is_drawn():
    labels = np.array(([REAL] * 2 + [FAKE] * 6) * 12)
    sampler = RowGroupSampler(labels, np.repeat(np.arange(12), 8), 4, processes=2, workers=2)
    drawn = Counter(int(row) for epoch in range(40) for row in draw_batches(sampler, epoch).ravel())
    assert set(drawn) == set(range(len(labels)))
    for label, expected in ((REAL, 40.0), (FAKE, 40 / 3)):
        assert np.mean([drawn[row] for row in np.flatnonzero(labels == label)]) == pytest.approx(expected)


def test_the_order_depends_on_seed_and_epoch_only_and_changes_with_each():
    labels, groups = np.array([REAL, FAKE, FAKE] * 20), np.repeat(np.arange(10), 6)
    orders = set()
    for seed in range(3):
        used = RowGroupSampler(labels, groups, 4, 1, 2, seed)
        for epoch in range(3):
            np.random.seed(epoch)  # the global generator plays no part
            fresh = RowGroupSampler(labels, groups, 4, 1, 2, seed)
            order = draw_batches(used, epoch)
            assert (draw_batches(fresh, epoch) == order).all()
            orders.add(order.tobytes())
    assert len(orders) == 9


@pytest.mark.parametrize(
    ("groups", "workers", "lanes"), [(6, 8, 4), (3, 8, 2), (1, 8, 1), (5, 3, 3), (5, 6, 3), (9, 4, 4)]
)
def test_with_few_row_groups_fewer_lanes_are_used_and_every_worker_has_one(groups, workers, lanes):
    sampler = RowGroupSampler(np.array([REAL, FAKE] * groups), np.repeat(np.arange(groups), 2), 2, 1, workers)
    assert len(sampler.lanes) == lanes and workers % lanes == 0


def test_fewer_row_groups_than_processes_are_refused():
    labels, groups = np.array([REAL, FAKE] * 2), np.repeat(np.arange(2), 2)
    with pytest.raises(InputError, match=r"2 row groups .* 3 processes.*fewer processes, or without --streaming"):
        RowGroupSampler(labels, groups, 2, processes=3, workers=4)
    assert len(RowGroupSampler(labels, groups, 2, processes=2, workers=4).lanes) == 2


def test_of_row_groups_of_one_class_every_batch_holds_both():
    """All reals first, then all fakes: a lane holds some of each only if it is the only one."""
    labels, groups = np.repeat([REAL, FAKE], [8, 72]), np.repeat(np.arange(20), 4)
    sampler = RowGroupSampler(labels, groups, 4, workers=4)
    assert len(sampler.lanes) == 1
    for epoch in range(5):
        for batch in draw_batches(sampler, epoch):
            assert (labels[batch] == FAKE).sum() == 2


def test_workers_with_few_row_groups_each_are_warned_of(caplog):
    labels, groups = np.array([REAL, FAKE] * 60), np.repeat(np.arange(60), 2)
    RowGroupSampler(labels, groups, 4, workers=3)
    RowGroupSampler(labels[:20], groups[:20], 4)  # nothing can be done about it
    assert not caplog.text
    RowGroupSampler(labels, groups, 4, workers=4)
    assert "from 15 row groups only" in caplog.text and "Use fewer workers" in caplog.text


def test_no_row_group_of_one_class_is_left_over():
    """Two of five row groups hold all reals: whatever their order, an epoch draws each real once."""
    labels, groups = np.repeat([FAKE, REAL], [12, 8]), np.repeat(np.arange(5), 4)
    sampler = RowGroupSampler(labels, groups, 4)
    for epoch in range(20):
        rows = draw_batches(sampler, epoch).ravel()
        assert sorted(rows[labels[rows] == REAL]) == list(range(12, 20))


@pytest.mark.parametrize("how", [{}, {"split_batches": True}, {"even_batches": False}])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("skipped", [0, 3])
def test_processes_of_accelerate_get_row_groups_of_their_own(how, drop_last, skipped):
    """However batches are handed out, and after those that a resumed run skips."""
    labels, groups = np.array([REAL, FAKE, FAKE] * 40), np.repeat(np.arange(20), 6)
    piece = 2 if "split_batches" in how else 4
    sampler = RowGroupSampler(labels, groups, piece, processes=2, workers=3)
    sampler.set_epoch(2)
    seen = []
    for process in range(2):
        loader = DataLoader(_Draws(), batch_size=4, sampler=sampler, drop_last=drop_last, collate_fn=list)
        loader = prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False, **how)
        batches = [[row for _, row in batch] for batch in skip_first_batches(loader, skipped)]
        assert len(batches) == len(sampler) // (2 * piece) - skipped > 0
        seen.append(set())
        for number, batch in enumerate(batches, skipped):
            assert len(batch) == piece and set(labels[batch]) == {REAL, FAKE}
            lane = set(sampler.lanes[process * 3 + number % 3].tolist())
            assert set(groups[batch].tolist()) <= lane
            seen[-1] |= set(groups[batch].tolist())
    assert not seen[0] & seen[1]


class _Draws(torch.utils.data.Dataset):
    def __len__(self):
        return 120

    def __getitem__(self, draw):
        return draw


@pytest.mark.parametrize("accelerator", [{}, {"split_batches": True}, {"dispatch_batches": True}])
def test_the_sampler_of_a_trainer_knows_how_batches_are_handed_out(sharded, tmp_path, monkeypatch, accelerator):
    flags = training_flags(sharded, tmp_path, per_device_train_batch_size=4, dataloader_num_workers=2)
    trainer = build_trainer(parse_training_run([*flags, "--streaming"]))
    for name, value in accelerator.items():
        monkeypatch.setattr(trainer.args.accelerator_config, name, value)
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, RowGroupSampler)
    assert sampler.batch_size == (2 if "split_batches" in accelerator else 4)
    assert sampler.processes == (1 if "dispatch_batches" in accelerator else 2)
    assert len(sampler.lanes) == 2 * sampler.processes


@pytest.mark.parametrize("skipped", [0, 1])
def test_each_worker_reads_the_row_groups_of_one_lane(sharded, reads, skipped):
    rows = load_rows([str(sharded)], "train", streaming=True)
    dataset = PairDataset(rows, SIZE, ViewSettings(mix_probability=1.0, frame_shift_probability=1.0))
    sampler = RowGroupSampler(dataset.labels, rows.group, 4, workers=2)
    assert len(rows.groups) == 8 and len(sampler.lanes) == 2
    loader = DataLoader(dataset, 4, sampler=sampler, collate_fn=collate, num_workers=2, persistent_workers=False)
    assert len(list(skip_first_batches(loader, skipped))) == len(sampler) // 4 - skipped
    by_process = {}
    for process, *where in reads():
        by_process.setdefault(process, set()).add(tuple(where))
    assert str(os.getpid()) not in by_process
    lanes = [{place(rows, number) for number in lane} for lane in sampler.lanes]
    assert len(by_process) == 2
    first, second = by_process.values()
    assert not first & second
    assert all(any(seen <= lane for lane in lanes) for seen in (first, second))


# ---------------------------------------------------------------------------------------------------------- at scale


def write_large(folder, families, shards=4):
    """Write families of 160 rows with tiny images, two in each row group."""
    methods, clip = np.array(["original", "a", "b", "c", "d"]), np.repeat(np.arange(5), 32)
    for shard, numbers in enumerate(np.array_split(np.arange(families), shards)):
        names = np.repeat([f"{number:05}" for number in numbers], 160)
        method = methods[np.tile(clip, len(numbers))]
        number = len(names)
        columns = {
            "image": [{"bytes": b"image", "path": None}] * number,
            "label": method != "original",
            "method": method,
            "video_id": np.char.add(np.char.add(method, "/"), names),
            "source_id": np.char.add("original/", names),
            "frame": np.tile(np.arange(32), 5 * len(numbers)),
            "crop": [CROP] * number,
            "dataset": ["large"] * number,
        }
        schema = Features({name: FEATURES[name] for name in columns}).arrow_schema
        arrays = [
            pa.array(values).cast(kind) if isinstance(values, np.ndarray) else pa.array(values, kind)
            for values, kind in zip(columns.values(), schema.types, strict=True)
        ]
        path = folder / f"train-{shard:05}-of-{shards:05}.parquet"
        pq.write_table(pa.table(arrays, schema=schema), path, row_group_size=320, compression="zstd")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_rows_start_within_a_minute_and_stream_in_the_same_memory(tmp_path):
    write_large(tmp_path, 6250)
    before, start = memory_in_use(), time.perf_counter()
    rows = load_rows([str(tmp_path)], "train", streaming=True)
    dataset = PairDataset(rows, SIZE)
    draws = iter(RowGroupSampler(dataset.labels, rows.group, 32))
    for _ in range(32):
        rows[next(draws)[1]]
    seconds, started = time.perf_counter() - start, memory_in_use()
    assert len(rows) == 1_000_000 and seconds < 60
    used = []
    for _ in range(4):
        for _ in range(5000):
            rows[next(draws)[1]]
        used.append(memory_in_use())
    print(f"{seconds:.1f} s, {(started - before):.0f} bytes a row, {started:.0f} MB, then {np.round(used)} MB")
    assert started - before < 500  # bytes a row
    assert max(used[1:]) - used[0] < 20


# --------------------------------------------------------------------------------------------------------- training

RUN = {"max_steps": 7, "image_size": 64, "per_device_train_batch_size": 4, "save_steps": 3, "eval_steps": 3}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_streamed_run_that_was_stopped_goes_on_to_the_same_weights(sharded, tmp_path, monkeypatch, workers):
    """Eight batches an epoch, stopped after five: three are skipped, an odd number for two workers."""
    settings = RUN | {"dataloader_num_workers": workers}
    train.main([*training_flags(sharded, tmp_path / "whole", **settings), "--streaming"])
    flags = [*training_flags(sharded, tmp_path / "run", **settings), "--streaming"]
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(StoppedError):
            train.main(flags)
    assert not (tmp_path / "run" / "all_results.json").exists()
    train.main(flags)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_streamed_run_is_not_resumed_in_another_way(sharded, tmp_path):
    settings = RUN | {"max_steps": 1, "dataloader_num_workers": 2}
    flags = training_flags(sharded, tmp_path / "run", **settings)
    train.main([*flags, "--streaming"])
    with pytest.raises(SystemExit, match="streaming was True, is False"):
        train.main(flags)
    with pytest.raises(SystemExit, match="dataloader_num_workers was 2, is 1"):
        train.main([*flags, "--streaming", "--dataloader_num_workers", "1"])


def test_a_corrupt_image_ends_a_streamed_run_in_one_sentence(tmp_path):
    groups = families(range(4))
    for rows in groups:
        rows[0]["image"] = {"bytes": b"no image", "path": None}
    write_shards(tmp_path / "data", "train", groups)
    write_shards(tmp_path / "data", "validation", families(range(4, 6)))
    flags = training_flags(tmp_path / "data", tmp_path / "run", **RUN, dataloader_num_workers=1)
    said = r"^error: The image of row \d+ \(the first is 0\) of textures \(original/\d+, frame 0\)"
    with pytest.raises(SystemExit, match=said) as stop:
        train.main([*flags, "--streaming"])
    assert "\n" not in str(stop.value) and "--skip_corrupt" in str(stop.value)
    train.main([*flags, "--streaming", "--skip_corrupt"])
    assert (tmp_path / "run" / "all_results.json").exists()


#: Put before the worker of the distributed tests: it notes which row groups each process and worker reads.
NOTE_READS = """
import os
from dcl_face_forgery.training.streaming import RowGroup
read = RowGroup.read
def noted(self):
    with open(os.environ["DCL_TEST_READS"], "a") as file:
        file.write(f"{os.environ['RANK']} {os.getpid()} {self.shard.url} {self.index}" + chr(10))
    return read(self)
RowGroup.read = noted
"""


@pytest.mark.slow
def test_two_processes_read_row_groups_of_their_own_and_can_be_stopped(sharded, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dcl_face_forgery.tests.training.test_distributed.WORKER",
        NOTE_READS + sys.modules["dcl_face_forgery.tests.training.test_distributed"].WORKER,
    )
    monkeypatch.setenv("DCL_TEST_READS", str(tmp_path / "reads.txt"))
    settings = RUN | {"dataloader_num_workers": 2, "max_steps": 9, "per_device_train_batch_size": 2}
    settings |= {"backbone": "test_vit", "load_best_model_at_end": False}
    flags = [*training_flags(sharded, tmp_path / "whole", **settings), "--streaming"]
    whole = launch(tmp_path / "a", flags)
    readers = {}
    for line in (tmp_path / "reads.txt").read_text().splitlines():
        rank, process, *where = line.split()
        readers.setdefault(rank, {}).setdefault(process, set()).add(tuple(where))
    seen = {rank: set().union(*processes.values()) for rank, processes in readers.items()}
    assert seen.keys() == {"0", "1"} and not seen["0"] & seen["1"]
    assert len(seen["0"] | seen["1"]) == 8
    for processes in readers.values():
        assert all(len(groups) == 2 for groups in processes.values())  # of the four of its process
    flags[flags.index("--output_dir") + 1] = str(tmp_path / "run")
    launch(tmp_path / "b", flags, stop=5)
    resumed = launch(tmp_path / "c", flags)
    for one, other in zip(whole, resumed, strict=True):
        for name, value in one["model"].items():
            assert torch.equal(value, other["model"][name]), name
