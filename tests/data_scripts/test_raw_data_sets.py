"""Raw data sets become prepared ones, from the command to the rows: labels, splits, sources, frames and masks."""

import cv2
import numpy as np
import pytest

from dcl_face_forgery.data_scripts.assets import fetch_detector
from dcl_face_forgery.data_scripts.prepare import main
from dcl_face_forgery.faces_dcl import crop_transform, cut
from dcl_face_forgery.prepared.dataset import decode_image, decode_mask, load_prepared, metadata
from dcl_face_forgery.prepared.names import FAKE, REAL
from dcl_face_forgery.tests.shared.raw_data_sets import (
    FRAMES,
    WRITERS,
    RawSet,
    encode,
    forge_frames,
    person_frames,
    write_dfd,
    write_uadfv,
)
from dcl_face_forgery.training.pairs import NO_ROW, PairDataset
from dcl_face_forgery.video_dcl import Video

CROP = {"kind": "box", "margin": 1.3, "size": 96}
FLAGS = ["--size", "96", "--frames", "4"]


def prepare(layout, root, output, *flags):
    """Run the command; returns its exit status or sentence."""
    with pytest.raises(SystemExit) as stop:
        main([layout, "--root", str(root), "--output", str(output), *FLAGS, *flags])
    return stop.value.code


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a raw data set and the folder that the command makes of it, made when it is asked for."""
    raw: dict[str, RawSet] = {}
    outputs = {}

    def get(name, *flags):
        folder = tmp_path_factory.mktemp("sets", numbered=True)
        if name not in raw:
            raw[name] = {**WRITERS, "dfd": write_dfd}[name](folder / "raw")
        if (name, flags) not in outputs:
            outputs[name, flags] = folder / "prepared"
            assert prepare("ffpp" if name == "dfd" else name, raw[name].root, folder / "prepared", *flags) == 0
        return raw[name], outputs[name, flags]

    return get


def tables(folder):
    return {
        path.stem: metadata(load_prepared(str(folder), path.stem)).to_pandas() for path in folder.glob("*.parquet")
    }


def overlap(found, wanted):
    """Return the intersection over union of two masks."""
    return (found & wanted).sum() / (found | wanted).sum()


def overlaps(raw, folder, split, method):
    """Return how well the masks of a method's rows agree with what was really forged, mapped into the crops."""
    detector, values = fetch_detector(), []
    for row in load_prepared(str(folder), split):
        if row["method"] == method:
            origin, clip = row["source_id"].split("/")
            frame = row["frame"]
            with Video(raw.root / "original_sequences" / origin / "c23" / "videos" / f"{clip}.mp4") as video:
                image = dict(video.read([frame]))[frame]  # every clip of the family is cut where the real face is
            transform = crop_transform(detector.detect(image)[0], CROP)
            wanted = cut(raw.forged[row["video_id"]][frame], transform, 96) > 127
            values.append(overlap(decode_mask(row["mask"], "") > 127, wanted))
    return values


@pytest.mark.parametrize(
    ("name", "flags", "faces"),
    [
        ("ffpp", (), {"train": (8, 16), "validation": (8, 16), "test": (8, 16)}),
        ("dfd", ("--methods", "DeepFakeDetection"), {"test": (8, 8)}),
        ("celeb_df", (), {"train": (16, 8), "test": (8, 8)}),
        ("dfdc", (), {"train": (16, 16), "validation": (4, 4), "test": (4, 4)}),
        ("dfdcp", (), {"train": (8, 8), "test": (4, 4)}),
        ("deeperforensics", (), {"train": (28, 4), "validation": (4, 4), "test": (8, 4)}),
        ("uadfv", (), {"test": (8, 8)}),
    ],
)
def test_a_raw_data_set_becomes_rows(prepared, name, flags, faces):
    raw, folder = prepared(name, *flags)
    found = tables(folder)
    assert {
        split: ((table.label == REAL).sum(), (table.label == FAKE).sum()) for split, table in found.items()
    } == faces
    for split, table in found.items():
        fakes = table[table.label == FAKE]
        assert set(fakes.video_id) <= set(raw.forged)
        assert (table.method == table.video_id.str.partition("/")[0]).all()
        assert (table.source_id == table.video_id)[table.label == REAL].all()
        # All clips of a family give the same frames, so that training finds a fake's source frame and its namesakes.
        assert set(table.groupby("video_id").frame.apply(tuple)) == {(0, 3, 7, 11)}
        dataset = load_prepared(str(folder), split)
        pairs = PairDataset(dataset, 96)
        with_source = fakes[fakes.source_id.isin(set(table.video_id) - set(fakes.video_id))].index
        for row in with_source:
            source = table.loc[pairs.source[row]]
            assert (source.video_id, source.frame) == (table.source_id[row], table.frame[row])
        assert all(pairs.source[row] == NO_ROW for row in set(table.index) - set(with_source))
        assert all(decode_image(cell, "").shape == (96, 96, 3) for cell in dataset["image"])


def test_families_never_span_splits(prepared):
    for name in ("ffpp", "dfdc", "dfdcp", "deeperforensics"):
        sources = [set(table.source_id) for table in tables(prepared(name)[1]).values()]
        assert sum(map(len, sources)) == len(set.union(*sources))


def test_mask_videos_mark_what_was_forged(prepared):
    for name, method, flags in (
        ("ffpp", "Deepfakes", ()),
        ("dfd", "DeepFakeDetection", ("--methods", "DeepFakeDetection")),
    ):
        values = overlaps(*prepared(name, *flags), "test", method)
        assert len(values) == 8 and min(values) > 0.9


def test_differences_mark_what_was_forged_where_there_are_no_masks(prepared):
    raw, folder = prepared("ffpp", "--masks", "difference")
    for split in ("train", "validation", "test"):
        values = overlaps(raw, folder, split, "FaceShifter")
        assert len(values) == 8 and min(values) > 0.6
        assert np.mean(values) > 0.8


def test_without_masks_there_are_none(prepared):
    rows = load_prepared(str(prepared("celeb_df")[1]), "train")
    assert all((row["mask"] is None) == (row["label"] == FAKE) for row in rows)


@pytest.fixture
def damaged(tmp_path):
    """UADFV with a video for each kind of damage."""
    root = write_uadfv(tmp_path / "raw").root
    whole = (root / "real" / "0000.mp4").read_bytes()
    (root / "real" / "0002.mp4").write_bytes(whole[: len(whole) * 7 // 8])
    (root / "fake" / "0002_fake.mp4").write_bytes((root / "fake" / "0000_fake.mp4").read_bytes())
    (root / "real" / "0003.mp4").touch()
    (root / "real" / "0004.mp4").write_bytes(b"<html>404 Not Found</html>")
    encode(root / "real" / "0005.mp4", [np.full((216, 264, 3), 90, np.uint8)] * FRAMES)
    encode(root / "real" / "0006.mp4", person_frames(5)[:1])
    encode(root / "real" / "0007.mp4", person_frames(6))
    encode(root / "fake" / "0007_fake.mp4", person_frames(6)[:4])
    return root


def test_damaged_videos_are_named_and_the_rest_goes_on(damaged, tmp_path, capsys):
    assert prepare("uadfv", damaged, tmp_path / "out") == 3
    printed = capsys.readouterr().out
    for line in (
        "real/0002.mp4: frames cannot be decoded (",
        "real/0003.mp4: cannot be opened (",
        "real/0004.mp4: cannot be opened (",
        "real/0005.mp4: no face found (frames 0, 3, 7, 11)",
        "fake/0007_fake.mp4: frames are missing (2 of 4",
    ):
        assert f"{damaged}/{line}" in printed
    frames = tables(tmp_path / "out")["test"].groupby("video_id").frame.apply(tuple).to_dict()
    truncated = frames.pop("real/0002")
    assert truncated and set(truncated) < set(frames.pop("fake/0002_fake"))
    assert frames == {
        **dict.fromkeys(("real/0000", "fake/0000_fake", "real/0001", "fake/0001_fake", "real/0007"), (0, 3, 7, 11)),
        "real/0006": (0,),
        "fake/0007_fake": (0, 3),
    }


def beside(image, other):
    """Put an image, made smaller, beside another one."""
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.hstack([other, cv2.copyMakeBorder(small, 54, 54, 0, 0, cv2.BORDER_REPLICATE)])


def test_a_real_with_several_faces_shows_the_person_who_is_forged_elsewhere(tmp_path):
    """Training blends a fake with its source frame: these must show the same face."""
    real, others = person_frames(24), person_frames(3)
    forged, masks = forge_frames(real, 1, "lowres_swap", person_frames(23))
    for path, frames, besides in (
        ("real/001.mp4", real, others),
        ("fake/swap/001.mp4", forged, others),
        ("fake/unmarked/001.mp4", forged, others),
        ("masks/swap/001.mp4", masks, [np.zeros_like(mask) for mask in masks]),
    ):
        encode(tmp_path / "raw" / path, [beside(*pair) for pair in zip(frames, besides, strict=True)])
    assert prepare("folder", tmp_path / "raw", tmp_path / "out") == 0
    dataset = load_prepared(str(tmp_path / "out"), "train")
    crops = {row["video_id"]: decode_image(row["image"], "").astype(int) for row in dataset if row["frame"] == 0}
    for name in ("swap/001", "unmarked/001"):
        assert np.abs(crops[name] - crops["real/001"]).mean() < 25
    detector = fetch_detector()
    alone = cut(real[0], crop_transform(detector.detect(real[0])[0], CROP), 96).astype(int)
    assert np.abs(crops["real/001"] - alone).mean() < 25


def test_of_several_faces_the_one_that_was_forged_is_cut(tmp_path):
    """Many frames of DeepFakeDetection show several people."""
    root = write_dfd(tmp_path / "raw").root
    place = root / "manipulated_sequences" / "DeepFakeDetection"
    name = "24_23__outside_talking_still_laughing__YR5OVD4S.mp4"
    forged, masks = forge_frames(person_frames(24), 1, "lowres_swap", person_frames(23))
    encode(place / "c23" / "videos" / name, [beside(*pair) for pair in zip(forged, person_frames(3), strict=True)])
    encode(place / "masks" / "videos" / name, [beside(mask, np.zeros_like(mask)) for mask in masks])
    for masks_option, marked in (("video", True), ("none", False)):
        output = tmp_path / masks_option
        assert prepare("ffpp", root, output, "--methods", "DeepFakeDetection", "--masks", masks_option) == 0
        crops = {
            row["video_id"]: decode_image(row["image"], "").astype(int)
            for row in load_prepared(str(output), "test")
            if row["frame"] == 0
        }
        original = crops["actors/24__outside_talking_still_laughing"]
        cut_out = crops[f"DeepFakeDetection/{name.removesuffix('.mp4')}"]
        assert (np.abs(cut_out - original).mean() < 25) == marked  # of 255: the same person but for the forgery
