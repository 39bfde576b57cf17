"""Folders as people have them: names that differ in accents or case, what may not be read, and what systems keep."""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.data_scripts.failures import Failures
from dcl_face_forgery.data_scripts.layouts import folder, uadfv
from dcl_face_forgery.data_scripts.photographs import NO_FILE, NOT_LISTED, find_photographs
from dcl_face_forgery.data_scripts.prepare import main as prepare
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.media_dcl import find_files, is_video, read_picture, say_skipped, skipped_files
from dcl_face_forgery.video_dcl import Video

TYPESCRIPT = "\ufeffexport const größe = 3;\n".encode()


@pytest.fixture
def touch(tmp_path):
    def touch(*names, data=b"x"):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path

    return touch


@pytest.fixture
def closed(monkeypatch):
    """Let folders called `closed` not be listed, as those of another user."""

    def guarded(function):
        def call(path=".", *rest):
            if Path(os.fsdecode(path)).name == "closed":
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *rest)

        return call

    monkeypatch.setattr(os, "listdir", guarded(os.listdir))
    monkeypatch.setattr(os, "scandir", guarded(os.scandir))


def clips_in(root):
    return {clip.name: clip for family in folder.find(root).splits["train"] for clip in family.clips}


def names(paths):
    return [path.name for path in paths]


# Which real a forgery was made from

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "José") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("real", "fake", "mask"),
    [(COMPOSED, DECOMPOSED, COMPOSED), (DECOMPOSED, COMPOSED, DECOMPOSED), ("Anna", "anna", "ANNA"), ("a", "a", "a")],
)
def test_a_forgery_finds_its_real_and_its_mask_however_names_are_written(touch, real, fake, mask):
    """lidge-jun/aside-codemode#30, clementine-player/Clementine#5151 (accents), KatherLab/MediSwarm#496 (case)."""
    touch(f"real/{real}.mp4", f"fake/Deepfakes/{fake}.MP4", f"fake/Other/{fake}/1.png", f"Masks/deepfakes/{mask}.mp4")
    clips = clips_in(touch(f"masks/Other/{mask}/1.png"))
    assert set(clips) == {f"real/{real}", f"Deepfakes/{fake}", f"Other/{fake}"}
    assert {clip.source for clip in clips.values()} == {f"real/{real}"}
    assert clips[f"Other/{fake}"].mask is not None


def test_names_that_differ_in_case_only_are_told_apart_or_refused(touch):
    clips = clips_in(touch("real/Anna.mp4", "real/anna.mp4", "fake/X/anna.mp4", "fake/X/Anna.mp4"))
    assert clips["X/anna"].source == "real/anna" and clips["X/Anna"].source == "real/Anna"
    with pytest.raises(InputError, match=r"contains 'Anna' and 'anna', and 'ANNA' may belong to either\. Rename one"):
        clips_in(touch("fake/X/ANNA.mp4"))


def test_of_a_live_photo_it_is_the_video(touch):
    """photoprism/photoprism#1634: a phone's picture and the seconds around it have one name."""
    clips = clips_in(touch("real/IMG_1.JPG", "real/IMG_1.mov", "fake/X/IMG_1.mp4"))
    assert clips["real/IMG_1"].frames.where.endswith("IMG_1.mov")


def test_two_pictures_of_one_name_are_refused(touch):
    with pytest.raises(InputError, match=r"have the same name\. Rename one of them"):
        clips_in(touch("real/IMG_1.JPG", "real/IMG_1.png", "fake/X/IMG_1.mp4"))


# What cannot be looked at


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_goes_on(touch, closed):
    """rescuezilla/rescuezilla#667, nextcloud/server#29514."""
    root, failures = touch("anna/1.png", "closed/2.png", "real/1.mp4", "real/closed/2.mp4", "fake/1.mp4"), Failures()
    assert "1.png" in names(photograph.path for photograph in find_photographs(root, failures))
    assert {(Path(each.path).name, each.reason, each.detail) for each in failures} == {
        ("closed", NOT_LISTED, "Permission denied")
    }
    for layout in (folder, uadfv):
        found = layout.find(root)
        assert [(Path(each.path).name, each.reason) for each in found.failures] == [("closed", NOT_LISTED)]
        assert [len(families) for families in found.splits.values()] == [1]
    assert root / "closed" in find_files(root)
    with pytest.raises(InputError, match=r"closed cannot be listed \(Permission denied\)\. Check its permissions"):
        folder.find(root / "closed")


def test_broken_links_and_pipes_are_named_where_they_would_be_looked_at(touch):
    root, failures = touch("anna/1.png", "real/1.mp4", "fake/1.mp4"), Failures()
    for name in ("anna/2.jpg", "real/2.mp4", "anna/notes.txt"):
        (root / name).symlink_to(root / "nowhere")
    os.mkfifo(root / "anna/3.ts")
    find_photographs(root, failures)
    assert {(Path(each.path).name, each.reason) for each in failures} == {
        (name, NO_FILE) for name in ("2.jpg", "2.mp4", "3.ts")
    }
    assert [Path(each.path).name for each in folder.find(root).failures] == ["2.mp4"]


def test_pictures_that_cannot_be_prepared_are_named_and_gifs_are_read(tmp_path, capsys):
    """elementary/photos#580, matiasdelellis/facerecognition#635."""
    people = tmp_path / "people"
    people.mkdir()
    faces = [Image.open(fetch("orl") / f"s{person}" / "1.pgm") for person in (1, 2, 3)]
    faces[0].save(people / "a.png")
    faces[1].save(people / "b.gif")
    faces[2].save(people / "c.gif", save_all=True, append_images=faces[:2])
    (people / "d.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    (people / "e.png").symlink_to(people / "nowhere.png")
    (people / "f.dng").write_bytes(b"x")
    output = str(tmp_path / "out")
    prepare(["blend", "--source", str(people), "--output", output, "--methods", "self_blend", "--size", "64"])
    shown = capsys.readouterr().out
    assert ": train, 6 faces" in shown  # of each face that was read, and its forgery
    assert f"{people / 'd.heic'}: cannot be decoded" in shown and f"{people / 'e.png'}: {NO_FILE}" in shown
    assert "Skipped 1 image in a format not supported here: 1 .dng. Convert it to JPEG first." in shown


# What is looked at


@pytest.mark.parametrize("suffix", ["mpo", "jpe", "hif", "dng", "CR2", "nef", "arw", "raf", "jxl", "divx", "tod"])
def test_pictures_and_videos_of_all_devices_are_found(touch, suffix):
    """codez/ImportPhotoFolders#2 (RAW), python-pillow/Pillow#6720 (MPO), alexballas/go2tv#54 (videos)."""
    root = touch("a.jpg", f"b.{suffix}")
    assert names(find_files(root)) == ["a.jpg", f"b.{suffix}"] and not skipped_files(root)


def test_source_code_is_skipped_under_the_suffixes_of_videos_and_videos_are_not(touch):
    """Of MPEG-TS and camcorders, TypeScript and Go have the suffixes, too."""
    touch("go.mod", data=b"module example.org/a\n\ngo 1.22\n")
    touch("b.ts", "c.mts", "real/b.ts", "fake/c.mts", data=TYPESCRIPT)
    touch("real/d.ts", "fake/d.m2ts", "fake/e.mod", data=b"G\x40\0\x10\0\0\xb0\x0d" + bytes(999))
    root = touch("f.ts", "g.m2ts", data=b"")
    assert sorted(names(find_files(root))) == ["d.m2ts", "d.ts", "e.mod", "f.ts", "g.m2ts"]
    assert skipped_files(root) == {".mod": 1, ".ts": 2, ".mts": 2}
    assert set(clips_in(root)) == {"real/d", "fake/d", "fake/e"}
    assert folder.find(root).skipped == {".ts": 1, ".mts": 1}
    with pytest.raises(InputError, match=r"b\.ts is a text file with a video extension\. Pass an image or a video"):
        is_video(root / "b.ts")
    assert is_video(root / "f.ts") and is_video(root / "real/d.ts")
    with pytest.raises(InputError):
        Video(root / "f.ts")


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found", ".thumbnails"],
)
def test_what_systems_keep_in_folders_is_passed_over_by_detection_and_preparation(touch, name):
    """mbrrg/synology-thumbgen#11, jurplel/qView#651, OpenNeuroOrg/openneuro#2520."""
    root = touch("anna/IMG_1.jpg", f"anna/{name}/IMG_1.jpg/SYNOPHOTO_THUMB_XL.jpg", f"{name}/2.jpg", f"{name}/3.txt")
    touch("anna/._IMG_1.jpg", "anna/Thumbs.db", "anna/desktop.ini")
    assert names(find_files(root)) == ["IMG_1.jpg"] and not skipped_files(root)
    assert names(photograph.path for photograph in find_photographs(root)) == ["IMG_1.jpg"]
    assert names(find_files(root / name)), "given by name, it is looked at"


def test_raw_photos_are_not_said_to_be_no_images():
    assert say_skipped(Counter({".dng": 2, ".txt": 1})) == (
        "Skipped 1 file that is neither an image nor a video: 1 .txt. "
        "Skipped 2 images in formats not supported here: 2 .dng. Convert them to JPEG first."
    )


@pytest.mark.parametrize(
    "name", ["a" * 250 + ".png", "new\nline.png", "emoji😀.PNG", " both .png", "-dash.png", "%.png"]
)
def test_pictures_of_odd_names_are_read(tmp_path, name):
    """macos-fuse-t/fuse-t#114."""
    Image.fromarray(np.full((9, 8, 3), 99, np.uint8)).save(tmp_path / name)
    (path,) = find_files(tmp_path)
    assert not is_video(path) and (read_picture(path) == 99).all()
    assert find_photographs(tmp_path)[0].path == path
