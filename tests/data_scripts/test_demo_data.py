"""The demo data set: people disjoint between splits, forgeries aligned with their reals, the same bytes every time."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Image, load_dataset

from dcl_face_forgery.data_scripts import demo
from dcl_face_forgery.data_scripts.demo import prepare_demo
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.prepared.blending import METHODS
from dcl_face_forgery.prepared.dataset import decode_image, decode_mask, find_crop, load_prepared, metadata

SMALL = {"train": (2, 2), "validation": (2, 1), "test": (2, 1)}


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    """Six of the forty people, prepared once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SPLITS", SMALL)
        patch.setattr(demo, "find_photographs", first_people)
        folder = tmp_path_factory.mktemp("demo")
        reports = prepare_demo(folder, seed=0, size=96)
    return folder, reports


find_all = demo.find_photographs


def first_people(folder):
    return [photograph for photograph in find_all(folder) if int(photograph.video[1:]) <= 6]


@pytest.fixture
def few_people(monkeypatch):
    monkeypatch.setattr(demo, "SPLITS", SMALL)
    monkeypatch.setattr(demo, "find_photographs", first_people)


def tables(folder):
    return {split: metadata(load_prepared(str(folder), split)).to_pandas() for split in SMALL}


def test_the_splits_of_the_whole_set_hold_all_forty_people():
    assert [number for number, _ in demo.SPLITS.values()] == [22, 10, 8]


def test_every_split_has_ten_photographs_a_person_and_every_forgery_of_each(small_demo):
    folder, reports = small_demo
    faces = {split: report.faces for split, report in reports.items()}
    assert faces == {"train": 2 * 10 * 11, "validation": 2 * 10 * 6, "test": 2 * 10 * 6}
    assert not any(report.failures or report.missing for report in reports.values())
    for split, table in tables(folder).items():
        per_real = {"orl": 1, **dict.fromkeys(METHODS, SMALL[split][1])}
        assert table.groupby("method").size().to_dict() == {name: 20 * number for name, number in per_real.items()}
        assert (table["label"] == (table["method"] != "orl")).all()
        assert not table.duplicated(["video_id", "frame"]).any()


def test_no_person_is_in_two_splits(small_demo):
    people = [set(table["source_id"]) for table in tables(small_demo[0]).values()]
    assert len(set.union(*people)) == sum(len(some) for some in people) == 6


def test_names_follow_the_schema(small_demo):
    table = tables(small_demo[0])["train"]
    person = table["source_id"][0].split("/")[1]
    some = table[table["source_id"] == f"orl/{person}"]
    expected = {f"orl/{person}", *(f"{name}/{person}{variant}" for name in METHODS for variant in ("", "-v2"))}
    assert set(some["video_id"]) == expected
    assert set(some["frame"]) == set(range(1, 11))
    assert set(table["dataset"]) == {"orl"}
    assert table["compression"].isna().all()


def test_a_forgery_is_its_real_outside_the_mask(small_demo):
    for split in SMALL:
        dataset = load_prepared(str(small_demo[0]), split)
        reals = {}
        for index, row in enumerate(dataset):
            image = decode_image(row["image"], f"row {index}")
            mask = decode_mask(row["mask"], f"row {index}")
            assert image.shape == (96, 96, 3) and mask.shape == (96, 96)
            if row["label"] == 0:
                assert not mask.any()
                reals[row["source_id"], row["frame"]] = image, row["landmarks"]
            else:
                real, landmarks = reals[row["source_id"], row["frame"]]
                assert np.array_equal(image[mask == 0], real[mask == 0])
                assert mask.any() and row["landmarks"] == landmarks


def test_the_crop_is_recorded(small_demo):
    crop = find_crop(load_prepared(str(small_demo[0]), "train"), "the demo")
    assert crop == {"kind": "box", "margin": 1.3, "size": 96, "detector": "yunet_2023mar_multiscale"}


def test_families_are_whole_and_contiguous_in_one_row_group(small_demo):
    for path in small_demo[0].glob("*.parquet"):
        file = pq.ParquetFile(path)
        columns = [file.read_row_group(group, ["source_id"]) for group in range(file.num_row_groups)]
        groups = [column["source_id"].to_pylist() for column in columns]
        for one, other in pairwise(groups):
            assert not set(one) & set(other)
        names = [name for group in groups for name in group]
        changes = sum(one != other for one, other in pairwise(names))
        assert changes == len(set(names)) - 1


def test_load_dataset_gives_images_and_class_labels(small_demo, tmp_path):
    dataset = load_dataset(str(small_demo[0]), split="validation", cache_dir=str(tmp_path))
    assert isinstance(dataset.features["label"], ClassLabel) and isinstance(dataset.features["image"], Image)
    assert dataset.features["label"].names == ["real", "fake"]
    assert dataset[0]["image"].size == (96, 96)


def test_two_runs_give_the_same_bytes_and_another_seed_others(small_demo, tmp_path, few_people):
    prepare_demo(tmp_path / "again", seed=0, size=96)
    prepare_demo(tmp_path / "other", seed=1, size=96)
    for split in SMALL:
        first, again, other = (
            (folder / f"{split}.parquet").read_bytes()
            for folder in (small_demo[0], tmp_path / "again", tmp_path / "other")
        )
        assert first == again != other


def test_what_is_done_is_kept_and_what_is_missing_is_made_again(small_demo, tmp_path, few_people, monkeypatch):
    folder, reports = small_demo
    faces = {split: report.faces for split, report in reports.items()}
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    test_bytes = (folder / "test.parquet").read_bytes()
    (folder / "test.parquet").unlink()
    assert {split: report.faces for split, report in prepare_demo(folder, seed=0, size=96).items()} == faces
    assert (folder / "test.parquet").read_bytes() == test_bytes
    monkeypatch.setattr(demo, "fetch", lambda name: pytest.fail("nothing was to be done"))
    assert {split: report.faces for split, report in prepare_demo(folder, seed=0, size=96).items()} == faces
    assert all(before[name] == (folder / name).stat().st_mtime_ns for name in ("train.parquet", "validation.parquet"))


def test_an_interrupted_split_leaves_no_file_and_the_finished_ones_stay(tmp_path, few_people, monkeypatch):
    made = demo.forge_families

    def broken(rows, methods, variants, *others):
        families = made(rows, methods, variants, *others)
        yield next(families)
        if variants == 1:
            raise KeyboardInterrupt
        yield from families

    monkeypatch.setattr(demo, "forge_families", broken)
    with pytest.raises(KeyboardInterrupt):
        prepare_demo(tmp_path, size=96)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.parquet"]
    assert len(load_prepared(str(tmp_path), "train")) == 220


def test_a_set_prepared_otherwise_is_not_replaced_unasked(small_demo, few_people):
    with pytest.raises(InputError, match="--overwrite"):
        prepare_demo(small_demo[0], seed=5, size=96)
    assert tables(small_demo[0])["test"]["video_id"].size == 120
