"""The command dcl-detect: what it prints and writes, what it exits with, and how it goes on."""

import csv
import json
import os
import shutil
import threading

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from dcl_face_forgery import detect, pipeline_dcl
from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.decision_dcl import ABSTAINED, FLAGGED, NOT_FLAGGED
from dcl_face_forgery.detection import results
from dcl_face_forgery.media_dcl import read_picture
from dcl_face_forgery.tests.shared.checkpoints import save_checkpoint
from dcl_face_forgery.tests.shared.raw_data_sets import TALKING, encode, person_frames


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    fetch("yunet")
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture
def folder(tmp_path):
    """Two pictures of faces, one without, a video, and what is none of these."""
    root = tmp_path / "holiday"
    (root / "day 2").mkdir(parents=True)
    shutil.copy(fetch("astronaut"), root / "a.png")
    shutil.copy(fetch("orl") / "s1" / "1.pgm", root / "day 2" / "b.pgm")
    Image.new("RGB", (80, 60)).save(root / "c.jpg")
    encode(root / "d.mp4", person_frames(TALKING, 4), crf=18)
    (root / "e.jpg").write_bytes(b"<svg/>")
    return root


@pytest.fixture
def run(checkpoint, capsys):
    def command(*arguments):
        """Return the exit status, or the sentence, and what was printed."""
        status = 0
        try:
            detect.main([*map(str, arguments), "--model", str(checkpoint), "--device", "cpu"])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return command


def read_lines(path):
    record, *results = map(json.loads, path.read_text().splitlines())
    return record, {result["name"]: result for result in results}


def test_a_sentence_is_printed_for_each_file_and_bad_files_make_the_status_3(run, folder):
    status, out, err = run(folder)
    assert status == 3
    assert [line.split(":")[0] for line in out.splitlines()] == [
        str(folder / name) for name in ("a.png", "c.jpg", "d.mp4", "day 2/b.pgm")
    ]
    assert "No score: no face was found." in out
    assert f"{folder / 'e.jpg'} is an SVG" in err and err.splitlines()[-1].startswith("5 files: ")


def test_what_is_skipped_in_a_folder_is_counted(run, folder):
    (folder / "day 2" / "index.ts").write_text("export const a = 1;\n")
    (folder / "notes.txt").write_text("a")
    _, out, err = run(folder)
    assert f"{folder}: Skipped 2 files that are neither images nor videos: 1 .txt, 1 .ts." in err
    assert len(out.splitlines()) == 4 and "index.ts" not in err
    assert "Skipped" not in run(folder / "a.png")[2]


def test_notes_are_printed_below_the_sentence_and_stand_in_the_table(run, folder, tmp_path):
    pages = [Image.new("RGB", (80, 60), colour) for colour in ("green", "blue")]
    pages[0].save(folder / "scan.tif", save_all=True, append_images=pages[1:])
    note = "The file has 2 pages; only the first was analyzed."
    _, out, _ = run(folder / "scan.tif", "--csv", tmp_path / "table.csv")
    assert out.splitlines()[1:] == [f"  Note: {note}"]
    (row,) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert row["notes"] == note


def test_where_everything_can_be_read_the_status_is_0(run, folder):
    assert run(folder / "a.png", folder / "c.jpg")[0] == 0


def test_json_lines_and_the_table_say_the_same(run, folder, tmp_path):
    assert run(folder, "--json", tmp_path / "r.jsonl", "--csv", tmp_path / "r.csv", "--num_frames", 3)[0] == 3
    record, results = read_lines(tmp_path / "r.jsonl")
    assert record["kind"] == "run" and record["options"]["num_frames"] == 3 and len(record["fingerprint"]) == 16
    assert {result["kind"] for result in results.values()} == {"image", "video", "error"}
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(results)
    (face,) = results[str(folder / "a.png")]["faces"]
    assert float(rows[0]["p_fake"]) == face["p_fake"] and float(rows[0]["right"]) == face["box"][2]
    assert (float(rows[0]["band_low"]), float(rows[0]["band_high"])) == (0.3, 0.6)
    assert [float(rows[0][f"expected_fpr{end}"]) for end in ("", "_low", "_high")] == [0.075, 0.01, 0.2]
    (person,) = results[str(folder / "d.mp4")]["people"]
    row = next(row for row in rows if row["kind"] == "video")
    assert (row["judged"], row["seen"], row["number"]) == (str(person["judged"]), str(person["seen"]), "1")


def test_a_threshold_of_ones_own_decides_and_goes_into_the_record(run, folder, tmp_path):
    run(folder / "a.png", "--threshold", 0.01, "--json", tmp_path / "r.jsonl", "--csv", tmp_path / "r.csv")
    record, results = read_lines(tmp_path / "r.jsonl")
    (result,) = results.values()
    assert (result["verdict"], result["threshold"], result["operating_point"]) == ("flagged", 0.01, None)
    assert record["options"]["threshold"] == 0.01 and result["band"]["high"] is None
    (row,) = csv.DictReader((tmp_path / "r.csv").read_text().splitlines())
    assert (row["threshold"], row["band_high"], row["verdict"]) == ("0.01", "", "flagged")
    assert run(folder / "a.png", "--threshold", 1)[0] == 2
    assert "not allowed with" in run(folder / "a.png", "--threshold", 0.5, "--operating_point", "eer")[2]


def test_pictures_get_results_where_only_videos_lack_the_operating_point(run, folder, checkpoint):
    path = checkpoint / "config.json"
    before = path.read_text()
    config = json.loads(before)
    config["calibration"]["frame"]["thresholds"]["fpr_0.05"] = 0.6
    path.write_text(json.dumps(config))
    try:
        status, out, err = run(folder / "a.png", folder / "d.mp4", "--operating_point", "fpr_0.05")
        assert status == 3 and str(folder / "a.png") in out
        assert "d.mp4: The checkpoint has no threshold fpr_0.05 for a video" in err
        refused = run(folder / "d.mp4", "--operating_point", "fpr_0.05")[0]
        assert "has no threshold fpr_0.05 for a video" in refused
    finally:
        path.write_text(before)


def test_json_on_standard_output_is_nothing_but_json(run, folder):
    status, out, _ = run(folder / "a.png", "--json", "-")
    assert status == 0 and [json.loads(line)["kind"] for line in out.splitlines()] == ["image"]


def test_a_torn_line_is_dropped_and_what_is_complete_is_not_done_again(run, folder, tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    assert run(folder, "--json", path, "--num_frames", 3)[0] == 3
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:30])
    judged = []
    original = pipeline_dcl.FaceForgeryDetectionPipeline.stream
    monkeypatch.setattr(
        pipeline_dcl.FaceForgeryDetectionPipeline,
        "stream",
        lambda self, files, **options: original(self, (judged.append(name) or name for name in files), **options),
    )
    status, _, err = run(folder, "--json", path, "--num_frames", 3, "--csv", tmp_path / "r.csv")
    assert status == 3 and "3 of 5 files already have results" in err
    assert judged == [json.loads(line)["name"] for line in lines[4:]]
    assert {name: r["kind"] for name, r in read_lines(path)[1].items()} == {
        json.loads(line)["name"]: json.loads(line)["kind"] for line in lines[1:]
    }
    with (tmp_path / "r.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 5
    before = set(path.read_text().splitlines())
    judged.clear()
    assert run(folder, "--json", path, "--num_frames", 3)[0] == 3
    assert judged == [str(folder / "e.jpg")], "what could not be read is tried again"
    assert set(path.read_text().splitlines()) == before


def test_a_file_that_changed_is_judged_again_and_one_of_the_same_name_is_another(run, folder, tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    for place in (folder, folder / "day 2"):
        monkeypatch.chdir(place)
        shutil.copy(folder / "c.jpg", "x.jpg")
        assert run("x.jpg", "--json", path)[:2] == (0, "")
    assert len(path.read_text().splitlines()) == 3
    shutil.copy(fetch("astronaut"), "x.jpg")
    status, _, err = run("x.jpg", "--json", path, "--csv", tmp_path / "r.csv")
    assert status == 0 and "already have results" not in err
    results = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [len(result["faces"]) for result in results] == [0, 1]
    assert run("x.jpg", folder / "day 2" / "x.jpg", "--json", path)[2].startswith("1 of 1 files already have results")


@pytest.mark.parametrize("content", ['{"my": "data"}', "hello", "[1, 2]", '{"kind": "run"}\n'])
def test_what_is_no_file_of_results_is_left_alone(run, folder, tmp_path, content):
    (tmp_path / "mine").write_text(content)
    for option, sentences in (
        ("--json", ("of this command", "made with other settings")),
        ("--csv", ("is not a table of this command",)),
    ):
        status = run(folder / "a.png", option, tmp_path / "mine")[0]
        assert (
            isinstance(status, str) and any(part in status for part in sentences) and "Choose another file" in status
        )
        assert (tmp_path / "mine").read_text() == content, option


def test_a_first_line_that_was_torn_is_written_anew(run, folder, tmp_path):
    run(folder / "a.png", "--json", tmp_path / "r.jsonl")
    whole = (tmp_path / "r.jsonl").read_text()
    (tmp_path / "r.jsonl").write_text(whole[:40])
    assert run(folder / "a.png", "--json", tmp_path / "r.jsonl")[0] == 0
    assert (tmp_path / "r.jsonl").read_text() == whole


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_a_full_disk_is_said_in_a_sentence(run, folder, option):
    status = run(folder / "a.png", option, "/dev/full")[0]
    assert status.startswith("error: /dev/full cannot be written (No space left on device)")


def test_results_go_into_pipes_and_through_links(run, folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    lines = []
    reader = threading.Thread(target=lambda: lines.extend((tmp_path / "pipe").read_text().splitlines()))
    reader.start()
    assert run(folder / "a.png", "--json", tmp_path / "pipe", "--csv", tmp_path / "r.csv")[0] == 0
    reader.join()
    assert [json.loads(line)["kind"] for line in lines] == ["run", "image"]
    (tmp_path / "link").symlink_to(tmp_path / "r.jsonl")
    for _ in range(2):
        assert run(folder / "a.png", "--json", tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink() and len((tmp_path / "r.jsonl").read_text().splitlines()) == 2


def test_two_runs_do_not_write_to_one_file(run, folder, tmp_path):
    with FileLock(tmp_path / ".r.jsonl.lock"):
        assert (
            "r.jsonl is in use by another run. Wait until it ends"
            in run(folder / "a.png", "--json", tmp_path / "r.jsonl")[0]
        )
    assert run(folder / "a.png", "--json", tmp_path / "r.jsonl")[0] == 0


def test_a_file_that_goes_before_it_is_drawn_costs_only_itself(run, folder, tmp_path, monkeypatch):
    annotate = pipeline_dcl.FaceForgeryDetectionPipeline.annotate

    def gone(pipe, name, result, **how):
        if name.endswith("a.png"):
            os.unlink(name)
        return annotate(pipe, name, result, **how)

    monkeypatch.setattr(pipeline_dcl.FaceForgeryDetectionPipeline, "annotate", gone)
    (folder / "e.jpg").unlink()
    status, _, err = run(folder, "--annotate", tmp_path / "drawn", "--num_frames", 2)
    assert status == 3 and f"File {folder / 'a.png'}" in err
    assert (tmp_path / "drawn" / "c.jpg.faces.png").is_file()


def test_interrupted_it_says_how_to_go_on(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dcl_face_forgery.detection.run.detect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    status, _, err = run(folder / "a.png", "--json", tmp_path / "r.jsonl")
    assert status == 130 and "Run the same command again to resume" in err


def test_results_of_other_settings_or_another_model_are_not_mixed(run, folder, tmp_path):
    path = tmp_path / "r.jsonl"
    run(folder / "a.png", "--json", path)
    assert (
        "made with other settings (num_frames was 32, is 5). Choose another file."
        in run(folder / "a.png", "--json", path, "--num_frames", 5)[0]
    )
    other = save_checkpoint(tmp_path / "other", calibration=None)
    with pytest.raises(SystemExit, match=r"made with other settings \(fingerprint was"):
        detect.main([str(folder / "a.png"), "--json", str(path), "--model", str(other), "--device", "cpu"])
    path.write_text("a letter\n")
    assert "Line 1 of" in run(folder / "a.png", "--json", path)[0]
    assert path.read_text() == "a letter\n"
    path.write_text('{"kind": "image", "name": "a"}\n')
    assert "does not hold results of this command" in run(folder / "a.png", "--json", path)[0]


def test_drawings_show_faces_and_carry_nothing_else(run, folder, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    Image.open(fetch("astronaut")).save(folder / "a.png", exif=exif)
    assert run(folder, "--annotate", tmp_path / "drawn", "--num_frames", 4)[0] == 3
    names = sorted(path.relative_to(tmp_path / "drawn").as_posix() for path in (tmp_path / "drawn").rglob("*.*"))
    assert names[:2] == ["a.png.faces.png", "c.jpg.faces.png"] and names[-1] == "day 2/b.pgm.faces.png"
    assert names[2].startswith("d.mp4.person1.frame") and len(names) == 4
    with Image.open(tmp_path / "drawn" / "a.png.faces.png") as drawn:
        assert not drawn.info and not drawn.getexif()
        assert (np.asarray(drawn) != read_picture(folder / "a.png")).any()
    assert np.array_equal(read_picture(tmp_path / "drawn" / "c.jpg.faces.png"), read_picture(folder / "c.jpg"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.jpg"], "File or folder nowhere.jpg not found"),
        ([""], "One of the file names is empty"),
        (["x" * 300], "Check its path"),
        (["{folder}", "--json", "x" * 300], "Check its path"),
        (
            ["{folder}/day 2/b.pgm", "--json", "{folder}/day 2/b.pgm"],
            "is an input, and the results would overwrite it",
        ),
        (["{folder}", "--csv", "{folder}/day 2/b.pgm"], "is an input, and the results would overwrite it"),
        (["{folder}", "--json", "{folder}/none/r.jsonl"], "/none for r.jsonl not found. Create it"),
        (["{folder}", "--json", "{folder}/r", "--csv", "{folder}/r"], "--csv and --json are both"),
        (["{folder}", "--annotate", "{folder}/drawn"], "lies inside the input folder"),
        (["{folder}/a.png", "{folder}/twin/a.png", "--annotate", "out"], "would have the same name"),
        (["{folder}", "--json", "{folder}/day 2"], "day 2 is a folder. Pass a file name"),
        (["{folder}", "--annotate", "{folder}/a.png/drawn"], "cannot be written. Choose another folder"),
        (["{folder}", "--operating_point", "fpr_0.01"], "has no threshold fpr_0.01 for a "),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence_at_once(run, folder, arguments, sentence):
    (folder / "twin").mkdir()
    shutil.copy(folder / "a.png", folder / "twin")
    before = sorted(folder.rglob("*"))
    status = run(*(argument.format(folder=folder) for argument in arguments))[0]
    assert isinstance(status, str) and status.startswith("error: ") and sentence in status
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num_frames", "0"], "--num_frames: must be at least 1, got 0"),
        (["--batch_size", "x"], "--batch_size: invalid whole number value: 'x'"),
        (["--evidence", "2"], "--evidence: must be in [0, 1], got 2"),
        (["--graph", "model_int8.onnx"], "--graph: needs --backend onnx"),
    ],
)
def test_a_wrong_command_line_has_the_status_2(run, folder, arguments, sentence):
    status, _, err = run(folder, *arguments)
    assert status == 2 and sentence in err


def test_drawings_of_pictures_whose_names_are_as_long_as_can_be_are_told_apart(run, folder, tmp_path):
    names = ["臉" * 83 + end for end in ("1.png", "2.png")]
    for name in names:
        shutil.copy(folder / "c.jpg", folder / name)
    assert run(*(folder / name for name in names), "--annotate", tmp_path / "drawn")[0] == 0
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert len(drawn) == 2 and all(name.startswith("臉" * 70) and name.endswith(".faces.png") for name in drawn)
    assert results.drawing_of(tmp_path / "a.jpg", ".faces.png") == tmp_path / "a.jpg.faces.png"


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_judged(run, folder, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("day 2"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (folder / "e.jpg").unlink()
    status, out, err = run(folder, "--num_frames", 2)
    assert status == 3 and f"Folder {folder / 'day 2'} cannot be listed" in err and str(folder / "a.png") in out


def test_what_is_no_regular_file_is_named_as_that(run, folder):
    (folder / "e.jpg").unlink()
    os.mkfifo(folder / "pipe.png")
    status, _, err = run(folder, "--num_frames", 2)
    assert status == 3 and "pipe.png is not a regular file" in err


def test_counts_name_only_what_there_is():
    flagged, clear = (verdict.replace("_", " ") for verdict in (FLAGGED, NOT_FLAGGED))
    assert results.counted({FLAGGED: 1, NOT_FLAGGED: 0}) == f"1 file: 1 {flagged}."
    assert results.counted({"error": 1, ABSTAINED: 2}) == "3 files: 2 no score, 1 unreadable."
    many = {"error": 2, NOT_FLAGGED: 2000, ABSTAINED: 18, FLAGGED: 3}
    assert results.counted(many) == f"2,023 files: 3 {flagged}, 2,000 {clear}, 18 no score, 2 unreadable."


def test_the_last_line_counts_all_files_also_those_judged_before(run, folder, tmp_path):
    _, out, whole = run(folder, "--num_frames", 2)
    last = whole.splitlines()[-1]
    assert last.startswith("5 files: ") and last.endswith("no score, 1 unreadable.") and "files:" not in out
    run(folder / "a.png", folder / "c.jpg", "--json", tmp_path / "r.jsonl", "--num_frames", 2)
    _, out, err = run(folder, "--json", tmp_path / "r.jsonl", "--num_frames", 2)
    assert "2 of 5 files already have results" in err and out == "" and err.splitlines()[-1] == last
    assert (
        run(folder / "a.png", "--json", tmp_path / "r.jsonl", "--num_frames", 2)[2].splitlines()[-1].startswith("1 ")
    )


def test_quiet_prints_errors_and_asked_for_json_only(run, folder, tmp_path):
    (folder / "notes.txt").write_text("a")
    status, out, err = run(folder, "--quiet", "--num_frames", 2, "--json", tmp_path / "r.jsonl")
    assert status == 3 and out == "" and len(err.splitlines()) == 1 and "e.jpg is an SVG" in err
    _, out, err = run(folder / "a.png", "--quiet", "--json", "-")
    assert json.loads(out)["kind"] == "image" and err == ""
    assert run(folder / "c.jpg", "--quiet") == (0, "", "")
    _, out, err = run(folder / "a.png", "--quiet", "--json", tmp_path / "r.jsonl", "--num_frames", 2)
    assert out == err == ""


def test_a_result_with_an_unknown_verdict_is_not_counted_but_refused(run, folder, tmp_path):
    path = tmp_path / "r.jsonl"
    run(folder / "a.png", "--json", path)
    record, line = path.read_text().splitlines()
    path.write_text(f"{record}\n{json.dumps(json.loads(line) | {'verdict': 'guilty'})}\n")
    assert "Line 2 of" in run(folder / "a.png", "--json", path)[0]


def test_names_that_spreadsheets_would_run_are_quoted():
    (row,) = results.rows_of({"name": "=HYPERLINK(1).jpg", "kind": "error", "sentence": "=HYPERLINK(1).jpg is a PDF"})
    assert (row["name"], row["sentence"]) == ("'=HYPERLINK(1).jpg", "'=HYPERLINK(1).jpg is a PDF")


def test_help_names_the_exit_statuses(capsys):
    with pytest.raises(SystemExit):
        detect.main(["--help"])
    assert "3    some files could not be read" in capsys.readouterr().out
