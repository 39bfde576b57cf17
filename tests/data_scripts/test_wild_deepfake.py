"""WildDeepfake: archives are read without being unpacked, lists without a pickle being run, whatever is in them."""

import gzip
import io
import os
import pickle
import shutil
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dcl_face_forgery.data_scripts.archives import LARGEST_MEMBER, Archive
from dcl_face_forgery.data_scripts.failures import Failures
from dcl_face_forgery.data_scripts.layouts import wild_deepfake
from dcl_face_forgery.data_scripts.layouts.wild_deepfake import ArchiveFamily, find
from dcl_face_forgery.data_scripts.prepare import main
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.prepared.dataset import decode_image, find_crop, load_prepared, metadata
from dcl_face_forgery.tests.shared.raw_crops import SIZE, face, pack, png, sequence, swap, write_wild_deepfake

REAL_0 = sequence("1", "real", "0", 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_wild_deepfake(tmp_path_factory.mktemp("wild"))


def load(path, content=None, label="real"):
    """Load an archive; returns its clips by name, and what failed."""
    if content is not None:
        path = path / "1.tar.gz"
        path.write_bytes(content)
    failures = Failures()
    clips = ArchiveFamily(path, "train", label, "1").load(failures)
    return {clip.name: clip for clip in clips}, list(failures)


def read(clip):
    with clip.frames.open() as reader:
        return dict(reader.read(reader.numbers))


def decoded(members):
    return [np.asarray(Image.open(io.BytesIO(content))) for content in members.values()]


def test_archives_are_found_and_not_opened(root, monkeypatch):
    monkeypatch.setattr(Archive, "open", None)
    found = find(root)
    assert found.cropped and found.name == "WildDeepfake"
    assert [[family.path.name for family in families] for families in found.splits.values()] == [
        ["1.tar.gz", "10.tar.gz", "2.tar.gz", "3.tar.gz"],
        ["1.tar.gz", "7.tar.gz"],
    ]
    assert [(part.name, part.found, part.published) for part in found.parts] == [
        ("train, real", 2, None),
        ("train, fake", 2, None),
        ("test, real", 1, None),
        ("test, fake", 1, None),
        ("videos", 6, 707),
    ]
    assert not found.failures


@pytest.mark.parametrize("folder", ["{label} {split}", "{label}-{split}", "{label}_{split}"])
def test_folders_are_found_however_they_are_written(root, tmp_path, folder):
    write_wild_deepfake(tmp_path, folder)
    inner = (tmp_path / "deepfake_in_the_wild").rename(tmp_path / "Deepfake in the Wild")
    counts = {"train": 4, "test": 2}
    assert {split: len(families) for split, families in find(tmp_path).splits.items()} == counts
    assert {split: len(families) for split, families in find(inner).splits.items()} == counts


def test_names_of_clips_are_unique_over_splits(root):
    clips = [
        clip for families in find(root).splits.values() for family in families for clip in family.load(Failures(True))
    ]
    assert [(clip.name, clip.source, clip.method, clip.label) for clip in clips] == [
        ("real/train/1/0", "real/train/1", "real", 0),
        ("real/train/1/12", "real/train/1", "real", 0),
        ("real/train/10/3", "real/train/10", "real", 0),
        ("fake/train/2/0", "fake/train/2", "fake", 1),
        ("fake/train/3/0", "fake/train/3", "fake", 1),
        ("real/test/1/0", "real/test/1", "real", 0),
        ("fake/test/7/0", "fake/test/7", "fake", 1),
    ]


@pytest.mark.parametrize("compressed", [True, False])
def test_frames_are_those_of_the_archive_in_whatever_order_they_lie(tmp_path, compressed):
    """os.walk gives files in no order, so neither frames nor sequences of an archive need have one."""
    members = REAL_0 | sequence("1", "real", "12", 2, (10, 9, 100))
    shuffled = dict(sorted(members.items(), key=lambda item: zlib.crc32(item[0].encode())))
    assert list(shuffled) != list(members)
    clips, failures = load(tmp_path, pack(shuffled, compressed))
    assert not failures and sorted(clips) == ["real/train/1/0", "real/train/1/12"]
    for name in ("12", "0"):
        frames = read(clips[f"real/train/1/{name}"])
        assert list(frames) == sorted(frames)
        for number, image in frames.items():
            assert np.array_equal(image, decoded({"": members[f"1/real/{name}/{number}.png"]})[0])


def test_clips_that_lie_one_after_the_other_are_read_in_one_pass(tmp_path, monkeypatch):
    """PNG does not compress, so noise stands for it; frames lie in the order of nothing."""
    noise = np.random.default_rng(0)
    members = {f"1/real/{n // 20}/{199 - n}.png": noise.bytes(100_000) for n in range(160)}
    clips, failures = load(tmp_path, pack(members))
    assert not failures and len(clips) == 8
    opened = []
    monkeypatch.setattr(gzip._GzipReader, "_rewind", None)
    monkeypatch.setattr(gzip, "GzipFile", lambda original=gzip.GzipFile, **how: opened.append(1) or original(**how))
    for clip in clips.values():
        with clip.frames.open() as reader:
            frames = list(reader.read(reader.numbers[::3]))
            assert len(frames) == 7 and all("it is not an image" in str(frame) for _, frame in frames)
    assert len(opened) == 1


def test_frames_are_read_in_the_order_in_which_they_lie(tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    members = {f"1/real/0/{number}.png": noise.bytes(100_000) for number in range(30, 0, -1)}
    clips, _ = load(tmp_path, pack(members))
    monkeypatch.setattr(gzip._GzipReader, "_rewind", None)
    assert list(read(clips["real/train/1/0"])) == list(range(1, 31))


def special(kind, name="1/real/0/9.png", target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def of_size(size, name="1/real/0/9.png", kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


class _Sparse(tarfile.TarInfo):
    """A member that claims a terabyte and holds nothing."""

    def tobuf(self, *_):
        header = bytearray(super().tobuf(tarfile.GNU_FORMAT))
        header[386:398] = header[398:410] = b"00000000000\0"
        header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header)


def sparse():
    info = _Sparse("1/real/0/9.png")
    info.type = tarfile.GNUTYPE_SPARSE
    return info


NO_NAME = "the name of a member is not <N>/<real or fake>/<sequence>/<frame>.png"
NO_FILE = "a member is not a regular file"


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    ("member", "why"),
    [
        (("../../real/0/9.png", b"x"), NO_NAME),
        (("1/real/../9.png", b"x"), NO_NAME),
        (("/1/real/0/9.png", b"x"), NO_NAME),
        (("real/0/9.png", b"x"), NO_NAME),
        (("1/real/0/cover.png", b"x"), NO_NAME),
        (("1/real/0/9.txt", b"x"), NO_NAME),
        (("1/real/0\\..\\..\\x/9.png", b"x"), NO_NAME),
        (("1/real/a\nb/9.png", b"x"), NO_NAME),
        (("1/fake/0/9.png", b"x"), "the label of a member differs from that of the folder"),
        (("1/real/0/001.png", b"x"), "duplicate frame"),
        (special(tarfile.SYMTYPE), NO_FILE),
        (special(tarfile.LNKTYPE), NO_FILE),
        (special(tarfile.FIFOTYPE), NO_FILE),
        (special(tarfile.CHRTYPE), NO_FILE),
        (special(tarfile.BLKTYPE), NO_FILE),
        (sparse(), NO_FILE),
        ((of_size(LARGEST_MEMBER + 1), bytes(LARGEST_MEMBER + 1)), "a member is too large for a face crop"),
    ],
)
def test_members_that_are_no_frames_are_named_and_the_rest_is_read(tmp_path, monkeypatch, member, why, compressed):
    monkeypatch.chdir(tmp_path)
    first, second = dict(list(REAL_0.items())[:2]), dict(list(REAL_0.items())[2:])
    clips, failures = load(tmp_path, pack([*first.items(), member, *second.items()], compressed))
    assert [failure.reason for failure in failures] == [why]
    assert repr(getattr(member, "name", None) or getattr(member[0], "name", member[0]))[1:-1] in failures[0].detail
    assert list(clips) == ["real/train/1/0"]
    images = read(clips["real/train/1/0"])
    assert all(np.array_equal(*pair) for pair in zip(images.values(), decoded(REAL_0), strict=True))
    assert [path.name for path in tmp_path.rglob("*")] == ["1.tar.gz"]


def test_folders_and_files_of_file_managers_are_passed_over(tmp_path):
    folder = tarfile.TarInfo("1/real/0")
    folder.type = tarfile.DIRTYPE
    clips, failures = load(tmp_path, pack([folder, ("1/real/0/._1.png", b"x"), (".DS_Store", b"x"), *REAL_0.items()]))
    assert not failures and read(clips["real/train/1/0"]).keys() == {1, 2, 3, 4}


def test_many_members_that_are_no_frames_are_one_line(tmp_path):
    _, failures = load(tmp_path, pack({f"{n}.txt": b"" for n in range(1000)} | REAL_0))
    assert [failure.detail for failure in failures] == ["'0.txt', '1.txt', '2.txt' and 997 more"]


def peak_of(function, *arguments):
    tracemalloc.start()
    try:
        return function(*arguments), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def open_end(members):
    """Return an archive without the blocks that end it, to which more can be added."""
    return b"".join(
        of_size(len(content), name).tobuf() + content + bytes(-len(content) % 512) for name, content in members.items()
    )


def test_a_gzip_bomb_is_named_and_fills_no_memory(tmp_path):
    bomb = gzip.compress(open_end(REAL_0) + of_size(64 << 20).tobuf() + bytes(64 << 20))
    assert len(bomb) < 1 << 20
    (clips, failures), peak = peak_of(load, tmp_path, bomb)
    assert [failure.reason for failure in failures] == [
        "archive cannot be read completely",
        "a member is too large for a face crop",
    ]
    assert "inflates to more than" in failures[0].detail
    assert len(read(clips["real/train/1/0"])) == 4
    assert peak < 8 << 20


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_that_claims_much_is_named_and_fills_no_memory(tmp_path, kind):
    """tarfile reads names and attributes whole, whatever their length."""
    header = special(kind)
    header.size = 200 << 20
    path = tmp_path / "1.tar.gz"
    path.write_bytes(open_end(REAL_0) + header.tobuf())
    os.truncate(path, path.stat().st_size + (200 << 20))  # a hole, which takes no space
    (clips, failures), peak = peak_of(load, path)
    assert [(failure.reason, failure.detail) for failure in failures] == [
        ("archive cannot be read completely", "a header claims 209,715,200 bytes")
    ]
    assert len(read(clips["real/train/1/0"])) == 4
    assert peak < 8 << 20


def test_headers_of_headers_without_end_are_named(tmp_path):
    """Each makes tarfile call itself."""
    names = b"".join(of_size(2, "x", tarfile.GNUTYPE_LONGNAME).tobuf() + b"y\0" + bytes(510) for _ in range(5000))
    clips, failures = load(tmp_path, open_end(REAL_0) + names + pack({}, False))
    assert "a header claims" in failures[0].detail and len(clips) == 1


def test_a_header_that_leads_back_does_not_hang(tmp_path):
    info = of_size(0)
    header = bytearray(info.tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512, so that the next header would be this one
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    clips, failures = load(tmp_path, open_end(REAL_0) + bytes(header) + pack({}, False))
    assert [failure.reason for failure in failures] == ["archive cannot be read completely"]
    assert len(read(clips["real/train/1/0"])) == 4


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_of_an_archive_that_is_cut_off_what_came_before_is_kept(tmp_path, share, compressed):
    whole = pack(sequence("1", "real", "0", 1, range(10)), compressed)
    size = int(len(whole.rstrip(b"\0")) * share)
    clips, failures = load(tmp_path, whole[:size])
    assert [failure.reason for failure in failures] == ["archive cannot be read completely"]
    frames = read(clips["real/train/1/0"])
    assert list(frames) == list(range(len(frames))) and abs(len(frames) - 10 * share) <= 1.5
    assert all(np.array_equal(image, face(1, number + 1)[0]) for number, image in frames.items())


def test_an_archive_cut_off_between_two_members_is_named(tmp_path):
    clips, failures = load(tmp_path, open_end(REAL_0))
    assert [failure.detail for failure in failures] == ["it is truncated or damaged"]
    assert len(read(clips["real/train/1/0"])) == 4


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b", b"no archive" * 100, gzip.compress(b"no archive" * 100), b"BZh9" + bytes(2000)],
    ids=["empty", "magic", "text", "compressed", "bzip2"],
)
def test_what_is_no_archive_is_named(tmp_path, content):
    clips, failures = load(tmp_path, content)
    assert not clips and failures[0].reason == "archive cannot be read completely"


def test_a_corrupt_archive_is_named_and_what_came_before_is_kept(tmp_path):
    members = {
        name: content
        for person in (1, 2, 3)
        for name, content in sequence("1", "real", str(person), person, range(10)).items()
    }
    content = bytearray(pack(members))
    damage = len(content) * 3 // 4
    content[damage : damage + 200] = b"\xff" * 200
    clips, failures = load(tmp_path, bytes(content))
    assert [failure.reason for failure in failures] == ["archive cannot be read completely"]
    frames = {(int(name[-1]), number): image for name, clip in clips.items() for number, image in read(clip).items()}
    good = {key: image for key, image in frames.items() if not isinstance(image, InputError)}
    assert len(good) >= damage // (len(content) // 30) - 1 > 20
    assert all(np.array_equal(image, face(person, number + 1)[0]) for (person, number), image in good.items())


def test_an_archive_of_a_wrong_checksum_is_named(tmp_path):
    content = bytearray(pack(REAL_0))
    content[-8] ^= 1
    clips, failures = load(tmp_path, bytes(content))
    assert "CRC check failed" in failures[0].detail and len(read(clips["real/train/1/0"])) == 4


def test_archives_of_several_gzip_streams_are_read_whole(tmp_path):
    tar = pack(REAL_0, False)
    clips, failures = load(tmp_path, gzip.compress(tar[:9000]) + gzip.compress(tar[9000:]) + bytes(100))
    assert not failures and len(read(clips["real/train/1/0"])) == 4


def huge_png(side):
    """Return a PNG that claims many pixels, all black."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    size = side.to_bytes(4, "big")
    lines = zlib.compress(bytes(1 << 20))
    head = chunk(b"IHDR", size + size + b"\x08\x00\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (huge_png(50_000), "pixels"),
        (huge_png(9_000), "9000x9000 pixels"),  # which Pillow would decode
        (b"no image", "it is not an image"),
        (png(face(1, 1)[0])[:5000], ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "it is a PostScript file"),
    ],
    ids=["bomb", "large", "text", "cut", "eps"],
)
def test_an_image_that_cannot_be_decoded_costs_only_itself(tmp_path, content, why):
    clips, failures = load(tmp_path, pack(REAL_0 | {"1/real/0/2.png": content}))
    assert not failures
    frames, peak = peak_of(read, clips["real/train/1/0"])
    assert isinstance(frames[2], InputError) and why in str(frames[2]) and "1/real/0/2.png" in str(frames[2])
    assert [number for number, image in frames.items() if isinstance(image, np.ndarray)] == [1, 3, 4]
    assert peak < 8 << 20


def test_an_archive_that_went_away_costs_frames_and_no_run(tmp_path):
    clips, _ = load(tmp_path, pack(REAL_0))
    (tmp_path / "1.tar.gz").unlink()
    assert all("cannot be opened" in str(frame) for frame in read(clips["real/train/1/0"]).values())


def test_clips_of_an_archive_can_be_read_in_another_process(tmp_path):
    clips, _ = load(tmp_path, pack(REAL_0))
    copy = pickle.loads(pickle.dumps(clips["real/train/1/0"]))
    assert all(np.array_equal(*pair) for pair in zip(read(copy).values(), decoded(REAL_0), strict=True))


def test_two_archives_of_one_name_are_named(tmp_path):
    write_wild_deepfake(tmp_path)
    folder = tmp_path / "deepfake_in_the_wild" / "real_train"
    shutil.copy(folder / "1.tar.gz", folder / "1.tar")
    found = find(tmp_path)
    assert [(failure.reason, failure.detail) for failure in found.failures] == [
        ("another archive has the same name", "1.tar")
    ]
    assert len(found.splits["train"]) == 4


@pytest.fixture
def listed(tmp_path):
    """Images in folders, and lists of them by torch and by pickle."""
    for label, person in (("real", 1), ("fake", 2)):
        names = []
        for split in ("train", "test"):
            for name, content in (
                sequence("4", label, "0", person) | sequence("4", label, "1", person, (8, 9))
            ).items():
                path = tmp_path / split / "crops" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                names.append(f"crops/{name}")
        torch.save(names, tmp_path / "train" / f"{label}.pickle")
        (tmp_path / "test" / f"{label}.pickle").write_bytes(pickle.dumps(names))
    return tmp_path


def test_lists_of_images_become_clips(listed):
    found = find(listed)
    assert found.cropped and not found.failures and set(found.splits) == {"train", "test"}
    families = [[clip.name for clip in family.clips] for family in found.splits["train"]]
    assert families == [
        ["real/train/crops/4/real/0", "real/train/crops/4/real/1"],
        ["fake/train/crops/4/fake/0", "fake/train/crops/4/fake/1"],
    ]
    clip = found.splits["test"][0].clips[0]
    assert (clip.label, clip.source) == (0, "real/test/crops/4")
    frames = read(clip)
    assert list(frames) == [1, 2, 3, 4] and np.array_equal(frames[3], face(1, 3)[0])
    assert [(part.name, part.found) for part in found.parts] == [
        (f"{split}, {label}", 2) for split in ("train", "test") for label in ("real", "fake")
    ]


def test_paths_that_lead_out_and_images_that_are_missing_are_named(listed):
    astray = [
        "../out/1.png",
        "/etc/2.png",
        "C:\\x\\3.png",
        "crops/x.png",
        "crops/\ud800/5.png",
        "crops/\0/6.png",
        "x" * 5000,
    ]
    names = [*astray, "crops\\4\\real\\0\\1.png", "crops/4/real/0/99.png", "y" * 5000 + "/7.png"]
    for name in ("out/1.png", "train/crops/x.png"):
        (listed / name).parent.mkdir(exist_ok=True)
        (listed / name).touch()
    (listed / "train" / "real.pickle").write_bytes(pickle.dumps(names))
    found = find(listed)
    assert [clip.frames.paths for clip in found.splits["train"][0].clips] == [
        {1: listed / "train" / "crops" / "4" / "real" / "0" / "1.png"}
    ]
    failures = list(found.failures)
    assert [failure.reason for failure in failures] == [
        *["not a numbered image below the folder of the list"] * len(astray),
        *["listed, but not found"] * 2,
    ]
    assert [failure.frames for failure in failures[-2:]] == [[99], [7]]


class Trap:
    """Pickled, it would make a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_not_run(listed, protocol):
    path, trap = listed / "train" / "real.pickle", Trap(listed / "sprung")
    path.write_bytes(pickle.dumps(["crops/4/real/0/1.png", trap], protocol))
    with pytest.raises(InputError, match=r"real.pickle cannot be read .* more than strings: the operation \w*GLOBAL"):
        find(listed)
    torch.save([trap], path, pickle_protocol=max(protocol, 2))
    with pytest.raises(InputError, match="more than strings"):
        find(listed)
    assert not trap.path.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_lists_of_all_protocols_are_read(tmp_path, protocol):
    names = [f"a/{number}.png" for number in range(3000)] + ["größe/1.png", "x" * 300]
    path = tmp_path / "real.pickle"
    path.write_bytes(pickle.dumps([*names, names[0]], protocol))
    assert wild_deepfake.read_list(path) == names


def test_a_zip_bomb_fills_no_memory(listed, monkeypatch):
    monkeypatch.setattr(wild_deepfake, "_LARGEST_LIST", 1 << 20)
    with zipfile.ZipFile(listed / "train" / "real.pickle", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(30 << 20))
    with pytest.raises(InputError, match="more than 1,048,576 bytes"):
        peak_of(find, listed)
    tracemalloc.start()
    with pytest.raises(InputError):
        find(listed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"garbage", pickle.dumps({"a": 1}), pickle.dumps([1])],
    ids=["empty", "zip", "text", "dict", "number"],
)
def test_what_is_no_list_is_refused_in_a_sentence(listed, content):
    (listed / "train" / "real.pickle").write_bytes(content)
    with pytest.raises(
        InputError, match=r"real.pickle cannot be read as a list of image paths \(.*\)\. Write it again"
    ):
        find(listed)


def test_a_folder_with_neither_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"contains neither archives .* nor lists"):
        find(tmp_path)


def prepare(root, output, *flags):
    with pytest.raises(SystemExit) as stop:
        main(["wild_deepfake", "--root", str(root), "--output", str(output), *flags])
    return stop.value.code


def test_archives_become_rows(root, tmp_path):
    assert prepare(root, tmp_path, "--frames", "3", "--num_proc", "2", "--families_per_shard", "2") == 0
    dataset = load_prepared(str(tmp_path), "train")
    table = metadata(dataset).to_pandas()
    assert {name: list(frames) for name, frames in table.groupby("video_id").frame} == {
        "real/train/1/0": [1, 2, 4],
        "real/train/1/12": [57, 58, 59],
        "real/train/10/3": [1, 2, 4],
        "fake/train/2/0": [1, 2, 4],
        "fake/train/3/0": [1, 2, 4],
    }
    assert (table.source_id == table.video_id.str.rpartition("/")[0]).all()
    assert (table.label == table.video_id.str.startswith("fake")).all() and (table.method != "").all()
    assert find_crop(dataset, "") == {"kind": "given", "margin": None, "size": SIZE, "detector": None}
    assert set(table.dataset) == {"WildDeepfake"}
    for row in dataset:
        number = row["frame"] if row["frame"] < 57 else row["frame"] - 56
        person = {"1": 1, "10": 2, "2": 3, "3": 4}[row["video_id"].split("/")[2]]
        image = face(person, number)[0]
        if row["label"]:
            image = swap(image, face(person + 20, 1)[0])[0]
        assert np.array_equal(decode_image(row["image"], ""), image)
        assert (row["mask"] is None) == (row["label"] == 1) and row["landmarks"] is None
    assert len(load_prepared(str(tmp_path), "test")) == 6


def test_a_damaged_archive_is_reported_and_the_rest_prepared(root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "wild")
    path = tmp_path / "wild" / "deepfake_in_the_wild" / "fake_train" / "2.tar.gz"
    path.write_bytes(path.read_bytes()[:3000])
    assert prepare(tmp_path / "wild", tmp_path / "out") == 3
    assert f"{path}: archive cannot be read completely (it is truncated)" in capsys.readouterr().out
    videos = set(metadata(load_prepared(str(tmp_path / "out"), "train")).to_pandas().video_id)
    assert "fake/train/3/0" in videos and "fake/train/2/0" not in videos


def test_a_size_that_was_not_asked_of_crops_is_refused(root, tmp_path):
    assert "are already cropped" in prepare(root, tmp_path, "--size", "64")
