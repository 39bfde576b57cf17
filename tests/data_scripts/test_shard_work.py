"""Preparing at scale: shards that are done once, by one process or many, whatever is killed when."""

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from dcl_face_forgery.data_scripts import assets, publishing, shard_work, shards
from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.data_scripts.clips import Clip, ClipFamily, RawDataSet
from dcl_face_forgery.data_scripts.extract import Extraction
from dcl_face_forgery.data_scripts.frames import ImageFrames
from dcl_face_forgery.data_scripts.prepare import main
from dcl_face_forgery.data_scripts.shard_work import SUMMARY, Execution, prepare_raw
from dcl_face_forgery.data_scripts.shards import Report, read_record, write_shard
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.faces_dcl import Face
from dcl_face_forgery.prepared.dataset import decode_image, load_prepared, metadata
from dcl_face_forgery.tests.shared.prepared_data import make_rows
from dcl_face_forgery.tests.shared.raw_data_sets import encode
from dcl_face_forgery.video_dcl import Video


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twelve people, each a real clip of two photographs and a fake one of the same photographs, mirrored."""
    folder = tmp_path_factory.mktemp("raw") / "people"
    for person in range(1, 13):
        for photo in (1, 2):
            image = Image.open(fetch("orl") / f"s{person}" / f"{photo}.pgm")
            for side, picture in (("real", image), ("fake/mirror", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
                path = folder / side / f"{person:03}" / f"{photo}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    return folder


def command(root, output, *flags):
    return [
        "folder",
        "--root",
        str(root),
        "--output",
        str(output),
        "--size",
        "64",
        "--families_per_shard",
        "2",
        *flags,
    ]


def prepare(*arguments):
    """Run the command; returns its exit status or sentence."""
    with pytest.raises(SystemExit) as stop:
        main(command(*arguments))
    return stop.value.code


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The set as one process prepares it."""
    output = tmp_path_factory.mktemp("whole")
    assert prepare(root, output) == 0
    return output


def test_families_are_dealt_to_shards_whole(whole):
    assert sorted(digests(whole)) == [f"train-{index:05}-of-00006.parquet" for index in range(6)]
    tables = [pq.read_table(path, columns=["source_id", "video_id"]).to_pandas() for path in whole.glob("*.parquet")]
    families = [set(table.source_id) for table in tables]
    assert [len(family) for family in families] == [2] * 6 and len(set.union(*families)) == 12
    assert all((table.source_id != table.source_id.shift()).sum() == 2 for table in tables)
    assert all(
        set(table.video_id) == {f"{s}/{f[5:]}" for s in ("real", "mirror") for f in set(table.source_id)}
        for table in tables
    )


def test_a_shard_is_like_the_whole(whole):
    """Families that lie beside each other are often of one kind, and training draws from few shards at once."""
    first = pq.read_table(whole / "train-00000-of-00006.parquet", columns=["source_id"])["source_id"].to_pylist()
    assert set(first) != {"real/001", "real/002"}


def test_other_readers_take_the_shards_for_one_data_set(whole):
    assert len(load_dataset(str(whole), split="train")) == len(load_prepared(str(whole), "train")) == 48


def test_several_processes_write_what_one_writes(root, whole, tmp_path):
    assert prepare(root, tmp_path, "--num_proc", "2") == 0
    assert digests(tmp_path) == digests(whole)


def test_jobs_share_the_work_and_the_last_sees_all_of_it(root, whole, tmp_path, capsys):
    assert prepare(root, tmp_path, "--shard_index", "1", "--num_shards", "2") == 0
    assert sorted(digests(tmp_path)) == [f"train-{index:05}-of-00006.parquet" for index in (1, 3, 5)]
    assert "3 of 6 shards remain for the other jobs" in capsys.readouterr().out
    with pytest.raises(InputError, match="incomplete"):
        load_prepared(str(tmp_path), "train")
    assert prepare(root, tmp_path, "--shard_index", "0", "--num_shards", "2") == 0
    assert digests(tmp_path) == digests(whole)
    assert json.loads((tmp_path / SUMMARY).read_text())["faces"] == 48


def test_a_job_makes_its_own_shards_whatever_others_have_done(root, whole, tmp_path):
    """The jobs of an array start at different times, and see different shards done."""
    for job in ("0", "1"):
        assert prepare(root, tmp_path, "--shard_index", job, "--num_shards", "3") == 0
    assert prepare(root, tmp_path, "--shard_index", "2", "--num_shards", "3") == 0
    assert digests(tmp_path) == digests(whole)


@pytest.mark.slow
def test_a_local_ray_cluster_writes_what_one_process_writes(root, whole, tmp_path):
    pytest.importorskip("ray")
    assert prepare(root, tmp_path, "--ray", "--num_proc", "2") == 0
    assert digests(tmp_path) == digests(whole)


def start(root, output, *flags):
    """Start the command as a user does; it leads its own group, so that nothing but it is killed."""
    arguments = [sys.executable, "-m", "dcl_face_forgery.data_scripts.prepare", *command(root, output, *flags)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_killed_ten_times_ends_as_one_that_was_not(root, whole, tmp_path, processes):
    """Killed at random moments of the work: of each run, later than its imports and sooner than its end."""
    rng, killed = random.Random(int(processes)), 0
    for _ in range(40):
        run = start(root, tmp_path, "--num_proc", processes)
        started, before = time.monotonic(), len(list(tmp_path.iterdir()))
        while run.poll() is None and len(list(tmp_path.iterdir())) == before and time.monotonic() - started < 60:
            time.sleep(0.01)  # until it has begun something
        time.sleep(rng.uniform(0, 0.15))
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
            killed += 1
        run.wait()
        if killed == 10 or len(digests(tmp_path)) == 6:
            if killed >= 10:
                break
            for path in list(tmp_path.glob("*.parquet"))[:4]:  # it was done too soon: take some of it back
                path.unlink()
    assert killed == 10
    assert prepare(root, tmp_path, "--num_proc", processes) == 0
    assert digests(tmp_path) == digests(whole)
    assert {path.name for path in tmp_path.iterdir()} == {*digests(whole), SUMMARY}


@pytest.fixture
def damaged(root, tmp_path):
    """Two families, of which one photograph is corrupt and one shows no face."""
    folder = tmp_path / "damaged"
    for person in ("001", "002"):
        for side in ("real", "fake/mirror"):
            (folder / side / person).mkdir(parents=True)
            for photo in ("1.png", "2.png"):
                (folder / side / person / photo).write_bytes((root / side / person / photo).read_bytes())
    (folder / "real" / "001" / "1.png").write_bytes(b"\x89PNG broken")
    Image.fromarray(np.full((112, 92), 90, np.uint8)).save(folder / "real" / "002" / "2.png")
    return folder


def test_a_corrupt_image_costs_only_itself_and_is_named_again_by_the_next_run(damaged, tmp_path, capsys):
    for _ in range(2):
        assert prepare(damaged, tmp_path / "out") == 3
        printed = capsys.readouterr().out
        assert f"{damaged / 'real/001'}: frames cannot be decoded" in printed and "frame 1)" in printed
        assert f"{damaged / 'real/002'}: no face found (frame 2)" in printed
    table = metadata(load_prepared(str(tmp_path / "out"), "train")).to_pandas()
    assert table.groupby("video_id").size().to_dict() == {
        "mirror/001": 2,
        "mirror/002": 2,
        "real/001": 1,
        "real/002": 1,
    }
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert (summary["clips"], summary["frames"], summary["faces"]) == (4, 8, 6)
    assert summary["failures_by_reason"] == {
        "frames cannot be decoded": {"files": 1, "frames": 1},
        "no face found": {"files": 1, "frames": 1},
    }
    assert {failure["path"] for failure in summary["failures"]} == {
        str(damaged / "real" / "001"),
        str(damaged / "real" / "002"),
    }


def test_strict_stops_at_the_first_failure_and_leaves_no_half_of_a_shard(damaged, tmp_path):
    sentence = prepare(damaged, tmp_path / "out", "--strict")
    assert "cannot be decoded" in sentence and "remove --strict" in sentence
    assert not list((tmp_path / "out").iterdir())


def test_the_bytes_that_are_needed_are_said_before_the_work_begins(root, tmp_path, capsys):
    said = []
    clips = [
        Clip(f"real/{n}", f"real/{n}", "real", 0, ImageFrames({1: root / "real" / f"{n:03}" / "1.png"}))
        for n in range(1, 9)
    ]
    found = RawDataSet("people", {"test": [ClipFamily((clip,)) for clip in clips]})
    crop = {"kind": "box", "margin": 1.3, "size": 96}
    how = Extraction("people", frames=1, crop=crop, detector="yunet", encoding="png")
    prepare_raw(found, root, tmp_path, how, say=lambda line: said.append((line, list(tmp_path.glob("*.parquet")))))
    (sentence, files), size = said[0], (tmp_path / "test.parquet").stat().st_size
    assert files == [] and "for 8 faces" in sentence
    announced = float(sentence.partition("about ")[2].partition(" MB")[0]) * 1e6
    assert announced == pytest.approx(size, abs=0.1e6, rel=0.3)


def test_images_are_encoded_as_asked_for_and_masks_never_lose(root, tmp_path):
    pixels = {}
    for encoding, magic in (("webp-lossless", b"RIFF"), ("png", b"\x89PNG"), ("jpeg95", b"\xff\xd8")):
        assert prepare(root, tmp_path / encoding, "--encoding", encoding) == 0
        dataset = load_prepared(str(tmp_path / encoding), "train")
        assert all(cell["bytes"].startswith(magic) for cell in dataset["image"])
        assert dataset[0]["mask"]["bytes"].startswith(b"\x89PNG")
        pixels[encoding] = np.stack([decode_image(cell, "") for cell in dataset["image"]]).astype(int)
    assert np.array_equal(pixels["png"], pixels["webp-lossless"])
    difference = np.abs(pixels["jpeg95"] - pixels["png"])
    assert 0 < difference.mean() < 3


def test_another_detector_is_told_in_every_row(root, tmp_path, monkeypatch):
    class StandIn:
        name = "dsfd"

        def detect(self, image, small_faces=True):
            return [Face(np.array([20, 20, 70, 90], np.float32), 0.9, None)]

    monkeypatch.setattr(assets, "DSFD", StandIn)
    shard_work._detector.cache_clear()
    assert prepare(root, tmp_path, "--detector", "dsfd") == 0
    table = metadata(load_prepared(str(tmp_path), "train")).to_pandas()
    assert {crop["detector"] for crop in table.crop} == {"dsfd"} and table.landmarks.isna().all()
    assert "Use YuNet, or 'box'" in prepare(root, tmp_path / "aligned", "--detector", "dsfd", "--crop", "aligned5")


def test_other_settings_are_refused_and_overwritten_on_demand(root, whole, tmp_path):
    assert prepare(root, tmp_path, "--frames", "1") == 0
    assert "was prepared with other settings (frames was 1, is 32)" in prepare(root, tmp_path)
    assert prepare(root, tmp_path, "--overwrite") == 0
    assert digests(tmp_path) == digests(whole)


def test_a_shard_tells_how_it_was_made(whole):
    settings, report = read_record(whole / "train-00000-of-00006.parquet")
    assert settings["crop"] == {"kind": "box", "margin": 1.3, "size": 64} and settings["frames"] == 32
    assert (report.clips, report.frames, report.faces, len(report.failures)) == (4, 8, 8, 0)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--shard_index", "2", "--num_shards", "2"], "--shard_index is 2"),
        (["--num_proc", "0"], "--num_proc is 0"),
        (["--overwrite", "--num_shards", "2"], "by hand"),
        (["--families_per_shard", "0"], "--families_per_shard is 0"),
    ],
)
def test_work_that_cannot_be_shared_so_is_refused(root, tmp_path, flags, sentence):
    assert sentence in prepare(root, tmp_path, *flags)


def test_an_empty_raw_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="no clips to prepare"):
        prepare_raw(RawDataSet("none", {"test": []}), tmp_path, tmp_path / "out", Extraction("none"), Execution())


class StandIn:
    """Records what is asked of the Hub."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def create_repo(self, repo_id, **options):
        if self.error:
            raise self.error
        self.calls.append(("create_repo", repo_id, options))
        return f"the address of {repo_id}"

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(publishing, "HfApi", lambda: stand_in)
    monkeypatch.setattr(publishing, "hub_is_reachable", lambda: True)
    return stand_in


def test_the_set_is_pushed_privately_with_a_card_that_says_what_is_in_it(root, whole, tmp_path, hub, capsys):
    shutil.copytree(whole, tmp_path / "out")
    assert prepare(root, tmp_path / "out", "--push_to_hub", "lab/people") == 0
    assert "the address of lab/people" in capsys.readouterr().out
    (_, repo, created), (_, uploaded) = hub.calls
    assert repo == "lab/people" and created["private"] and created["repo_type"] == "dataset"
    sent = set(
        filter_repo_objects(
            [path.name for path in (tmp_path / "out").iterdir()], allow_patterns=uploaded["allow_patterns"]
        )
    )
    assert sent == {*digests(whole), "README.md"}
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert [entry["split"] for entry in card.data.configs[0]["data_files"]] == ["train"]
    assert "| train | mirror | fake | 12 | 24 |" in card.text and "0 of 24 forged faces have a mask" in card.text
    assert "box, 64 px, margin 1.3, found by yunet_2023mar_multiscale" in card.text
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 48  # with the card beside the shards


def test_a_hub_that_refuses_or_is_out_of_reach_is_named(root, whole, tmp_path, hub, monkeypatch):
    shutil.copytree(whole, tmp_path / "out")
    hub.error = LocalTokenNotFoundError("no token")
    assert "cannot be pushed (no token)" in prepare(root, tmp_path / "out", "--push_to_hub", "lab/people")
    monkeypatch.setattr(publishing, "hub_is_reachable", lambda: False)
    assert "cannot be reached" in prepare(root, tmp_path / "new", "--push_to_hub", "lab/people")
    assert not (tmp_path / "new").exists()


def write_long_video(path, hours, frames=50):
    """Encode two seconds of a face in 1080p, and repeat their packets for hours."""
    with Video(fetch("talking_face")) as video:
        face = cv2.resize(next(video.read([0]))[1], (1320, 1080))
    image = np.pad(face, ((0, 0), (300, 300), (0, 0)))
    short = path.with_suffix(".short.mp4")
    encode(short, [image] * frames, crf=35)
    with av.open(str(short)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        base, length = source.streams.video[0].time_base, packets[0].duration * frames
        for turn in range(hours * 3600 * 25 // frames):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts = packet.pts + turn * length, packet.dts + turn * length
                copy.time_base, copy.stream, copy.is_keyframe = base, stream, packet.is_keyframe
                target.mux(copy)
    short.unlink()


@pytest.mark.slow
def test_two_hours_of_1080p_are_prepared_within_bounded_memory(tmp_path):
    for side in ("real", "fake"):
        (tmp_path / "raw" / side).mkdir(parents=True)
    write_long_video(tmp_path / "raw" / "real" / "a.mp4", hours=2)
    os.link(tmp_path / "raw" / "real" / "a.mp4", tmp_path / "raw" / "fake" / "a.mp4")
    arguments = ["folder", "--root", str(tmp_path / "raw"), "--output", str(tmp_path / "out")]
    # The peak of this process alone: what `getrusage` says of a child begins with its parent's.
    script = f"""
from dcl_face_forgery.data_scripts.prepare import main
try:
    main({arguments!r})
except SystemExit as stop:
    print(stop.code, open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    status, peak = done.stdout.splitlines()[-1].split()
    assert status == "0" and int(peak) < 1.5e6  # kB
    table = metadata(load_prepared(str(tmp_path / "out"), "train")).to_pandas()
    assert (table.groupby("video_id").size() == 32).all()
    assert (table.groupby("video_id").frame.max() > 179_900).all()  # it looked at the end, too


def test_a_job_that_ends_counts_what_others_did_while_it_worked(root, whole, tmp_path, monkeypatch):
    """It owns no shard of the second split, and must not take that for empty."""
    both = tmp_path / "both"
    for split in ("train", "test"):
        others = ("00[7-9]", "01?") if split == "train" else ("00[1-6]",)  # or the second split would be refused
        shutil.copytree(root, both / split, ignore=shutil.ignore_patterns(*others))
    run, flags = shard_work._run, ["--families_per_shard", "20", "--num_shards", "2"]

    def while_another_works(shards, execution):
        monkeypatch.setattr(shard_work, "_run", run)
        assert prepare(both, tmp_path / "out", *flags, "--shard_index", "1") == 0
        yield from run(shards, execution)

    monkeypatch.setattr(shard_work, "_run", while_another_works)
    assert prepare(both, tmp_path / "out", *flags, "--shard_index", "0") == 0
    assert sorted(digests(tmp_path / "out")) == ["test.parquet", "train.parquet"]
    assert json.loads((tmp_path / "out" / SUMMARY).read_text())["faces"] == 48


def test_a_repaired_file_costs_its_own_shard_alone(damaged, root, tmp_path, caplog):
    assert prepare(damaged, tmp_path / "out", "--families_per_shard", "1") == 3
    before = digests(tmp_path / "out")
    shutil.copy(root / "real" / "001" / "1.png", damaged / "real" / "001" / "1.png")
    shutil.copy(root / "real" / "002" / "2.png", damaged / "real" / "002" / "2.png")
    os.utime(damaged / "real" / "002" / "2.png", ns=(0, 0))
    assert prepare(damaged, tmp_path / "out", "--families_per_shard", "1") == 0
    after = digests(tmp_path / "out")
    assert before.keys() == after.keys() and "is prepared again because its source has changed" in caplog.text
    assert len(load_prepared(str(tmp_path / "out"), "train")) == 8


def test_failures_that_have_passed_are_tried_again_on_demand(root, whole, tmp_path, monkeypatch):
    blind = SimpleNamespace(name="yunet_2023mar_multiscale", detect=lambda image, small_faces: [])
    real, seen = shard_work._detector("yunet"), itertools.count()
    once = SimpleNamespace(
        name=real.name,
        detect=lambda image, small_faces: (real if next(seen) % 7 else blind).detect(image, small_faces),
    )
    with monkeypatch.context() as patch:
        patch.setattr(shard_work, "_detector", lambda name: once)
        assert prepare(root, tmp_path) == 3
    assert prepare(root, tmp_path) == 3  # it stays as it was found
    assert prepare(root, tmp_path, "--retry_failed") == 0
    assert digests(tmp_path) == digests(whole)


def clip_of(root, person, **changes):
    frames = ImageFrames({1: root / "real" / person / "1.png"})
    return Clip(**{"name": "a/1", "source": "a/1", "method": "a", "label": 0, "frames": frames} | changes)


@pytest.mark.parametrize(
    "changes",
    [{"label": 1}, {"source": "a/2"}, {"method": "b"}, {"compression": "c40"}, {"name": "a/3"}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_list_says_of_a_clip_is_part_of_what_was_prepared(root, tmp_path, changes):
    """The files are the same; a label that was corrected in a list must reach the rows."""
    crop = {"kind": "box", "margin": 1.3, "size": 64}
    how = Extraction("people", frames=1, crop=crop, detector="yunet")
    column = {"name": "video_id", "source": "source_id"}.get(next(iter(changes)), next(iter(changes)))
    for clip in (clip_of(root, "001"), clip_of(root, "001", **changes)):
        prepare_raw(RawDataSet("people", {"test": [ClipFamily((clip,))]}), root, tmp_path, how, say=str)
    value = metadata(load_prepared(str(tmp_path), "test")).column(column)[0].as_py()
    assert value == next(iter(changes.values()))


def test_a_mask_where_none_was_asked_for_before_is_made(root, tmp_path):
    how = Extraction("people", frames=1, crop={"kind": "box", "margin": 1.3, "size": 64}, detector="yunet")
    mask = ImageFrames({1: root / "real" / "001" / "1.png"})
    for clip in (clip_of(root, "001", label=1), clip_of(root, "001", label=1, mask=mask)):
        prepare_raw(RawDataSet("people", {"test": [ClipFamily((clip,))]}), root, tmp_path, how, say=str)
    assert load_prepared(str(tmp_path), "test")[0]["mask"] is not None


def test_an_error_of_the_machine_stops_the_work_and_leaves_no_shard(root, tmp_path, monkeypatch):
    def stale(self):
        raise InputError("it cannot be opened") from OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(ImageFrames, "open", stale)
    found = RawDataSet("people", {"test": [ClipFamily((clip_of(root, "001"),))]})
    how = Extraction("people", frames=1, crop={"kind": "box", "margin": 1.3, "size": 64}, detector="yunet")
    with pytest.raises(InputError, match="cannot be read now"):
        prepare_raw(found, root, tmp_path, how, say=str)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_family_too_large_for_a_row_group_is_divided_by_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_LARGEST_GROUP", 4_000)
    monkeypatch.setattr(shards, "_BYTES_PER_GROUP", 1_000)
    image = {"bytes": bytes(300), "path": None}
    rows = [row | {"image": image, "mask": None} for row in make_rows(range(1), frames=6)]
    rows.sort(key=lambda row: row["video_id"])  # as clips come, one after the other
    report = write_shard(tmp_path / "train.parquet", [rows], {}, Report())
    file = pq.ParquetFile(tmp_path / "train.parquet")
    groups = [file.read_row_group(index, ["frame"])["frame"].to_pylist() for index in range(file.num_row_groups)]
    assert report.faces == sum(map(len, groups)) == len(rows) == 24 and len(groups) > 1
    assert sum(len(set(group)) for group in groups) == 6  # no frame is in two groups


def test_a_damaged_shard_is_told_from_one_of_other_settings(whole, root, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    shard = tmp_path / "out" / "train-00001-of-00006.parquet"
    shard.write_bytes(shard.read_bytes()[:500])
    assert f"{shard} is damaged" in prepare(root, tmp_path / "out")
    shard.unlink()
    assert prepare(root, tmp_path / "out") == 0
    assert digests(tmp_path / "out") == digests(whole)


def test_a_shard_that_another_run_wrote_meanwhile_is_not_replaced(tmp_path):
    rows = make_rows(range(1))

    def meanwhile():
        write_shard(tmp_path / "other.parquet", [rows], {"size": 112}, Report())
        os.replace(tmp_path / "other.parquet", tmp_path / "train.parquet")
        yield rows

    with pytest.raises(InputError, match="with other settings"):
        write_shard(tmp_path / "train.parquet", meanwhile(), {"size": 96}, Report())
    assert read_record(tmp_path / "train.parquet")[0] == {"size": 112}
