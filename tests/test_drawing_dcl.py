"""Drawing: boxes, labels and evidence in pictures, in frames, and in whole videos, each at its place."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import ImageDraw

from dcl_face_forgery import drawing_dcl
from dcl_face_forgery.decision_dcl import ABSTAINED, FLAGGED, NOT_FLAGGED, VERDICTS
from dcl_face_forgery.drawing_dcl import annotate_frames, annotate_picture, annotate_video
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.tests.shared.numbered_videos import number_of, write_video
from dcl_face_forgery.video_dcl import Video, evenly_spaced

GREY = np.full((240, 320, 3), 128, np.uint8)


def face(box, p_fake=0.12, reason=None, evidence=None, **others):
    left, top, right, bottom = box
    return {
        "box": [float(value) for value in box],
        "verdict": ABSTAINED if p_fake is None else FLAGGED if p_fake >= 0.5 else NOT_FLAGGED,
        "p_fake": p_fake,
        "reason": reason,
        "evidence": evidence,
        "evidence_box": [[left, top], [right, top], [right, bottom], [left, bottom]],
        **others,
    }


def of_picture(picture, *faces):
    faces = [{"face": number} | each for number, each in enumerate(faces, start=1)]
    return {"kind": "image", "width": picture.shape[1], "height": picture.shape[0], "faces": faces}


@pytest.fixture
def labels(monkeypatch):
    """The labels that are drawn, each with its rectangle: left, top, right, bottom, the last two inside."""
    found, rectangle, text = [], ImageDraw.ImageDraw.rectangle, ImageDraw.ImageDraw.multiline_text

    def fill(pen, box, fill=None, **how):
        if fill is not None:
            found.append([box])
        rectangle(pen, box, fill=fill, **how)

    def write(pen, at, words, **how):
        found[-1].insert(0, words)
        inner = pen.multiline_textbbox(at, words, font=how["font"], spacing=how["spacing"])
        left, top, right, bottom = found[-1][1]
        assert left <= inner[0] and top <= inner[1] and inner[2] <= right + 1 and inner[3] <= bottom + 1
        text(pen, at, words, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", fill)
    monkeypatch.setattr(ImageDraw.ImageDraw, "multiline_text", write)
    return found


def are_apart(labels, size):
    for (_, one), (_, other) in itertools.combinations(labels, 2):
        assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1], (one, other)
    for text, (left, top, right, bottom) in labels:
        assert 0 <= left < right < size[0] and 0 <= top < bottom < size[1], text
    return True


# ------------------------------------------------------------------------------------------------------------ pictures


def test_the_box_and_the_evidence_are_drawn_at_their_place_and_the_input_stays_as_it_is():
    evidence = np.zeros((3, 3), np.float32)
    evidence[:, 0] = 9
    result = of_picture(GREY, face((100, 60, 190, 180), evidence=evidence))
    picture = GREY.copy()
    picture.flags.writeable = False
    drawn = np.asarray(annotate_picture(picture, result, 1.0))
    changed = (drawn != GREY).any(axis=2)
    assert np.array_equal(picture, GREY) and evidence[:, 0].tolist() == [9, 9, 9]
    assert changed[60:181, 100].all() and changed[60, 100:191].all()
    assert changed[65:175, 103:126].all() and not changed[65:175, 165:185].any()
    outside = changed.copy()
    outside[35:181, 100:300] = False  # the face, and the label above it
    assert outside[-20:, :150].mean() > 0.5, "the colours are not explained"
    outside[-40:, :260] = False
    assert not outside.any()


def test_red_is_in_a_drawing_only_where_something_is_flagged():
    evidence = np.linspace(-9, 9, 9, dtype=np.float32).reshape(3, 3)
    for verdict in VERDICTS:
        judged = face((100, 60, 190, 180), evidence=evidence) | {"verdict": verdict}
        drawn = np.asarray(annotate_picture(GREY, of_picture(GREY, judged), 0.8)).astype(int)
        red = (drawn[..., 0] > 150) & (drawn[..., 1] < 90) & (drawn[..., 2] < 90)
        assert red.any() == (verdict == FLAGGED), verdict


def test_the_colours_are_explained_only_where_there_is_a_map_and_never_larger_than_the_picture():
    plain = np.asarray(annotate_picture(GREY, of_picture(GREY, face((100, 60, 190, 180))), 0.8))
    assert (plain[-40:, :90] == 128).all()
    small = GREY[:60, :40]
    drawn = annotate_picture(small, of_picture(small, face((5, 5, 30, 40), evidence=np.ones((2, 2)))), 0.8)
    assert drawn.size == (40, 60)


def test_evidence_is_left_out_at_opacity_0_and_where_there_is_none():
    box, evidence = (100, 60, 190, 180), np.full((2, 2), 9.0, np.float32)
    none = face(box)
    del none["evidence"]  # as in results that were read from JSON
    for each, opacity in ((face(box, evidence=evidence), 0), (face(box), 1), (none, 1)):
        drawn = np.asarray(annotate_picture(GREY, of_picture(GREY, each), opacity))
        assert (drawn[65:175, 105:185] == 128).all()
    as_lists = face(box, evidence=evidence.tolist())
    assert (np.asarray(annotate_picture(GREY, of_picture(GREY, as_lists), 1))[65:175, 105:185] != 128).any(2).all()


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        ({"p_fake": 0.124}, f"{VERDICTS[NOT_FLAGGED]} 0.12"),
        ({"p_fake": 0.9}, f"{VERDICTS[FLAGGED]} 0.90"),
        ({"p_fake": None, "reason": "too_blurred"}, "No score: too blurred"),
        ({"p_fake": None, "reason": "extreme_pose"}, "No score: turned too far"),
        ({"p_fake": None, "reason": "a_new_one"}, "No score: a new one"),
    ],
)
def test_labels_say_the_verdict_in_words_and_number_several_faces(labels, judged, words):
    one = face((100, 60, 190, 180), **judged)
    annotate_picture(GREY, of_picture(GREY, one), 0)
    annotate_picture(GREY, of_picture(GREY, one, face((10, 60, 60, 120))), 0)
    assert [text for text, _ in labels][:2] == [words, f"1: {words}"]


def test_every_verdict_has_words_and_a_colour():
    assert set(VERDICTS) == set(drawing_dcl._COLOURS)
    assert not any("_" in words for words in VERDICTS.values())


@pytest.mark.parametrize("size", [(1600, 1200), (320, 240), (160, 120), (90, 110)])
def test_labels_stay_in_the_picture_and_off_each_other(labels, size):
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    width, height = size[0] / 4, size[1] / 4
    corners = [(x * width, y * height) for x in range(4) for y in range(4)]
    crowd = [face((x, y, x + width, y + height), None, "too_blurred") for x, y in corners]
    annotate_picture(picture, of_picture(picture, *crowd), 0)
    assert are_apart(labels, size) and len(labels) == 16
    labels.clear()
    for shift in itertools.product((-40, 0, 300), repeat=2):  # beyond each edge
        moved = face(np.array((20, 30, 80, 90)) + np.tile(shift, 2))
        annotate_picture(picture, of_picture(picture, moved), 0.5)
        assert labels and are_apart(labels, size)
        labels.clear()


def test_a_label_that_is_too_wide_for_the_picture_is_broken_and_in_a_tiny_one_left_out(labels):
    narrow = np.zeros((120, 80, 3), np.uint8)
    annotate_picture(narrow, of_picture(narrow, face((10, 40, 70, 110), None, "extreme_pose")), 0)
    ((text, _),) = labels
    assert text.replace("\n", " ") == "No score: turned too far" and "\n" in text
    tiny = np.zeros((8, 8, 3), np.uint8)
    annotate_picture(tiny, of_picture(tiny, face((1, 1, 6, 6))), 0.5)
    assert len(labels) == 1


def test_a_picture_of_another_size_than_the_result_is_refused():
    with pytest.raises(InputError, match=r"The image has 240x320 pixels, but the result is for 320x240\. Pass the"):
        annotate_picture(GREY.transpose(1, 0, 2), of_picture(GREY, face((0, 0, 9, 9))), 0)


# -------------------------------------------------------------------------------------------------------------- videos


def of_video(path, number, *people):
    """The result of a video of which `number` frames were analyzed; people are {frame: box}, or (p_fake, that)."""
    with Video(path) as video:
        image = next(image for _, image in video.read([0]))
        wanted = evenly_spaced(len(video.numbers), number)
        found = []
        for person, boxes in enumerate(people, start=1):
            p_fake, boxes = boxes if isinstance(boxes, tuple) else (0.8, boxes)
            frames = [face(box, p_fake, None, None, frame=at, time=video.time(at)) for at, box in boxes.items()]
            assert set(boxes) <= set(wanted)
            verdict = face((0, 0, 1, 1), p_fake, None if p_fake is not None else "too_brief")
            moments = [{"frame": frames[-1]["frame"]}] if p_fake is not None else []
            found.append(verdict | {"person": person, "moments": moments, "frames": frames})
        return {
            "kind": "video",
            "width": image.shape[1],
            "height": image.shape[0],
            "duration": video.duration,
            "frame_rate": len(video.numbers) / video.duration if video.duration else None,
            "frames_wanted": len(wanted),
            "people": found,
        }


def annotated(path, result, output):
    with Video(path) as video:
        assert annotate_video(video, result, output, 0.4) == output
    with av.open(str(output)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert all(frame.rotation == 0 for frame in frames)
        return stream, [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time for frame in frames]


def reddish(image):
    """Where the boxes and labels of what is suspicious are; the videos are grey."""
    return image[..., 0].astype(int) - image[..., 2] > 40


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "video.mp4", frames=9, size=(256, 192))


def test_an_annotated_video_has_all_frames_at_their_rate_and_size(video, tmp_path):
    stream, frames, times = annotated(video, of_video(video, 3, {0: (60, 100, 90, 140)}), tmp_path / "out.mp4")
    assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 25)
    assert [number_of(image) for image in frames] == list(range(9)) and frames[0].shape == (192, 256, 3)
    assert times == pytest.approx([number / 25 for number in range(9)], abs=1e-4)
    assert float(stream.duration * stream.time_base) == pytest.approx(9 / 25, abs=1e-3)
    with Video(video) as source:
        for number, image in source.read(range(1, 9)):
            assert np.abs(image.astype(int) - frames[number]).mean() < 4, "colours or content changed"


def test_boxes_move_from_one_analyzed_frame_to_the_next_and_stay_out_where_nobody_was_found(video, tmp_path):
    result = of_video(video, 3, {0: (20, 120, 60, 160), 4: (180, 100, 240, 180)})
    _, frames, _ = annotated(video, result, tmp_path / "out.mp4")
    for number, box in {0: (20, 120, 60, 160), 1: (60, 115, 105, 165), 2: (100, 110, 150, 170)}.items():
        left, top, right, bottom = box
        red = reddish(frames[number])
        middle = (top + bottom) // 2
        assert red[middle, left - 2 : left + 3].any() and red[middle, right - 2 : right + 3].any(), number
        assert red[bottom - 2 : bottom + 3, (left + right) // 2].any()
        assert not red[middle, left + 6 : right - 6].any() and not red[bottom + 6 :, :].any()
    assert reddish(frames[4]).any() and not any(reddish(frames[number]).any() for number in range(5, 9))


def test_evidence_goes_from_one_map_to_the_next(video):
    result = of_video(video, 3, {0: (100, 100, 160, 160), 4: (100, 100, 160, 160)})
    for frame, value in zip(result["people"][0]["frames"], (9.0, 0.0), strict=True):
        frame["evidence"] = np.full((2, 2), value, np.float32)
    with Video(video) as source:
        images = annotate_frames(source, result, [0, 3, 4], 1.0)
    first, third, last = (np.asarray(image)[130, 130].astype(int) for image in images)
    assert first[1] + 20 < third[1] + 10 < last[1], "purple has the least green"
    person = result["people"][0]
    person |= {"p_fake": None, "verdict": ABSTAINED, "reason": "too_brief"}
    with Video(video) as source:
        (image,) = annotate_frames(source, result, [0], 1.0)
    assert np.ptp(np.asarray(image)[110:150, 110:150].astype(int), axis=2).max() < 12, "evidence without a score"


def test_a_rotated_video_is_annotated_upright(tmp_path):
    path = write_video(tmp_path / "phone.mp4", frames=5, size=(256, 192), rotation=90)
    result = of_video(path, 2, {0: (20, 180, 80, 240), 4: (20, 180, 80, 240)})
    assert (result["width"], result["height"]) == (192, 256)
    stream, frames, _ = annotated(path, result, tmp_path / "out.mp4")
    assert (stream.width, stream.height) == (192, 256)
    with Video(path) as source:
        for number, image in source.read(range(5)):
            red = reddish(frames[number])
            assert red[210, 18:23].any() and red[210, 77:83].any()
            assert np.abs(image.astype(int) - frames[number])[:140].mean() < 4


def test_odd_sizes_grow_by_one_pixel(tmp_path):
    path = write_video(tmp_path / "odd.mkv", frames=3, size=(255, 191), pixels="yuv444p")
    stream, frames, _ = annotated(path, of_video(path, 3), tmp_path / "out.mp4")
    assert (stream.width, stream.height, len(frames)) == (256, 192, 3)


def test_frames_are_shown_when_they_were_and_what_cannot_be_decoded_is_left_out(tmp_path, monkeypatch):
    path = write_video(tmp_path / "phone.mkv", frames=5, times=[0, 40, 200, 230, 300], size=(256, 192))
    result = of_video(path, 5)
    read = Video.read_readable

    def damaged(video, numbers):
        for number, image in read(video, numbers):
            yield number, InputError("frame 3 is damaged") if number == 3 else image

    monkeypatch.setattr(Video, "read_readable", damaged)
    _, frames, times = annotated(path, result, tmp_path / "out.mp4")
    assert [number_of(image) for image in frames] == [0, 1, 2, 4]
    assert times == pytest.approx([0, 0.04, 0.2, 0.3], abs=1e-3)
    with Video(path) as video, pytest.raises(InputError, match="frame 3 is damaged"):
        annotate_frames(video, result, [1, 3], 0.4)


def test_a_video_of_which_one_frame_was_analyzed_is_annotated_there(video, tmp_path):
    _, frames, _ = annotated(video, of_video(video, 1, {0: (60, 100, 90, 140)}), tmp_path / "out.mp4")
    assert [bool(reddish(image).any()) for image in frames] == [True] + [False] * 8


def test_labels_of_a_video_give_the_mean_of_the_person_and_the_score_of_the_frame(video, labels):
    boxes = {0: (60, 60, 120, 160), 4: (60, 60, 120, 160)}
    result = of_video(video, 3, (0.8, boxes), (None, {0: (180, 60, 220, 140)}))
    result["people"][0]["frames"][1] |= {"p_fake": None, "reason": "too_blurred"}
    with Video(video) as source:
        annotate_frames(source, result, [0, 4], 0.4)
    mean = f"1: {VERDICTS[FLAGGED]} 0.80 on average"
    assert [text for text, _ in labels] == [
        f"{mean}\n0.00 s: 0.80",
        "2: No score: seen too briefly",
        f"{mean}\n0.16 s: too blurred",
    ]


def test_frames_come_in_the_order_that_was_asked_for_and_by_default_are_the_moments(video):
    big, small = (60, 60, 150, 180), (60, 60, 90, 100)
    result = of_video(video, 3, (0.8, {0: big, 4: big}), (None, {4: small, 8: big}))
    with Video(video) as source:
        assert [number_of(np.asarray(image)) for image in annotate_frames(source, result, [7, 2, 7], 0)] == [7, 2]
    with Video(video) as source:  # the moment of the first, and where the face of the second is largest
        assert [number_of(np.asarray(image)) for image in annotate_frames(source, result, None, 0)] == [4, 8]


@pytest.mark.parametrize(
    ("changes", "output", "sentence"),
    [
        (
            {"duration": 9.0},
            "out.mp4",
            "lasts 0.36 s, but the result is for a video of 9.00 s. Pass the video that the",
        ),
        ({"width": 320}, "out.mp4", "The video has 256x192 pixels, but the result is for 320x192"),
        ({}, "out.avi", r"out.avi does not end in \.mp4. Choose another name: annotated videos are MP4"),
        ({}, "none/out.mp4", "Folder .*none for out.mp4 not found. Create it"),
        ({}, "video.mp4", "is the input video"),
        ({}, "folder.mp4", r"folder.mp4 cannot be written \(Is a directory\)"),
    ],
)
def test_what_cannot_be_annotated_is_said_and_leaves_nothing(video, tmp_path, changes, output, sentence):
    (tmp_path / "folder.mp4").mkdir()
    before = {path: path.stat().st_size for path in tmp_path.iterdir()}
    with Video(video) as source, pytest.raises(InputError, match=sentence):
        annotate_video(source, of_video(video, 3) | changes, tmp_path / output, 0.4)
    assert {path: path.stat().st_size for path in tmp_path.iterdir()} == before


def test_a_frame_that_is_not_there_is_named(video):
    with Video(video) as source, pytest.raises(InputError, match=r"has no frame 9\. Choose numbers from 0 to 8"):
        annotate_frames(source, of_video(video, 3), [9], 0.4)


def test_the_rate_of_films_is_exact(tmp_path):
    path = write_video(tmp_path / "film.mp4", frames=5, size=(256, 192), rate=Fraction(24000, 1001))
    stream, _, _ = annotated(path, of_video(path, 2), tmp_path / "out.mp4")
    assert float(stream.average_rate) == pytest.approx(24000 / 1001, abs=1e-3)


def test_frames_that_are_an_hour_apart_are_written(tmp_path):
    path = write_video(tmp_path / "lapse.mkv", frames=2, times=[0, 3_600_000], size=(256, 192))
    _, frames, times = annotated(path, of_video(path, 2), tmp_path / "out.mp4")
    assert [number_of(image) for image in frames] == [0, 1] and times == pytest.approx([0, 3600], abs=0.01)
