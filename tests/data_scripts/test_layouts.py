"""Layouts find the clips of raw data sets, and name what is wrong with them: nothing is decoded here."""

import json
import shutil
from pathlib import Path

import pytest

from dcl_face_forgery.data_scripts.clips import ClipFamily
from dcl_face_forgery.data_scripts.frames import DifferenceMask, ImageFrames, VideoFrames
from dcl_face_forgery.data_scripts.layouts import celeb_df, deeperforensics, dfdc, dfdcp, ffpp, uadfv
from dcl_face_forgery.data_scripts.layouts.listing import (
    CONTRADICTED,
    MISSING,
    NO_LABEL,
    NO_NAME,
    NOT_LISTED,
    plain_name,
)
from dcl_face_forgery.data_scripts.prepare import LAYOUTS, main
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.prepared.names import FAKE, REAL
from dcl_face_forgery.tests.shared.raw_data_sets import WRITERS, write_dfd


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The root of each data set, written when it is asked for; not to be changed."""
    roots: dict[str, Path] = {}

    def get(name):
        if name not in roots:
            roots[name] = tmp_path_factory.mktemp("raw") / name
            if name == "dfd":
                write_dfd(roots[name])
            else:
                WRITERS[name](roots[name])
        return roots[name]

    return get


@pytest.fixture
def copied(trees, tmp_path):
    """The root of a data set that may be damaged."""
    return lambda name: Path(shutil.copytree(trees(name), tmp_path / name))


def clips_of(found):
    """Return the clips by name, and check that names are unique and families hold to one source."""
    clips = {}
    for families in found.splits.values():
        sources = [family.clips[0].source for family in families]
        assert len(set(sources)) == len(sources)
        for family in families:
            assert isinstance(family, ClipFamily)
            assert {clip.source for clip in family.clips} == {family.clips[0].source}
            for place, clip in enumerate(family.clips):
                assert clip.name not in clips
                assert clip.label == FAKE or (place == 0 and clip.name == clip.source)
                clips[clip.name] = clip
    return clips


def names(found, split):
    return sorted(clip.name for family in found.splits[split] for clip in family.clips)


def parts(found):
    return {part.name: (part.found, part.published) for part in found.parts}


def failures(found):
    return {(Path(failure.path).name, failure.reason) for failure in found.failures}


# FaceForensics++


def test_ffpp_takes_both_directions_of_a_pair_and_no_other(trees):
    found = ffpp.find(trees("ffpp"))
    assert found.name == "ffpp_c23" and not found.failures and not found.cropped
    assert names(found, "train") == sorted(
        ["youtube/054", "youtube/071"]
        + [f"{method}/{fake}" for method in ("Deepfakes", "FaceShifter") for fake in ("054_071", "071_054")]
    )
    assert {split: len(families) for split, families in found.splits.items()} == dict.fromkeys(ffpp.SPLITS, 2)
    clips = clips_of(found)
    assert clips["Deepfakes/071_054"].source == "youtube/071"
    assert {clip.compression for clip in clips.values()} == {"c23"}
    assert clips["youtube/953"].label == REAL and clips["FaceShifter/953_974"].label == FAKE


def test_ffpp_counts_what_is_there_against_what_was_published(trees):
    counted = parts(ffpp.find(trees("ffpp")))
    assert counted["youtube"] == (6, 1000) and counted["NeuralTextures"] == (0, 1000)
    assert counted["Deepfakes, masks"] == (6, 1000) and "FaceShifter, masks" not in counted
    assert counted["train, Deepfakes"] == (2, 720) and counted["test, youtube"] == (2, 140)


@pytest.mark.parametrize(
    ("masks", "kinds"),
    [
        ("video", {"Deepfakes": VideoFrames, "FaceShifter": type(None)}),
        ("difference", {"Deepfakes": VideoFrames, "FaceShifter": DifferenceMask}),
        ("none", {"Deepfakes": type(None), "FaceShifter": type(None)}),
    ],
)
def test_ffpp_masks_are_videos_or_differences(trees, masks, kinds):
    found = ffpp.find(trees("ffpp"), masks=masks)
    clips = clips_of(found)
    assert not found.failures
    for method, kind in kinds.items():
        mask = clips[f"{method}/071_054"].mask
        assert type(mask) is kind
        if kind is VideoFrames:
            assert mask.path.parts[-3:] == ("masks", "videos", "071_054.mp4")
        if kind is DifferenceMask:
            assert (mask.forged.path.stem, mask.original.path.stem) == ("071_054", "071")
    assert clips["youtube/071"].mask is None


def test_ffpp_compares_the_best_compression_there_is(copied):
    root = copied("ffpp")
    for folder in [*root.glob("*/*/c23")]:
        shutil.copytree(folder, folder.with_name("c40"))
    root.joinpath("manipulated_sequences", "FaceShifter", "c23", "videos", "054_071.mp4").unlink()
    clips = clips_of(ffpp.find(root, compression="c40", masks="difference"))
    for fake, compression in (("071_054", "c23"), ("054_071", "c40")):
        clip = clips[f"FaceShifter/{fake}"]
        assert clip.frames.path.parts[-3] == clip.compression == "c40"
        assert {part.path.parts[-3] for part in (clip.mask.forged, clip.mask.original)} == {compression}


def test_ffpp_names_masks_that_are_not_there(copied):
    root = copied("ffpp")
    forged = root / "manipulated_sequences"
    shutil.copytree(forged / "Deepfakes", forged / "Face2Face", ignore=shutil.ignore_patterns("masks"))
    (root / "manipulated_sequences" / "Deepfakes" / "masks" / "videos" / "071_054.mp4").unlink()
    found = ffpp.find(root)
    assert failures(found) == {("masks", "masks not found"), ("071_054.mp4", "no mask")}
    assert clips_of(found)["Deepfakes/071_054"].mask is None
    found = ffpp.find(root, masks="difference")
    assert not found.failures
    assert all(
        isinstance(clips_of(found)[f"{method}/071_054"].mask, DifferenceMask) for method in ("Deepfakes", "Face2Face")
    )


def test_ffpp_takes_the_wanted_methods_and_splits(copied):
    root = copied("ffpp")
    for method in {*ffpp.METHODS} - {"Deepfakes", "FaceShifter"}:
        shutil.copytree(root / "manipulated_sequences" / "Deepfakes", root / "manipulated_sequences" / method)
    found = ffpp.find(root, methods=["FaceShifter"], split=["test"])
    assert list(found.splits) == ["test"] and not found.failures
    assert {clip.method for clip in clips_of(found).values()} == {"youtube", "FaceShifter"}
    assert {clip.method for clip in clips_of(ffpp.find(root)).values()} == {"youtube", *ffpp.METHODS}


@pytest.mark.parametrize("place", ["splits", ".", "dataset/splits", "elsewhere"])
def test_ffpp_finds_the_lists(copied, tmp_path, place):
    root = copied("ffpp")
    (root / "splits").rename(tmp_path / "lists")
    folder = tmp_path / "elsewhere" if place == "elsewhere" else root / place
    folder.mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "lists").iterdir():
        path.rename(folder / path.name)
    found = ffpp.find(root, splits=folder if place == "elsewhere" else None)
    assert not found.failures and len(clips_of(found)) == 18


def test_ffpp_reads_images_where_there_are_no_videos(copied):
    root = copied("ffpp")
    for videos in [*root.glob("*/*/c23/videos")]:
        for video in videos.iterdir():
            folder = videos.parent / "images" / video.stem
            folder.mkdir(parents=True)
            for frame in range(3):
                (folder / f"{frame:04}.png").touch()
        shutil.rmtree(videos)
    clips = clips_of(ffpp.find(root))
    frames = clips["Deepfakes/071_054"].frames
    assert len(clips) == 18 and isinstance(frames, ImageFrames)
    assert [path.name for path in frames.paths.values()] == ["0000.png", "0001.png", "0002.png"]
    assert list(frames.paths) == [0, 1, 2]


def test_ffpp_names_what_lists_and_folders_do_not_share(copied):
    root = copied("ffpp")
    videos = root / "manipulated_sequences" / "Deepfakes" / "c23" / "videos"
    (videos / "071_054.mp4").rename(videos / "071_087.mp4")
    (root / "original_sequences" / "youtube" / "c23" / "videos" / "974.mp4").unlink()
    found = ffpp.find(root)
    assert failures(found) == {("071_054.mp4", MISSING), ("071_087.mp4", NOT_LISTED), ("974.mp4", MISSING)}
    clips = clips_of(found)
    assert clips["Deepfakes/974_953"].source == "youtube/974" and "youtube/974" not in clips
    assert ("071_087.mp4", NOT_LISTED) not in failures(ffpp.find(root, split=["train"]))


def test_ffpp_with_another_compression_says_what_is_there(copied):
    root = copied("ffpp")
    with pytest.raises(InputError, match=r"contains youtube in c23, not in c40\. Download it, or pass --comp.* c23\."):
        ffpp.find(root, compression="c40")
    folder = root / "manipulated_sequences" / "FaceShifter"
    (folder / "c23").rename(folder / "c40")
    with pytest.raises(InputError, match="contains FaceShifter in c40, not in c23"):
        ffpp.find(root, methods=["FaceShifter"])
    assert failures(ffpp.find(root)) == {("FaceShifter", "other compression")}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[[", "cannot be read"),
        ("{}", "contains a dict, not a list"),
        ("[]", "contains no pairs"),
        ('["071", ["071"], [71, 54], null]', "contains no pairs"),
        ('[["../../etc/passwd", "071"]]', "contains no pairs"),
        ('[["720", "071"]]', "put video 720 in train and in validation"),
        (None, r"has no train.json, the list of that split\. Copy train.json.*ondyari/FaceForensics"),
    ],
)
def test_ffpp_refuses_lists_that_cannot_be_used(copied, content, sentence):
    root = copied("ffpp")
    path = root / "splits" / "train.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=sentence):
        ffpp.find(root)


def test_ffpp_leaves_out_single_entries_that_cannot_be_used(copied):
    root = copied("ffpp")
    pairs = [["071", "054"], ["../../etc/passwd", "071"], ["071"], [71, 54]]
    (root / "splits" / "train.json").write_text(json.dumps(pairs))
    found = ffpp.find(root)
    assert len(clips_of(found)) == 18
    assert {failure.reason for failure in found.failures} == {"not a pair of video names"}
    assert [failure.detail for failure in found.failures] == [repr(pair) for pair in pairs[1:]]


def test_ffpp_takes_a_pair_once_that_is_listed_in_both_directions(copied):
    root = copied("ffpp")
    (root / "splits" / "train.json").write_text(json.dumps([["071", "054"], ["054", "071"]]))
    assert len(clips_of(ffpp.find(root))) == 18


def test_dfd_is_a_test_set(trees):
    found = ffpp.find(trees("dfd"), methods=[ffpp.DFD])
    clips = clips_of(found)
    assert found.name == "dfd_c23" and list(found.splits) == ["test"] and not found.failures
    fake = clips["DeepFakeDetection/24_23__outside_talking_still_laughing__YR5OVD4S"]
    assert fake.source == "actors/24__outside_talking_still_laughing" and fake.source in clips
    assert fake.mask.path.stem == fake.frames.path.stem
    assert parts(found)["actors"] == (2, 363)


def test_dfd_goes_alone(trees, copied):
    with pytest.raises(InputError, match="Pass only --methods DeepFakeDetection"):
        ffpp.find(trees("dfd"), methods=["Deepfakes", ffpp.DFD])
    with pytest.raises(InputError, match="only the split test"):
        ffpp.find(trees("dfd"), methods=[ffpp.DFD], split=["train"])
    root = copied("dfd")
    path = next(root.glob("manipulated_sequences/*/c23/videos/23_24*"))
    path.rename(path.with_name("copy.mp4"))
    assert [Path(failure.path).name for failure in ffpp.find(root, methods=[ffpp.DFD]).failures] == ["copy.mp4"]


# Celeb-DF


def test_celeb_df_tests_what_is_listed_and_trains_on_the_rest(trees):
    found = celeb_df.find(trees("celeb_df"))
    assert found.name == "celeb_df_v2" and not found.failures
    assert names(found, "test") == [
        "Celeb-real/id1_0007",
        "Celeb-synthesis/id1_id0_0007",
        "Celeb-synthesis/id2_id1_0001",
        "YouTube-real/00170",
    ]
    clips = clips_of(found)
    assert len(clips) == 10 and len(names(found, "train")) == 6
    assert clips["Celeb-synthesis/id1_id0_0007"].source == "Celeb-real/id1_0007"
    assert {name: clip.label for name, clip in clips.items()} == {
        name: FAKE if name.startswith("Celeb-synthesis") else REAL for name in clips
    }


def test_celeb_df_counts_each_version(trees):
    counted = parts(celeb_df.find(trees("celeb_df")))
    assert counted["Celeb-synthesis"] == (4, 5639) and counted["test, fake"] == (2, 340)
    found = celeb_df.find(trees("celeb_df"), version=1)
    assert found.name == "celeb_df_v1"
    assert parts(found)["Celeb-real and YouTube-real"] == (6, 408)
    assert parts(found)["Celeb-synthesis"] == (4, 795)


def test_celeb_df_never_trains_on_a_listed_video(copied):
    """Whatever is wrong with its line, a video of the list is no training data."""
    root = copied("celeb_df")
    path = root / "List_of_testing_videos.txt"
    path.write_text(
        "1 YouTube-real/00170.mp4\n"
        "0 Celeb-real/id1_0007.mp4\n"  # reals are 1
        "2 Celeb-synthesis/id1_id0_0007.mp4\n"
        "Celeb-synthesis/id2_id1_0001.mp4\n"
        "1 Celeb-real/id9_0009.mp4\n"
        "1 ../../etc/passwd\n"
        "\n"
    )
    found = celeb_df.find(root)
    assert names(found, "test") == ["YouTube-real/00170"] and len(names(found, "train")) == 6
    assert failures(found) == {
        ("id1_0007.mp4", CONTRADICTED),
        ("id1_id0_0007.mp4", NO_LABEL),
        ("id2_id1_0001.mp4", NO_LABEL),
        ("id9_0009", MISSING),
        ("passwd'", NO_NAME),
    }


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: (root / "List_of_testing_videos.txt").unlink(), "has no List_of_testing_videos.txt"),
        (lambda root: (root / "List_of_testing_videos.txt").write_text("<html>\n"), "lists no video of"),
        (lambda root: (root / "List_of_testing_videos.txt").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (lambda root: shutil.rmtree(root / "Celeb-synthesis"), "has no fake videos"),
    ],
)
def test_celeb_df_refuses_what_cannot_be_used(copied, damage, sentence):
    root = copied("celeb_df")
    damage(root)
    with pytest.raises(InputError, match=sentence):
        celeb_df.find(root)


# DFDC


def test_dfdc_by_the_official_protocol(trees):
    found = dfdc.find(trees("dfdc"))
    clips = clips_of(found)
    assert found.name == "dfdc" and not found.failures
    assert {split: len(names(found, split)) for split in found.splits} == {"train": 8, "validation": 2, "test": 2}
    assert clips["DFDC/awnfpubqmo"].source == "original/lnhkjhyhvw"
    assert names(found, "validation") == ["DFDC/agrmhtjdlk", "original/afoovlsmtx"]
    assert names(found, "test") == ["DFDC/abarnvbtwb", "original/aalscayrfi"]
    assert parts(found)["train"] == (8, 119_154) and parts(found)["test"] == (2, 5_000)


def test_dfdc_by_parts(trees):
    found = dfdc.find(trees("dfdc"), protocol="parts")
    assert names(found, "train") == ["DFDC/awnfpubqmo", "original/lnhkjhyhvw", "original/xugmhbetrw"]
    assert names(found, "validation") == ["DFDC/aaqaifqrwn", "DFDC/qeumxirsme", "original/xnyyuyfmpv"]
    assert names(found, "test") == ["DFDC/aqrsylrzgi", "original/bddjdhzfze"]
    # Its original lies in a part for training.
    assert clips_of(found)["DFDC/aaqaifqrwn"].source == "original/xugmhbetrw"


def test_dfdc_parts_may_lie_in_a_folder_train(copied):
    root = copied("dfdc")
    (root / "train").mkdir()
    for part in root.glob("dfdc_train_part_*"):
        part.rename(root / "train" / part.name.upper())
    found = dfdc.find(root)
    assert not found.failures and len(names(found, "train")) == 8


@pytest.mark.parametrize("protocol", dfdc.PROTOCOLS)
@pytest.mark.parametrize("name", ["train_sample_videos", "Train_Sample_Videos", "clips", "dfdc_train_part_00"])
def test_dfdc_may_be_kaggles_sample_or_any_single_part(copied, tmp_path, protocol, name):
    part = tmp_path / "kaggle" / name
    shutil.copytree(copied("dfdc") / "dfdc_train_part_0", part)
    shutil.copytree(part, part.with_name("test_videos"))
    (part.with_name("test_videos") / "metadata.json").unlink()  # its labels were never published
    for root in (part,) if name == "clips" else (part, part.parent):
        found = dfdc.find(root, protocol)
        assert names(found, "train") == ["DFDC/awnfpubqmo", "original/lnhkjhyhvw", "original/xugmhbetrw"]
        assert list(found.splits) == ["train"] and not found.failures
        assert clips_of(found)["DFDC/awnfpubqmo"].source == "original/lnhkjhyhvw"


def test_of_kaggles_sample_no_more_is_expected_than_there_is(copied):
    root = copied("dfdc")
    (root / "dfdc_train_part_0").rename(root / "train_sample_videos")
    published = {part.name: part.published for part in dfdc.find(root / "train_sample_videos").parts}
    assert published["train"] is published["validation"] is published["test"] is None


def test_dfdc_keeps_a_single_test_folder_for_the_test(copied):
    found = dfdc.find(copied("dfdc") / "test")
    assert list(found.splits) == ["test"] and len(names(found, "test")) == 2


def test_a_single_part_of_dfdc_keeps_its_split(copied):
    root = copied("dfdc")
    (root / "dfdc_train_part_0").rename(root / "dfdc_train_part_45")
    assert list(dfdc.find(root / "dfdc_train_part_45", protocol="parts").splits) == ["test"]


def test_dfdc_of_a_folder_without_labels_leads_to_what_there_should_be(copied):
    root = copied("dfdc") / "dfdc_train_part_0"
    (root / "metadata.json").unlink()
    with pytest.raises(InputError, match=r"contains no part of DFDC .*one such part, train_sample_videos/, or test/"):
        dfdc.find(root)


def test_dfdc_names_entries_that_cannot_be_used(copied):
    root = copied("dfdc")
    part = root / "dfdc_train_part_0"
    entries = json.loads((part / "metadata.json").read_text())
    entries["lnhkjhyhvw.mp4"] = ["REAL"]
    entries["xugmhbetrw.mp4"] = {"split": "train"}
    entries["awnfpubqmo.mp4"]["original"] = 7
    entries["../../etc/passwd"] = {"label": "REAL"}
    entries["nothere.mp4"] = {"label": "REAL"}
    (part / "metadata.json").write_text(json.dumps(entries))
    shutil.copy(part / "awnfpubqmo.mp4", part / "unlisted.mp4")
    shutil.copy(part / "awnfpubqmo.mp4", root / "dfdc_train_part_40" / "bddjdhzfze_.mp4")
    (root / "dfdc_train_part_35" / "metadata.json").write_text("[]")
    (root / "test" / "metadata.json").unlink()
    found = dfdc.find(root)
    assert failures(found) == {
        ("lnhkjhyhvw.mp4", NO_LABEL),
        ("xugmhbetrw.mp4", NO_LABEL),
        ("passwd'", NO_NAME),
        ("nothere", MISSING),
        ("unlisted.mp4", NOT_LISTED),
        ("bddjdhzfze_.mp4", NOT_LISTED),
        ("dfdc_train_part_35", "list cannot be read"),
        ("test", "list cannot be read"),
    }
    assert clips_of(found)["DFDC/awnfpubqmo"].source == "DFDC/awnfpubqmo"
    assert "test" not in found.splits


def test_dfdc_takes_the_first_of_two_clips_of_one_name(copied):
    root = copied("dfdc")
    shutil.copytree(root / "dfdc_train_part_0", root / "dfdc_train_part_45")
    found = dfdc.find(root)
    assert {failure.reason for failure in found.failures} == {"another clip has the same name"}
    assert len(found.failures) == 3 and len(clips_of(found)) == 12


@pytest.mark.parametrize("columns", ["name,label", "filename", ""])
def test_dfdc_labels_need_their_columns(copied, columns):
    root = copied("dfdc")
    (root / "validation" / "labels.csv").write_text(f"{columns}\nafoovlsmtx.mp4,0\n")
    failure = next(iter(dfdc.find(root).failures))
    assert Path(failure.path).name == "validation" and "no columns filename and label" in failure.detail


# DFDCP


def test_dfdcp_follows_its_list(trees):
    found = dfdcp.find(trees("dfdcp"))
    clips = clips_of(found)
    assert found.name == "dfdcp" and not found.failures
    assert names(found, "test") == ["method_A/1003254_643049_A_001", "original_videos/643049_A_001"]
    # Of one the list names the source, of the other the name does.
    for method in ("method_A", "method_B"):
        assert clips[f"{method}/1255229_1003254_A_001"].source == "original_videos/1003254_A_001"
    assert parts(found)["train, fake"] == (2, None)


def test_dfdcp_may_lie_in_its_folder(trees, tmp_path):
    shutil.copytree(trees("dfdcp"), tmp_path / "dfdc_preview_set")
    assert len(clips_of(dfdcp.find(tmp_path))) == 6


def test_dfdcp_names_entries_that_cannot_be_used(copied):
    root = copied("dfdcp")
    entries = json.loads((root / "dataset.json").read_text())
    real, other, third, fake_a, fake_b, tested = entries
    entries[real]["label"] = "fake"
    entries[other] = "real"
    entries[third]["set"] = "valid"
    entries[fake_a]["label"] = ["fake"]
    del entries[fake_b]["source_video"]
    entries["method_A/../../../etc/passwd"] = entries[tested]
    entries["method_A/1/1_A/1_1_A_001.mp4"] = entries[tested]
    (root / "dataset.json").write_text(json.dumps(entries))
    found = dfdcp.find(root)
    assert failures(found) == {
        (Path(real).name, CONTRADICTED),
        (Path(other).name, NO_LABEL),
        (Path(third).name, "no split (train or test)"),
        (Path(fake_a).name, NO_LABEL),
        ("passwd'", NO_NAME),
        ("1_1_A_001", MISSING),
    }
    # The original of the one is not among the clips any more, that of the other is named by the list.
    assert {name: clip.source for name, clip in clips_of(found).items()} == {
        "method_B/1255229_1003254_A_001": "method_B/1255229_1003254_A_001",
        "method_A/1003254_643049_A_001": "original_videos/643049_A_001",
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "dataset.json"),
        ("{", "cannot be read"),
        ("[]", "contains a list, not a dict"),
        ("{}", "lists no existing video"),
        ('{"method_A/x.mp4": {"label": "fake"}}', "lists no existing video"),
    ],
)
def test_dfdcp_refuses_a_list_that_cannot_be_used(copied, content, sentence):
    root = copied("dfdcp")
    path = root / "dataset.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=sentence):
        dfdcp.find(root)


# DeeperForensics


def test_deeperforensics_takes_the_actors_for_reals(trees):
    found = deeperforensics.find(trees("deeperforensics"))
    clips = clips_of(found)
    assert found.name == "deeperforensics" and not found.failures
    fakes = {name: clip.source for name, clip in clips.items() if clip.label == FAKE}
    assert fakes == {
        "end_to_end/071_M101": "youtube/071",
        "end_to_end/720_W102": "youtube/720",
        "end_to_end/953_M103": "youtube/953",
    }
    actors = {
        split: [name.split("/")[1] for name in names(found, split) if name.startswith("source_videos/")]
        for split in found.splits
    }
    assert actors == {
        "train": ["M101", "M102", "M103", "M104", "M105", "W101", "W102"],
        "validation": ["W103"],
        "test": ["W104", "W105"],
    }
    assert parts(found)["test, end_to_end"] == (1, 201)


def test_deeperforensics_takes_the_forged_videos_for_reals(trees):
    found = deeperforensics.find(
        trees("deeperforensics"), variants=["end_to_end", "end_to_end_level_1"], reals=trees("ffpp")
    )
    assert not found.failures
    assert {split: names(found, split) for split in found.splits} == {
        split: [f"end_to_end/{fake}", f"end_to_end_level_1/{fake}", f"youtube/{fake[:3]}"]
        for split, fake in (("train", "071_M101"), ("validation", "720_W102"), ("test", "953_M103"))
    }
    # Training tells clips of different compressions apart, and would not find the source.
    assert {clip.compression for clip in clips_of(found).values()} == {None}


def test_deeperforensics_names_what_is_missing(copied, trees, tmp_path):
    root, reals = copied("deeperforensics"), copied("ffpp")
    (root / "manipulated_videos" / "end_to_end" / "720_W102.mp4").unlink()
    (reals / "original_sequences" / "youtube" / "c23" / "videos" / "953.mp4").unlink()
    lists = root / "lists" / "splits"
    lists.joinpath("test.txt").write_text("953_M103.mp4\n953_M103.mp4\n071_M101.mp4\n/etc/passwd\n")
    found = deeperforensics.find(root, reals=reals)
    assert failures(found) == {
        ("720_W102", MISSING),
        ("953.mp4", MISSING),
        ("953_M103.mp4", "listed twice"),
        ("071_M101.mp4", "listed twice"),
        ("passwd'", NO_NAME),
    }
    assert names(found, "train") == ["end_to_end/071_M101", "youtube/071"]


@pytest.mark.parametrize(
    ("damage", "options", "sentence"),
    [
        (lambda root: (root / "lists" / "splits" / "val.txt").unlink(), {}, r"has no lists/splits/val.txt"),
        (lambda root: shutil.rmtree(root / "source_videos"), {}, "DCL needs reals"),
        (lambda root: None, {"variants": ["reenact"]}, r"Choose other --variants \(end_to_end, end_to_end_level_1\)"),
        (lambda root: None, {"variants": ["../source_videos"]}, "contains no videos. Choose other --variants"),
        (lambda root: None, {"reals": "."}, "c23/videos contains no videos. Pass --reals"),
        (lambda root: None, {"reals": "nowhere"}, "Folder nowhere not found"),
    ],
)
def test_deeperforensics_refuses_what_cannot_be_used(copied, damage, options, sentence):
    root = copied("deeperforensics")
    damage(root)
    with pytest.raises(InputError, match=sentence):
        deeperforensics.find(root, **options)


# UADFV


def test_uadfv_is_a_test_set(trees):
    found = uadfv.find(trees("uadfv"))
    assert found.name == "uadfv" and not found.failures and list(found.splits) == ["test"]
    assert {name: clip.source for name, clip in clips_of(found).items()} == {
        "real/0000": "real/0000",
        "fake/0000_fake": "real/0000",
        "real/0001": "real/0001",
        "fake/0001_fake": "real/0001",
    }
    assert parts(found) == {"real": (2, 49), "fake": (2, 49)}


# All of them


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_root_is_refused_with_a_remedy(name, tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"(has no|contains no|contains neither|Folder .* not found).*\. \w+"):
            LAYOUTS[name].find(root)


@pytest.mark.parametrize("name", WRITERS)
def test_upper_and_lower_case_are_the_same(name, copied):
    root = copied(name)
    before = {clip: (found.source, found.label) for clip, found in clips_of(LAYOUTS[name].find(root)).items()}
    for path in sorted(root.rglob("*"), key=lambda path: -len(path.parts)):
        if path.is_dir() or path.suffix in (".json", ".txt", ".csv"):
            path.rename(path.with_name(path.name.upper()))
        else:
            path.rename(path.with_suffix(path.suffix.upper()))
    found = LAYOUTS[name].find(root, **({"variants": ["END_TO_END"]} if name == "deeperforensics" else {}))
    assert not found.failures
    after = {clip: (found.source, found.label) for clip, found in clips_of(found).items()}
    assert {key.lower(): (source.lower(), label) for key, (source, label) in after.items()} == {
        key.lower(): (source.lower(), label) for key, (source, label) in before.items()
    }


@pytest.mark.parametrize("name", WRITERS)
def test_check_prints_what_is_there(name, trees, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check", name, "--root", str(trees(name))])
    assert stop.value.code == (0 if name == "dfdcp" else 3)  # the others say how much there should be
    printed = capsys.readouterr().out
    assert "left out" not in printed
    for part in LAYOUTS[name].find(trees(name)).parts:
        assert any(line.startswith(part.name) and f"{part.found}" in line for line in printed.splitlines())


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("a/b.mp4", "a/b"),
        (" a\\b.MP4 ", "a/b"),
        ("./a.mp4", "a"),
        ("a.b", "a.b"),
        *((value, None) for value in ("../a", "a/../b", "/a", "C:\\a", "", ".", "a\0b", None, 7, ["a"])),
    ],
)
def test_names_of_lists_stay_below_the_root(value, name):
    assert plain_name(value) == name
