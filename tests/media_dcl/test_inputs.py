"""Folders: what is looked at, and that the rest is not passed over in silence."""

import pytest

from dcl_face_forgery.media_dcl import find_files, say_skipped, skipped_files


@pytest.fixture
def folder(tmp_path):
    def folder(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return tmp_path

    return folder


PICTURES = ["a.jfif", "b.jpe", "c.APNG", "d.dib", "e.pnm", "f.pbm", "g.mpo", "h.heic", "i.HIF", "j.avif", "k.jpg"]


def test_pictures_of_every_suffix_are_looked_at(folder):
    place = folder(*PICTURES, "l.mp4", "m.jxl")
    assert [path.name for path in find_files(place)] == [*PICTURES, "l.mp4", "m.jxl"]
    assert say_skipped(skipped_files(place)) == ""


def test_what_is_passed_over_is_counted_by_suffix(folder):
    place = folder("a.png", "b.txt", "sub/c.TXT", "sub/d.pdf")
    assert skipped_files(place) == {".txt": 2, ".pdf": 1}
    assert say_skipped(skipped_files(place)) == "Skipped 3 files that are neither images nor videos: 2 .txt, 1 .pdf."
    assert say_skipped(skipped_files(place / "sub"), videos=False) == (
        "Skipped 2 files that are not images: 1 .txt, 1 .pdf."
    )


def test_what_systems_leave_in_folders_is_not_counted(folder):
    names = ("._a.png", ".DS_Store", "Thumbs.db", "sub/desktop.ini", ".git/config", "__MACOSX/._b.jpg")
    assert not skipped_files(folder("a.png", *names))


def test_odd_names_stay_out_of_the_sentence(folder):
    place = folder("README", "a.what a long name it has", "b.\x1b[31m")
    assert say_skipped(skipped_files(place)) == (
        "Skipped 3 files that are neither images nor videos: 3 without extension."
    )
    assert say_skipped(skipped_files(folder("c.txt") / "nowhere")) == ""


def test_one_file_and_many_kinds_are_said_in_one_sentence(folder, tmp_path):
    assert say_skipped(skipped_files(folder("a.txt"))) == (
        "Skipped 1 file that is neither an image nor a video: 1 .txt."
    )
    place = folder(*(f"{number}.{kind}" for kind in "bcdefgh" for number in range(2)))
    assert say_skipped(skipped_files(place)).endswith("2 .f, 5 others.")
