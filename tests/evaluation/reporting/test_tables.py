"""Tables over data sets and models: their numbers are those of the metrics, and published ones stand beside them."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dcl_face_forgery.evaluate_dcl import main
from dcl_face_forgery.evaluation.metrics.levels import frame_and_video_metrics
from dcl_face_forgery.evaluation.reporting import tables
from dcl_face_forgery.evaluation.reporting.summary import print_result, summarize
from dcl_face_forgery.evaluation.reporting.tables import (
    PUBLISHED,
    Result,
    find_published,
    published_rows,
    result_rows,
    write_tables,
)

ROOT = Path(tables.__file__).parents[2]
FORGED = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")


def make_metrics(sets, seed=0, bootstrap=40):
    """Metrics of data sets with the methods given, eight clips each."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "dataset": data_set,
            "method": method,
            "video_id": f"{method}/{clip}",
            "source_id": f"{clip}",
            "label": int(method != "real"),
            "p_fake": rng.uniform(0.3 * (method != "real"), 0.9),
        }
        for data_set, methods in sets.items()
        for method in ("real", *methods)
        for clip in range(8)
        for _ in range(2)
    ]
    return frame_and_video_metrics(pd.DataFrame(rows), bootstrap=bootstrap)


@pytest.fixture(scope="module")
def results():
    sets = {"prepared/ffpp_c23": FORGED, "celeb_df_v2": ["Celeb-synthesis"], "mine": ["swap", "warp"]}
    return [
        Result("ours", make_metrics(sets), ["Face2Face", "FaceSwap", "NeuralTextures"]),
        Result("theirs.csv", make_metrics(sets, seed=1), None),
    ]


def section(text, title):
    """Return the rows of a table of `table.md` by model, each a dictionary by column."""
    (part,) = [part for part in text.split("## ") if part.startswith(title)]
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line.startswith("| ")
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_a_row_has_the_numbers_of_the_metrics(results):
    rows = pd.DataFrame(result_rows(results))
    assert len(rows) == 2 * 2 * (5 + 2 + 3)
    assert not rows.duplicated(["model", "data_set", "method", "level"]).any()
    for row in rows.to_dict("records"):
        levels = {result.model: result.metrics for result in results}[row["model"]][row["data_set"]]
        scores = (levels if row["method"] == "all" else levels["by_method"][row["method"]])[row["level"]]
        assert (row["auc"], row["eer"], row["accuracy"], row["n"]) == tuple(
            scores[name] for name in ("auc", "eer", "accuracy", "n")
        )
        assert [row["auc_low"], row["auc_high"]] == scores["intervals"]["auc"]


def test_what_a_model_was_trained_on_is_marked(results):
    rows = pd.DataFrame(result_rows(results)).set_index(["model", "data_set", "method", "level"])["seen"]
    assert rows["ours", "prepared/ffpp_c23", "all", "frame"] == "partly"
    assert rows["ours", "prepared/ffpp_c23", "FaceSwap", "frame"] == "seen"
    assert rows["ours", "prepared/ffpp_c23", "Deepfakes", "video"] == "unseen"
    assert rows["ours", "celeb_df_v2", "all", "frame"] == "unseen"
    assert rows["theirs.csv"].isna().all()
    (whole,) = {row["seen"] for row in result_rows([Result("m", make_metrics({"a": ["x"]}), ["x", "y"])])}
    assert whole == "seen"


def test_the_wide_tables_are_those_of_papers(results, tmp_path):
    text = write_tables(results, tmp_path)
    assert text == (tmp_path / "table.md").read_text()
    frame, video = (section(text, f"Across data sets, {level} level") for level in ("frame", "video"))
    assert [row["model"] for row in frame] == [row["model"] for row in video] == ["ours", "theirs.csv"]
    assert list(frame[0]) == ["model", "trained on", "celeb_df_v2", "mine", "prepared/ffpp_c23"]
    assert (frame[0]["trained on"], frame[1]["trained on"]) == ("Face2Face, FaceSwap, NeuralTextures", "?")
    scores = results[0].metrics["prepared/ffpp_c23"]["frame"]
    low, high = scores["intervals"]["auc"]
    cell = f"{100 * scores['auc']:.2f} ({100 * low:.1f} to {100 * high:.1f}) / {100 * scores['eer']:.2f} (*)"
    assert frame[0]["prepared/ffpp_c23"] == cell
    assert video[0]["mine"].startswith(f"{100 * results[0].metrics['mine']['video']['auc']:.2f} (")

    methods = section(text, "Across the methods of prepared/ffpp_c23")
    assert list(methods[0]) == ["model", "trained on", *FORGED]
    assert [cell.endswith(" *") for cell in list(methods[0].values())[2:]] == [False, True, True, True]
    assert not any("*" in cell for cell in methods[1].values())
    assert "Across the methods of celeb_df_v2" not in text  # it has one

    (others,) = section(text, "Trained on other methods")  # "theirs.csv" does not say
    of_method = results[0].metrics["prepared/ffpp_c23"]["by_method"]["Deepfakes"]["frame"]
    assert list(others) == ["model", "trained on", "prepared/ffpp_c23: Deepfakes"]
    assert others["prepared/ffpp_c23: Deepfakes"].startswith(
        f"{100 * of_method['accuracy']:.2f} / {100 * of_method['auc']:.2f} ("
    )
    assert "published" not in text


def test_csv_and_json_hold_the_same_rows(results, tmp_path):
    write_tables(results, tmp_path, published=True)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    table = pd.read_csv(tmp_path / "table.csv")
    assert len(table) == len(rows)
    assert table["auc"].tolist() == pytest.approx(
        [np.nan if row["auc"] is None else row["auc"] for row in rows], nan_ok=True
    )
    assert {frozenset(row) for row in rows} == {frozenset(table.columns)}
    assert table["trained_on"][0] == "Face2Face, FaceSwap, NeuralTextures"


def test_without_an_auc_the_cell_is_a_dash_and_the_row_says_why(tmp_path):
    rows = pd.DataFrame([("reals", "real", "a", 0, 0.1)], columns=["dataset", "method", "video_id", "label", "p_fake"])
    text = write_tables([Result("m|n", frame_and_video_metrics(rows), None)], tmp_path)
    assert "| m\\|n | ? | - / - |" in text
    (row, _) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert row["auc"] is None
    assert "all 1 frames are real, and both classes are needed" in row["reason"]


def test_a_name_that_is_no_methods_own_is_neither_seen_nor_unseen():
    metrics = make_metrics(
        {"wild_deepfake": ["fake"], "mine": ["fake", "swap"], "other": ["swap", "warp"]}, bootstrap=0
    )

    def seen(seen_methods):
        rows = [row for row in result_rows([Result("m", metrics, seen_methods)]) if row["level"] == "frame"]
        return {(row["data_set"], row["method"]): row["seen"] for row in rows}

    swap = seen(["swap"])
    assert swap["wild_deepfake", "fake"] is swap["wild_deepfake", "all"] is swap["mine", "all"] is None
    assert (swap["mine", "swap"], swap["other", "warp"], swap["other", "all"]) == ("seen", "unseen", "partly")
    fake = seen(["Fake", "swap"])  # what "fake" was there may have been warp
    assert fake["wild_deepfake", "fake"] is fake["other", "warp"] is fake["other", "all"] is None
    assert fake["other", "swap"] == "seen"
    text = summarize(metrics, ["swap"]).set_index(["dataset", "method"])["trained on"]
    assert text["wild_deepfake", "fake"] == text["mine", "fake"] == "-"
    assert (text["mine", "swap"], text["other", "warp"]) == ("seen", "unseen")


@pytest.mark.parametrize(
    "name",
    [
        "a|b",
        "a\\|b",
        "a\nb",
        "a\r\n\n| x | y |",
        "`a",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:b)",
        "a\u2028b",
    ],
)
def test_a_hostile_name_stays_in_its_cell(tmp_path, name):
    metrics = make_metrics({name: ["x", f"y{name}"]}, bootstrap=0)
    text = write_tables([Result(name, metrics, [f"y{name}"])], tmp_path)
    assert not re.search(r"<|(?<!\\)[`\[\]]|[\r\u2028]", text)
    for part in text.split("## ")[1:]:
        lines = [line for line in part.split("\n")[1:] if line]
        assert all(line.startswith("|") for line in lines)
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) == 1
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["model"] == name


def test_of_reals_alone_the_long_form_has_the_false_alarms(tmp_path):
    rows = pd.DataFrame(
        [("reals", "real", clip, 0, p) for clip, p in zip("abcd", (0.1, 0.6, 0.2, 0.3), strict=True)],
        columns=["dataset", "method", "video_id", "label", "p_fake"],
    )
    write_tables([Result("m", frame_and_video_metrics(rows, bootstrap=0))], tmp_path)
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["fpr"].tolist() == [0.25, 0.25]
    assert {"fpr_low", "fpr_high"} < set(table.columns)


# ------------------------------------------------------------------------------------------------------------- groups

THRESHOLDS = {"frame": {"eer": 0.45, "fpr_0.01": None}, "video": {}}


def make_groups(column="people", families=24, bootstrap=40, **options):
    """Metrics of two groups of people; the reals of the old look like fakes."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "dataset": "mine",
            "method": method,
            "video_id": f"{method}/{clip}",
            "source_id": f"{clip}",
            "label": int(method != "real"),
            "p_fake": rng.uniform(0.4 * (method != "real" or clip % 2), 0.9),
            "people": ("young", "old")[clip % 2],
            "no|body": "<b>",
        }
        for clip in range(families)
        for method in ("real", "swap", "warp")
        for _ in range(2)
    ]
    return frame_and_video_metrics(pd.DataFrame(rows), group_by=column, bootstrap=bootstrap, **options)


def printed_of(metrics, tmp_path, capsys):
    print_result([Result("m", metrics)], [tmp_path], (), 0, 0)
    return capsys.readouterr().out


def test_groups_and_their_gaps_are_in_the_tables(tmp_path):
    metrics = make_groups(thresholds=THRESHOLDS)
    text = write_tables([Result("m", metrics), Result("n", make_groups(bootstrap=0))], tmp_path)
    found = metrics["mine"]["by_group"]
    content = json.loads((tmp_path / "table.json").read_text())
    assert len(content["groups"]) == 2 * 2 * 2 and len(content["gaps"]) == 2 * 2 * 4
    for row in content["groups"][:4]:
        scores = found["groups"][row["group"]][row["level"]]
        suffix = "_at_threshold_eer" if row["level"] == "frame" else ""  # of videos it has none
        assert row["point"] == ("eer" if row["level"] == "frame" else ".5")
        assert (row["auc"], row["eer"], row["fpr"]) == (scores["auc"], scores["eer"], scores[f"fpr{suffix}"])
        assert [row["tpr_low"], row["tpr_high"]] == (scores["intervals"][f"tpr{suffix}"] or [None, None])
        assert (row["frames"], row["videos"]) == (72, 36)
        assert row["warning"].startswith("Only 12 families")
    gap = found["gap"]["frame"]["fpr_at_threshold_eer"]
    (row,) = [row for row in content["gaps"][:8] if (row["level"], row["measure"]) == ("frame", "fpr")]
    assert (row["gap"], row["highest"], row["lowest"]) == (gap["value"], "old", "young")
    assert [row["gap_low"], row["gap_high"]] == gap["interval"]
    assert content["gaps"][8]["gap_low"] is None  # without draws

    lines = section(text, "Groups of mine by people, frame level")
    assert [(line["model"], line["group"]) for line in lines] == [
        (model, group) for model in "mn" for group in ("old", "young")
    ]
    old = found["groups"]["old"]["frame"]
    low, high = old["intervals"]["auc"]
    assert lines[0]["AUC"] == f"{100 * old['auc']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    assert lines[0]["FPR"].startswith(f"{100 * old['fpr_at_threshold_eer']:.1f}")
    assert [line["FPR and TPR at"] for line in lines] == ["eer", "eer", ".5", ".5"]
    (line,) = [
        line
        for line in section(text, "Gaps between the groups of mine by people, f")
        if line["highest"] == "old" and line["gap of"] == "FPR at eer"
    ]
    assert line["gap"] == "{:.1f} ({:.1f} to {:.1f})".format(*(100 * x for x in (gap["value"], *gap["interval"])))
    assert "group" not in pd.read_csv(tmp_path / "table.csv").columns


def test_without_groups_the_tables_are_silent_of_them(results, tmp_path, capsys):
    assert "Groups" not in write_tables(results, tmp_path)
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["groups"] == content["gaps"] == []
    said = printed_of(results[1].metrics, tmp_path, capsys)
    assert " by " not in said and "gap" not in said


def test_groups_and_their_gaps_are_printed(tmp_path, capsys):
    metrics = make_groups(thresholds=THRESHOLDS)
    said = printed_of(metrics, tmp_path, capsys)
    found = metrics["mine"]["by_group"]
    lines = said.splitlines()
    at = lines.index("mine by people, frame level:")
    assert re.split(r"  +", lines[at + 1].strip()) == [
        "group", "frames", "videos", "AUC", "EER", "FPR at eer", "TPR at eer",
    ]  # fmt: skip
    old = found["groups"]["old"]["frame"]
    low, high = old["intervals"]["auc"]
    assert lines[at + 2].split()[:4] == ["old", "72", "36", f"{old['auc']:.3f}"]
    assert f"{old['auc']:.3f} ({low:.3f} to {high:.3f})" in lines[at + 2]
    gap = found["gap"]["frame"]["fpr_at_threshold_eer"]
    assert re.search(
        r"FPR at eer +{:.3f} \({:.3f} to {:.3f}\) +old +young".format(gap["value"], *gap["interval"]), said
    )
    assert "mine by people, video level:" in said and "TPR at .5" in said
    assert "Caution (old, young): Only 12 families have reals" in said
    assert "(" not in printed_of(make_groups(bootstrap=0), tmp_path, capsys).split("largest gap")[0]


def test_of_groups_of_one_class_it_is_said_why_there_is_no_gap(tmp_path, capsys):
    metrics = make_groups("method", bootstrap=0)
    said = printed_of(metrics, tmp_path, capsys)
    assert "No gap of AUC, EER: a gap needs two groups with a value, and 0 of 3 have one (real: all 48 frames" in said
    assert "The gap of TPR at .5 excludes groups for which it is undefined: real" in said
    text = write_tables([Result("m", metrics)], tmp_path)
    assert "- m: No gap of AUC, EER: a gap needs two groups" in text
    assert section(text, "Gaps between the groups of mine by method, frame")[0] == {
        "model": "m", "gap of": "AUC", "gap": "-", "highest": "-", "lowest": "-",
    }  # fmt: skip


def test_a_hostile_group_stays_in_its_cell(tmp_path):
    text = write_tables([Result("m", make_groups("no|body", bootstrap=0))], tmp_path)
    assert "<b>" not in text
    lines = section(text, "Groups of mine by no\\|body, frame level")
    assert lines[0]["group"] == "&lt;b&gt;"
    assert "- m: No gap of AUC, EER, FPR at .5, TPR at .5: there is only one group" in text


def test_a_missing_video_auc_is_printed_with_its_reason(tmp_path, capsys):
    rows = pd.DataFrame(
        {
            "dataset": "clips",
            "method": "x",
            "video_id": list("aabb"),
            "label": [0, 1, 0, 1],
            "p_fake": [0.1, 0.9, 0.3, 0.2],
        }
    )
    metrics = frame_and_video_metrics(rows, bootstrap=0)
    assert metrics["clips"]["frame"]["auc"] is not None
    said = printed_of(metrics, tmp_path, capsys)
    assert "clips: no video AUC, since the video_id 'a' has real and fake frames" in said
    assert ": no AUC" not in said
    reals = printed_of(frame_and_video_metrics(rows.assign(label=0), bootstrap=0), tmp_path, capsys)
    assert "clips: no AUC, since all 4 frames are real" in reals and "no video AUC" not in reals


# ---------------------------------------------------------------------------------------------------------- published


def test_published_numbers_are_those_of_their_sources():
    across = {
        (row["model"], row["data_set"], row["source"].rsplit(", ", 1)[1]): (row["auc"], row["eer"])
        for row in published_rows("across_data_sets")
    }
    assert across["DCL", "Celeb-DF", "Table 1"] == (0.823, 0.2653)
    assert across["DCL", "DFD", "Table 1"] == (0.9166, 0.1663)
    assert across["DCL", "WildDeepfake", "Table 1"] == (0.7114, 0.3617)
    assert across["Xception", "DFDC", "Table 1"] == (0.698, 0.3541)
    assert across["Face X-ray", "FF++", "Table 1"] == (0.874, None)
    assert ("Face X-ray", "WildDeepfake", "Table 1") not in across
    preview = [key for key in across if key[1] == "DFDC-P"]
    assert preview == [("EN-b4", "DFDC-P", "Table 1")] and across[preview[0]] == (0.7051, None)
    assert across["EN-b4", "DFDC", "Table 1"] == (0.7012, 0.3454)
    assert across["EN-b4, the baseline of DCL", "Celeb-DF", "Fig. 4"] == (0.7412, None)
    one = {
        (row["model"], *row["trained_on"], row["method"]): (row["auc"], row["seen"])
        for row in published_rows("across_methods")
    }
    assert one["EN-b4", "Deepfakes", "FaceSwap"] == (0.4624, "unseen")
    assert one["MAT", "NeuralTextures", "NeuralTextures"] == (0.9866, "seen")
    assert len(one) == 32
    three = {
        (row["model"], row["data_set"], row["method"], row["source"][:8]): (row["accuracy"], row["auc"])
        for row in published_rows("trained_on_others")
    }
    assert three["DCL", "FF++", "Deepfakes", "accuracy"] == (0.877, 0.949)
    assert three["DCL", "FF++ (c40)", "Face2Face", "accuracy"] == (0.6785, None)
    assert three["Effort", "FF++", "Face2Face", "Effort, "] == (0.8571, 0.9383)


def test_numbers_that_no_source_was_read_for_are_not_published():
    """DCL and GFF trained on one method, AUC at c40, and ForensicTransfer."""
    content = json.loads(PUBLISHED.read_text())
    assert {row["model"] for row in content["across_methods"]["rows"]} == {"EN-b4", "MAT"}
    assert all(
        "auc" not in cell
        for row in content["trained_on_others"]["rows"]
        for cell in row["cells"].get("FF++ (c40)", {}).values()
    )
    assert "ForensicTransfer" not in PUBLISHED.read_text()
    numbers = set(re.findall(r"\d+\.\d+", PUBLISHED.read_text()))
    unread = (
        "99.87 76.89 47.21 72.88 99.98 77.13 61.01 75.01 89.23 61.3 64.77 91.91 99.21 59.58 66.67 70.21 68.72 99.85"
    )
    unread += " 49.91 74.8 69.75 99.9 52.6 88.49 49.81 74.31 98.77 91.23 52.13 79.31 98.97"  # trained on one
    unread += " 75.3 67.4 73.12 61.7 75.6 72.4 83.82 75.07 72.01 68.2 64.5 55.0"  # at c40, ForensicTransfer
    # 72.88 is also what F3-Net reaches on DFDC.
    assert not set(unread.split()) - {"72.88"} & numbers
    assert "72.88" in numbers


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("FF++", ["ffpp", "ffpp_c23", "lab/ffpp_c23", "/data/FaceForensics++_c23", "FaceForensics++", "ff++"]),
        ("FF++ (c40)", ["ffpp_c40"]),
        ("DFD", ["dfd", "dfd_c23", "DeepFakeDetection"]),
        ("DFDC", ["dfdc", "lab/DFDC"]),
        ("DFDC-P", ["dfdcp", "DFDC-P", "dfdc_preview"]),
        ("WildDeepfake", ["wild_deepfake", "WildDeepfake"]),
        ("Celeb-DF", ["celeb_df", "celeb_df_v2", "Celeb-DF-v2", "cdf_v2"]),
    ],
)
def test_data_sets_are_known_by_their_names(name, own):
    others = ["ffpp_raw", "celeb_df_v1", "dfd_raw", "demo", "deeperforensics", "uadfv", "wild", "prepared"]
    assert list(find_published(name, dict.fromkeys([*others, *own], ()))) == own


def test_published_numbers_stand_in_the_columns_of_the_data_sets(results, tmp_path):
    printed = write_tables(results, tmp_path, published=True)
    text = (tmp_path / "table.md").read_text()
    frame = section(text, "Across data sets, frame level")
    assert list(frame[0])[2:5] == ["celeb_df_v2", "mine", "prepared/ffpp_c23"]
    assert {"DFD", "DFDC", "WildDeepfake"} < set(frame[0])  # not evaluated, and listed all the same
    near = section(printed, "Across data sets, frame level")
    assert list(near[0])[2:] == ["celeb_df_v2", "mine", "prepared/ffpp_c23"]
    (dcl,) = [row for row in near if row["model"] == "DCL (published) [1]"]
    assert dcl["celeb_df_v2"] == "82.30 / 26.53"
    (dcl,) = [row for row in frame if row["model"] == "DCL (published) [1]"]
    assert dcl["celeb_df_v2"] == "82.30 / 26.53"
    assert dcl["prepared/ffpp_c23"] == "99.30 / 3.26 *"
    assert dcl["mine"] == "-"
    assert "- [1] Sun et al., " in text
    assert not any("published" in row["model"] for row in section(text, "Across data sets, video level"))
    methods = section(text, "Across the methods of prepared/ffpp_c23")
    (b4, *_) = [row for row in methods if row["model"].startswith("EN-b4 (published)")]
    assert (b4["trained on"], b4["Deepfakes"], b4["FaceSwap"]) == ("Deepfakes", "99.97 *", "46.24")
    others = section(text, "Trained on other methods")
    (dcl,) = [row for row in others if row["model"].startswith("DCL (published)")]
    assert dcl["prepared/ffpp_c23: Deepfakes"] == "87.70 / 94.90"
    assert dcl["FF++ (c40): Deepfakes"] == "75.90 / -"
    for note in json.loads(PUBLISHED.read_text())["notes"]:
        assert note in text
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert {row["published"] for row in rows} == {True, False}
    assert all(row["published"] == (row["source"] is not None) == (row["published_as"] is not None) for row in rows)


def test_where_no_published_number_is_about_the_data_that_is_said(tmp_path):
    printed = write_tables([Result("ours", make_metrics({"mine": ["swap"]}), None)], tmp_path, published=True)
    assert "There are no published numbers for mine." in printed
    assert "no published numbers" not in (tmp_path / "table.md").read_text()


def test_the_level_of_a_published_number_is_said_only_where_it_is_known():
    rows = [
        row for kind in ("across_data_sets", "across_methods", "trained_on_others") for row in published_rows(kind)
    ]
    assert {row["level"] for row in rows if "Effort" in row["source"]} == {None}
    assert {row["level"] for row in rows if "Effort" not in row["source"]} == {"frame"}
    (note,) = [note for note in json.loads(PUBLISHED.read_text())["notes"] if "Table 11" in note]
    assert "their level is unknown" in note


def test_notes_name_what_a_reader_needs_to_know():
    notes = " ".join(json.loads(PUBLISHED.read_text())["notes"])
    for word in ("frames", "DFDC-P", "Celeb-DF test set", "crops", "EN-b0"):
        assert word in notes


def test_published_numbers_are_package_data():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert PUBLISHED.name in content["tool"]["setuptools"]["package-data"]["dcl_face_forgery.evaluation.reporting"]


# --------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_and_prints_the_tables(tmp_path, capsys):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "dataset": np.repeat(["celeb_df_v2", "wild_deepfake"], 40),
            "method": "x",
            "video_id": np.arange(80),
            "label": np.arange(80) % 2,
            "p_fake": rng.uniform(size=80),
        }
    )
    table.to_csv(tmp_path / "theirs.csv", index=False)
    arguments = [
        "--predictions",
        str(tmp_path / "theirs.csv"),
        "--output_dir",
        str(tmp_path / "out"),
        "--bootstrap",
        "0",
    ]
    main(arguments)
    plain = capsys.readouterr().out
    assert "| theirs.csv |" not in plain  # it is called by its path
    assert "## Across data sets, frame level" in plain
    assert "(published)" not in plain
    main([*arguments, "--published"])
    printed = capsys.readouterr().out
    assert "DCL (published) [1]" in printed and "DFDC" not in printed.split("## Published numbers")[0]
    assert "DFDC" in (tmp_path / "out/table.md").read_text()
    assert "71.14 / 36.17" in printed
