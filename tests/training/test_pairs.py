"""Which frames meet in a sample, which samples in a batch, and that masks stay where the forgeries are."""

import logging
import re
import threading
import time
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.prepared.dataset import (
    FEATURES,
    CorruptImageError,
    decode_image,
    decode_mask,
    find_crop,
    load_prepared,
)
from dcl_face_forgery.prepared.names import FAKE, REAL
from dcl_face_forgery.tests.shared.prepared_data import CROP, SIZE, make_face, make_row, make_rows, write_split
from dcl_face_forgery.training import pairs
from dcl_face_forgery.training.pairs import NO_ROW, BalancedSampler, FaceDataset, PairDataset, collate, load_rows
from dcl_face_forgery.training.settings import AugmentationSettings, ViewSettings
from dcl_face_forgery.training.views import apply_device_views

HALF = (0.5, 0.5, 0.5)
PLAIN = ViewSettings(
    augment=False,
    random_patch_probability=0,
    srm_probability=0,
    frame_shift_probability=0,
    mix_probability=0,
)


def load(tmp_path, rows):
    write_split(tmp_path, "train", rows)
    return load_prepared(str(tmp_path), "train")


def plain(rows, views=PLAIN, **settings):
    return PairDataset(rows, SIZE, views, AugmentationSettings.none(), **settings)


def with_views(**changes):
    return ViewSettings(**{**PLAIN.__dict__, **changes})


def row_of(dataset, video_id, frame=0):
    found = [
        row
        for row, cells in enumerate(dataset.rows.select_columns(["video_id", "frame"]))
        if (cells["video_id"], cells["frame"]) == (video_id, frame)
    ]
    assert len(found) == 1
    return found[0]


def stored_image(dataset, row):
    return decode_image(dataset.rows[row]["image"], "a row")


def key_rows(dataset, row, draws=60):
    """Return the rows whose image was the key of a row, over many epochs: a `PLAIN` view is the stored image."""
    images = {stored_image(dataset, index).tobytes(): index for index in range(len(dataset))}
    assert len(images) == len(dataset)
    return {images[dataset[epoch, row]["key_pixel_values"].transpose(1, 2, 0).tobytes()] for epoch in range(draws)}


# ------------------------------------------------------------------------------------------------------ the sampler


@st.composite
def class_labels(draw):
    reals, fakes = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return np.random.default_rng(draw(st.integers(0, 99))).permutation([REAL] * reals + [FAKE] * fakes)


@given(class_labels(), st.integers(0, 5), st.integers(0, 30))
@settings(deadline=None)
def test_an_epoch_alternates_the_classes_and_takes_the_smaller_one_once(labels, seed, epoch):
    sampler = BalancedSampler(labels, seed)
    sampler.set_epoch(epoch)
    draws = list(sampler)
    rows = np.array([row for _, row in draws])
    assert len(draws) == len(sampler) == 2 * min(Counter(labels.tolist()).values())
    assert {drawn for drawn, _ in draws} == {epoch}
    assert labels[rows].tolist() == [REAL, FAKE] * (len(rows) // 2)
    smaller = min((REAL, FAKE), key=lambda label: (labels == label).sum())
    assert sorted(rows[labels[rows] == smaller]) == sorted(np.flatnonzero(labels == smaller))


@given(class_labels(), st.integers(0, 5))
@settings(deadline=None)
def test_no_row_is_drawn_again_before_all_of_its_class_were_drawn(labels, seed):
    sampler = BalancedSampler(labels, seed)
    drawn = {REAL: [], FAKE: []}
    for epoch in range(8):
        sampler.set_epoch(epoch)
        for _, row in sampler:
            drawn[labels[row]].append(row)
    for label, rows in drawn.items():
        members = set(np.flatnonzero(labels == label))
        for start in range(0, len(rows) - len(members) + 1, len(members)):
            assert set(rows[start : start + len(members)]) == members


@given(class_labels(), st.integers(0, 5), st.integers(0, 9))
@settings(deadline=None)
def test_the_order_depends_on_seed_and_epoch_only(labels, seed, epoch):
    fresh, used = BalancedSampler(labels, seed), BalancedSampler(labels, seed)
    for earlier in range(epoch):
        used.set_epoch(earlier)
        list(used)
    np.random.seed(epoch)  # the global generator plays no part
    for sampler in (fresh, used):
        sampler.set_epoch(epoch)
    assert list(fresh) == list(used)


def test_other_seeds_and_epochs_give_other_orders():
    labels = np.array([REAL, FAKE] * 20)
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            sampler = BalancedSampler(labels, seed)
            sampler.set_epoch(epoch)
            orders.add(tuple(row for _, row in sampler))
    assert len(orders) == 9


# ------------------------------------------------------------------------------------------------------ the partners


def test_frame_shift_takes_any_other_frame_of_the_same_video(tmp_path):
    dataset = plain(load(tmp_path, make_rows(range(3), frames=3)), with_views(frame_shift_probability=1))
    for video in ("original/001", "swap/001"):
        others = {row_of(dataset, video, 0), row_of(dataset, video, 2)}
        assert key_rows(dataset, row_of(dataset, video, 1)) == others


def test_a_video_of_one_frame_is_its_own_key(tmp_path):
    dataset = plain(load(tmp_path, make_rows(range(3), frames=1)), with_views(frame_shift_probability=1))
    assert key_rows(dataset, 5, draws=5) == {5}


def test_the_corresponding_pair_is_the_same_frame_by_another_method(tmp_path):
    dataset = plain(load(tmp_path, make_rows(range(3))), with_views(corresponding_pair_probability=1))
    others = {row_of(dataset, f"{method}/001", 1) for method in ("warp", "unseen")}
    assert key_rows(dataset, row_of(dataset, "swap/001", 1)) == others
    real = row_of(dataset, "original/001", 1)
    assert key_rows(dataset, real, draws=5) == {real}


def test_variants_of_a_clip_are_not_each_other_s_pair(tmp_path):
    rows = make_rows(range(1), frames=1, methods=())
    zeros = np.zeros((SIZE, SIZE), np.uint8)
    for number, (method, clip) in enumerate(
        [("swap", "s1"), ("swap", "s1-v2"), ("warp", "s1"), ("warp", "s1-v2"), ("warp", "s1-v3")]
    ):
        rows.append(make_row(make_face(50 + number, 0), zeros, FAKE, method, clip, "000", 0))
    dataset = plain(load(tmp_path, rows), with_views(corresponding_pair_probability=1))
    for clip in ("s1", "s1-v2"):
        assert key_rows(dataset, row_of(dataset, f"swap/{clip}"), draws=10) == {row_of(dataset, f"warp/{clip}")}
    alone = row_of(dataset, "warp/s1-v3")
    assert key_rows(dataset, alone, draws=10) == {alone}


def test_the_source_of_a_fake_is_the_real_frame_it_was_made_from(tmp_path):
    rows = make_rows(range(3))
    rows = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    rows = [row for row in rows if (row["video_id"], row["frame"]) != ("original/002", 1)]
    dataset = plain(load(tmp_path, rows))
    for row, cells in enumerate(dataset.rows):
        expected = NO_ROW
        if cells["label"] == FAKE and (cells["source_id"], cells["frame"]) != ("original/002", 1):
            expected = row_of(dataset, cells["source_id"], cells["frame"])
        assert dataset.source[row] == expected


def test_a_source_frame_that_was_cut_otherwise_is_not_mixed_in(tmp_path):
    rows = make_rows(range(2), frames=1)
    wider = {**CROP, "margin": 1.6}
    rows[0]["crop"] = wider  # the real of the first video: another geometry than its fakes
    dataset = plain(load(tmp_path, rows), with_views(mix_probability=1.0))
    fakes = dataset.labels == FAKE
    assert (dataset.source[fakes] == [-1, -1, -1, 4, 4, 4]).all()


def test_a_mixed_fake_lies_between_itself_and_its_source(tmp_path):
    views = with_views(mix_probability=1, mix_ratio=[0.5, 0.5])
    dataset = plain(load(tmp_path, make_rows(range(2))), views)
    row = row_of(dataset, "swap/001", 1)
    fake, source = stored_image(dataset, row), stored_image(dataset, row_of(dataset, "original/001", 1))
    mask = decode_mask(dataset.rows[row]["mask"], "a row")
    sample = dataset[0, row]
    between = (fake.astype(float) + source) / 2
    for name in ("pixel_values", "key_pixel_values"):
        assert abs(sample[name].transpose(1, 2, 0) - between).max() <= 1
    assert (sample["mask"] == mask).all()  # a fainter forgery covers what it covered
    real = row_of(dataset, "original/001", 1)
    assert (dataset[0, real]["pixel_values"].transpose(1, 2, 0) == source).all()


def test_namesakes_in_another_data_set_or_compression_are_no_partners(tmp_path):
    parts = []
    for name, compression, first in (("a", "c23", 0), ("a", "c40", 20), ("b", "c23", 40)):
        part = make_rows(range(1))
        for number, row in enumerate(part):  # one name, other pixels
            cells = make_row(make_face(first + number, 0), None, 0, "", "", "", 0)
            row.update(dataset=name, compression=compression, image=cells["image"])
        parts.append(part)
    rows = load(tmp_path, [row for part in parts for row in part])
    views = with_views(frame_shift_probability=1)
    dataset, size = plain(rows, views), len(parts[0])
    for row in range(len(dataset)):
        assert {key // size for key in key_rows(dataset, row, draws=4)} == {row // size}
        if dataset.labels[row] == FAKE:
            assert dataset.source[row] // size == row // size
    faces = FaceDataset(rows, DCLImageProcessor())
    assert len(set(faces.video_index)) == 3 * 4


# ------------------------------------------------------------------------------------------------- samples and masks


@pytest.fixture(scope="module")
def rows(prepared):
    return load_prepared(str(prepared), "train")


def test_a_sample_depends_on_seed_epoch_and_row_only(rows):
    def draw(seed, order):
        dataset = PairDataset(rows, SIZE, seed=seed)
        return {draw: dataset[draw] for draw in order}

    draws = [(epoch, row) for epoch in range(3) for row in range(8)]
    torch.manual_seed(1)
    first = draw(0, draws)
    np.random.seed(5)
    torch.manual_seed(2)
    again = draw(0, draws[::-1])
    for key in draws:
        for name, value in first[key].items():
            np.testing.assert_array_equal(value, again[key][name], err_msg=name)
    other = draw(1, draws)
    assert all((first[key]["pixel_values"] != other[key]["pixel_values"]).any() for key in draws)
    for row in range(8):
        assert (first[0, row]["pixel_values"] != first[1, row]["pixel_values"]).any()


def test_without_keys_the_queries_are_the_same_and_no_partner_of_a_key_is_decoded(rows, monkeypatch):
    decoded = []

    def decode(cells, row):
        decoded.append(row)
        return decode_image(cells["image"], "a row")

    monkeypatch.setattr(pairs, "_decode_image", decode)
    views = ViewSettings(frame_shift_probability=0.6, corresponding_pair_probability=0.3)
    augmentation = AugmentationSettings(noise_probability=0.5, jpeg_probability=0.5)
    both, alone = (PairDataset(rows, SIZE, views, augmentation, seed=3, keys=keys) for keys in (True, False))
    keys = {"key_pixel_values", "key_patch_order", "key_srm"}
    for epoch in range(3):
        for row in range(len(rows)):
            expected = both[epoch, row]
            decoded.clear()
            sample = alone[epoch, row]
            assert set(decoded) <= {row, int(alone.source[row])}
            assert expected.keys() - sample.keys() == keys and sample.keys() <= expected.keys()
            for name, value in sample.items():
                np.testing.assert_array_equal(value, expected[name], err_msg=name)
    batch = collate([alone[0, row] for row in range(4)])
    views = apply_device_views(batch, HALF, HALF)
    assert views.keys() == {"pixel_values", "mask", "has_mask", "labels", "row"}


def test_only_the_masks_of_fakes_that_are_queries_are_decoded(rows, monkeypatch):
    decoded = []

    def decode(cells, row):
        decoded.append(row)
        return decode_mask(cells["mask"], "a row")

    monkeypatch.setattr(pairs, "_decode_mask", decode)
    views = ViewSettings(frame_shift_probability=0.5, mix_probability=1, corresponding_pair_probability=0.5)
    dataset = PairDataset(rows, SIZE, views)
    for row in range(len(rows)):
        dataset[0, row]
    assert decoded == np.flatnonzero(dataset.labels == FAKE).tolist()


def test_a_sample_names_its_row_also_where_it_replaces_a_corrupt_one(rows, corrupt):
    dataset = PairDataset(rows, SIZE)
    batch = collate([dataset[0, row] for row in (5, 2)])
    assert batch["row"].tolist() == [5, 2] and batch["row"].dtype == torch.int64
    assert apply_device_views(batch, HALF, HALF)["row"] is batch["row"]
    replaced = plain(corrupt, skip_corrupt=True)[0, 9]
    assert replaced["row"] != 9
    np.testing.assert_array_equal(
        replaced["pixel_values"].transpose(1, 2, 0), decode_image(corrupt[int(replaced["row"])]["image"], "a row")
    )


@pytest.mark.parametrize("workers, batch_size", [(2, 4), (0, 6)])
def test_samples_are_the_same_whatever_the_workers_and_the_batch(rows, workers, batch_size):
    def draw(workers, batch_size):
        dataset = PairDataset(rows, SIZE, seed=3)
        sampler = BalancedSampler(dataset.labels, seed=3)
        sampler.set_epoch(2)
        loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=collate, num_workers=workers)
        batches = list(loader)
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    expected, got = draw(0, 4), draw(workers, batch_size)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


def test_batches_have_the_documented_types_and_masks_are_known_or_flagged(tmp_path):
    rows = make_rows(range(2))
    for row in rows:
        if row["method"] in ("original", "warp"):
            row["mask"] = None
    dataset = plain(load(tmp_path, rows))
    batch = collate([dataset[0, row] for row in range(len(dataset))])
    assert batch["pixel_values"].shape == (len(rows), 3, SIZE, SIZE)
    assert {name: str(batch[name].dtype) for name in ("pixel_values", "key_pixel_values", "mask")} == dict.fromkeys(
        ("pixel_values", "key_pixel_values", "mask"), "torch.uint8"
    )
    assert batch["labels"].dtype == torch.int64 and batch["has_mask"].dtype == torch.bool
    for row, cells in enumerate(rows):
        assert bool(batch["has_mask"][row]) == (cells["method"] != "warp")
        assert bool(batch["mask"][row].any()) == (cells["method"] in ("swap", "unseen"))
        assert batch["labels"][row] == cells["label"]


def test_masks_stay_on_the_forgeries_through_every_view_and_the_device(tmp_path):
    """Forged pixels are white and all others black, in the data; so the image itself says where its mask must be."""
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    rows, rng = [], np.random.default_rng(0)
    for clip in range(12):
        rows.append(make_row(black, None, REAL, "original", f"{clip:03}", f"{clip:03}", 0))
        mask = np.zeros((SIZE, SIZE), np.uint8)
        top, left = rng.integers(4, 28, 2)  # off the centre and no square: a flip or a turn would show
        mask[top : top + 16, left : left + 30] = 255
        mask[top : top + 30, left : left + 12] = 255
        rows.append(make_row(np.repeat(mask[..., None], 3, 2), mask, FAKE, "swap", f"{clip:03}", f"{clip:03}", 0))
    views = ViewSettings(random_patch_on_key=True, mix_ratio=[0.5, 1.0], srm_probability=0.5)
    dataset = PairDataset(load(tmp_path, rows), 96, views, AugmentationSettings(cutout_probability=0))
    draws = [(epoch, row) for epoch in range(20) for row in range(1, len(rows), 2)]
    loader = DataLoader(dataset, batch_size=8, sampler=draws, collate_fn=collate)
    overlaps, shuffled, marked = [], 0, 0
    for batch in loader:
        shuffled += (batch["query_patch_order"] != torch.arange(9)).any(1).sum()
        batch = apply_device_views(batch, HALF, HALF)
        seen = batch["pixel_values"].mean(1)
        low, high = seen.flatten(1).quantile(0.02, dim=1), seen.flatten(1).quantile(0.98, dim=1)
        white = seen > ((low + high) / 2)[:, None, None]
        mask = batch["mask"] > 100
        share = mask.float().mean((1, 2))
        union = (white | mask).sum((1, 2)).clamp(min=1)
        overlap = (white & mask).sum((1, 2)) / union
        usable = (share > 0.05) & (share < 0.95)
        overlaps += overlap[usable].tolist()
        marked += int(usable.sum())
    assert marked > 0.8 * len(draws) and shuffled > 0.5 * len(draws)
    assert np.median(overlaps) > 0.95
    assert np.quantile(overlaps, 0.02) > 0.7


# ---------------------------------------------------------------------------------------------------- corrupt images


@pytest.fixture
def corrupt(tmp_path):
    """Rows of which number 9, a fake in the middle, cannot be decoded."""
    rows = make_rows(range(4))
    assert rows[9]["label"] == FAKE
    rows[9]["image"] = {"bytes": rows[9]["image"]["bytes"][:40], "path": None}
    return load(tmp_path, rows)


def test_a_corrupt_image_is_named_with_its_row(corrupt):
    name = re.escape(f"row 9 (the first is 0) of textures ({corrupt[9]['video_id']}, frame {corrupt[9]['frame']})")
    with pytest.raises(CorruptImageError, match=name):
        plain(corrupt)[0, 9]
    with pytest.raises(CorruptImageError, match=name):
        FaceDataset(corrupt, DCLImageProcessor())[9]


def test_a_corrupt_row_is_replaced_by_one_of_its_class(corrupt, caplog):
    dataset = plain(corrupt, skip_corrupt=True)
    with caplog.at_level(logging.WARNING):
        samples = [dataset[epoch, 9] for epoch in range(12)]
    assert "Skipped: The image of row 9" in caplog.text and "--skip_corrupt" not in caplog.text
    assert {int(sample["labels"]) for sample in samples} == {FAKE}
    assert len({sample["pixel_values"].tobytes() for sample in samples}) > 3
    np.testing.assert_array_equal(dataset[4, 9]["pixel_values"], samples[4]["pixel_values"])


def test_a_corrupt_partner_is_named_and_can_be_skipped(tmp_path):
    rows = make_rows(range(3))
    rows[0]["image"] = {"bytes": b"no image", "path": None}  # the source of rows 1, 2 and 3
    rows = load(tmp_path, rows)
    views = with_views(mix_probability=1, mix_ratio=[0.5, 0.5])
    with pytest.raises(CorruptImageError, match="row 0"):
        plain(rows, views)[0, 1]
    assert plain(rows, views, skip_corrupt=True)[0, 1]["labels"] == FAKE


def test_a_set_of_corrupt_images_is_refused_instead_of_searched_for_ever(tmp_path):
    rows = make_rows(range(1))
    for row in rows:
        row["image"] = {"bytes": b"no image", "path": None}
    with pytest.raises(InputError, match="corrupt"):
        plain(load(tmp_path, rows), skip_corrupt=True)[0, 0]


def test_validation_leaves_corrupt_rows_out(corrupt, caplog):
    with caplog.at_level(logging.WARNING):
        faces = FaceDataset(corrupt, DCLImageProcessor(), skip_corrupt=True)
    assert len(faces) == len(corrupt) - 1 and "row 9" in caplog.text
    assert len(faces.labels) == len(faces.video_index) == len(faces)
    kept = [row for row in range(len(corrupt)) if row != 9]
    for index in (8, 9, len(faces) - 1):
        assert faces[index]["labels"] == corrupt[kept[index]]["label"]


def test_validation_looks_for_corrupt_rows_in_several_threads_and_in_parts(corrupt, monkeypatch, caplog):
    threads = set()

    def decode(cells, row):
        threads.add(threading.get_ident())
        time.sleep(0.002)
        return decode_image(cells["image"], f"row {row}")

    monkeypatch.setattr(pairs, "_decode_image", decode)
    monkeypatch.setattr(pairs, "CHECKED_AT_ONCE", 7)
    filters = list(warnings.filters)
    with caplog.at_level(logging.WARNING):
        faces = FaceDataset(corrupt, DCLImageProcessor(), skip_corrupt=True)
    assert len(threads) > 1 and threading.get_ident() not in threads
    assert [record.message for record in caplog.records if "row 9" in record.message] == [caplog.records[-1].message]
    assert faces.rows["frame"] == [corrupt[row]["frame"] for row in range(len(corrupt)) if row != 9]
    assert warnings.filters == filters


# ------------------------------------------------------------------------------------------- validation and loading


def test_validation_faces_are_what_the_processor_makes_of_them(rows):
    processor = DCLImageProcessor(size={"height": 96, "width": 96})
    faces = FaceDataset(rows, processor)
    dataset = plain(rows)
    for row in (0, 5):
        expected = processor(stored_image(dataset, row), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(torch.from_numpy(faces[row]["pixel_values"]), expected)
    videos = rows["video_id"]
    for one in range(len(rows)):
        for other in range(one):
            assert (faces.video_index[one] == faces.video_index[other]) == (videos[one] == videos[other])


def test_methods_choose_the_fakes_and_keep_every_real(prepared):
    rows = load_rows([str(prepared)], "train", methods=["warp"])
    assert Counter(rows["method"]) == {"original": 12, "warp": 12}


def test_several_data_sets_are_learned_from_together(prepared, tmp_path):
    write_split(tmp_path / "more", "train", make_rows(range(20, 22), methods=("swap",)))
    rows = load_rows([str(prepared), "more"], "train", data_root=str(tmp_path))
    assert len(rows) == 48 + 8 and PairDataset(rows, SIZE)[0, 50]["labels"] in (REAL, FAKE)


def test_sets_of_other_columns_and_number_types_are_learned_from_together(prepared, tmp_path):
    features = {name: kind for name, kind in FEATURES.items() if name not in ("mask", "landmarks")}
    features |= {"frame": Value("int64"), "method": Value("large_string"), "note": Value("string")}
    features["crop"] = features["crop"] | {"margin": Value("float64"), "size": Value("int64")}
    rows = [{name: row.get(name) for name in features} for row in make_rows(range(20, 22), methods=("swap",))]
    Dataset.from_list(rows, features=Features(features)).to_parquet(tmp_path / "train.parquet")
    rows = load_rows([str(prepared), str(tmp_path)], "train")
    assert find_crop(rows, "both") == CROP
    batch = collate([plain(rows)[0, row] for row in (0, 1, 48, 49)])
    assert batch["has_mask"].tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "methods, names", [(["warp", "puppet"], ["puppet", "swap, unseen, warp"]), ([], ["no fake faces"])]
)
def test_methods_that_are_not_there_are_named_with_those_that_are(prepared, methods, names):
    with pytest.raises(InputError) as error:
        load_rows([str(prepared)], "train", methods=methods)
    for name in names:
        assert name in str(error.value)


def test_a_split_without_fakes_is_refused(tmp_path):
    write_split(tmp_path, "train", make_rows(range(2), methods=()))
    with pytest.raises(InputError, match="no fake faces"):
        load_rows([str(tmp_path)], "train")


def test_partners_are_found_after_a_selection(rows):
    kept = concatenate_datasets([rows.select(range(24, 48)), rows.select(range(24))])
    dataset = plain(kept)
    for row in np.flatnonzero(dataset.labels == FAKE):
        source = kept[int(dataset.source[row])]
        assert source["video_id"] == kept[int(row)]["source_id"] and source["label"] == REAL
