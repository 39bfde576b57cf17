"""The report: one page that holds everything, whatever the data is called, and says why something is lacking."""

import base64
import html
import io
import itertools
import json
import re
import shutil
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.decision_dcl import Rule
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluate_dcl import main
from dcl_face_forgery.evaluation.metrics.levels import compare_models, frame_and_video_metrics
from dcl_face_forgery.evaluation.reporting import figures, report
from dcl_face_forgery.evaluation.reporting.examples import Example, Looks
from dcl_face_forgery.evaluation.reporting.report import write_report
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.tests.shared.prepared_data import CROP, make_rows, write_split

SCRIPT = "<script>alert(1)</script>"
THRESHOLDS = {"eer": 0.43, "fpr_0.05": 0.71, "fpr_0.01": None}


@pytest.fixture(scope="module", autouse=True)
def _coarse():
    """Pictures of a few pixels: what is in them is the matter of test_figures.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 30)
        yield


class Page(HTMLParser):
    """What a page consists of."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.headings, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if re.fullmatch(r"h\d", self.open[-1] if self.open else ""):
            self.headings.append((int(self.open[-1][1]), data.strip()))
        if "style" not in self.open:
            self.text.append(data)

    @property
    def shown(self):
        return " ".join(" ".join(self.text).split())

    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


def make_table(dataset="noise", methods=("swap", "warp"), families=6, frames=2, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for family in range(families):
        for method in ("orl", *methods):
            for frame in range(frames):
                p_fake = rng.beta(2, 4) if method == "orl" else rng.beta(4, 2)
                rows.append((dataset, "test", method, f"{method}/{family}", f"orl/{family}", frame, p_fake))
    columns = ["dataset", "split", "method", "video_id", "source_id", "frame", "p_fake"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(label=(table["method"] != "orl").astype("int8"))


def write_results(folder, table, model="some/model", datasets=None, **options):
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / "predictions.parquet")
    metrics = frame_and_video_metrics(table, bootstrap=20, **options)
    run = {"model": model, "revision": "abc", "seen_methods": ["swap"], "datasets": datasets or {}, "versions": {}}
    for name, content in (("metrics", metrics), ("run", run)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return metrics


def read(folder):
    """Read the report with everything that must hold for any."""
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert not any(tag in ("script", "link", "iframe", "object", "embed", "base") for tag, _ in page.tags)
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/webp;base64,"))
    assert "url(" not in text and "@import" not in text
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert links <= set(ids)
    for attributes in page.images():
        assert len(attributes["alt"]) > 20
        content = base64.b64decode(attributes["src"].partition(",")[2])
        Image.open(io.BytesIO(content)).verify()
    files = {path.read_bytes() for path in (folder / "pictures").iterdir()}
    assert files == {base64.b64decode(attributes["src"].partition(",")[2]) for attributes in page.images()}
    return page


@pytest.fixture
def looks():
    image = np.full((16, 16, 3), 99, np.uint8)
    similarities = np.eye(4, dtype=np.float32)
    fields = {"similarities": similarities, "grid": (2, 2), "evidence": np.eye(2, dtype=np.float32)}
    examples = [
        Example(why, SCRIPT, label, f"{SCRIPT}/7", 3, 0.125, image, forged=np.arange(4) > 1, **fields)
        for why, label in (("median", 1), ("lowest fake", 1), ("highest real", 0))
    ]
    points = np.random.default_rng(0).normal(size=(12, 2))
    similarity = [
        {"method": SCRIPT, "label": 1, "n": 3, "real_real": 0.5, "forged_forged": 0.625, "real_forged": None}
    ]
    return Looks(examples, 0, points, [SCRIPT, "orl"] * 6, np.array([1, 0] * 6), similarity)


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    torch.manual_seed(0)
    model = DCLForPreTraining(
        DCLConfig(backbone="test_efficientnet", image_size=64, queue_size=16, hard_samples=2, seen_methods=["swap"])
    )
    torch.nn.init.normal_(model.classifier.linear.weight, std=2)
    model.save_pretrained(folder / "checkpoint")
    DCLImageProcessor(size={"height": 64, "width": 64}, crop=CROP).save_pretrained(folder / "checkpoint")
    write_split(folder / "textures", "test", make_rows(range(3), methods=("swap", "warp")))
    return folder


def run(here, out, *options):
    arguments = [
        "--model",
        here / "checkpoint",
        "--dataset",
        here / "textures",
        "--output_dir",
        out,
        "--device",
        "cpu",
    ]
    main([str(argument) for argument in (*arguments, "--bootstrap", "20", *options)])


@pytest.fixture(scope="module")
def done(here, tmp_path_factory):
    """The results of the command."""
    out = tmp_path_factory.mktemp("out")
    run(here, out, "--report", "--perturbations", "color_contrast")
    return out


def test_the_command_writes_a_report_with_every_picture(done):
    page = read(done)
    names = {path.stem.removeprefix("1_textures_") for path in (done / "pictures").iterdir()}
    levels = {f"{kind}_{level}" for kind in ("scores", "robustness") for level in ("frame", "video")}
    sheets = {"examples_median_1", "examples_lowest_fake_1", "examples_highest_real_1", "similarities_1"}
    assert names == {"roc", "roc_low", "det", "tsne", "reliability_frame"} | levels | sheets
    assert "9 videos are too few for 15 bins" in page.shown
    metrics = json.loads((done / "metrics.json").read_text())["textures"]
    low, high = metrics["frame"]["intervals"]["auc"]
    assert f"AUC {metrics['frame']['auc']:.3f} {low:.3f} to {high:.3f}" in page.shown
    assert "Only 3 families have reals" in page.shown
    assert "The model was not trained on warp." in page.shown
    assert '"command": "dcl-evaluate --model' in page.shown
    assert (done / "report.html").stat().st_size < 2_000_000


def test_the_same_run_gives_the_same_page_and_clears_what_was_there(here, done, tmp_path, capsys):
    shutil.copy(done / "robustness.json", tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1_gone_roc.webp").touch()
    run(here, tmp_path, "--report")
    assert f"Report: {tmp_path / 'report.html'}" in capsys.readouterr().out
    first, second = ((folder / "report.html").read_text() for folder in (done, tmp_path))
    command = re.compile('"command": .*')
    assert command.search(html.unescape(first))
    assert command.sub("", html.unescape(second)) == command.sub("", html.unescape(first))
    read(tmp_path)


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_a_missing_library_is_reported_before_anything_is_scored(here, tmp_path, monkeypatch, missing):
    monkeypatch.setattr(*((figures, "Figure") if missing == "matplotlib" else (report, "jinja2")), None)
    with pytest.raises(SystemExit) as stop:
        run(here, tmp_path / "out", "--report")
    assert (
        f"need{'s' if missing == 'jinja2' else ''} {missing}: pip install 'dcl-face-forgery[report]'"
        in stop.value.code
    )
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- content


def test_nothing_from_the_data_becomes_markup(tmp_path, looks):
    table = make_table(f"{SCRIPT}/../x", (SCRIPT, 'a" onerror="x', "$\\frac{", "\u202egnp"), families=4)
    table["people"] = [("<b>old", "young")[index % 2] for index in range(len(table))]
    record = {table["dataset"][0]: {"unseen_methods": [SCRIPT], "crop_matches": False}}
    write_results(tmp_path, table, '<img src="x" onerror=alert(1)>', record, group_by="people")
    write_report(tmp_path, {table["dataset"][0]: looks}, bootstrap=10)
    page = read(tmp_path)
    assert {tag for tag, _ in page.tags} & {"script", "b"} == set()
    for name in (SCRIPT, 'a" onerror="x', '<img src="x" onerror=alert(1)>', "<b>old"):
        assert name in page.shown
    assert "\u202e" not in (tmp_path / "report.html").read_text()
    assert all(path.parent == tmp_path / "pictures" for path in tmp_path.rglob("*.webp"))


def test_without_the_model_its_pictures_are_missed_with_a_sentence(tmp_path):
    write_results(tmp_path, make_table())
    page = (write_report(tmp_path, bootstrap=10), read(tmp_path))[1]
    assert page.shown.count("Not drawn, since this needs the model. Evaluate with --report.") == 3
    assert "Not measured for these weights and data. Evaluate with --perturbations." in page.shown
    assert "No thresholds were chosen for this model" in page.shown
    assert "The scores are uncalibrated." in page.shown


def test_a_model_that_gives_no_map_lacks_those_pictures(tmp_path, looks):
    write_results(tmp_path, make_table())
    bare = Looks([Example("median", "swap", 1, "swap/0", 0, 0.5, looks.examples[0].image)])
    write_report(tmp_path, {"noise": bare}, bootstrap=0)
    page = read(tmp_path)
    assert "Not drawn: no feature map, fewer than ten frames" in page.shown
    assert "Not drawn: the model has no feature map" in page.shown
    assert "p_fake 0.500" in " ".join(attributes["alt"] for attributes in page.images())


def test_the_page_opens_with_the_main_numbers_and_folds_the_rest(tmp_path):
    metrics = write_results(tmp_path, make_table(), thresholds={"frame": THRESHOLDS})
    write_report(tmp_path, bootstrap=0)
    page = read(tmp_path)
    (headline,) = (n for n, (_, attributes) in enumerate(page.tags) if attributes.get("class") == "headline")
    (first_fold, *_) = (n for n, (tag, _) in enumerate(page.tags) if tag == "details")
    assert headline < first_fold
    before = page.shown.partition("All metrics")[0]
    low, high = metrics["noise"]["frame"]["intervals"]["auc"]
    assert f"Frame AUC {metrics['noise']['frame']['auc']:.3f} 95 % interval {low:.3f} to {high:.3f}" in before
    rate = metrics["noise"]["frame"]["fpr_at_threshold_eer"]
    assert f"Reals flagged at the equal-error threshold, frames {rate:.3f}" in before
    assert f"Reals flagged at 0.5, videos {metrics['noise']['video']['fpr']:.3f}" in before
    assert "Results by method" in before
    assert not any("open" in attributes for tag, attributes in page.tags if tag == "details")


def test_calibration_thresholds_and_groups_are_shown(tmp_path):
    table = make_table(families=30)
    table["p_fake_raw"] = table["p_fake"] ** 2
    table["people"] = np.where(table["video_id"].str[-1:].isin(list("01234")), "old", "young")
    table.loc[(table["people"] == "old") & (table["label"] == 0), "p_fake"] = 0.9
    rules = {"frame": Rule.of({"frame": {"thresholds": THRESHOLDS}}, "frame", None, None)}
    thresholds = {"frame": THRESHOLDS, "video": THRESHOLDS}
    found = write_results(tmp_path, table, thresholds=thresholds, group_by="people", rules=rules)
    write_report(tmp_path, bootstrap=10)
    page = read(tmp_path)
    metrics = found["noise"]
    assert f"eer frame 0.430 {metrics['frame']['fpr_at_threshold_eer']:.3f}" in page.shown
    assert "fpr_0.01 frame - undefined on the validation data" in page.shown
    assert "before and after calibration" in " ".join(attributes["alt"] for attributes in page.images())
    counts = metrics["frame"]["verdicts"]["real"]
    share = counts["flagged"] / sum(counts.values())
    assert f"real frame {counts['flagged']} ({share:.0%}) 0 (0%) {counts['not_flagged']}" in page.shown
    gap = metrics["by_group"]["gap"]["frame"]["fpr"]
    assert gap["interval"][0] > 0
    assert f"FPR at .5 differs between the groups of people by {gap['value']:.3f} (old above young)" in page.shown


@pytest.mark.parametrize("column", ["method", "dataset"])
def test_nothing_is_concluded_from_a_gap_that_is_not_defined(tmp_path, column):
    metrics = write_results(tmp_path, make_table(families=30), group_by=column)
    gaps = metrics["noise"]["by_group"]["gap"]["frame"]
    assert gaps["auc"]["value"] is gaps["accuracy"]["value"] is None
    write_report(tmp_path, bootstrap=0)
    page = read(tmp_path)
    assert "AUC differs between" not in page.shown and "accuracy at .5 differs between" not in page.shown
    assert page.shown.count(gaps["auc"]["reason"]) >= 3  # of AUC, EER and accuracy
    assert ("undefined for orl" in page.shown) == (column == "method")  # TPR has a gap
    assert "None" not in page.shown and "Undefined" not in page.shown


def test_several_data_sets_and_a_comparison(tmp_path):
    table = pd.concat([make_table("a"), make_table("b", seed=1)], ignore_index=True)
    write_results(tmp_path, table)
    differences = compare_models(table, table.assign(p_fake=table["p_fake"] ** 2), 20)
    content = {"minus": "the <first>", "differences": differences}
    (tmp_path / "differences.json").write_text(json.dumps(content))
    write_report(tmp_path, bootstrap=10)
    page = read(tmp_path)
    assert [text for level, text in page.headings if level == 2][:2] == ["a", "b"]
    assert "Compared with the <first>" in page.shown
    found = differences["b"]["frame"]["accuracy"]
    low, high = found["interval"]
    assert f"accuracy at .5 frame {found['difference']:.3f} {low:.3f} to {high:.3f}" in page.shown


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_a_report_with_reasons(tmp_path, label):
    table = make_table().query("label == @label").reset_index(drop=True)
    write_results(tmp_path, table)
    write_report(tmp_path, bootstrap=10)
    kind = ("real", "fake")[label]
    assert f"No curves (frame level: all {len(table)} frames are {kind}" in read(tmp_path).shown


def test_a_single_video_and_scores_that_are_no_numbers(tmp_path):
    single = make_table(families=1, methods=("swap",)).iloc[:1]
    broken = make_table("broken").assign(p_fake=np.nan)
    write_results(tmp_path, pd.concat([single, broken], ignore_index=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        write_report(tmp_path, bootstrap=10)
    assert "are not finite" in read(tmp_path).shown


def test_a_long_record_is_cut(tmp_path):
    record = {"noise": {"skipped_corrupt": {"count": 5000, "rows": list(range(5000))}}}
    write_results(tmp_path, make_table(), datasets=record)
    write_report(tmp_path, bootstrap=0)
    page = read(tmp_path)
    assert "and 4980 more" in page.shown
    assert "5,000 images could not be decoded" in page.shown


@pytest.mark.slow
def test_twenty_methods_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 150)
    write_results(tmp_path, make_table(methods=[f"method_{number}" for number in range(20)], families=3))
    path = write_report(tmp_path, bootstrap=10)
    assert path.stat().st_size < 1_000_000
    read(tmp_path)


def test_the_robustness_of_other_weights_or_data_is_left_out(done, tmp_path):
    shutil.copytree(done, tmp_path / "out")
    path = tmp_path / "out/robustness.json"
    content = json.loads(path.read_text())
    for changed in ({**content, "revision": "another"}, {**content}):
        if changed["revision"] == content["revision"]:
            changed["datasets"]["textures"]["fingerprint"] = "another"
        path.write_text(json.dumps(changed))
        write_report(tmp_path / "out", bootstrap=0)
        assert not list((tmp_path / "out/pictures").glob("*robustness*"))
        assert "Not measured for these weights and data" in read(tmp_path / "out").shown


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no complete results"):
        write_report(tmp_path)
