"""One command makes three splits of one's own data: by family, near the shares, copies of a picture together."""

import hashlib
import shutil
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from dcl_face_forgery.data_scripts import shard_work
from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.data_scripts.clips import check_shares
from dcl_face_forgery.data_scripts.prepare import main
from dcl_face_forgery.data_scripts.splitting import Families
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.prepared.dataset import load_prepared, metadata

THREE = {"train": 0.8, "validation": 0.1, "test": 0.1}


def table(folder, split):
    return metadata(load_prepared(str(folder), split)).to_pandas()


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


def outcome(*arguments):
    """Run the command; returns its exit status or sentence."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


# ------------------------------------------------------------------------------------------------- the families dealt


def deal(faces, shares=THREE, **options):
    return Families(faces).deal(shares, "mine", **options)


def test_shares_are_met_in_faces_and_do_not_depend_on_the_order():
    faces = {f"s{person}": (10, 0) for person in range(40)}
    dealt = deal(faces)
    assert Counter(dealt.values()) == {"train": 32, "validation": 4, "test": 4}
    assert deal(dict(reversed(faces.items()))) == dealt
    assert deal(faces, seed=1) != dealt


def test_sizes_count_not_families():
    dealt = deal({"long": (80, 80), "short": (10, 10), "other": (10, 10)})
    assert dealt == {"long": "train", "short": dealt["short"], "other": dealt["other"]}
    assert {dealt["short"], dealt["other"]} == {"validation", "test"}


@pytest.mark.parametrize("seed", range(30))
def test_every_split_gets_both_classes_where_that_can_be(seed):
    """Families of reals, of fakes and of both, just enough of each."""
    rng = np.random.default_rng(seed)
    both = int(rng.integers(0, 3))
    kinds = ["both"] * both + ["real"] * (3 - both) + ["fake"] * (3 - both)
    sizes = rng.integers(1, 50, (len(kinds), 2))
    faces = {
        f"{kind}{number}": (int(size[0]) * (kind != "fake"), int(size[1]) * (kind != "real"))
        for number, (kind, size) in enumerate(zip(kinds, sizes, strict=True))
    }
    dealt = deal(faces)
    for label in (0, 1):
        assert {dealt[family] for family, counts in faces.items() if counts[label]} == set(THREE)


def test_joined_families_stay_together():
    families = Families(dict.fromkeys("abcdef", (1, 0)))
    families.join("a", "b")
    families.join_groups({"b": "person", "c": "person", "e": "other"})
    dealt = families.deal({"train": 0.5, "validation": 0.5}, "mine")
    assert len({dealt[name] for name in "abc"}) == 1 and Counter(dealt.values()) == {"train": 3, "validation": 3}


def test_too_few_families_are_counted_in_the_error():
    with pytest.raises(InputError, match="mine has 2 families with real faces, but 3 splits need at least 3"):
        deal({"a": (5, 5), "b": (5, 5)})
    with pytest.raises(InputError, match="mine has 1 family with fake faces, but 3 splits need at least 3"):
        deal({"a": (5, 5), "b": (5, 0), "c": (5, 0)})


@pytest.mark.parametrize("shares", [(80, 10, 5), (100,), (25, 25, 25, 25), (110, -10), (float("nan"), 50)])
def test_shares_that_make_no_sense_get_one_sentence(shares):
    with pytest.raises(InputError, match=r"Pass two or three percentages that sum to 100"):
        check_shares(shares)
    assert check_shares([80, 0, 20]) == {"train": 0.8, "test": 0.2}


# ---------------------------------------------------------------------------------------------------- blend, as a user


def photograph(person, number=1):
    return Image.open(fetch("orl") / f"s{person}" / f"{number}.pgm")


@pytest.fixture
def people(tmp_path):
    """Six people, two photographs each; a small copy of one of the first person lies in the folder of the fourth."""
    for person in range(1, 7):
        (tmp_path / "people" / f"s{person}").mkdir(parents=True)
        for number in (1, 5):
            photograph(person, number).save(tmp_path / "people" / f"s{person}" / f"{number}.png")
    photograph(1).resize((70, 86)).convert("RGB").save(tmp_path / "people" / "s4" / "copy.jpg", quality=60)
    return tmp_path / "people"


def blend(source, output, *flags):
    methods = ["--size", "96", "--methods", "local_warp"]
    return outcome("blend", "--source", source, "--output", output, *methods, *flags)


def test_blend_makes_three_splits_of_photographs(people, tmp_path, capsys):
    shares = ["--split_shares", "60", "20", "20"]
    assert blend(people, tmp_path / "out", *shares) == 0
    assert "people/s1/1.png and people/s4/copy.jpg are the same or nearly the same image" in capsys.readouterr().out
    rows = {split: table(tmp_path / "out", split) for split in THREE}
    families = {split: set(of_split.source_id) for split, of_split in rows.items()}
    assert sorted(chain(*families.values())) == [f"people/s{person}" for person in range(1, 7)]
    assert any({"people/s1", "people/s4"} <= family for family in families.values())
    assert all(set(of_split.label) == {0, 1} for of_split in rows.values())
    before = digests(tmp_path / "out")
    assert blend(people, tmp_path / "out", *shares) == 0 and digests(tmp_path / "out") == before
    (tmp_path / "out" / "validation.parquet").unlink()  # as a killed run leaves it
    assert blend(people, tmp_path / "out", *shares) == 0 and digests(tmp_path / "out") == before
    assert "--overwrite" in blend(people, tmp_path / "out", "--split_shares", "80", "20")
    assert blend(people, tmp_path / "out", "--split_shares", "80", "20", "--overwrite") == 0
    assert sorted(digests(tmp_path / "out")) == ["train.parquet", "validation.parquet"]


def test_blend_divides_a_prepared_set_of_one_split(people, tmp_path):
    assert blend(people, tmp_path / "one") == 0
    again = ["--source", tmp_path / "one", "--methods", "self_blend", "--split_shares", "50", "50"]
    assert outcome("blend", *again, "--output", tmp_path / "two") == 0
    assert sorted(digests(tmp_path / "two")) == ["train.parquet", "validation.parquet"]
    message = outcome("blend", "--source", tmp_path / "two", *again[2:], "--output", tmp_path / "three")
    assert "is already split into train, validation" in message


def test_one_person_and_three_pictures(people, tmp_path):
    only = tmp_path / "only"
    shutil.copytree(people / "s2", only / "s2")
    assert "1 family with real faces, but 2 splits need at least 2" in blend(
        only, tmp_path / "a", "--split_shares", "80", "20"
    )
    (tmp_path / "loose").mkdir()
    for person in (1, 2, 3):
        photograph(person).save(tmp_path / "loose" / f"{person}.png")
    assert blend(tmp_path / "loose", tmp_path / "b", "--split_shares", "80", "10", "10") == 0
    assert [len(set(table(tmp_path / "b", split).source_id)) for split in THREE] == [1, 1, 1]


def test_shares_and_a_single_split_do_not_go_together(people, tmp_path):
    flags = ["--split_shares", "80", "20", "--split", "test"]
    assert "Pass one of them" in blend(people, tmp_path / "out", *flags)
    assert "sum 95" in blend(people, tmp_path / "out", "--split_shares", "80", "10", "5")
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------- folder, as a user


@pytest.fixture
def footage(tmp_path):
    """Eight people: a real clip of two photographs each and its mirrored fake; the seventh has one of the second."""
    for person in range(1, 9):
        for side in ("real", "fake/mirror"):
            (tmp_path / "footage" / side / f"{person:03}").mkdir(parents=True)
            for number in (1, 5):
                image = photograph(person, number)
                image = image if side == "real" else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                image.save(tmp_path / "footage" / side / f"{person:03}" / f"{number}.png")
    photograph(2).resize((70, 86)).save(tmp_path / "footage" / "real" / "007" / "1.png")
    return tmp_path / "footage"


SHARES = ("--size", "96", "--families_per_shard", "2", "--split_shares", "60", "20", "20")


def folder(root, output, *flags):
    return outcome("folder", "--root", root, "--output", output, *flags)


def test_folder_makes_three_splits_whatever_the_number_of_processes(footage, tmp_path, capsys):
    assert folder(footage, tmp_path / "out", *SHARES) == 0
    assert "real/002/1.png and real/007/1.png are the same or nearly the same image" in capsys.readouterr().out
    rows = {split: table(tmp_path / "out", split) for split in THREE}
    families = {split: set(of_split.source_id) for split, of_split in rows.items()}
    assert sum(map(len, families.values())) == 8 == len(set.union(*families.values()))
    assert any({"real/002", "real/007"} <= family for family in families.values())
    assert all(set(of_split.label) == {0, 1} for of_split in rows.values())
    assert abs(len(rows["train"]) / 32 - 0.6) < 0.1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*digests(tmp_path / "out"), shard_work.SUMMARY}
    assert folder(footage, tmp_path / "two", *SHARES, "--num_proc", "2") == 0
    assert digests(tmp_path / "two") == digests(tmp_path / "out")


def test_a_killed_division_goes_on_to_the_same_files(footage, tmp_path, monkeypatch):
    assert folder(footage, tmp_path / "whole", *SHARES) == 0
    write, written = shard_work.write_shard, []

    def killed(path, *arguments):
        if path.parent.name != shard_work.STAGING:
            if written:
                raise KeyboardInterrupt
            written.append(path)
        return write(path, *arguments)

    monkeypatch.setattr(shard_work, "write_shard", killed)
    assert folder(footage, tmp_path / "out", *SHARES) == 130
    assert len(digests(tmp_path / "out")) == 1
    monkeypatch.setattr(shard_work, "write_shard", write)
    assert folder(footage, tmp_path / "out", *SHARES) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    monkeypatch.setattr(shard_work, "prepare_raw", None)  # what is done is not done again
    assert folder(footage, tmp_path / "out", *SHARES) == 0


def test_what_was_left_out_is_tried_again_if_that_is_asked_for(footage, tmp_path):
    (footage / "real" / "001" / "5.png").write_bytes(b"damaged")
    assert folder(footage, tmp_path / "out", *SHARES) == 3
    before, written = digests(tmp_path / "out"), (tmp_path / "out" / "test.parquet").stat().st_mtime_ns
    assert folder(footage, tmp_path / "out", *SHARES) == 3
    assert (tmp_path / "out" / "test.parquet").stat().st_mtime_ns == written
    assert folder(footage, tmp_path / "out", *SHARES, "--retry_failed") == 3
    assert (tmp_path / "out" / "test.parquet").stat().st_mtime_ns != written and digests(tmp_path / "out") == before


def test_jobs_share_the_work_and_the_last_one_divides(footage, tmp_path):
    assert folder(footage, tmp_path / "whole", *SHARES) == 0
    for job in ("0", "1"):
        assert not digests(tmp_path / "out")
        assert folder(footage, tmp_path / "out", *SHARES, "--num_shards", "2", "--shard_index", job) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_other_shares_and_other_files_replace_all_splits(footage, tmp_path):
    assert folder(footage, tmp_path / "out", *SHARES) == 0
    others = (*SHARES[:-3], "50", "50")
    assert "was prepared with other settings" in folder(footage, tmp_path / "out", *others)
    assert folder(footage, tmp_path / "out", *others, "--overwrite") == 0
    assert {name.split("-")[0].split(".")[0] for name in digests(tmp_path / "out")} == {"train", "validation"}
    before = digests(tmp_path / "out")
    shutil.rmtree(footage / "real" / "001")
    assert folder(footage, tmp_path / "out", *others) == 0
    left = set(table(tmp_path / "out", "train").source_id) | set(table(tmp_path / "out", "validation").source_id)
    assert "real/001" not in left and digests(tmp_path / "out") != before


def test_videos_in_the_folder_of_a_person_stay_together(tmp_path):
    from dcl_face_forgery.data_scripts.layouts import folder as layout

    for name in ("real/anna/1", "real/anna/2", "real/ben", "fake/swap/anna/7", "fake/swap/ben", "fake/warp/eve"):
        path = tmp_path / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    groups = layout.find(tmp_path).groups
    assert groups["real/anna/1"] == groups["real/anna/2"] == groups["swap/anna/7"] != groups["real/ben"]
    assert groups["warp/eve"] not in (groups["real/anna/1"], groups["real/ben"])


def test_a_split_set_is_not_split_again_and_a_split_beside_others_shares_no_picture(footage, tmp_path):
    shutil.copytree(footage, tmp_path / "both" / "train")
    shutil.copytree(footage, tmp_path / "both" / "test")
    assert "is already split into train, test" in folder(tmp_path / "both", tmp_path / "out", *SHARES)
    message = folder(tmp_path / "both", tmp_path / "out", "--size", "96")
    assert "(train) and real/001/1.png (test) are the same image" in message
