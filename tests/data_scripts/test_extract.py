"""A folder of videos and images becomes a prepared data set: rows, families, masks, and what is wrong named."""

import shutil
from contextlib import nullcontext

import av
import numpy as np
import pytest
from PIL import Image

from dcl_face_forgery.data_scripts.assets import fetch, fetch_detector
from dcl_face_forgery.data_scripts.clips import Clip
from dcl_face_forgery.data_scripts.extract import Extraction, choose_face, family_rows
from dcl_face_forgery.data_scripts.frames import SingleReader, VideoFrames
from dcl_face_forgery.data_scripts.layouts.folder import find
from dcl_face_forgery.data_scripts.prepare import main
from dcl_face_forgery.data_scripts.shards import Report
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.faces_dcl import Face, crop_transform, cut
from dcl_face_forgery.prepared.dataset import decode_image, decode_mask, find_crop, load_prepared, metadata
from dcl_face_forgery.tests.shared.raw_data_sets import TALKING, encode, forge_frames, person_frames
from dcl_face_forgery.video_dcl import Video

CROP = {"kind": "box", "margin": 1.3, "size": 96}


@pytest.fixture(scope="module")
def talking():
    """Twelve frames of a talking face, forgeries of them, and what was forged in each."""
    frames = person_frames(TALKING)
    return frames, *forge_frames(frames, 3)


@pytest.fixture
def root(tmp_path, talking):
    """A clip and its forgery, with mixed-case folders, a mask video, and a real without a fake."""
    frames, forged, masks = talking
    folder = tmp_path / "mine"
    encode(folder / "Real" / "001.mp4", frames)
    encode(folder / "FAKE" / "Blend" / "001.MP4", forged)
    encode(folder / "masks" / "Blend" / "001.mp4", masks)
    shutil.copytree(fetch("orl") / "s1", folder / "Real" / "002")
    return folder


def prepare(root, output, *flags):
    """Run the command; returns its exit status."""
    try:
        main(["folder", "--root", str(root), "--output", str(output), "--size", "96", *flags])
    except SystemExit as stop:
        return stop.code
    return 0


def test_videos_and_images_become_rows_in_families(root, tmp_path):
    assert prepare(root, tmp_path / "out", "--frames", "4") == 0
    dataset = load_prepared(str(tmp_path / "out"), "train")
    table = metadata(dataset).to_pandas()
    assert list(table.groupby("video_id", sort=False).frame.apply(list).items()) == [
        ("real/001", [0, 3, 7, 11]),
        ("Blend/001", [0, 3, 7, 11]),
        ("real/002", [1, 4, 7, 10]),
    ]
    assert table.groupby("video_id").source_id.first().to_dict() == {
        "real/001": "real/001",
        "Blend/001": "real/001",
        "real/002": "real/002",
    }
    assert table.groupby("video_id").label.first().to_dict() == {"real/001": 0, "Blend/001": 1, "real/002": 0}
    assert set(table.dataset) == {"mine"}
    assert find_crop(dataset, "out") == {**CROP, "detector": "yunet_2023mar_multiscale"}
    assert all(decode_image(cell, "").shape == (96, 96, 3) for cell in dataset["image"])


def test_the_mask_marks_what_was_forged_in_the_crop(root, tmp_path, talking):
    prepare(root, tmp_path / "out")
    dataset = load_prepared(str(tmp_path / "out"), "train")
    fakes = [row for row in dataset if row["label"] == 1]
    assert len(fakes) == 12
    detector = fetch_detector()
    with Video(root / "Real" / "001.mp4") as video:  # every clip of the family is cut where the real face is
        images = dict(video.read(video.numbers))
    for row in fakes:
        transform = crop_transform(detector.detect(images[row["frame"]])[0], CROP)
        found, wanted = decode_mask(row["mask"], "") > 127, cut(talking[2][row["frame"]], transform, 96) > 127
        assert wanted.any()
        assert (found & wanted).sum() / (found | wanted).sum() > 0.9
    assert not any(decode_mask(row["mask"], "").any() for row in dataset if row["label"] == 0)


def test_a_fake_without_a_mask_has_none(root, tmp_path):
    shutil.rmtree(root / "masks")
    assert prepare(root, tmp_path / "out") == 0
    dataset = load_prepared(str(tmp_path / "out"), "train")
    assert [row["mask"] is None for row in dataset if row["label"] == 1] == [True] * 12


def test_folders_of_splits_become_splits(root, talking, tmp_path):
    shutil.copytree(root, tmp_path / "all" / "train")
    frames, forged, _ = talking
    for name, images in (("real/003.mp4", frames), ("fake/Blend/003.mp4", forged)):
        encode(tmp_path / "all" / "val" / name, [image[:, ::-1] for image in images])  # the same would be refused
    shutil.copytree(fetch("orl") / "s2", tmp_path / "all" / "val" / "real" / "004")
    assert prepare(tmp_path / "all", tmp_path / "out", "--frames", "2") == 0
    assert len(load_prepared(str(tmp_path / "out"), "train")) == len(
        load_prepared(str(tmp_path / "out"), "validation")
    )


def test_what_is_there_is_kept_and_other_settings_are_refused(root, tmp_path):
    prepare(root, tmp_path / "out", "--frames", "2")
    before = (tmp_path / "out" / "train.parquet").stat().st_mtime_ns
    assert prepare(root, tmp_path / "out", "--frames", "2") == 0
    assert (tmp_path / "out" / "train.parquet").stat().st_mtime_ns == before
    assert "prepared with other settings" in prepare(root, tmp_path / "out", "--frames", "3")


def test_bad_clips_are_named_and_the_rest_goes_on(root, tmp_path, talking, capsys):
    _, forged, masks = talking
    (root / "Real" / "empty.mp4").touch()
    encode(root / "Real" / "003.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 3)
    encode(root / "FAKE" / "Blend" / "002.mp4", forged[:3])
    encode(root / "masks" / "Blend" / "001.mp4", masks[:6])
    assert prepare(root, tmp_path / "out", "--frames", "12") == 3
    printed = capsys.readouterr().out
    assert f"{root / 'Real/empty.mp4'}: cannot be opened (" in printed
    assert f"{root / 'Real/003.mp4'}: no face found (frames 0, 1, 2)" in printed
    assert f"{root / 'FAKE/Blend/002.mp4'}: frames are missing (2 of 10)" in printed
    assert f"{root / 'masks/Blend/001.mp4'}: mask missing for some frames (6 of 12 found)" in printed
    assert "no face found: 1 file, 3 frames" in printed
    dataset = load_prepared(str(tmp_path / "out"), "train")
    table = metadata(dataset).to_pandas()
    assert (table.video_id == "Blend/001").sum() == 12
    assert sum(row["mask"] is not None for row in dataset if row["video_id"] == "Blend/001") == 6


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: shutil.rmtree(root), "not found. Pass one that contains real/ and fake/"),
        (lambda root: shutil.rmtree(root / "FAKE"), "has no folder fake/"),
        (lambda root: (root / "Real" / "001.avi").touch(), "two videos named '001'"),
        (lambda root: (shutil.rmtree(root / "Real"), (root / "Real").mkdir()), "contains no videos or images"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(root, tmp_path, damage, sentence):
    damage(root)
    assert sentence in prepare(root, tmp_path / "out")


def test_a_set_without_a_face_is_refused_and_leaves_nothing(tmp_path):
    grey = [np.full((96, 128, 3), 90, np.uint8)] * 3
    for side in ("real", "fake"):
        encode(tmp_path / "mine" / side / "001.mp4", grey)
    assert "No face was found in" in prepare(tmp_path / "mine", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_clips_of_one_name_are_refused(root):
    (root / "FAKE" / "fake").mkdir()
    for place in ("x.mp4", "fake/x.mp4"):
        (root / "FAKE" / place).touch()
    with pytest.raises(ValueError, match=r"Two clips of .* would be named 'fake/x'"):
        find(root)


def face(left, top, side):
    return Face(np.array([left, top, left + side, top + side], np.float32), 0.9, np.zeros((5, 2), np.float32))


def test_the_face_is_that_of_the_mask_then_that_of_the_frame_before_then_the_largest():
    large, small = face(0, 0, 50), face(60, 0, 30)
    mask = np.zeros((100, 100), np.uint8)
    assert choose_face([large, small], mask) is large
    mask[5:25, 65:85] = 255
    assert choose_face([large, small], mask, last=large) is small
    assert choose_face([large, small], None, last=face(62, 2, 30)) is small
    assert choose_face([large, small], None, last=face(200, 200, 30)) is large


class _SizedFrames:
    """Frames of given sizes, in memory."""

    where, lossy = "a clip", False

    def __init__(self, sizes):
        self._images = {number: np.zeros((height, width, 3), np.uint8) for number, (width, height) in enumerate(sizes)}

    def open(self):
        return nullcontext(SingleReader(dict.fromkeys(self._images, self.where), self._images.__getitem__))


class _TwoPeople:
    """Finds a man at the left and a woman at the right of every image, the larger one first, as detectors do."""

    name = "two"

    def detect(self, image, small_faces=True):
        unit = image.shape[1] / 320
        grown = 1.2 if unit < 1 else 0.8  # she comes nearer
        man = face(40 * unit, 40 * unit, 80 * unit)
        woman = face(200 * unit, 40 * unit, 80 * unit * grown)
        return sorted([man, woman], key=lambda one: -one.box[2] + one.box[0])


@pytest.mark.parametrize("sizes", [[(320, 240), (160, 120), (160, 120), (320, 240)], [(320, 240)] * 4])
def test_the_same_person_is_followed_when_the_frame_size_changes(sizes):
    clip = Clip("real/1", "real/1", "real", 0, _SizedFrames(sizes))
    rows = family_rows([clip], Extraction("mine", crop=CROP), _TwoPeople(), Report())
    eyes = [row["landmarks"][0][0] for row in rows]  # in the crop, whose place is that of the face
    assert eyes == pytest.approx(eyes[:1] * 4)


def test_images_in_the_folder_of_a_method_are_a_clip_each(tmp_path):
    for place in ("real/7.png", "fake/gan/7.png", "fake/gan/b.png", "fake/c.png", "masks/gan/7.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(fetch("astronaut"), tmp_path / place)
    (clips,) = ([clip for family in families for clip in family.clips] for families in find(tmp_path).splits.values())
    assert {clip.name: (clip.method, clip.source) for clip in clips} == {
        "real/7": ("real", "real/7"),
        "gan/7": ("gan", "real/7"),
        "gan/b": ("gan", "gan/b"),
        "fake/c": ("fake", "fake/c"),
    }
    assert [clip.name for clip in clips if clip.mask is not None] == ["gan/7"]
    assert {tuple(frames.paths) for clip in clips for frames in (clip.frames, clip.mask) if frames} == {(0,)}


def test_linked_folders_are_followed_and_hidden_ones_are_not(root, tmp_path):
    (root / "FAKE" / "Blend").rename(tmp_path / "elsewhere")
    (root / "FAKE" / "Blend").symlink_to(tmp_path / "elsewhere")
    (root / "Real" / "again").symlink_to(root / "Real")  # leads back
    shutil.copytree(root / "Real" / "002", root / "Real" / ".ipynb_checkpoints")
    names = {clip.name for family in find(root).splits["train"] for clip in family.clips}
    assert names == {"real/001", "real/002", "Blend/001"}


def test_two_images_of_one_name_are_refused(root):
    for suffix in ("png", "jpg"):
        shutil.copy(fetch("astronaut"), root / "Real" / f"x.{suffix}")
    with pytest.raises(ValueError, match="have the same name"):
        find(root)


def test_frames_after_a_damaged_stretch_are_read(tmp_path):
    with Video(fetch("talking_face")) as video:
        images = [image for _, image in video.read(range(48))]
    path = tmp_path / "damaged.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12", "bf": "0", "crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    with path.open("r+b") as file:
        for start, size in places[12:16]:
            file.seek(start)
            file.write(bytes([255]) * size)
    with VideoFrames(path).open() as reader:
        assert len(reader.numbers) == 48
        read = dict(reader.read([0, 14, 30, 47]))
    assert isinstance(read[14], InputError)
    for number in (0, 30, 47):
        distances = [np.abs(read[number].astype(int) - image).mean() for image in images]
        assert np.argmin(distances) == number


def test_a_mask_of_zeros_and_ones_is_named_at_once(root, tmp_path, capsys, talking):
    (root / "masks" / "Blend" / "001.mp4").unlink()
    for number, mask in enumerate(talking[2]):
        path = root / "masks" / "Blend" / "001" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask // 255).save(path)
    assert prepare(root, tmp_path / "out", "--frames", "2") == 3
    assert "mask values are 0 and 1, expected 0 and 255 (frames 0, 11)" in capsys.readouterr().out


def test_a_forgery_is_cut_where_its_source_frame_is(root, tmp_path, talking):
    """Training blends the two: what was not forged must lie at the same place in both."""
    assert prepare(root, tmp_path / "out", "--frames", "4") == 0
    rows = {(row["video_id"], row["frame"]): row for row in load_prepared(str(tmp_path / "out"), "train")}
    for (name, frame), row in rows.items():
        if name == "Blend/001":
            real, fake = (decode_image(row["image"], "").astype(int) for row in (rows["real/001", frame], row))
            untouched = decode_mask(row["mask"], "") == 0
            assert np.abs(real - fake)[untouched].mean() < 4  # what coding changes; one pixel aside makes it more
            moved = np.abs(real[:, 1:] - fake[:, :-1])[untouched[:, 1:] & untouched[:, :-1]].mean()
            assert moved > 1.3 * np.abs(real - fake)[untouched].mean()
