"""Pictures: what is drawn are the numbers that were computed, whatever things are called."""

import sys

import numpy as np
import pytest
from PIL import Image

from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluation.metrics.curves import RATES, RocCurve
from dcl_face_forgery.evaluation.reporting import figures
from dcl_face_forgery.evaluation.reporting.examples import Example
from dcl_face_forgery.evaluation.reporting.figures import (
    FAKE_COLOUR,
    REAL_COLOUR,
    draw_det,
    draw_embeddings,
    draw_examples,
    draw_reliability,
    draw_robustness_of,
    draw_roc,
    draw_scores,
    draw_similarities,
    encode,
    evidence_colours,
    plain,
)

HOSTILE = ["$\\frac{", "_hidden", "<script>", "a\nb", "x" * 300, "$x$", "\\$", "\u202egnp", "方法"]


@pytest.fixture
def curves():
    fpr, tpr = np.array([0, 0, 0.25, 1]), np.array([0, 0.5, 0.75, 1])
    band = np.interp(RATES, fpr, tpr)
    curve = RocCurve(fpr, tpr, np.clip(band - 0.1, 0, 1), np.clip(band + 0.1, 0, 1), 200, 400)
    return {"frame": curve, "video": RocCurve(fpr, tpr**2, band * np.nan, band * np.nan, 20, 40)}


def lines_of(axes):
    return {line.get_label().split(" (")[0]: line.get_xydata() for line in axes.lines}


@pytest.mark.parametrize("logarithmic", [False, True])
def test_the_roc_is_drawn_through_its_points(curves, logarithmic):
    figure = draw_roc(curves, logarithmic)
    (axes,) = figure.axes
    for level, curve in curves.items():
        np.testing.assert_array_equal(lines_of(axes)[f"{level}s"], np.column_stack([curve.fpr, curve.tpr]))
    assert axes.get_xscale() == ("log" if logarithmic else "linear")
    band = axes.collections[0].get_paths()[0].vertices
    for rate, height in zip(RATES, curves["frame"].high, strict=True):
        assert (np.abs(band - [rate, height]).max(1) < 1e-9).any()
    assert "frames (200 real, 400 fake)" in [text.get_text() for text in axes.get_legend().get_texts()]
    if logarithmic:
        assert axes.get_xlim()[0] == pytest.approx(0.001)  # 200 reals tell half a percent


def test_the_det_curve_has_misses_over_false_alarms(curves):
    from scipy.stats import norm

    (axes,) = draw_det(curves).axes
    x, y = lines_of(axes)["frames"].T
    assert norm.cdf(x[2]) == pytest.approx(0.25)
    assert norm.cdf(y[2]) == pytest.approx(0.25)
    assert norm.cdf(y[1]) == pytest.approx(0.5)
    labels = {text.get_text(): text.get_position()[0] for text in axes.get_xticklabels()}
    assert norm.cdf(labels["5"]) == pytest.approx(0.05)


def test_histograms_show_the_shares_of_fakes_above_and_of_reals_below():
    reals, fakes = np.array([0.01, 0.02, 0.51, 1.0]), {"swap": np.array([0.0, 0.99]), "warp": np.array([0.3])}
    figure = draw_scores(reals, fakes, {"eer": 0.4, "fpr_0.05": 0.7})
    for axes, (method, scores) in zip(figure.axes, fakes.items(), strict=True):
        bars = {(round(bar.get_x(), 6), np.sign(bar.get_height())): bar for bar in axes.patches if bar.get_height()}
        above = {x: bar.get_height() for (x, sign), bar in bars.items() if sign > 0}
        below = {x: -bar.get_height() for (x, sign), bar in bars.items() if sign < 0}
        assert below == {0.0: 0.5, 0.5: 0.25, 0.95: 0.25}
        assert above == ({0.0: 0.5, 0.95: 0.5} if method == "swap" else {0.3: 1.0})
        assert {bar.get_facecolor()[:3] for (_, sign), bar in bars.items() if sign > 0} == {rgb(FAKE_COLOUR)}
        assert {bar.get_facecolor()[:3] for (_, sign), bar in bars.items() if sign < 0} == {rgb(REAL_COLOUR)}
        assert axes.get_title(loc="left") == f"{method} (n = {len(scores)})"
        at = sorted(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) and line.get_linewidth() == 1)
        assert at == [0.4, 0.7]


def rgb(colour):
    return tuple(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))


def test_one_class_has_histograms_too():
    assert len(draw_scores(np.array([0.2]), {}).axes) == 1
    assert len(draw_scores(np.empty(0), {"swap": np.array([0.2])}).axes) == 1


def test_reliability_is_drawn_before_and_after():
    before = [{"mean_p": 0.2, "share_fake": 0.6, "n": 5, "low": 0.3, "high": 0.9}]
    after = [{"mean_p": 0.5, "share_fake": 0.6, "n": 5, "low": 0.3, "high": 0.9}]
    (axes,) = draw_reliability({"before": before, "after": after}).axes
    for container, bins in zip(axes.containers, (before, after), strict=True):
        line, _, (bars,) = container.lines
        assert line.get_xydata().tolist() == [[bins[0]["mean_p"], 0.6]]
        assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([0.3, 0.9])
    assert [container.get_label() for container in axes.containers] == ["before calibration", "after calibration"]


def test_a_heat_map_of_one_level_has_its_numbers():
    cell = {unit: {"auc": 0.75, "n": 8} for unit in ("frame", "video")}
    result = {"levels": [cell] * 5, "mean": {"frame": None, "video": 0.75}}
    figure = draw_robustness_of({"clean": cell, "types": {"jpeg": result}}, "frame")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.750"] * 6 + ["-"]


def test_reals_have_their_colour_and_no_two_of_twenty_methods_look_alike():
    methods = ["orl", *(f"method_{number}" for number in range(20))]
    figure = draw_embeddings(np.random.default_rng(0).normal(size=(21, 2)), methods, np.arange(21) > 0)
    groups = figure.axes[0].collections
    assert tuple(groups[0].get_facecolor()[0][:3]) == rgb(REAL_COLOUR)
    looks = {(tuple(group.get_facecolor()[0]), group.get_paths()[0].vertices.tobytes()) for group in groups}
    assert len(looks) == len(groups) == 21


def make_example(method="swap", label=1, **known):
    image = np.full((32, 32, 3), 128, np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[16:] = 255
    forged = np.array([False, False, True, True])
    cells = np.array([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.3, 0], [0.1, 0.3, 1, 0.8], [0.2, 0, 0.8, 1]], np.float32)
    fields = {"mask": mask, "evidence": np.array([[-2, 0], [1, 2]], np.float32), "similarities": cells}
    fields |= {"grid": (2, 2), "forged": forged} | known
    return Example("median", method, label, f"{method}/0", 3, 0.25, image, **fields)


def test_evidence_lies_over_the_picture_on_one_scale_around_zero():
    figure = draw_examples([make_example()], limit=2.0)
    picture, mask, overlay, bar = figure.axes
    assert picture.get_title(loc="left") == "p_fake 0.250, fake: swap"
    assert mask.images[0].get_array()[20, 3] == 255
    layer = overlay.images[1].get_array()
    assert layer[0, 0, :3].tolist() == pytest.approx(rgb(REAL_COLOUR), abs=0.01)
    assert layer[1, 1, :3].tolist() == pytest.approx(rgb(FAKE_COLOUR), abs=0.01)
    assert layer[0, 1, 3] == 0  # what speaks for neither hides nothing
    assert layer[1, 0, 3] == pytest.approx(layer[1, 1, 3] / 2)
    assert bar.get_xlim() == (-2, 2)
    assert evidence_colours()(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.01)


def test_what_is_not_known_is_said():
    bare = make_example(mask=None, evidence=None)
    real = make_example(method="orl", label=0, mask=None, evidence=None)
    figure = draw_examples([bare, real], limit=None)
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert said == ["unknown", "not available", "none (real)", "not available"]


def test_cells_are_sorted_into_the_real_and_the_forged_part():
    example = make_example(forged=np.array([True, False, True, False]))
    picture, means, pairs, _ = draw_similarities([example], lowest=0.0).axes
    order = [1, 3, 0, 2]
    np.testing.assert_allclose(pairs.images[0].get_array(), example.similarities[np.ix_(order, order)])
    assert pairs.lines[0].get_ydata()[0] == 1.5
    first = (0.9 + 0.1 + 0.2) / 3  # without itself
    assert means.images[0].get_array()[0, 0] == pytest.approx(first)
    assert len(picture.collections) == 1  # the border of the mask


def test_a_part_alone_has_no_border():
    _, _, pairs, _ = draw_similarities([make_example(mask=None, forged=None)], lowest=0.0).axes
    assert len(pairs.lines) == 0


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_can_be_drawn(name):
    scores = np.linspace(0, 1, 10)
    encode(draw_scores(scores, {name: scores}, {name: 0.5}))
    encode(draw_embeddings(np.eye(2), [name, "orl"], np.array([1, 0])))
    encode(draw_examples([make_example(name)], 1.0))
    encode(draw_similarities([make_example(name)], 0.0))


def test_the_legend_of_methods_leaves_none_out():
    figure = draw_embeddings(np.eye(2), ["_hidden", "orl"], np.array([1, 0]))
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["real (1)", "_hidden (1)"]


def test_long_names_stay_inside_the_picture():
    figure = draw_embeddings(np.eye(4, 2), ["m" * 99, "w" * 99, "x" * 99, "orl"], np.array([1, 1, 1, 0]))
    encode(figure)
    legend, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= legend.x0 and legend.x1 <= page.x1


def test_names_are_one_short_line_and_no_formula():
    assert plain("a\n b\t$x$") == "a b \\$x\\$"
    assert len(plain("x" * 99)) == 28
    assert plain("\u202egnp") == "gnp"


def test_the_same_figure_gives_the_same_bytes(curves):
    assert encode(draw_roc(curves)) == encode(draw_roc(curves))
    import io

    assert Image.open(io.BytesIO(encode(draw_roc(curves)))).size == (690, 630)


def test_nothing_is_drawn_through_pyplot(curves):
    encode(draw_roc(curves))
    if "matplotlib.pyplot" in sys.modules:  # another test's
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_without_matplotlib_it_says_what_to_install(curves, monkeypatch):
    monkeypatch.setattr(figures, "Figure", None)
    with pytest.raises(InputError, match=r"dcl-face-forgery\[report\]"):
        draw_roc(curves)
