"""`dcl-prepare`: photographs or prepared reals become a set of reals and forgeries, and bad input is named."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.data_scripts.prepare import main
from dcl_face_forgery.data_scripts.shards import Report, write_shard
from dcl_face_forgery.prepared.blending import METHODS
from dcl_face_forgery.prepared.dataset import (
    FEATURES,
    decode_image,
    decode_mask,
    encode_image,
    find_crop,
    load_prepared,
    metadata,
)


@pytest.fixture
def photographs(tmp_path):
    """Two people with two photographs each, one loose photograph, one without a face and one that is corrupt."""
    folder = tmp_path / "photos"
    for person in ("s1", "s2"):
        (folder / person).mkdir(parents=True)
        for photo in (1, 2):
            shutil.copy(fetch("orl") / person / f"{photo}.pgm", folder / person)
    shutil.copy(fetch("astronaut"), folder / "alone.png")
    Image.fromarray(np.full((100, 100, 3), 128, np.uint8)).save(folder / "s1" / "3.png")
    (folder / "s2" / "7.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


@pytest.fixture
def odd_photographs(tmp_path):
    """A person in formats and under names that cameras and browsers give, and other files."""
    pillow_heif.register_heif_opener()
    folder = tmp_path / "odd" / "s1"
    folder.mkdir(parents=True)
    face = Image.open(fetch("orl") / "s1" / "1.pgm")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = face.transpose(Image.Transpose.ROTATE_90)
    lying.save(folder / "1.jfif", "JPEG", quality=98, exif=exif)
    lying.convert("RGB").save(folder / "2.heic", "HEIF", quality=95, exif=exif.tobytes())
    Image.fromarray(np.asarray(face).astype(np.uint16) * 257).save(folder / "3.png")
    face.save(folder / "4.gif")
    for name in ("notes.txt", "film.mp4", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    return folder.parent


def test_photographs_of_every_kind_are_taken_and_the_rest_is_counted(odd_photographs, tmp_path, capsys):
    flags = ["--methods", "self_blend", "--size", "96"]
    main(["blend", "--source", str(odd_photographs), "--output", str(tmp_path / "out"), *flags])
    printed = capsys.readouterr().out
    assert "Skipped 2 files that are not images: 1 .mp4, 1 .txt." in printed or "1 .txt, 1 .mp4." in printed
    dataset = load_prepared(str(tmp_path / "out"), "train")
    reals = [decode_image(row["image"], "").astype(int) for row in dataset if row["label"] == 0]
    assert len(reals) == 4
    for image in reals:
        assert np.abs(image - reals[2]).mean() < 6, "one of them lies, or is white"


def test_a_folder_of_ones_own_says_what_was_passed_over(tmp_path, capsys):
    for side in ("real", "fake"):
        folder = tmp_path / "raw" / side / "001"
        folder.mkdir(parents=True)
        shutil.copy(fetch("orl") / "s1" / "1.pgm", folder / "0.pgm")
        (folder / "notes.txt").write_text("x")
        (folder / "Thumbs.db").write_text("x")
    with pytest.raises(SystemExit):
        main(["check", "folder", "--root", str(tmp_path / "raw")])
    sentence = "Skipped 2 files that are neither images nor videos: 2 .txt."
    assert sentence in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["folder", "--root", str(tmp_path / "raw"), "--output", str(tmp_path / "out"), "--size", "96"])
    assert sentence in capsys.readouterr().out


def table(folder, split="train"):
    return metadata(load_prepared(str(folder), split)).to_pandas()


def failure(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return str(caught.value)


def test_photographs_become_reals_and_forgeries(photographs, tmp_path, capsys):
    main(
        ["blend", "--source", str(photographs), "--output", str(tmp_path / "out"), "--size", "160", "--variants", "2"]
    )
    rows = table(tmp_path / "out")
    reals = rows[rows["label"] == 0]
    assert sorted(zip(reals["video_id"], reals["frame"], strict=True)) == [
        ("photos/alone.png", 0),
        *((f"photos/{person}", frame) for person in ("s1", "s2") for frame in (1, 2)),
    ]
    assert (rows.groupby("method").size().reindex(list(METHODS)) == [10, 10, 10, 10, 8]).all()
    assert rows["source_id"].isin(reals["video_id"]).all()
    printed = capsys.readouterr().out
    assert f"{photographs / 's1/3.png'}: no face found" in printed
    assert f"{photographs / 's2/7.jpg'}: cannot be decoded" in printed
    assert "no face found: 1 file" in printed
    assert "Not made: 2 of mouth_swap: no photograph of the same person" in printed
    dataset = load_prepared(str(tmp_path / "out"), "train")
    assert find_crop(dataset, "it") == {
        "kind": "box",
        "margin": 1.3,
        "size": 160,
        "detector": "yunet_2023mar_multiscale",
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.parquet"]


def test_a_swap_shows_no_one_of_the_same_family(photographs, tmp_path):
    """With one person there is nobody to swap with."""
    main(["blend", "--source", str(photographs / "s1"), "--output", str(tmp_path / "out"), "--size", "96"])
    # Loose files are one person each, so that two of them can be swapped, but not one mouth.
    assert set(table(tmp_path / "out")["method"]) == {"s1", "self_blend", "local_warp", "identity_swap", "lowres_swap"}
    shutil.rmtree(photographs / "s2")
    (photographs / "alone.png").unlink()
    main(["blend", "--source", str(photographs), "--output", str(tmp_path / "one"), "--size", "96"])
    assert set(table(tmp_path / "one")["method"]) == {"photos", "self_blend", "local_warp", "mouth_swap"}


def test_a_prepared_set_keeps_its_reals_splits_and_crop(photographs, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    base = ["--methods", "self_blend", "--size", "96", "--split", "validation"]
    main(["blend", "--source", str(photographs), "--output", str(first), *base])
    main(["blend", "--source", str(first), "--output", str(second), "--methods", "local_warp", "mouth_swap"])
    before, after = (load_prepared(str(folder), "validation") for folder in (first, second))
    reals = [
        {row["video_id"] + str(row["frame"]): row for row in some if row["label"] == 0} for some in (before, after)
    ]
    assert reals[0].keys() == reals[1].keys() and len(reals[0]) == 5
    for key, row in reals[0].items():
        assert row == reals[1][key]
    assert set(after["method"]) == {"photos", "local_warp", "mouth_swap"}
    assert find_crop(after, "it")["size"] == 96
    assert "Remove --size" in failure("blend", "--source", first, "--output", tmp_path / "third", "--size", "96")


def test_prepared_reals_without_landmarks_get_them_and_unusable_rows_are_named(tmp_path, capsys):
    face = np.asarray(Image.open(fetch("astronaut")).convert("RGB"))[0:256, 96:352]
    row = dict.fromkeys(FEATURES) | {
        "label": 0,
        "method": "mine",
        "source_id": "mine/1",
        "frame": 0,
        "dataset": "mine",
    }
    row["crop"] = {"kind": "given", "margin": None, "size": 256, "detector": None}
    images = [encode_image(face), encode_image(np.zeros((256, 256, 3), np.uint8)), {"bytes": b"no", "path": None}]
    rows = [{**row, "image": image, "video_id": "mine/1", "frame": frame} for frame, image in enumerate(images)]
    (tmp_path / "reals").mkdir()
    write_shard(tmp_path / "reals" / "test.parquet", [rows], {}, Report())
    main(["blend", "--source", str(tmp_path / "reals"), "--output", str(tmp_path / "out"), "--methods", "local_warp"])
    dataset = load_prepared(str(tmp_path / "out"), "test")
    assert dataset["video_id"] == ["mine/1", "local_warp/1"]
    real, fake = (decode_image(row["image"], "") for row in dataset)
    mask = decode_mask(dataset[1]["mask"], "")
    assert np.array_equal(real, face) and np.array_equal(real[mask == 0], fake[mask == 0]) and mask.any()
    assert np.shape(dataset[0]["landmarks"]) == (5, 2)
    printed = capsys.readouterr().out
    assert "row 1 (mine/1, frame 1): no face found" in printed
    assert "row 2 (mine/1, frame 2): cannot be decoded" in printed


def test_clips_of_one_name_keep_their_forgeries_apart(photographs, tmp_path):
    first = tmp_path / "first"
    main(["blend", "--source", str(photographs), "--output", str(first), "--methods", "self_blend", "--size", "96"])
    rows = [row for row in load_prepared(str(first), "train") if row["label"] == 0]
    rows = [{**row, **dict.fromkeys(("video_id", "source_id"), f"{where}/s1")} for where in "ab" for row in rows]
    (tmp_path / "merged").mkdir()
    write_shard(tmp_path / "merged" / "test.parquet", [rows[:5], rows[5:]], {}, Report())
    main(["blend", "--source", str(tmp_path / "merged"), "--output", str(tmp_path / "out"), "--methods", "local_warp"])
    assert set(table(tmp_path / "out", "test")["video_id"]) == {"a/s1", "b/s1", "local_warp/a/s1", "local_warp/b/s1"}


def test_a_second_run_keeps_what_is_there(photographs, tmp_path, caplog):
    command = ["blend", "--source", str(photographs), "--output", str(tmp_path / "out"), "--size", "96"]
    main(command)
    written = (tmp_path / "out" / "train.parquet").stat().st_mtime_ns
    main(command)
    assert (tmp_path / "out" / "train.parquet").stat().st_mtime_ns == written
    assert "--overwrite" in failure(*command, "--seed", "1")
    (tmp_path / "out" / "test.parquet").write_bytes(b"of the old set")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "1.png").write_bytes(b"")
    assert "no usable real" in failure("blend", "--source", tmp_path / "empty", *command[3:], "--overwrite")
    assert (tmp_path / "out" / "train.parquet").stat().st_mtime_ns == written  # nothing new came, nothing old goes
    main([*command, "--seed", "1", "--overwrite"])
    assert "test.parquet was prepared with other settings and is removed" in caplog.text
    assert not (tmp_path / "out" / "test.parquet").exists()
    assert (tmp_path / "out" / "train.parquet").stat().st_mtime_ns != written


def test_train_and_validation_are_filled_from_two_sources(photographs, tmp_path):
    flags = ["--output", str(tmp_path / "out"), "--size", "96", "--methods", "self_blend"]
    main(["blend", "--source", str(photographs / "s1"), *flags])
    validation = ["blend", "--source", str(photographs / "s2"), *flags, "--split", "validation"]
    main(validation)
    assert set(table(tmp_path / "out")["source_id"]) == {"s1/1.pgm", "s1/2.pgm"}
    assert set(table(tmp_path / "out", "validation")["source_id"]) == {"s2/1.pgm", "s2/2.pgm"}
    other_size = failure(*validation[:-3], "self_blend", "--size", "128")
    assert "train.parquet was prepared with other settings (crop was {" in other_size
    twice = failure("blend", "--source", photographs / "s1", *flags, "--split", "test")
    assert "The split 'test' shares 2 people or videos" in twice and "train.parquet" in twice
    assert not (tmp_path / "out" / "test.parquet").exists()


def test_a_person_in_two_folders_of_photographs_does_not_get_into_two_splits(photographs, tmp_path):
    flags = ["--output", str(tmp_path / "out"), "--size", "96", "--methods", "self_blend"]
    main(["blend", "--source", str(photographs), *flags])
    shutil.copytree(photographs / "s2", tmp_path / "few" / "s2")
    twice = failure("blend", "--source", tmp_path / "few", *flags, "--split", "validation")
    assert "The split 'validation' shares 1 person or video" in twice and "different people" in twice


def test_a_method_named_twice_is_made_once(photographs, tmp_path):
    flags = ["--output", str(tmp_path / "out"), "--size", "96", "--methods", "local_warp", "local_warp"]
    main(["blend", "--source", str(photographs), *flags])
    assert not table(tmp_path / "out").duplicated(["video_id", "frame"]).any()


def test_a_photograph_lying_on_its_side_is_turned_upright(tmp_path):
    (tmp_path / "photos").mkdir()
    image = (
        Image.open(fetch("astronaut")).convert("RGB").rotate(90, expand=True)
    )  # as a camera held sideways stores it
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "photos" / "1.jpg", exif=exif)
    main(["blend", "--source", str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--methods", "self_blend"])
    left, right, _, mouth, _ = load_prepared(str(tmp_path / "out"), "train")[0]["landmarks"]
    assert mouth[1] > left[1] + 50 and right[0] > left[0] + 50


def test_bad_input_gets_one_sentence(photographs, tmp_path, capsys):
    out, empty = tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    assert "nowhere not found" in failure("blend", "--source", tmp_path / "nowhere", "--output", out)
    assert "contains no photographs" in failure("blend", "--source", empty, "--output", out)
    (empty / "1.png").write_bytes(b"")
    message = failure("blend", "--source", empty, "--output", out)
    assert "no usable real face" in message and "1.png: cannot be decoded" in message
    assert not list(out.glob("*")) and "\n" not in message
    for name in ("a/b", "my-split", ""):
        assert "Invalid split name" in failure("blend", "--source", photographs, "--output", out, "--split", name)
    assert "--variants is 0" in failure("blend", "--source", photographs, "--output", out, "--variants", "0")
    assert "--margin is nan" in failure("blend", "--source", photographs, "--output", out, "--margin", "nan")
    assert "Pass another --name" in failure("blend", "--source", photographs, "--output", out, "--name", "self_blend")
    assert "Choose another --output" in failure("blend", "--source", photographs, "--output", empty / "1.png")
    assert "both source and output" in failure("blend", "--source", out, "--output", out, "--overwrite")
    assert "Choose from orl" in failure("assets", "nothing")
    with pytest.raises(SystemExit):
        main(["blend", "--source", "", "--output", str(out)])  # an unset variable of the shell
    assert "the path is empty" in capsys.readouterr().err


def test_assets_prints_paths(capsys):
    main(["assets", "yunet", "orl"])
    assert [Path(line).exists() for line in capsys.readouterr().out.splitlines()] == [True, True]


def test_it_runs_as_a_file_and_as_a_module():
    script = Path(sys.modules["dcl_face_forgery.data_scripts.prepare"].__file__)
    for command in ([str(script)], ["-m", "dcl_face_forgery.data_scripts.prepare"]):
        done = subprocess.run([sys.executable, *command, "assets", "nothing"], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.strip().startswith("error: Unknown asset 'nothing'")
