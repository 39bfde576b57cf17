"""DeepfakeBench: what its JSONs name is found whoever wrote them, in folders or LMDB, and read as it is."""

import json
import os
import pickle
import shutil
from pathlib import PurePosixPath

import lmdb
import numpy as np
import pytest
from PIL import Image

from dcl_face_forgery.data_scripts.layouts import deepfakebench
from dcl_face_forgery.data_scripts.layouts.deepfakebench import METHODS, find
from dcl_face_forgery.data_scripts.prepare import main
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.prepared.dataset import decode_image, decode_mask, find_crop, load_prepared, metadata
from dcl_face_forgery.tests.shared.raw_crops import (
    FRAMES,
    PARTS,
    SIZE,
    STYLES,
    face,
    png,
    swap,
    write_celeb_df,
    write_clip,
    write_faceforensics,
    write_json,
    write_lmdb,
)

DEEPFAKES = "FaceForensics++/manipulated_sequences/Deepfakes/c23"


@pytest.fixture
def home(tmp_path):
    """A checkout of DeepfakeBench whose path has a folder `frames` in it, with part of FaceForensics++."""
    write_faceforensics(tmp_path / "frames")
    return tmp_path / "frames"


def rgb(home):
    return home / "datasets" / "rgb"


def json_of(home, name="FaceForensics++"):
    return home / "preprocessing" / "dataset_json" / f"{name}.json"


def edit(home, change):
    """Change what the JSON holds below the name of its data set."""
    path = json_of(home)
    content = json.loads(path.read_text())
    change(content["FaceForensics++"])
    path.write_text(json.dumps(content))


def clips_of(found):
    return {clip.name: clip for families in found.splits.values() for family in families for clip in family.load(None)}


def read(frames):
    with frames.open() as reader:
        return dict(reader.read(reader.numbers))


def test_clips_are_found_with_method_source_and_family(home):
    found = find(rgb(home))
    assert (found.name, found.cropped, len(found.failures)) == ("FaceForensics++_c23", True, 0)
    families = {
        split: [[clip.name for clip in family.load(None)] for family in families]
        for split, families in found.splits.items()
    }
    assert families == {
        "train": [
            ["youtube/071", "Deepfakes/071_054", "NeuralTextures/071_054", "FaceShifter/071_054"],
            ["youtube/054"],
        ],
        "validation": [["youtube/720", "Deepfakes/720_672"]],
        "test": [["youtube/953"], ["Deepfakes/974_953"]],
    }
    clips = clips_of(found)
    assert clips["Deepfakes/974_953"].source == "youtube/974"  # which is not there
    assert {clip.label for clip in clips.values() if clip.method == "youtube"} == {0}
    assert {clip.label for clip in clips.values() if clip.method != "youtube"} == {1}
    assert {clip.compression for clip in clips.values()} == {"c23"}
    parts = {part.name: (part.found, part.published) for part in found.parts}
    assert parts["train, FF-real"] == (2, 720) and parts["validation, FF-DF"] == (1, 140)


def test_frames_masks_and_landmarks_are_read_as_they_lie(home):
    clips = clips_of(find(rgb(home)))
    clip = clips["Deepfakes/071_054"]
    frames, masks, points = read(clip.frames), read(clip.mask), read(clip.landmarks)
    assert list(frames) == list(masks) == list(points) == list(FRAMES)
    for place, number in enumerate(FRAMES):
        image, five = face(1, place + 1)
        forgery, mask = swap(image, face(2, place + 1)[0])
        assert np.array_equal(frames[number], forgery) and np.array_equal(masks[number], mask)
        assert points[number].dtype == np.float32 and np.array_equal(points[number], np.round(five))
    assert clips["youtube/071"].mask is None and clips["FaceShifter/071_054"].mask is None


def test_only_the_folder_called_frames_is_replaced():
    path = PurePosixPath("frames_of_mine/frames/c23/frames/frames_071/000.png")
    other = "frames_of_mine/frames/c23/{}/frames_071/000.{}"
    assert deepfakebench._replace_folder(path, "masks") == PurePosixPath(other.format("masks", "png"))
    assert deepfakebench._replace_folder(path, "landmarks") == PurePosixPath(other.format("landmarks", "npy"))
    assert deepfakebench._replace_folder(PurePosixPath("mine/frames_071/000.png"), "masks") is None


@pytest.mark.parametrize("style", STYLES)
def test_paths_of_all_systems_lead_to_the_files(tmp_path, style):
    root = write_faceforensics(tmp_path / "frames", style)
    found = find(root)
    assert not found.failures and len(clips_of(found)) == 9
    assert all(clip.frames.paths[0].is_file() for clip in clips_of(found).values())
    assert clips_of(found)["Deepfakes/071_054"].mask.paths[0] == root / DEEPFAKES / "masks" / "071_054" / "000.png"
    celeb = find(write_celeb_df(tmp_path / "celeb", style))
    assert not celeb.failures and set(clips_of(celeb)) == {
        "YouTube-real/00000",
        "Celeb-real/id1_0007",
        "Celeb-synthesis/id1_id0_0007",
    }


def test_the_folder_of_the_data_set_may_be_the_root(home):
    found = find(rgb(home) / "FaceForensics++", json=json_of(home))
    assert len(clips_of(found)) == 9


def test_a_data_set_that_the_benchmark_does_not_know_is_found(tmp_path):
    frames = write_clip(tmp_path / "datasets" / "rgb", "mine/frames/a", 1)
    clips = [("Mine_Real", "test", "a", frames), ("Mine_Swap", "test", "a", frames)]
    for style in STYLES.keys() - {"nested"}:  # below a data set that it does know
        write_json(tmp_path / "mine.json", "mine", clips, tmp_path / "datasets" / "rgb", style)
        found = find(tmp_path / "datasets" / "rgb", json=tmp_path / "mine.json")
        assert [(clip.name, clip.label) for clip in clips_of(found).values()] == [
            ("Mine_Real/a", 0),
            ("Mine_Swap/a", 1),
        ]


def test_a_json_named_like_a_folder_further_down_is_found(tmp_path):
    """DeepFakeDetection.json names files of FaceForensics++/manipulated_sequences/DeepFakeDetection."""
    root = tmp_path / "datasets" / "rgb"
    real, forged = "24__outside_talking_still_laughing", "24_23__outside_talking_still_laughing__YR5OVD4S"
    originals = write_clip(root, f"FaceForensics++/original_sequences/actors/c23/frames/{real}", 1)
    forgeries = write_clip(root, f"FaceForensics++/manipulated_sequences/DeepFakeDetection/c23/frames/{forged}", 1, 2)
    clips = [
        (label, split, name, frames)
        for split in ("train", "val", "test")
        for label, name, frames in (("DFD_real", real, originals), ("DFD_fake", forged, forgeries))
    ]
    write_json(tmp_path / "DeepFakeDetection.json", "DeepFakeDetection", clips, root, "mixed", "c23")
    found = find(root, json=tmp_path / "DeepFakeDetection.json")
    assert {
        split: [[clip.name for clip in family.clips] for family in families]
        for split, families in found.splits.items()
    } == {"test": [[f"actors/{real}", f"DeepFakeDetection/{forged}"]]}


def test_a_clip_of_several_splits_is_taken_for_the_last_and_this_is_said(tmp_path, caplog):
    found = find(write_celeb_df(tmp_path))
    assert {
        split: sorted(clip.name for family in families for clip in family.clips)
        for split, families in found.splits.items()
    } == {
        "train": ["YouTube-real/00000"],
        "test": ["Celeb-real/id1_0007", "Celeb-synthesis/id1_id0_0007"],
    }
    assert "1 of 3 clips are in several splits (Celeb-real/id1_0007, ...)" in caplog.text
    assert found.name == "Celeb-DF-v2" and clips_of(found)["Celeb-synthesis/id1_id0_0007"].compression is None


@pytest.mark.parametrize(
    ("label", "name", "video", "source"),
    [
        ("FF-NT", "000_003", "NeuralTextures/000_003", "youtube/000"),
        ("FF-FH", "000_003", "FaceShifter/000_003", "youtube/000"),
        (
            "DFD_fake",
            "01_02__exit_phone_room__YVGY8LOK",
            "DeepFakeDetection/01_02__exit_phone_room__YVGY8LOK",
            "actors/01__exit_phone_room",
        ),
        ("CelebDFv1_fake", "id3_id10_0004", "Celeb-synthesis/id3_id10_0004", "Celeb-real/id3_0004"),
        ("CelebDFv2_real", "00170", "YouTube-real/00170", "YouTube-real/00170"),
        ("DF_fake", "000_M101", "manipulated_videos/000_M101", "youtube/000"),
        ("UADFV_Fake", "0012_fake", "fake/0012_fake", "real/0012"),
        ("DFDCP_FakeA", "1255229_1003254_A_001", "method_A/1255229_1003254_A_001", "method_A/1255229_1003254_A_001"),
        ("DFDC_Real", "aalscayrfi", "original/aalscayrfi", "original/aalscayrfi"),
        ("roop_Fake", "7", "roop_Fake/7", "roop_Fake/7"),
        ("FF-DF", "no_numbers", "Deepfakes/no_numbers", "Deepfakes/no_numbers"),
    ],
)
def test_methods_and_sources_come_from_labels_and_names(label, name, video, source):
    entry = deepfakebench._Entry(name, label, "test", None, [])
    assert (entry.video, entry.source) == (video, source)
    assert entry.is_real == (label in ("CelebDFv2_real", "DFDC_Real"))


def test_no_two_labels_of_a_data_set_share_a_method():
    """Else clips of one name would be taken for one clip."""
    of_data_set = {}
    for label, method in METHODS.items():
        of_data_set.setdefault(label.split("_")[0].split("-")[0], []).append((label, method))
    for pairs in of_data_set.values():
        methods = [method for label, method in pairs if label != "FF-SH"]  # another name of FF-FH
        assert len(set(methods)) == len(methods)


def test_faults_of_the_json_are_named_and_the_rest_goes_on(home):
    def break_it(labels):
        train = labels["FF-DF"]["train"]["c23"]
        train["071_054"]["frames"].reverse()  # as os.scandir may give them
        train["001_870"] = {"label": "FF-DF", "frames": []}
        train["002_006"] = {"label": "FF-real", "frames": train["071_054"]["frames"]}
        train["003_000"] = "071_054"
        for name, path in (("004_982", "..\\..\\secret\\000.png"), ("005_010", "FaceForensics++/\0/000.png")):
            train[name] = {"label": "FF-DF", "frames": [path, "/elsewhere/001.png", "FaceForensics++/\ud800/0.png"]}
        train["a\nb"] = train["071_054"]
        labels["FF-real"]["val"] = {"label": "FF-real", "frames": train["071_054"]["frames"]}
        labels["FF-real"]["dev"] = {}
        labels["FF-NT"]["test"] = []

    edit(home, break_it)
    found = find(rgb(home))
    assert [(failure.path.split("json: ")[-1], failure.reason) for failure in found.failures] == [
        ("FF-real, val", "the split does not contain clips by name"),
        ("FF-real, dev", "not a split"),
        ("FF-DF, train, 001_870", "no frames"),
        ("FF-DF, train, 002_006", "folder and list contradict each other"),
        ("FF-DF, train, 003_000", "no list of frames in the JSON"),
        ("FF-DF, train, 'a\\nb'", "not a file name below the root"),
        ("FF-NT, test", "the split does not contain clips by name"),
        ("FF-DF, train, 004_982", "not a file name below the root"),
        ("FF-DF, train, 005_010", "not a file name below the root"),
    ]
    clips = clips_of(found)
    assert "Deepfakes/720_672" in clips and "youtube/720" not in clips
    assert list(read(clips["Deepfakes/071_054"].frames)) == list(FRAMES)


def test_missing_frames_are_one_line_of_their_clip(home):
    folder = rgb(home) / DEEPFAKES
    (folder / "frames" / "071_054" / "014.png").unlink()
    (folder / "frames" / "071_054" / "029.png").unlink()
    shutil.rmtree(folder / "frames" / "974_953")
    found = find(rgb(home))
    assert [(failure.path, failure.frames) for failure in found.failures] == [
        ("FF-DF, train, 071_054", [14, 29]),
        ("FF-DF, test, 974_953", list(FRAMES)),
    ]
    assert f"{rgb(home)}: {DEEPFAKES}/frames/974_953" in str(list(found.failures)[1])
    clips = clips_of(found)
    assert "Deepfakes/974_953" not in clips and list(read(clips["Deepfakes/071_054"].mask)) == [0, 44]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "No data left"),
        (b"\x93NUMPY", "EOF|magic|header|expected"),
        (pickle.dumps(np.zeros((81, 2))), "pickle"),
        (np.zeros((68, 2), int), "it does not contain 81 landmarks"),
        (np.full((81, 2), np.nan), "a landmark is not a number"),
        (np.full((81, 2), "x"), "it does not contain 81 landmarks"),
        (np.array([[os]] * 3, object), "pickle"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999, 2), }".ljust(
                128
            ),
            "",
        ),
    ],
)
def test_landmarks_that_cannot_be_read_cost_only_themselves(home, content, why):
    path = rgb(home) / DEEPFAKES / "landmarks" / "071_054" / "014.npy"
    if isinstance(content, np.ndarray) and content.dtype == object:
        content = np.array([1, None], object)
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_bytes(content)
    points = read(clips_of(find(rgb(home)))["Deepfakes/071_054"].landmarks)
    assert isinstance(points[14], InputError) and str(points[14]).startswith("014.npy: ")
    assert any(word in str(points[14]) for word in why.split("|"))
    assert [value.shape for number, value in points.items() if number != 14] == [(5, 2)] * 3


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize("integers", [np.int64, np.int32])
def test_lmdb_gives_what_the_files_give(tmp_path, windows, integers):
    root = write_faceforensics(tmp_path / "bench", integers=integers)
    files = clips_of(find(root))
    write_lmdb(tmp_path, root, "FaceForensics++", windows)
    shutil.rmtree(root / "FaceForensics++")
    found = find(root, lmdb=tmp_path)
    clips = clips_of(found)
    assert not found.failures and list(clips) == list(files)
    forgery, mask = swap(face(1, 1)[0], face(2, 1)[0])
    assert np.array_equal(read(clips["Deepfakes/071_054"].frames)[0], forgery)
    assert np.array_equal(read(clips["Deepfakes/071_054"].mask)[0], mask)
    points = read(clips["Deepfakes/071_054"].landmarks)
    assert list(points) == list(FRAMES) and points[0].dtype == np.float32
    assert all(np.array_equal(points[n], np.round(face(1, place + 1)[1])) for place, n in enumerate(FRAMES))
    assert clips["FaceShifter/071_054"].mask is None
    assert clips["youtube/071"].files() == [tmp_path / "FaceForensics++_lmdb" / "data.mdb"] * 2
    assert f"{tmp_path}/FaceForensics++_lmdb: FaceForensics++/" in clips["youtube/071"].frames.where


def test_an_environment_is_open_once_however_many_read_it_and_closed_after_them(tmp_path):
    root = write_faceforensics(tmp_path / "bench")
    clip = clips_of(find(root, lmdb=write_lmdb(tmp_path, root, "FaceForensics++", False)))["Deepfakes/071_054"]
    with clip.frames.open() as frames, clip.mask.open() as masks, clip.landmarks.open() as points:
        pairs = zip(frames.read(FRAMES), masks.read(FRAMES), points.read(FRAMES), strict=True)
        assert all(len({number for number, _ in pair}) == 1 for pair in pairs)
    with pytest.raises(ValueError, match="boom"), clip.frames.open():
        raise ValueError("boom")
    assert not deepfakebench._open
    lmdb.open(str(tmp_path / "FaceForensics++_lmdb"), readonly=True, lock=False).close()
    assert len(read(pickle.loads(pickle.dumps(clip)).frames)) == 4


def test_the_environment_of_a_compression_comes_first_and_may_be_given_itself(tmp_path):
    root = write_faceforensics(tmp_path / "bench", compression="c40")
    write_lmdb(tmp_path, root, "FaceForensics++", False)
    inner = (tmp_path / "FaceForensics++_lmdb").rename(tmp_path / "FaceForensics++_c40_lmdb")
    (tmp_path / "FaceForensics++_lmdb").mkdir()
    for folder in (tmp_path, inner):
        found = find(root, compression="c40", lmdb=folder)
        assert found.name == "FaceForensics++_c40" and len(clips_of(found)) == 9


def test_values_of_lmdb_that_cannot_be_read_cost_only_themselves(tmp_path):
    root = write_faceforensics(tmp_path / "bench")
    write_lmdb(tmp_path, root, "FaceForensics++", False)
    environment = lmdb.open(str(tmp_path / "FaceForensics++_lmdb"), map_size=64 << 20)
    key = "FaceForensics++\\manipulated_sequences/Deepfakes/c23/{}/071_054/{}"
    with environment.begin(write=True) as transaction:
        for name, value in (
            (key.format("frames", "000.png"), b"no image"),
            (key.format("frames", "014.png"), bytes(deepfakebench._LARGEST_VALUE + 1)),
            (key.format("landmarks", "029.npy"), bytes(1295)),
        ):
            transaction.put(name.encode(), value)
    environment.close()
    clip = clips_of(find(root, lmdb=tmp_path))["Deepfakes/071_054"]
    frames, points = read(clip.frames), read(clip.landmarks)
    assert "000.png: it is not an image" in str(frames[0]) and "too many for a face crop" in str(frames[14])
    assert "029.npy: it has 1295 bytes" in str(points[29])
    assert isinstance(frames[29], np.ndarray) and isinstance(points[0], np.ndarray)


def test_an_environment_that_cannot_be_used_is_refused_in_a_sentence(home, monkeypatch):
    with pytest.raises(InputError, match=r"LMDB environment .*FaceForensics\+\+_lmdb not found\. Pass"):
        find(rgb(home), lmdb=home)
    with pytest.raises(InputError, match=r"Folder .* not found"):
        find(rgb(home), lmdb=home / "nowhere")
    (home / "FaceForensics++_lmdb").mkdir()
    (home / "FaceForensics++_lmdb" / "data.mdb").write_bytes(b"garbage" * 2000)
    with pytest.raises(InputError, match=r"_lmdb cannot be opened \(.*\)\. Copy it again"):
        find(rgb(home), lmdb=home)
    monkeypatch.setattr(deepfakebench, "lmdb", None)
    with pytest.raises(InputError, match=r"pip install 'dcl-face-forgery\[lmdb\]'"):
        find(rgb(home), lmdb=home)


def test_a_json_is_found_by_path_by_name_and_where_it_is_usual(home):
    there = rgb(home)
    assert len(clips_of(find(there))) == 9
    assert len(clips_of(find(there, json="FaceForensics++"))) == 9
    assert len(clips_of(find(there, json=json_of(home).parent))) == 9
    (there / "dataset_json").mkdir()
    moved = json_of(home).rename(there / "dataset_json" / "FF.json")
    assert len(clips_of(find(there))) == len(clips_of(find(there, json=moved))) == 9
    moved.rename(there / "FF.json")
    assert len(clips_of(find(there, json="FF.json"))) == 9


@pytest.mark.parametrize(
    ("damage", "options", "sentence"),
    [
        (lambda home: json_of(home).unlink(), {}, "No JSON found in .*dataset_json. Pass the one"),
        (
            lambda home: shutil.copy(json_of(home), json_of(home, "FF-DF")),
            {},
            r"contains 2 JSONs \(FF-DF, Fa",
        ),
        (lambda home: None, {"json": "UADFV"}, "JSON UADFV not found, nor"),
        (lambda home: json_of(home).write_text("[1]"), {}, "contains a list, not a dict"),
        (lambda home: json_of(home).write_text('{"a": {}, "b": {}}'), {}, "is not a JSON of DeepfakeBench"),
        (lambda home: json_of(home).write_text('{"a": {"b": {"train": {}}}}'), {}, "lists no clips. Pass another"),
        (lambda home: None, {"compression": "c40"}, "no clips of the compression c40. Choose --compression from c23"),
        (
            lambda home: edit(home, lambda labels: labels.pop("FF-real") and labels["FF-DF"].pop("test")),
            {"split": "test"},
            "lists no clips of the split test",
        ),
        (
            lambda home: shutil.rmtree(rgb(home) / "FaceForensics++"),
            {},
            "contains none of the 9 clips .* Pass the folder",
        ),
        (lambda home: shutil.rmtree(rgb(home)), {}, "Folder .* not found"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(home, damage, options, sentence):
    damage(home)
    with pytest.raises(InputError, match=sentence):
        find(rgb(home), **options)


def test_one_split_can_be_chosen(home):
    found = find(rgb(home), split="validation")
    assert list(found.splits) == ["validation"] and len(clips_of(found)) == 2


def prepare(root, output, *flags):
    with pytest.raises(SystemExit) as stop:
        main(["deepfakebench", "--root", str(root), "--output", str(output), *flags])
    return stop.value.code


@pytest.mark.parametrize("stored", ["files", "lmdb"])
def test_crops_become_rows_pixel_by_pixel(home, tmp_path, stored):
    flags = []
    if stored == "lmdb":
        flags = ["--lmdb", str(write_lmdb(tmp_path, rgb(home), "FaceForensics++", True)), "--num_proc", "2"]
    assert prepare(rgb(home), tmp_path / "out", *flags, "--families_per_shard", "1") == 0
    folders = {"youtube": "original_sequences/youtube", "": "manipulated_sequences/{}"}
    videos = set()
    for split in ("train", "validation", "test"):
        dataset = load_prepared(str(tmp_path / "out"), split)
        assert find_crop(dataset, "") == {"kind": "given", "margin": None, "size": SIZE, "detector": None}
        for row in dataset:
            videos.add(row["video_id"])
            method, _, clip = row["video_id"].partition("/")
            folder = rgb(home) / "FaceForensics++" / folders.get(method, folders[""]).format(method) / "c23"
            beside = {
                kind: folder / kind / clip / f"{row['frame']:03}.png" for kind in ("frames", "masks", "landmarks")
            }
            assert np.array_equal(decode_image(row["image"], ""), np.asarray(Image.open(beside["frames"])))
            mask = decode_mask(row["mask"], "")
            if row["label"] == 0:
                assert not mask.any()
            elif method == "FaceShifter":
                assert mask is None
            else:
                assert mask.any() and np.array_equal(mask, np.asarray(Image.open(beside["masks"]).convert("L")))
            assert np.array_equal(row["landmarks"], np.load(beside["landmarks"].with_suffix(".npy"))[list(PARTS)])
            assert (row["dataset"], row["compression"], row["method"]) == ("FaceForensics++_c23", "c23", method)
    assert len(videos) == 9
    table = metadata(load_prepared(str(tmp_path / "out"), "train")).to_pandas()
    frames = {video: list(numbers) for video, numbers in table.groupby("video_id").frame}
    assert frames["Deepfakes/071_054"] == list(FRAMES) and frames["NeuralTextures/071_054"] == [0, 13, 27]
    assert set(table.source_id[table.video_id.str.contains("071")]) == {"youtube/071"}


def test_masks_that_some_frames_of_a_clip_lack_are_named(home, tmp_path, capsys):
    (rgb(home) / DEEPFAKES / "masks" / "071_054" / "014.png").unlink()
    (rgb(home) / DEEPFAKES / "landmarks" / "720_672" / "014.npy").write_bytes(b"")
    (rgb(home) / DEEPFAKES / "frames" / "720_672" / "029.png").write_bytes(png(face(1, 1)[0][:50]))
    assert prepare(rgb(home), tmp_path / "out") == 3
    printed = capsys.readouterr().out
    assert "masks/071_054: mask missing for some frames (3 of 4 found)" in printed
    assert "landmarks/720_672: landmarks cannot be decoded (014.npy: " in printed
    assert "frames/720_672: the crop is not square (96x50; frame 29)" in printed
    rows = {(row["video_id"], row["frame"]): row for row in load_prepared(str(tmp_path / "out"), "train")}
    assert [rows["Deepfakes/071_054", frame]["mask"] is None for frame in FRAMES] == [False, True, False, False]


def test_a_clip_that_lacks_frames_takes_none_from_the_others(home, tmp_path):
    (rgb(home) / DEEPFAKES / "frames" / "071_054" / "014.png").unlink()
    assert prepare(rgb(home), tmp_path) == 3
    table = metadata(load_prepared(str(tmp_path), "train")).to_pandas()
    assert list(table.frame[table.video_id == "Deepfakes/071_054"]) == [0, 29, 44]
    assert list(table.frame[table.video_id == "youtube/071"]) == list(FRAMES)


def test_check_counts_and_prepares_nothing(home, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check", "deepfakebench", "--root", str(rgb(home))])
    assert stop.value.code == 3
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "part found published" and "train, FF-DF 1 720" in lines and "split train 2 families" in lines
