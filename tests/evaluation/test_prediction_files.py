"""Tables of predictions made elsewhere: the same numbers as when made here, and a sentence for each broken one."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluate_dcl import main
from dcl_face_forgery.evaluation.metrics.levels import compare_models, frame_and_video_metrics
from dcl_face_forgery.evaluation.prediction_files import read_predictions, shared_rows
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.tests.shared.prepared_data import CROP, make_rows, write_split


def make_table(seed=0, clips=12, data_set="celeb_df"):
    """Every clip real and by two methods, three frames each, video ids of digits among them."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "dataset": data_set,
            "method": method,
            "video_id": f"{clip:03}" if method == "None" else f"{method}/{clip:03}",
            "source_id": f"{clip:03}",
            "frame": frame,
            "label": int(method != "None"),
            "p_fake": float(rng.uniform(0.1 * (method != "None"), 0.9)),
            "tone": ("dark", "light")[clip % 2],
        }
        for clip in range(clips)
        for method in ("None", "swap", "warp")  # a name that readers of CSV take for a missing value
        for frame in range(3)
    ]
    return pd.DataFrame(rows)


def write(table, path):
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_json(path, orient="records", lines=path.suffix == ".jsonl", double_precision=15)
    return path


def evaluate(out, *files, options=("--bootstrap", "50")):
    main(["--predictions", *map(str, files), "--output_dir", str(out), *options])


def sentence_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    said = stop.value.code
    if said == 2:
        said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "\n" not in said
    return said


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A data set `textures` and a checkpoint of DCL."""
    folder = tmp_path_factory.mktemp("here")
    write_split(folder / "textures", "test", make_rows(range(3), frames=2))
    DCLForPreTraining(
        DCLConfig(backbone="test_efficientnet", image_size=64, queue_size=16, hard_samples=2)
    ).save_pretrained(folder / "model")
    DCLImageProcessor(size={"height": 64, "width": 64}, crop=CROP).save_pretrained(folder / "model")
    return folder


# -------------------------------------------------------------------------------------------------------- the results


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json", ".jsonl"])
@pytest.mark.parametrize("labels", ["numbers", "names"])
def test_every_format_gives_the_metrics_of_its_rows(tmp_path, suffix, labels):
    table = make_table()
    expected = frame_and_video_metrics(table, group_by="tone", bootstrap=50)["celeb_df"]
    if labels == "names":
        table["label"] = table["label"].map({0: "real", 1: "Fake"})
    path = write(table, tmp_path / f"theirs{suffix}")
    evaluate(tmp_path / "out", path, options=["--bootstrap", "50", "--group_by", "tone"])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())["celeb_df"]
    assert metrics["frame"]["auc"] == pytest.approx(roc_auc_score(make_table()["label"], table["p_fake"]))
    assert metrics["frame"]["intervals"]["auc"] == pytest.approx(expected["frame"]["intervals"]["auc"])
    assert list(metrics["by_method"]) == ["swap", "warp"]
    assert metrics["video"]["n"] == 36
    assert metrics["by_group"]["groups"].keys() == {"dark", "light"}
    rows = pd.read_parquet(tmp_path / "out/predictions.parquet")
    assert rows["video_id"].tolist() == table["video_id"].tolist()
    assert rows["method"].tolist() == table["method"].tolist()
    assert list(rows.columns) == [
        *("dataset", "method", "video_id", "source_id", "frame", "label", "p_fake", "tone"),
    ]
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["model"] == str(path)
    assert run["revision"].startswith("sha256:")
    assert run["datasets"]["celeb_df"] == {
        "rows": 108,
        "videos": 36,
        "frames_per_video": {"min": 3, "median": 3.0, "max": 3},
    }


def test_neither_torch_nor_transformers_is_imported(tmp_path):
    path = write(make_table(), tmp_path / "theirs.csv")
    code = (
        "import sys; from dcl_face_forgery.evaluate_dcl import main; main(sys.argv[1:]);"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'slow'"
    )
    arguments = ["--predictions", str(path), "--output_dir", str(tmp_path / "out"), "--bootstrap", "0"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_numbers_as_video_ids_are_names(tmp_path):
    table = make_table()[["dataset", "method", "label", "p_fake"]].assign(video_id=range(108))
    table["source_id"] = [None, *map(float, range(107))]  # of whole numbers with one missing, Parquet has floats
    rows = read_predictions(str(write(table, tmp_path / "theirs.parquet"))).rows
    assert rows["video_id"].tolist() == [str(index) for index in range(108)]
    assert rows["source_id"].tolist() == [None, *map(str, range(107))]
    assert "frame" not in rows


def test_without_source_id_it_says_that_intervals_are_too_narrow(tmp_path, caplog):
    evaluate(tmp_path / "out", write(make_table().drop(columns="source_id"), tmp_path / "theirs.csv"))
    assert "no column source_id" in caplog.text
    assert "too narrow" in caplog.text
    caplog.clear()
    evaluate(tmp_path / "out", write(make_table(), tmp_path / "theirs.csv"))
    assert not caplog.text


def test_what_was_made_here_can_be_read_again(here, tmp_path):
    common = ["--dataset", str(here / "textures"), "--device", "cpu", "--bootstrap", "20"]
    main(["--model", str(here / "model"), *common, "--output_dir", str(tmp_path / "a")])
    evaluate(tmp_path / "b", tmp_path / "a/predictions.parquet", options=["--bootstrap", "20"])
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text())["textures"] for name in "ab")
    assert first | {"localisation": None} == second | {"localisation": None}


# ------------------------------------------------------------------------------------------------- several, and mixed


def test_a_model_and_a_table_are_compared_on_the_rows_that_both_have(here, tmp_path, capsys):
    rows = pd.DataFrame(make_rows(range(3), frames=2))[["dataset", "method", "video_id", "frame", "label"]]
    rows = rows.sample(frac=1, random_state=0)  # in another order, and without the last frames of one clip
    rows = rows[(rows["video_id"] != "swap/002") | (rows["frame"] == 0)]
    rows["p_fake"] = np.random.default_rng(0).uniform(size=len(rows))
    path = write(rows, tmp_path / "theirs.csv")
    main(
        [
            *("--model", str(here / "model"), "--dataset", str(here / "textures"), "--device", "cpu"),
            *("--predictions", str(path), "--output_dir", str(tmp_path / "out"), "--bootstrap", "30"),
        ]
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("model", "theirs", "table.md", "table.csv", "table.json"),
    }
    assert "on 23 shared rows, of 23 and 24" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/theirs/differences.json").read_text())
    assert found["rows"] == 23
    ours = pd.read_parquet(tmp_path / "out/model/predictions.parquet").merge(
        rows, on=["video_id", "frame"], suffixes=("", "_theirs")
    )
    areas = [roc_auc_score(ours["label"], ours[name]) for name in ("p_fake_theirs", "p_fake")]
    assert found["differences"]["textures"]["frame"]["auc"]["difference"] == pytest.approx(areas[0] - areas[1])


def test_shared_rows_take_the_family_from_whoever_knows_it():
    first, second = make_table(0), make_table(1)
    blind = second.drop(columns="source_id")
    for pair in ((first, blind), (blind, first)):
        assert all(table["source_id"].str.fullmatch(r"\d{3}").all() for table in shared_rows(*pair))
    found = compare_models(*shared_rows(blind, first), 50)
    expected = compare_models(*shared_rows(second, first), 50)
    assert found == expected
    assert found["celeb_df"]["frame"]["auc"]["interval"] is not None


def test_what_cannot_be_compared_is_said_and_the_results_stand(tmp_path, capsys):
    table = make_table()
    others = {
        "unnumbered": (make_table(1).drop(columns="frame"), "no frame numbers"),
        "elsewhere": (make_table(1, data_set="dfdc"), "share no rows"),
        "turned": (make_table(1).assign(label=1 - table["label"]), "disagree on the label of 108 rows"),
    }
    for name, (other, why) in others.items():
        paths = [write(part, tmp_path / f"{stem}.csv") for stem, part in (("first", table), (name, other))]
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "differences.json").write_text("{}")  # of an earlier run
        evaluate(tmp_path / "out", *paths)
        assert why in capsys.readouterr().out
        assert (tmp_path / "out" / name / "metrics.json").exists()
        assert not (tmp_path / "out" / name / "differences.json").exists()


def test_tables_of_one_name_get_folders_of_their_own(tmp_path):
    paths = [write(make_table(), tmp_path / name) for name in ("a.csv", "a.json")]
    evaluate(tmp_path / "out", *paths, options=["--bootstrap", "0"])
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"a.csv", "a.json"}


# ---------------------------------------------------------------------------------------------------------- bad input


def changed(column, value, row=4):
    table = make_table().astype(object)
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("p_fake", 1.01, ": p_fake is "),
        ("p_fake", -0.5, ": p_fake is "),
        ("p_fake", None, ": p_fake is "),
        ("label", 2, "Write 0 or real, 1 or fake"),
        ("video_id", None, "video_id is missing. Give every row one."),
        ("dataset", None, "dataset is missing. Give every row one."),
        ("label", None, "label is missing. Give every row one."),
        ("frame", 1.5, "Give every row a whole number"),
        ("frame", None, "Give every row a whole number"),
        ("frame", 0, "repeats the video_id and frame of an earlier row ('swap/000', frame 0)"),
    ],
)
def test_the_broken_row_is_named(tmp_path, suffix, column, value, said):
    table = changed(column, value)
    if suffix == ".parquet":
        table = table.infer_objects()
    path = write(table, tmp_path / f"theirs{suffix}")
    with pytest.raises(InputError) as error:
        read_predictions(str(path))
    assert f"Row 5 of '{path}' (counted from 1)" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("p_fake", "likely", "p_fake is 'likely'. Give the probability of fake, from 0 to 1"),
        ("p_fake", "nan", "p_fake is 'nan'"),
        ("p_fake", "inf", "p_fake is 'inf'"),
        ("label", "spoof", "label is 'spoof'. Write 0 or real, 1 or fake"),
        ("frame", "004.png", "frame is '004.png'"),
        ("p_fake", "1" + "0" * 400, "p_fake is "),
        ("frame", "1" + "0" * 400, "frame is "),
        ("logit", "high", "logit is 'high'. Give a number, or leave the column out"),
    ],
)
def test_text_where_there_should_be_numbers(tmp_path, column, value, said):
    with pytest.raises(InputError) as error:
        read_predictions(str(write(changed(column, value), tmp_path / "theirs.csv")))
    assert said in str(error.value)


@pytest.mark.parametrize("column", ["dataset", "method", "video_id", "label", "p_fake"])
def test_a_missing_column(tmp_path, column):
    path = write(make_table().drop(columns=column), tmp_path / "theirs.csv")
    with pytest.raises(
        InputError, match=f"column '{column}' is missing .*Write the columns dataset, method, video_id, label, p_fake"
    ):
        read_predictions(str(path))


def test_a_parquet_file_with_one_column_twice(tmp_path):
    pq.write_table(pa.table([[0.1], [0.2]], names=["p_fake", "p_fake"]), tmp_path / "theirs.parquet")
    with pytest.raises(InputError, match="2 columns have the name 'p_fake'"):
        read_predictions(str(tmp_path / "theirs.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("theirs.csv", b"", "has no rows"),
        ("theirs.csv", b"dataset,method,video_id,label,p_fake\n", "has no rows"),
        ("theirs.csv", b"a,b\n1,2\n1,2,3,4\n", "cannot be read"),
        ("theirs.csv", b"a,b\n\xff\xfe,2\n", "cannot be read"),
        ("theirs.csv", b"a,b,c\n1,2,3\n\n1,2\n", "line 4 has 2 fields, but the header has 3"),
        ("theirs.csv", b"a,b\n1,2,3\n1,2,3\n", "line 2 has 3 fields, but the header has 2"),
        ("theirs.csv", b"a,b,a\n1,2,3\n", "2 columns have the name 'a'"),
        ("theirs.json", b"[" * 200000, "cannot be read"),
        ("theirs.jsonl", b"[" * 200000, "cannot be read"),
        ("theirs.json", b"", "has no rows"),
        ("theirs.json", b"[]", "has no rows"),
        ("theirs.json", b"{", "cannot be read"),
        ("theirs.json", b'{"a": [1]}', "not a list of objects"),
        ("theirs.jsonl", b"\n\n", "has no rows"),
        ("theirs.jsonl", b'{"a": 1}\n3\n', "not a list of objects"),
        ("theirs.parquet", b"", "cannot be read"),
        ("theirs.parquet", b"PAR1 and no more", "cannot be read"),
        ("theirs.pkl", b"", "unknown file extension. Pass one of .csv, .parquet, .json, .jsonl"),
    ],
)
def test_a_file_that_is_no_table(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_predictions(str(tmp_path / name))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("column", "what"), [("p_fake", "probability"), ("frame", "whole number")])
def test_a_number_that_no_float_can_be(tmp_path, column, what):
    rows = make_table().to_dict("records")
    rows[4][column] = 10**400
    (tmp_path / "theirs.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=rf"Row 5 of .*: {column} is 1000000.*\.\.\.\. Give .*{what}"):
        read_predictions(str(tmp_path / "theirs.json"))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("column", ["video_id", "tone"])
def test_a_list_is_no_name(tmp_path, suffix, column):
    table = make_table()
    table[column] = [[text, "x"] for text in table[column]]
    with pytest.raises(InputError) as error:
        read_predictions(str(write(table, tmp_path / f"theirs{suffix}")), group_by="tone")
    shown = {"video_id": "['000', 'x']", "tone": "['dark', 'x']"}[column]
    assert f"Row 1 of '{tmp_path}/theirs{suffix}' (counted from 1): {column} is {shown}. Write" in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize(
    "labels", [{0: "0.0", 1: "1.0"}, {0: "False", 1: "TRUE"}, {0: False, 1: True}, {0: 0.0, 1: 1.0}]
)
def test_labels_as_programs_write_them(tmp_path, suffix, labels):
    table = make_table()
    path = write(table.assign(label=table["label"].map(labels)), tmp_path / f"theirs{suffix}")
    assert read_predictions(str(path)).rows["label"].tolist() == table["label"].tolist()


def test_only_a_newline_ends_a_line_of_json(tmp_path):
    table = make_table()
    table["video_id"] = table["video_id"] + "\u2028\x85/"
    lines = [json.dumps(row, ensure_ascii=False) for row in table.to_dict("records")]
    (tmp_path / "theirs.jsonl").write_bytes("\r\n".join(lines).encode())
    assert read_predictions(str(tmp_path / "theirs.jsonl")).rows["video_id"].tolist() == table["video_id"].tolist()


def test_errors_show_plain_numbers(tmp_path):
    for column in ("p_fake", "frame"):
        path = write(changed(column, np.nan).infer_objects(), tmp_path / "theirs.parquet")
        with pytest.raises(InputError, match=f"{column} is nan. Give"):
            read_predictions(str(path))
    path = write(make_table().assign(label=0.5), tmp_path / "theirs.parquet")
    with pytest.raises(InputError, match=r"label is 0\.5\. Write"):
        read_predictions(str(path))


@pytest.mark.parametrize("name", ["predictions.parquet", "differences.json", "robustness.csv"])
def test_results_do_not_overwrite_what_they_are_computed_from(capsys, tmp_path, monkeypatch, name):
    out = tmp_path / "out"
    out.mkdir()
    path = write(make_table(), out / name)
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(out)
    for given in (path, name, tmp_path / "link" / name):
        said = sentence_of(capsys, "--predictions", given, "--output_dir", out)
        assert said == (f"error: The results would overwrite their input '{given}'. Choose another --output_dir.")
    assert [file.name for file in out.iterdir()] == [name] and path.read_bytes() == before
    other = write(make_table(1), tmp_path / "other.csv")
    evaluate(tmp_path / "both", path, other, options=["--bootstrap", "0"])  # each has a folder of its own there


def test_what_another_run_left_goes_when_new_results_come(tmp_path):
    path = write(make_table(), tmp_path / "theirs.csv")
    out = tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    old = ["differences.json", "robustness.json", "robustness.csv", "robustness.md", "robustness.png", "report.html"]
    for name in (*old, "pictures/1_celeb_df_roc.webp"):
        (out / name).write_text("{}")
    evaluate(out, path, options=["--bootstrap", "0"])
    assert sorted(file.name for file in out.iterdir()) == sorted(
        ["metrics.json", "predictions.parquet", "run.json", "table.csv", "table.json", "table.md"]
    )
    (out / "pictures").mkdir()
    (out / "pictures/mine.webp").touch()
    (out / "report.html").touch()
    (out / "notes.txt").touch()
    evaluate(out, path, options=["--bootstrap", "0"])
    assert not (out / "report.html").exists()
    assert (out / "pictures/mine.webp").exists() and (out / "notes.txt").exists()


def test_refused_results_leave_those_that_are_there(tmp_path, capsys):
    out = tmp_path / "out"
    (out / "metrics.json").mkdir(parents=True)  # cannot be replaced by a file
    (out / "differences.json").touch()
    said = sentence_of(capsys, "--predictions", write(make_table(), tmp_path / "t.csv"), "--output_dir", out)
    assert "cannot be written" in said and "Choose another --output_dir" in said
    assert (out / "differences.json").exists() and not list(out.glob(".*"))


def test_a_rank_without_a_world_size_silences_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    evaluate(tmp_path / "out", write(make_table(), tmp_path / "theirs.csv"), options=["--bootstrap", "0"])
    assert (tmp_path / "out/table.md").exists() and (tmp_path / "out/metrics.json").exists()
    assert "celeb_df" in capsys.readouterr().out


def test_false_alarms_are_printed_where_there_is_no_auc(tmp_path, capsys):
    table = make_table()
    table = table[table["label"] == 0].assign(p_fake=[0.1, 0.2, 0.9] * 12)
    evaluate(tmp_path / "out", write(table, tmp_path / "theirs.csv"), options=["--bootstrap", "0"])
    assert "both classes are needed; at .5, FPR 0.333 (36 frames), FPR 0.000 (12 videos)" in capsys.readouterr().out


def test_it_cautions_of_the_split_on_which_thresholds_are_chosen(here, tmp_path, capsys):
    for split, cautions in (("validation", True), ("VAL", True), ("train", True), ("test", False)):
        path = write(make_table().assign(split=split), tmp_path / "theirs.csv")
        evaluate(tmp_path / "out", path, options=["--bootstrap", "0"])
        assert (f"Caution: if the split {split!r} was used to train" in capsys.readouterr().out) == cautions
    write_split(tmp_path / "set", "validation", make_rows(range(2)))
    common = ["--model", str(here / "model"), "--dataset", str(tmp_path / "set"), "--split", "validation"]
    main([*common, "--device", "cpu", "--bootstrap", "0", "--output_dir", str(tmp_path / "of_model")])
    assert "Caution: if the split 'validation' was used to train" in capsys.readouterr().out


def test_a_file_that_is_not_there(capsys, tmp_path):
    out = tmp_path / "out"
    assert "no.csv' not found" in sentence_of(capsys, "--predictions", tmp_path / "no.csv", "--output_dir", out)
    (tmp_path / "folder.csv").mkdir()
    assert "cannot be read" in sentence_of(capsys, "--predictions", tmp_path / "folder.csv", "--output_dir", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("column", "said"), [("hue", "has no column 'hue' to group by. Pass --group_by"), ("p_fake", "has 108 values")]
)
def test_a_column_that_cannot_group(capsys, tmp_path, column, said):
    path = write(make_table(), tmp_path / "theirs.csv")
    assert said in sentence_of(capsys, "--predictions", path, "--output_dir", tmp_path / "out", "--group_by", column)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_column_without_a_value_cannot_group(capsys, tmp_path, suffix):
    path = write(make_table().assign(tone=None), tmp_path / f"theirs{suffix}")
    said = sentence_of(capsys, "--predictions", path, "--output_dir", tmp_path / "out", "--group_by", "tone")
    assert f"Column 'tone' of {path} (celeb_df): is empty. Group by a column with values" in said
    assert not (tmp_path / "out").exists()


def test_a_single_group_is_warned_of(tmp_path, caplog):
    path = write(make_table().assign(tone="dark"), tmp_path / "theirs.csv")
    read_predictions(str(path), group_by="method")
    assert not caplog.records
    read_predictions(str(path), group_by="tone")
    assert "every row has the value 'dark'. With a single group" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        *(["--dataset", "textures"], ["--split", "validation"], ["--data_root", "data"], ["--batch_size", "8"]),
        *(["--num_workers", "0"], ["--device", "cpu"], ["--skip_corrupt"], ["--allow_mixed_crops"]),
        *(["--perturbations", "jpeg"], ["--fake_labels", "LABEL_1"], ["--trust_remote_code"]),
    ],
)
def test_what_only_models_need_is_refused_of_tables(capsys, tmp_path, options):
    path = write(make_table(), tmp_path / "theirs.csv")
    said = sentence_of(capsys, "--predictions", path, "--output_dir", tmp_path / "out", *options)
    assert said.startswith(f"error: {options[0]} has no effect on tables of predictions")


def test_nothing_to_evaluate(capsys, tmp_path):
    assert "Pass --model with --dataset, or --predictions" in sentence_of(capsys, "--output_dir", tmp_path)
    assert "Pass --dataset" in sentence_of(capsys, "--model", "m", "--output_dir", tmp_path)
