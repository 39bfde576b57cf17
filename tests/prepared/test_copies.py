"""Copies of a picture in two splits: found whatever was done to the file, and refused by name."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dcl_face_forgery import evaluate_dcl, train
from dcl_face_forgery.data_scripts.assets import fetch, fetch_detector
from dcl_face_forgery.data_scripts.prepare import main
from dcl_face_forgery.data_scripts.shards import Report, write_shard
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.faces_dcl import crop_transform, cut
from dcl_face_forgery.prepared.copies import Pictures, find_copies, picture_hash
from dcl_face_forgery.prepared.dataset import encode_image
from dcl_face_forgery.tests.shared.prepared_data import make_rows, training_flags, write_split

PEOPLE = range(1, 13)


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def half(image):
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


CHANGES = {
    "jpeg": lambda image: jpeg(image, 40),
    "half": half,
    "half and jpeg": lambda image: jpeg(half(image), 60),
    "brighter": lambda image: image.convert("RGB").point(lambda value: min(255, int(value * 1.15 + 8))),
}


@pytest.fixture(scope="module")
def crop_face():
    """A function that cuts the face out of an image as preparation does."""
    detector = fetch_detector()

    def crop(image):
        pixels = np.asarray(image.convert("RGB"))
        face = detector.detect(pixels)[0]
        return cut(pixels, crop_transform(face, {"kind": "box", "margin": 1.3, "size": 112}), 112)

    return crop


@pytest.fixture(scope="module")
def faces(crop_face):
    return [crop_face(Image.open(fetch("orl") / f"s{person}" / "1.pgm")) for person in PEOPLE]


def pictures(images, where="train", hashed=True, families=None):
    names = families or [f"{where}/{number}" for number in range(len(images))]
    table = pd.DataFrame({"label": 0, "video_id": names, "source_id": names, "frame": 0})
    if hashed:
        table["phash"] = [picture_hash(image) for image in images]
    cells = [encode_image(image) for image in images]
    return Pictures(where, table, cells.__getitem__)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_no_other_person_is(change, crop_face, faces):
    """Of twelve people in both splits, each is found as itself alone; and none of another twelve."""
    copies = [crop_face(CHANGES[change](Image.open(fetch("orl") / f"s{person}" / "1.pgm"))) for person in PEOPLE]
    assert find_copies(pictures(faces), pictures(copies, "test")) == [(index, index) for index in range(len(faces))]
    assert find_copies(pictures(faces[:6]), pictures(copies[6:], "test")) == []


def test_a_slightly_cropped_copy_is_found(crop_face):
    whole = Image.open(fetch("astronaut")).convert("RGB")
    cropped = whole.crop((20, 15, whole.width - 30, whole.height - 10))
    assert find_copies(pictures([crop_face(whole)]), pictures([crop_face(cropped)], "test")) == [(0, 0)]


def test_within_a_split_frames_of_a_family_are_not_compared(faces):
    twice = [*faces[:3], *faces[:3]]
    assert find_copies(pictures(twice, families=list("abcabc"))) == []
    assert find_copies(pictures(twice, families=list("abcdef"))) == [(0, 3), (1, 4), (2, 5)]


def test_crops_that_show_nothing_are_no_copies():
    black = np.zeros((112, 112, 3), np.uint8)
    assert picture_hash(black) is None
    assert find_copies(pictures([black]), pictures([black], "test")) == []


def test_of_very_many_pictures_every_nth_is_compared(faces, monkeypatch):
    monkeypatch.setattr("dcl_face_forgery.prepared.copies._MOST_COMPARISONS", 36)
    one, other = pictures(faces), pictures([face.copy() for face in faces], "test")
    other.table.phash = [value[:-1] + ("1" if value[-1] == "0" else "0") for value in other.table.phash]
    assert find_copies(one, other) == [(index, index) for index in range(0, len(faces), 2)]


def blend(source, output, *flags):
    main(
        ["blend", "--source", str(source), "--output", str(output), "--size", "96", "--methods", "local_warp", *flags]
    )


def refusal(call, *arguments):
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.fixture
def flat(tmp_path):
    """Two flat folders: photographs of five people, and byte-identical copies of two of these under other names."""
    for folder, people in (("mine", range(1, 6)), ("held_out", (2, 4))):
        (tmp_path / folder).mkdir()
        for person in people:
            shutil.copy(fetch("orl") / f"s{person}" / "1.pgm", tmp_path / folder / f"{folder}{person}.pgm")
    return tmp_path


def test_flat_folders_that_share_files_cannot_become_two_splits(flat):
    blend(flat / "mine", flat / "out")
    message = refusal(blend, flat / "held_out", flat / "out", "--split", "validation")
    assert "held_out/held_out2.pgm (validation)" in message and "mine/mine2.pgm (train)" in message
    assert "are the same image" in message and "1 more pair" in message and "\n" not in message
    assert not (flat / "out" / "validation.parquet").exists()


def test_a_shared_picture_in_folders_of_people_is_named_by_its_file(flat):
    for person, number in (("anna", 1), ("ben", 2)):
        (flat / "people" / person).mkdir(parents=True)
        shutil.copy(flat / "mine" / f"mine{number}.pgm", flat / "people" / person / "portrait.pgm")
    blend(flat / "mine", flat / "out")
    message = refusal(blend, flat / "people", flat / "out", "--split", "test")
    assert "people/anna/portrait.pgm (test)" in message and "mine/mine1.pgm (train)" in message


@pytest.fixture
def leaking(tmp_path):
    """A prepared set whose validation and test splits hold one picture of train each, under other names."""
    splits = {"train": range(0, 4), "validation": range(4, 7), "test": range(7, 10)}
    for split, videos in splits.items():
        write_split(tmp_path / "data", split, make_rows(videos))
    copied = [{**row, "source_id": "x/1", "video_id": "x/1"} for row in make_rows(range(2, 3)) if row["label"] == 0]
    for split, place in (("validation", splits["validation"]), ("test", splits["test"])):
        write_split(tmp_path / "data", split, make_rows(place) + copied)
    return tmp_path


def test_training_refuses_a_validation_split_that_shares_a_picture(leaking):
    flags = training_flags(leaking / "data", leaking / "run", max_steps=1, image_size=64)
    message = refusal(train.main, flags)
    assert "original/002, frame 0 (train) and x/1, frame 0 (validation) are the same image" in message
    assert "--allow_copies" in message and not (leaking / "run").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_training_goes_on_where_it_is_allowed_or_the_splits_are_clean(leaking, streaming):
    flags = {"max_steps": 1, "image_size": 64, "eval_strategy": "no", "save_strategy": "no", "calibration": "none"}
    flags |= {"load_best_model_at_end": False, "streaming": streaming}
    train.main(training_flags(leaking / "data", leaking / "allowed", **flags, allow_copies=True))
    write_split(leaking / "data", "validation", make_rows(range(4, 7)))
    train.main(training_flags(leaking / "data", leaking / "clean", **flags))


def test_evaluation_refuses_a_test_split_that_shares_a_picture_with_training(leaking):
    from dcl_face_forgery.prepared.splits import load_splits, refuse_copies_of_training

    sets = load_splits([str(leaking / "data")], "test")
    with pytest.raises(InputError, match=r"original/002, frame 0 \(train\) and x/1, frame 0 \(test\)"):
        refuse_copies_of_training(sets)
    refuse_copies_of_training(load_splits([str(leaking / "data")], "train"))  # asked for as it is
    write_split(leaking / "data", "test", make_rows(range(7, 10)))
    refuse_copies_of_training(load_splits([str(leaking / "data")], "test"))
    assert "allow_copies" in vars(evaluate_dcl.make_parser().parse_args(["--output_dir", "x"]))


def test_check_names_shared_pictures_of_a_prepared_set(leaking, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check", "prepared", "--root", str(leaking / "data")])
    printed = capsys.readouterr().out
    assert stop.value.code == 3 and printed.splitlines()[0].split() == ["split", "real", "fake", "families"]
    assert "original/002, frame 0 (train) and x/1, frame 0 (validation) are the same image." in printed
    assert "x/1, frame 0 (validation) and x/1, frame 0 (test) are the same image." in printed


def test_a_set_without_hashes_is_searched_if_it_is_small_and_else_it_is_said(leaking, monkeypatch, caplog):
    rows = {split: make_rows(videos) for split, videos in (("train", range(4)), ("validation", range(2, 7)))}
    for split, of_split in rows.items():
        for row in of_split:
            del row["phash"]
        write_split(leaking / "data", split, of_split)
    flags = training_flags(leaking / "data", leaking / "run", max_steps=1, image_size=64)
    assert "are the same image" in refusal(train.main, flags)
    monkeypatch.setattr("dcl_face_forgery.prepared.copies.HASHED_ON_THE_FLY", 3)
    monkeypatch.setattr("dcl_face_forgery.prepared.copies.refuse_copies.__defaults__", (3,))
    train.main([*flags, "--calibration", "none"])
    assert "Did not search" in caplog.text and "dcl-prepare check prepared" in caplog.text


def test_new_shards_beside_old_ones_have_their_columns(tmp_path):
    """A set prepared before there were hashes is continued: `datasets` loads no shards of different columns."""
    from dcl_face_forgery.prepared.dataset import load_prepared

    old = make_rows(range(2))
    for row in old:
        del row["phash"]
    write_split(tmp_path, "train-00000-of-00002", old)
    write_shard(tmp_path / "train-00001-of-00002.parquet", [make_rows(range(2, 4))], {}, Report())
    assert len(load_prepared(str(tmp_path), "train")) == len(old) * 2


@pytest.mark.parametrize(
    ("video", "file", "name"),
    [
        ("people/s1", "1.png", "people/s1/1.png"),
        ("people/1.png", "1.png", "people/1.png"),
        ("s1/1", "1.png", "s1/1 (1.png)"),
    ],
)
def test_a_row_is_named_by_a_file_that_exists(video, file, name):
    table = pd.DataFrame({"video_id": [video], "frame": [0], "source_id": [video], "label": [0]})
    assert Pictures("train", table, lambda row: {"path": file}).name(0) == name
