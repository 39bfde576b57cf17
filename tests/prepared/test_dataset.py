"""Prepared data sets: what is read, what is refused and in which words, and what changes a fingerprint."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from PIL import ImageCms

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.media_dcl import read_picture
from dcl_face_forgery.prepared.dataset import (
    FEATURES,
    OPTIONAL_COLUMNS,
    CorruptImageError,
    decode_image,
    decode_mask,
    encode_image,
    find_crop,
    fingerprint,
    load_prepared,
    metadata,
)
from dcl_face_forgery.prepared.names import split_names
from dcl_face_forgery.tests.shared.prepared_data import CROP, make_rows


@pytest.fixture(scope="module")
def module_rows():
    return make_rows(range(2))  # 2 videos, each real and by 3 methods, 2 frames: 16 rows


@pytest.fixture
def rows(module_rows):
    return [dict(row) for row in module_rows]


@pytest.fixture
def write(tmp_path):
    """Write rows as one Parquet file, and return the folder."""

    def write(rows, name="train.parquet", features=FEATURES):
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / name)
        return str(tmp_path)

    return write


def refused(folder, match, split="train", **options):
    with pytest.raises(InputError, match=match) as error:
        load_prepared(str(folder), split, **options)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------- reading


def test_images_and_masks_come_back_bit_by_bit(rows, write):
    dataset = load_prepared(write(rows), "train")
    assert len(dataset) == len(rows)
    assert dataset.features["label"].names == ["real", "fake"]
    for row, given in zip(dataset, rows, strict=True):
        assert {name: row[name] for name in ("label", "method", "video_id", "source_id", "frame")} == {
            name: given[name] for name in ("label", "method", "video_id", "source_id", "frame")
        }
        for column, decode in (("image", decode_image), ("mask", decode_mask)):
            assert np.array_equal(decode(row[column], "row"), decode(given[column], "row"))


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_encoding_loses_nothing(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    decode = decode_image if len(shape) == 3 else decode_mask
    decoded = decode(encode_image(pixels), "row")
    assert np.array_equal(decoded, pixels)
    assert decoded.flags.writeable


def test_an_unknown_mask_is_none(rows, write):
    rows[1]["mask"] = None
    assert decode_mask(load_prepared(write(rows), "train")[1]["mask"], "row 1") is None


def cell_of(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return {"bytes": buffer.getvalue(), "path": None}


def test_images_are_read_as_detection_reads_them(tmp_path):
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    exif = PILImage.Exif()
    exif[0x0112] = 6
    clear = np.full((8, 12, 4), (9, 99, 9, 0), np.uint8)
    for cell in (
        cell_of(PILImage.fromarray(deep)),
        cell_of(PILImage.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)), exif=exif),
        cell_of(PILImage.fromarray(clear)),
    ):
        path = tmp_path / "image.png"
        path.write_bytes(cell["bytes"])
        expected = read_picture(path)
        for decoded in (decode_image(cell, "row"), decode_image({"bytes": None, "path": str(path)}, "row")):
            assert np.array_equal(decoded, expected) and decoded.flags.writeable
    assert np.array_equal(decode_image(cell_of(PILImage.fromarray(deep)), "row")[..., 0], np.round(deep / 257))


def test_masks_are_read_as_the_values_they_hold(tmp_path):
    mask = np.zeros((8, 12), np.uint8)
    mask[2:5, 3:] = 255
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    clear = PILImage.fromarray(np.dstack([mask, mask]))  # transparent where nothing is forged
    for image, options in ((PILImage.fromarray(mask), {"icc_profile": profile}), (clear, {})):
        cell = cell_of(image, **options)
        path = tmp_path / "mask.png"
        path.write_bytes(cell["bytes"])
        for decoded in (decode_mask(cell, "row"), decode_mask({"bytes": None, "path": str(path)}, "row")):
            assert np.array_equal(decoded, mask)


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_a_cell_that_is_another_kind_of_file_is_named_and_starts_nothing(decode, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_: pytest.fail("a program was started"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    with pytest.raises(CorruptImageError, match=r"row 4 cannot be decoded \(it is a PostScript file\)"):
        decode({"bytes": script, "path": None}, "row 4")


def test_masks_that_would_be_clipped_or_misread_are_refused():
    deep, flags = io.BytesIO(), np.eye(8, dtype=np.uint8)
    PILImage.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(deep, "PNG")
    with pytest.raises(CorruptImageError, match=r"row 3 cannot be decoded .*not 8 bits per channel"):
        decode_mask({"bytes": deep.getvalue(), "path": None}, "row 3")
    with pytest.raises(CorruptImageError, match=r"mask of row 3 contains 0 and 1.*Multiply it by 255"):
        decode_mask(encode_image(flags), "row 3")


def test_a_fingerprint_tells_images_apart_that_are_kept_as_files(rows, write):
    first, second = ([row | {"image": {"bytes": None, "path": f"{n}/face.png"}} for row in rows] for n in "ab")
    prints = [
        fingerprint(Dataset.from_list(some, Features(FEATURES | {"image": Image(decode=False)})))
        for some in (first, second)
    ]
    assert prints[0] != prints[1]


def test_shards_are_read_in_order_and_splits_are_kept_apart(rows, write):
    write(rows[8:], "train-00001-of-00002.parquet")
    write(rows[:8], "train-00000-of-00002.parquet")
    folder = write(rows[:3], "test.parquet")
    write(rows[:2], "train-hard.parquet")  # another set's file, whatever it is: not a shard
    write(rows[:5], "train_hard.parquet")
    assert load_prepared(folder, "train")["video_id"][:] == [row["video_id"] for row in rows]
    assert len(load_prepared(folder, "train_hard")) == 5
    assert len(load_prepared(folder, "test")) == 3


def test_a_name_is_looked_up_under_the_data_root(prepared):
    by_name = load_prepared("textures", "validation", data_root=prepared.parent)
    assert len(by_name) == len(load_prepared(str(prepared), "validation")) == 24


@pytest.mark.parametrize("how", ["left out", "nulls without a schema", "nulls"])
def test_optional_columns_may_be_empty(rows, write, tmp_path, how):
    folder = write([row | dict.fromkeys(OPTIONAL_COLUMNS) for row in rows])
    table = pq.read_table(tmp_path / "train.parquet")
    if how != "nulls":
        features = Features({name: kind for name, kind in FEATURES.items() if name not in OPTIONAL_COLUMNS})
        table = table.drop_columns(list(OPTIONAL_COLUMNS)).cast(features.arrow_schema)
        if how == "nulls without a schema":
            for name in OPTIONAL_COLUMNS:
                table = table.append_column(name, pa.nulls(len(table)))
            features |= {name: Value("null") for name in OPTIONAL_COLUMNS}
        table = table.replace_schema_metadata(Features(features).arrow_schema.metadata)
        pq.write_table(table, tmp_path / "train.parquet")
    dataset = load_prepared(folder, "train")
    assert len(dataset) == len(rows)
    assert dataset[0].get("mask") is None


def test_metadata_is_every_column_but_the_images(rows, write):
    table = metadata(load_prepared(write(rows), "train").select([5, 2]))
    assert set(table.column_names) == set(FEATURES) - {"image", "mask"}
    assert table.column("video_id").to_pylist() == [rows[5]["video_id"], rows[2]["video_id"]]


@pytest.mark.parametrize(
    ("given", "names"),
    [(["a", "b"], ["a", "b"]), (["a&b"], ["a", "b"]), (["a & b", "c"], ["a", "b", "c"]), (["&", ""], []), ([], [])],
)
def test_names_are_split_at_the_ampersand(given, names):
    assert split_names(given) == names


# ----------------------------------------------------------------------------------------------------------- bad input


def test_a_missing_folder_names_where_it_was_looked_for(tmp_path):
    refused(
        "no_such_set",
        rf"Data set 'no_such_set' not found.*{tmp_path}/no_such_set and no_such_set\. .*prepare",
        data_root=tmp_path,
    )
    refused(tmp_path / "nothing", r"Data set .*nothing' not found")


def test_a_name_that_might_be_of_the_hub_fails_fast_offline():
    refused("nobody/nothing", r"Data set 'nobody/nothing': the split 'train' cannot be loaded .*Check the path")


def test_a_missing_split_lists_those_there(rows, write):
    write(rows[:2], "test-00000-of-00001.parquet")
    refused(write(rows), r"no split 'validation': it has test, train\.", split="validation")


def test_an_empty_folder_says_so(tmp_path):
    refused(tmp_path, r"no split 'train': it contains no Parquet files. Create it with `dcl-prepare`")


def test_a_set_without_rows(tmp_path):
    Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES).to_parquet(tmp_path / "train.parquet")
    refused(tmp_path, "is empty. Prepare or download it again")


@pytest.mark.parametrize("column", sorted(set(FEATURES) - OPTIONAL_COLUMNS))
def test_a_missing_column_is_named(rows, write, tmp_path, column):
    folder = write(rows)
    Dataset.from_parquet(str(tmp_path / "train.parquet")).remove_columns(column).to_parquet(tmp_path / "train.parquet")
    refused(folder, rf"has no column '{column}'\. A prepared data set has image, mask, label")


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        ("image", Value("string"), "face.png"),
        ("mask", Value("int64"), 1),
        ("label", Value("string"), "fake"),
        ("label", Value("int64"), 1),
        ("video_id", Value("int64"), 3),
        ("frame", Value("string"), "3"),
        ("crop", Value("string"), "box"),
        ("crop", {"kind": Value("string")}, {"kind": "box"}),
        ("landmarks", Value("float32"), 0.5),
        ("method", Value("null"), None),
    ],
)
def test_a_column_of_another_type_is_named_with_the_remedy(rows, write, column, kind, value):
    folder = write([row | {column: value} for row in rows[:2]], features=Features(FEATURES | {column: kind}))
    refused(folder, rf"the column '{column}' is .*, not .*\. Cast it")


def test_labels_with_the_classes_in_the_wrong_order_are_refused(rows, write):
    features = Features(FEATURES | {"label": ClassLabel(names=["fake", "real"])})
    refused(write(rows, features=features), r"column 'label' .*\['fake', 'real'\].* not .*\['real', 'fake'\]")


def test_kinds_of_the_same_family_are_taken(rows, write):
    features = Features(FEATURES | {"frame": Value("int64"), "video_id": Value("large_string")})
    assert len(load_prepared(write(rows, features=features), "train")) == len(rows)


@pytest.mark.parametrize("column", ["image", "label", "video_id", "source_id", "crop"])
def test_a_row_without_a_value_is_refused(rows, write, column):
    rows[3][column] = None
    refused(write(rows), rf"the column '{column}' has rows without a value")


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "empty"])
def test_a_damaged_file_is_named(rows, write, tmp_path, damage):
    write(rows[:8], "train-00000-of-00002.parquet")
    folder = write(rows[8:], "train-00001-of-00002.parquet")
    path = tmp_path / "train-00001-of-00002.parquet"
    content = path.read_bytes()
    path.write_bytes({"cut off": content[: len(content) // 2], "overwritten": b"x" * 999, "empty": b""}[damage])
    refused(folder, r"train-00001-of-00002\.parquet is not a complete Parquet file .*\. Prepare or download")


def test_files_of_two_preparations_of_a_split_are_refused(rows, write, tmp_path):
    folder = write(rows[:8], "train-00000-of-00001.parquet")
    write(rows[8:], "train.parquet")
    refused(folder, "the split 'train' has files of several preparations")
    (tmp_path / "train.parquet").unlink()
    for number in range(2):
        write(rows[8:], f"train-0000{number}-of-00002.parquet")
    refused(folder, "the split 'train' has files of several preparations")


def test_shards_that_do_not_fit_together_are_refused(rows, write, tmp_path):
    folder = write(rows, "train-00000-of-00002.parquet")
    pq.write_table(pa.table({"frame": ["third"]}), tmp_path / "train-00001-of-00002.parquet")
    refused(folder, "the split 'train' cannot be loaded .*third")


@pytest.mark.parametrize("damage", ["cut off", "no image", "nothing"])
def test_a_corrupt_image_is_named_with_its_row(rows, write, damage):
    encoded = rows[7]["image"]["bytes"]
    rows[7]["image"] = {
        "cut off": {"bytes": encoded[: len(encoded) // 2], "path": None},
        "no image": {"bytes": b"<html>not found</html>", "path": None},
        "nothing": {"bytes": b"", "path": None},
    }[damage]
    dataset = load_prepared(write(rows), "train")
    for number in (6, 8):
        assert decode_image(dataset[number]["image"], f"row {number}").shape == (64, 64, 3)
    with pytest.raises(CorruptImageError, match=r"The image of row 7 cannot be decoded .*--skip_corrupt"):
        decode_image(dataset[7]["image"], "row 7")


def test_an_image_that_is_a_path_to_nowhere_is_corrupt():
    with pytest.raises(CorruptImageError, match=r"The image of row 2 .*/no/such/file\.png"):
        decode_image({"bytes": None, "path": "/no/such/file.png"}, "row 2")


def test_a_corrupt_image_says_what_is_wrong_apart_from_what_to_do():
    """The cause may hold colons of its own, and a worker's queue keeps both."""
    error = CorruptImageError("The image of row 3 cannot be decoded (a: b)", "mend the row: here, or there")
    for received in (error, pickle.loads(pickle.dumps(error))):
        assert str(received) == "The image of row 3 cannot be decoded (a: b). mend the row: here, or there."
        assert received.cause == "The image of row 3 cannot be decoded (a: b)"
    with pytest.raises(CorruptImageError) as raised:
        decode_mask(encode_image(np.eye(8, dtype=np.uint8)), "row 3")
    assert raised.value.cause == "The mask of row 3 contains 0 and 1, but 255 must mean forged"


def test_a_corrupt_mask_is_called_a_mask():
    with pytest.raises(CorruptImageError, match="The mask of row 2 cannot be decoded"):
        decode_mask({"bytes": b"no", "path": None}, "row 2")


# ---------------------------------------------------------------------------------------------------------------- crop


def test_the_crop_of_a_set_is_found(rows, write):
    assert find_crop(load_prepared(write(rows), "train"), "it") == CROP


def test_mixed_crops_are_refused_unless_allowed(rows, write):
    for row in rows[:5]:
        row["crop"] = CROP | {"margin": 0.5}
    dataset = load_prepared(write(rows), "train")
    with pytest.raises(
        InputError, match=r"The faces of it were cut in 2 ways .*in 11 rows.*0\.5.*--allow_mixed_crops"
    ):
        find_crop(dataset, "it")
    assert find_crop(dataset, "it", allow_mixed=True) == CROP
    assert find_crop(dataset.select(range(5)), "it") == CROP | {"margin": 0.5}


def test_a_crop_whose_margin_is_not_known(rows, write):
    given = {"kind": "given", "margin": None, "size": 64, "detector": None}
    for row in rows:
        row["crop"] = given
    assert find_crop(load_prepared(write(rows), "train"), "it") == given


# --------------------------------------------------------------------------------------------------------- fingerprint


@pytest.fixture(scope="module")
def base_fingerprint(module_rows):
    return fingerprint_of(module_rows)


def fingerprint_of(rows):
    return fingerprint(Dataset.from_list(rows, features=FEATURES))


def cells_that_differ_in_one_pixel():
    """Two images in as many bytes: at the end, only the checksums of the PNG tell."""
    cells = []
    for value in (10, 11):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[5, 5, 0] = value
        buffer = io.BytesIO()
        PILImage.fromarray(pixels).save(buffer, "PNG", compress_level=0)
        cells.append({"bytes": buffer.getvalue(), "path": None})
    assert len(cells[0]["bytes"]) == len(cells[1]["bytes"])
    return cells


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("label", 1),
        ("method", "other"),
        ("compression", "c23"),
        ("video_id", "other"),
        ("source_id", "other"),
        ("frame", 99),
        ("landmarks", [[1.0, 2.0]] * 5),
        ("crop", CROP | {"margin": 0.31}),
        ("dataset", "other"),
        ("mask", None),
        ("mask", encode_image(np.full((64, 64), 7, np.uint8))),
        ("image", encode_image(np.zeros((64, 64, 3), np.uint8))),
    ],
)
def test_every_value_of_a_row_changes_the_fingerprint(rows, base_fingerprint, column, value):
    rows[0][column] = value
    assert fingerprint_of(rows) != base_fingerprint


def test_one_pixel_changes_the_fingerprint(rows):
    seen = set()
    for cell in cells_that_differ_in_one_pixel():
        rows[4]["image"] = cell
        seen.add(fingerprint_of(rows))
    assert len(seen) == 2


def test_rows_and_their_order_change_the_fingerprint(rows, base_fingerprint):
    assert fingerprint_of(rows[:-1]) != base_fingerprint
    assert fingerprint_of([*rows, rows[0]]) != base_fingerprint
    assert fingerprint_of(rows[::-1]) != base_fingerprint


def test_nothing_else_changes_the_fingerprint(rows, write, base_fingerprint, tmp_path):
    dataset = load_prepared(write(rows), "train")
    assert fingerprint(dataset) == base_fingerprint
    assert (
        fingerprint(dataset.select([*range(8, 16), *range(8)]).select([*range(8, 16), *range(8)])) == base_fingerprint
    )
    (tmp_path / "train.parquet").unlink()
    write(rows[:5], "train-00000-of-00002.parquet")
    assert fingerprint(load_prepared(write(rows[5:], "train-00001-of-00002.parquet"), "train")) == base_fingerprint
    for row in rows:
        row["image"] = {"bytes": row["image"]["bytes"], "path": "elsewhere.png"}
    assert fingerprint_of(rows) == base_fingerprint
