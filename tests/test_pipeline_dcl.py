"""The pipeline: pictures and videos of real faces in, verdicts with reasons out, and never a number for nothing."""

import contextlib
import copy
import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image, ImageCms
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from dcl_face_forgery import media_dcl, pipeline_dcl
from dcl_face_forgery.abstention_dcl import Abstention, measure_sharpness, pack
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.decision_dcl import calibrate, to_json
from dcl_face_forgery.detection.onnx_export import write_graph
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.evaluation.familiarity import fit_familiarity
from dcl_face_forgery.faces_dcl import YUNET_FILE, YUNETS, crop_transform, cut
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.media_dcl import find_files, read_picture
from dcl_face_forgery.modeling_dcl import REFERENCE_FILE, DCLForImageClassification, ReferenceNetwork, find_reference
from dcl_face_forgery.pipeline_dcl import TASK, FaceForgeryDetectionPipeline
from dcl_face_forgery.tests.shared.checkpoints import CALIBRATION, CROP, save_checkpoint
from dcl_face_forgery.tests.shared.profiles import PROFILES
from dcl_face_forgery.tests.shared.raw_data_sets import TALKING, encode, encode_sizes, person_frames


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    fetch("yunet")  # where checkpoints find it when they are saved
    return save_checkpoint(tmp_path_factory.mktemp("hub") / "my-model.v1")


@pytest.fixture
def pipe(checkpoint):
    return FaceForgeryDetectionPipeline.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def portrait():
    return read_picture(fetch("astronaut"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve frames of a talking face at 25 frames a second."""
    path = tmp_path_factory.mktemp("clip") / "talking.mp4"
    encode(path, person_frames(TALKING), crf=18)
    return path


def with_answers(pipe, monkeypatch, answers, map_size=(3, 3)):
    """Let the model give these p_fake, one face after the other."""
    answers = iter(answers)

    def judged(outputs):
        p_fake = np.array([next(answers) for _ in range(len(outputs["logits"]))])
        count = len(p_fake)
        return {
            "p_fake": p_fake,
            "p_fake_raw": p_fake,
            "evidence": np.zeros((count, *map_size), np.float32),
            "embedding": outputs["embedding"].numpy(),
        }

    monkeypatch.setattr(pipe, "postprocess", judged)


# ------------------------------------------------------------------------------------------------------------ pictures


def test_a_picture_gets_the_answer_of_the_model_on_the_crop_it_was_trained_with(pipe, checkpoint, portrait):
    result = pipe(str(fetch("astronaut")))
    (face,) = result["faces"]
    assert (result["kind"], result["width"], result["height"]) == ("image", 512, 512)
    assert result["name"] == str(fetch("astronaut"))
    transform = crop_transform(pipe._detector.detect(portrait)[0], CROP)
    crop = cut(portrait, transform, 112)
    model = DCLForImageClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        outputs = model(**DCLImageProcessor.from_pretrained(checkpoint)(crop, return_tensors="pt"))
    margin = (outputs.logits[0, 1] - outputs.logits[0, 0]).item()
    assert face["p_fake"] == pytest.approx(calibrate(margin, CALIBRATION), abs=1e-5)
    assert face["p_fake_raw"] == pytest.approx(calibrate(margin, None), abs=1e-5)
    logit = np.log(face["p_fake"] / (1 - face["p_fake"]))  # of which each cell has its share, and no more
    assert face["evidence"].mean() == pytest.approx(logit, abs=1e-4)
    moved = outputs.evidence[0] - outputs.evidence[0].mean()
    assert np.allclose(face["evidence"] - face["evidence"].mean(), CALIBRATION["slope"] * moved, atol=1e-4)
    corners = np.array(face["evidence_box"]) @ transform[:, :2].T + transform[:, 2]
    assert np.allclose(corners, [[0, 0], [112, 0], [112, 112], [0, 112]], atol=1e-2)
    left, top, right, bottom = face["box"]
    assert 150 < left < right < 300 and 40 < top < bottom < 200 and 0.7 < face["detection_score"] <= 1
    assert result["threshold"] == result["band"]["high"] == 0.6 and result["operating_point"] is None
    assert result["band"] == {"low": 0.3, "high": 0.6, "reason": None}
    assert result["expected_fpr"] == {"value": 0.075, "low": 0.01, "high": 0.2, "reason": None}
    expected = "flagged" if face["p_fake"] >= 0.6 else "not_flagged" if face["p_fake"] < 0.3 else "inconclusive"
    assert result["verdict"] == face["verdict"] == expected


def test_path_pil_and_array_are_judged_alike(pipe, portrait):
    results = pipe([str(fetch("astronaut")), fetch("astronaut"), Image.fromarray(portrait), portrait])
    assert [result["name"] for result in results] == [str(fetch("astronaut"))] * 2 + [None] * 2
    assert len({result["faces"][0]["p_fake"] for result in results}) == 1


def encoded(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer  # at its end, as it is after writing


def in_a_file(picture):
    file = tempfile.NamedTemporaryFile(suffix=".png")  # noqa: SIM115 (the test ends before it goes)
    file.write(encoded(picture).getvalue())
    return file


@pytest.mark.parametrize(
    "form",
    [
        encoded,
        in_a_file,
        lambda picture: encoded(picture).getvalue(),
        lambda picture: bytearray(encoded(picture).getvalue()),
        lambda picture: memoryview(encoded(picture).getvalue()),
        lambda picture: picture / np.float32(255),
        lambda picture: torch.tensor(picture).permute(2, 0, 1),
        lambda picture: torch.from_numpy(picture / 255).permute(2, 0, 1).requires_grad_(),
    ],
)
def test_bytes_file_objects_floats_and_tensors_are_judged_as_the_picture_is(pipe, portrait, form):
    item, expected = form(portrait), pipe(portrait)
    first, again = pipe(item), pipe(item)
    assert first["faces"][0]["p_fake"] == again["faces"][0]["p_fake"] == expected["faces"][0]["p_fake"]
    assert first["name"] == (item.name if form is in_a_file else None)
    assert np.array_equal(*(np.asarray(pipe.annotate(each, first)) for each in (item, portrait)))


def test_a_tensor_of_16_bit_floats_is_judged(pipe, portrait):
    tensor = torch.from_numpy(portrait / 255).permute(2, 0, 1).to(torch.bfloat16)
    assert len(pipe(tensor)["faces"]) == 1


@pytest.mark.parametrize("form", [np.asarray, lambda stack: torch.from_numpy(stack).permute(0, 3, 1, 2), list])
def test_a_stack_has_a_result_for_each_picture(pipe, portrait, form):
    blank = np.full_like(portrait, 90)
    results = pipe(form(np.stack([portrait, blank, portrait])))
    assert [len(result["faces"]) for result in results] == [1, 0, 1]
    assert results[0]["faces"][0]["p_fake"] == pytest.approx(pipe(portrait)["faces"][0]["p_fake"], abs=1e-6)
    assert pipe(np.empty((0, 9, 9, 3), np.uint8)) == []


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (b"hello", "<bytes> is not an image. Pass an image: JPEG"),
        (b"", "<bytes> is empty"),
        (io.BytesIO(b"<svg/>"), "<file> is an SVG. Pass an image: JPEG"),
        (io.StringIO("text"), "<file> is open in text mode. Open it in binary mode"),
        (b"\0\0\0\x18ftypmp42" + bytes(99), "Video <bytes> cannot be opened"),
        (cv2.VideoCapture(), "<file> cannot be copied to"),
        (torch.zeros(4, 4, 3), r"A tensor of shape \(4, 4, 3\) is not an image. Pass RGB \(3, height, width\)"),
        (torch.full((3, 4, 4), 2.0), r"range from 2 to 2. Scale them to \[0, 1\], or pass uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "and type int64 is not an image"),
        (np.full((4, 4, 3), np.nan), "range from nan to nan"),
    ],
)
def test_what_is_wrong_with_an_input_without_a_path_is_said(pipe, item, sentence):
    with pytest.raises(InputError, match=sentence):
        pipe(item)


def test_inputs_without_a_path_have_the_limits_of_files(pipe, monkeypatch, portrait, clip):
    for item in (encoded(portrait), clip.read_bytes(), torch.tensor(portrait).permute(2, 0, 1), portrait / 255):
        with pytest.raises(InputError, match=r"more than 1,000\. .* raise most_pixels"):
            pipe(item, most_pixels=1000)
    monkeypatch.setattr(media_dcl, "_MOST_COPIED", 1000)
    with pytest.raises(InputError, match="<file> has more than 0 GiB"):
        pipe(encoded(portrait))


@pytest.mark.parametrize(
    ("p_fake", "verdict", "sentence"),
    [
        (0.6, "flagged", "Face 1 is flagged as forged: p_fake is 0.600, at or above the threshold of 0.600 (at most"),
        (0.9, "flagged", "of 0.600 (at most 7.5 % of real faces in the validation data score this high)."),
        (0.599, "inconclusive", "Face 1 is inconclusive: p_fake is 0.599, between 0.300 and 0.600."),
        (0.3, "inconclusive", "Real and forged faces both score in this range."),
        (0.299, "not_flagged", "Face 1 is not flagged: p_fake is 0.299, below 0.300. That does not prove that it is"),
    ],
)
def test_a_face_is_flagged_inconclusive_or_not_flagged_and_never_called_real(
    pipe, monkeypatch, portrait, p_fake, verdict, sentence
):
    with_answers(pipe, monkeypatch, [p_fake])
    result = pipe(portrait)
    assert result["verdict"] == result["faces"][0]["verdict"] == verdict
    assert sentence in result["sentence"] and "convention" not in result["sentence"]


def test_a_given_threshold_decides_alone_and_says_what_it_costs(pipe, monkeypatch, portrait, clip):
    with_answers(pipe, monkeypatch, [0.35, 0.35])
    flagged, passed = (pipe(portrait, threshold=at) for at in (0.35, 0.36))
    assert (flagged["verdict"], passed["verdict"]) == ("flagged", "not_flagged")
    assert (flagged["threshold"], flagged["operating_point"]) == (0.35, None)
    assert flagged["band"] == {"low": None, "high": None, "reason": "a threshold was given"}
    assert flagged["expected_fpr"]["value"] == 0.5  # that of 0.3, the next lower one that is stored
    with_answers(pipe, monkeypatch, [0.9] * 3)
    assert pipe(clip, num_frames=3, threshold=0.95)["verdict"] == "not_flagged"


def test_a_stricter_operating_point_makes_the_inconclusive_range_reach_up_to_it(tmp_path, monkeypatch, portrait):
    frame = CALIBRATION["frame"] | {"thresholds": {"eer": 0.4, "fpr_0.05": 0.7}}
    checkpoint = save_checkpoint(tmp_path, calibration=CALIBRATION | {"frame": frame})
    pipe = FaceForgeryDetectionPipeline.from_pretrained(checkpoint, device="cpu")
    with_answers(pipe, monkeypatch, [0.65])
    result = pipe(portrait, operating_point="fpr_0.05")
    assert (result["verdict"], result["band"]["high"], result["threshold"]) == ("inconclusive", 0.7, 0.7)


def test_a_checkpoint_saved_before_there_was_a_range_flags_from_its_threshold_on(tmp_path, monkeypatch, portrait):
    old = {"method": "temperature", "temperature": 2.0, "frame": {"thresholds": {"eer": 0.4}}}
    pipe = FaceForgeryDetectionPipeline.from_pretrained(save_checkpoint(tmp_path, calibration=old), device="cpu")
    face = pipe(portrait)["faces"][0]
    assert face["evidence"].mean() == pytest.approx(np.log(face["p_fake"] / (1 - face["p_fake"])), abs=1e-4)
    with_answers(pipe, monkeypatch, [0.4, 0.39])
    flagged, passed = pipe(portrait), pipe(portrait)
    assert (flagged["verdict"], passed["verdict"]) == ("flagged", "not_flagged")
    assert flagged["sentence"].endswith("at or above the threshold of 0.400.")
    assert flagged["band"] == {
        "low": None,
        "high": None,
        "reason": "the checkpoint stores no inconclusive range",
    }
    assert flagged["expected_fpr"]["value"] is None and flagged["expected_fpr"]["reason"]


def test_a_picture_has_the_verdict_of_its_most_suspicious_face(pipe, monkeypatch, portrait):
    wide = np.zeros((512, 1024, 3), np.uint8)
    wide[:, :512] = portrait
    wide[:384, 512:896] = cv2.resize(portrait, (384, 384))
    with_answers(pipe, monkeypatch, [0.1, 0.8])
    result = pipe(wide)
    assert [(face["face"], face["verdict"]) for face in result["faces"]] == [(1, "not_flagged"), (2, "flagged")]
    assert result["verdict"] == "flagged"
    assert result["sentence"].startswith("1 of 2 faces is flagged as forged. Face 2 is flagged as forged: p_fake is")
    with_answers(pipe, monkeypatch, [0.1, 0.5])
    result = pipe(wide)
    assert result["verdict"] == "inconclusive"
    assert result["sentence"].startswith("1 of 2 faces is inconclusive, and none is flagged. Face 2 is inconclusive:")
    with_answers(pipe, monkeypatch, [0.1])
    assert len(pipe(wide, largest_only=True)["faces"]) == 1


def test_without_thresholds_it_is_a_half_and_the_sentence_says_so(tmp_path, portrait):
    pipe = FaceForgeryDetectionPipeline.from_pretrained(save_checkpoint(tmp_path, calibration=None), device="cpu")
    result = pipe(portrait)
    assert result["threshold"] == 0.5 and result["operating_point"] is None
    assert "The checkpoint has no threshold for faces, so 0.5 is used." in result["sentence"]


def test_an_operating_point_that_the_checkpoint_has_not_is_refused(pipe, portrait):
    with pytest.raises(InputError, match=r"no threshold fpr_0.05 for a frame \(40 real frames do not tell it\).*eer"):
        pipe(portrait, operating_point="fpr_0.05")


def test_a_threshold_that_is_missing_for_videos_is_asked_of_videos_only(tmp_path, portrait, clip):
    frame = {"thresholds": {"eer": 0.4, "fpr_0.01": 0.9}}
    video = {"thresholds": {"eer": 0.45, "fpr_0.01": None}, "reasons": {"fpr_0.01": "9 real videos do not tell it"}}
    checkpoint = save_checkpoint(tmp_path / "model", calibration=CALIBRATION | {"frame": frame, "video": video})
    pipe = FaceForgeryDetectionPipeline.from_pretrained(checkpoint, device="cpu")
    assert pipe(portrait, operating_point="fpr_0.01")["threshold"] == 0.9
    with pytest.raises(InputError, match=r"no threshold fpr_0.01 for a video \(9 real videos do not tell it\)"):
        pipe(clip, operating_point="fpr_0.01")
    assert [each["kind"] for each in pipe([clip, portrait], operating_point="fpr_0.01")] == ["error", "image"]


# ---------------------------------------------------------------------------------------------------------- abstention


def test_without_a_face_there_is_no_number(pipe):
    result = pipe(np.full((90, 120, 3), 127, np.uint8))
    assert result["verdict"] == "abstained" and result["faces"] == []
    assert result["sentence"] == "No score: no face was found."


def test_a_face_that_is_too_small_is_not_shown_to_the_model(pipe, monkeypatch, portrait):
    monkeypatch.setattr(pipe, "forward", lambda *_: pytest.fail("the model was asked"))
    (face,) = pipe(cv2.resize(portrait, (100, 100), interpolation=cv2.INTER_AREA))["faces"]
    assert face["verdict"] == "abstained" and face["reason"] == "too_small"
    assert face["p_fake"] is face["p_fake_raw"] is face["evidence"] is None
    assert face["sentence"].startswith("No score for face 1: the face is too small")


@pytest.fixture(scope="module")
def orl_familiarity():
    """Return what is fitted on the portraits of ten people."""
    detector, crops, rows = YUNETS[CROP["detector"]](fetch("yunet")), [], []
    for path in sorted(fetch("orl").glob("s?/*.pgm")) + sorted(fetch("orl").glob("s10/*.pgm")):
        picture = read_picture(path)
        transform = crop_transform(detector.detect(picture)[0], CROP)
        crops.append(cut(picture, transform, CROP["size"]))
        rows.append({"video_id": path.parent.name, "source_id": path.parent.name, "label": 0})
    features = ReferenceNetwork(find_reference())(crops)
    return fit_familiarity(pd.DataFrame(rows), features, np.array([measure_sharpness(crop) for crop in crops]))


def test_people_of_the_same_photographs_are_judged_and_a_colour_photograph_is_not(pipe, portrait, orl_familiarity):
    pipe.model.config.familiarity = orl_familiarity
    pipe._reference = pipe._load_reference()
    faces = [pipe(path)["faces"][0] for path in sorted(fetch("orl").glob("s2[0-9]/1.pgm"))]
    assert sum(face["reason"] is None for face in faces) >= 9
    for picture in (portrait, np.repeat(portrait.mean(2, keepdims=True), 3, 2).astype(np.uint8)):
        assert pipe(picture)["faces"][0]["reason"] == "unfamiliar"


def test_a_checkpoint_without_its_reference_network_is_refused(checkpoint, tmp_path, monkeypatch, orl_familiarity):
    shutil.copytree(checkpoint, tmp_path / "part")
    config = DCLConfig.from_pretrained(checkpoint)
    config.familiarity = orl_familiarity
    config.save_pretrained(tmp_path / "part")
    assert FaceForgeryDetectionPipeline.from_pretrained(tmp_path / "part")._reference is not None
    (tmp_path / "part" / REFERENCE_FILE).unlink()
    monkeypatch.setattr(pipeline_dcl, "find_reference", lambda *_: None)  # as where the package is not installed
    with pytest.raises(InputError, match=f"part has no {REFERENCE_FILE}"):
        FaceForgeryDetectionPipeline.from_pretrained(tmp_path / "part")


def test_a_face_far_from_what_the_model_saw_has_no_number_unless_it_is_wanted(pipe, monkeypatch, portrait):
    pipe.model.config.familiarity = {"distance_threshold": 1.0, "statistics": None, "reason": "", "faces": 1}
    monkeypatch.setattr(pipeline_dcl, "distances", lambda embedding, _: np.full(len(embedding), 7.0))
    (face,) = pipe(portrait)["faces"]
    assert face["reason"] == "unfamiliar" and face["p_fake"] is face["p_fake_raw"] is face["evidence"] is None
    (face,) = pipe(portrait, abstain=False)["faces"]
    assert face["p_fake"] is not None and face["reason"] is None


def test_a_number_that_is_not_finite_is_no_verdict(pipe, monkeypatch, portrait):
    postprocess = pipe.postprocess
    monkeypatch.setattr(pipe, "postprocess", lambda outputs: {**postprocess(outputs), "p_fake": np.array([np.nan])})
    (face,) = pipe(portrait, abstain=False)["faces"]
    assert (face["p_fake"], face["verdict"], face["reason"]) == (None, "abstained", "not_finite")


def test_a_person_who_is_never_judged_has_no_number(pipe, monkeypatch, clip):
    monkeypatch.setattr(pipeline_dcl, "reason_to_abstain", lambda *_: Abstention("too_blurred", "It is a blur."))
    result = pipe(clip, num_frames=4)
    (person,) = result["people"]
    assert person["p_fake"] is None and person["moments"] == [] and person["judged"] == 0 and person["seen"] == 4
    assert result["verdict"] == person["verdict"] == "abstained" and person["reason"] == "too_blurred"
    assert result["sentence"].endswith("mostly for this reason: it is a blur.")


# -------------------------------------------------------------------------------------------------------------- videos


def test_a_video_is_judged_person_by_person_over_time(pipe, monkeypatch, clip):
    with_answers(pipe, monkeypatch, [0.2, 0.1, 0.7, 0.9, 0.6, 0.5])
    result = pipe(clip, num_frames=6, batch_size=4)
    assert (result["kind"], result["width"], result["height"], result["frames_read"]) == ("video", 264, 216, 6)
    assert result["duration"] == pytest.approx(12 / 25, abs=1e-3) and result["frame_rate"] == pytest.approx(
        25, abs=0.1
    )
    (person,) = result["people"]
    assert [frame["frame"] for frame in person["frames"]] == [0, 2, 4, 6, 8, 11]
    assert [frame["time"] for frame in person["frames"]] == pytest.approx(np.array([0, 2, 4, 6, 8, 11]) / 25, abs=1e-3)
    assert [frame["p_fake"] for frame in person["frames"]] == [0.2, 0.1, 0.7, 0.9, 0.6, 0.5]
    assert person["p_fake"] == pytest.approx(0.5) and (person["judged"], person["seen"]) == (6, 6)
    assert person["verdict"] == result["verdict"] == "inconclusive" and result["threshold"] == 0.55
    assert [(m["why"], m["frame"], m["p_fake"]) for m in person["moments"]] == [("highest", 6, 0.9), ("rise", 4, 0.7)]
    assert person["sentence"] == (
        "Person 1 is inconclusive: the mean p_fake of 6 frames is 0.500, between 0.350 and 0.550. Real and forged "
        "videos both score in this range. The highest is 0.900 at 0.24 s. 3 of 6 frames score at or above the "
        "threshold of 0.550 on their own."
    )
    assert {frame["verdict"] for frame in person["frames"]} == {"inconclusive"}  # they have no verdict of their own
    assert person["frames"][3]["sentence"] == "p_fake is 0.900 at 0.24 s."


def test_a_video_tells_how_far_it_is_with_what_it_sees_and_on_the_way(pipe, monkeypatch, clip):
    monkeypatch.setattr(pipeline_dcl, "_PASSED", 2)
    events = [event for event in pipe.stream(clip, num_frames=3) if event["event"] == "progress"]
    assert [(event["done"], event["frame"]) for event in events] == [
        *((1, 0), (1, None), (1, None), (2, 5)),
        *((2, None), (2, None), (3, 11)),
    ]
    assert all(event["total"] == 3 for event in events)
    assert {np.shape(event["image"]) for event in events} == {(216, 264, 3), ()}


def test_a_video_that_breaks_off_says_what_was_left(pipe, clip, tmp_path):
    path = tmp_path / "cut.mp4"
    with av.open(str(clip)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 8 // 10])
    result = pipe(path, num_frames=6)
    assert "The video is truncated; only the readable part was analyzed." in result["notes"]
    whole = pipe(clip, num_frames=6)
    assert not whole["notes"] and (whole["frames_read"], whole["frames_wanted"]) == (6, 6)
    assert "breaks off" not in whole["sentence"] and "could be read" not in whole["sentence"]


def test_a_recording_that_changes_its_size_has_one_person_in_coordinates_of_the_first_frame(pipe, tmp_path):
    frames = person_frames(TALKING)[:6]
    half = [cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for frame in frames]
    path = encode_sizes(tmp_path / "call.webm", [*frames[:3], *half[3:]])
    events = list(pipe.stream(path, abstain=False))
    result = events[-1]["result"]
    assert (result["width"], result["height"]) == (264, 216)
    assert result["notes"] == ["The frame size changes from 264x216 to 132x108; boxes refer to 264x216."]
    (person,) = result["people"]
    boxes = np.array([face["box"] for face in person["frames"]])
    corners = np.array([face["evidence_box"] for face in person["frames"]])
    assert len(boxes) == 6
    assert np.abs(boxes[3:] - boxes[:3]).max() < 25 and np.abs(corners[3:] - corners[:3]).max() < 30  # he moves
    assert {event["image"].shape for event in events[:-1]} == {(216, 264, 3)}
    assert {image.size for image in pipe.annotate(path, result, frames=range(6))} == {(264, 216)}


def test_results_note_what_was_converted_or_left_out(pipe, clip, portrait, tmp_path):
    pages = [Image.fromarray(portrait), Image.fromarray(portrait[::-1])]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    note = "The file has 2 pages; only the first was analyzed."
    assert pipe(tmp_path / "scan.tif")["notes"] == [note]
    assert pipe(portrait)["notes"] == pipe(clip, num_frames=2)["notes"] == []


@pytest.fixture
def sensitive(pipe):
    """A pipeline whose score moves by more than .02 where the picture is not read as it is meant."""
    with torch.no_grad():
        pipe.model.classifier.linear.weight *= 50
    return pipe


def test_a_picture_has_one_score_whatever_colour_space_it_is_stored_in(sensitive, portrait, tmp_path):
    srgb, picture, scores, as_stored = ImageCms.createProfile("sRGB"), Image.fromarray(portrait), [], []
    for name, profile in PROFILES.items():
        stored = ImageCms.profileToProfile(picture, srgb, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        stored.save(tmp_path / f"{name}.png", icc_profile=profile)
        scores.append(score_of(sensitive, tmp_path / f"{name}.png"))
        as_stored.append(score_of(sensitive, np.asarray(stored)))
    assert np.ptp(scores) < 0.02 < np.ptp(as_stored)


def test_a_clip_has_one_score_whatever_the_shape_of_its_pixels(sensitive, portrait, tmp_path):
    scores, as_stored = [], []
    for shape, size in {(1, 1): (480, 480), (4, 3): (360, 480), (1, 2): (480, 240), (64, 45): (338, 480)}.items():
        image, path = cv2.resize(portrait, size, interpolation=cv2.INTER_AREA), tmp_path / "clip.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "1", "threads": "1"})
            (stream.width, stream.height), stream.pix_fmt = size, "yuv444p"
            stream.codec_context.sample_aspect_ratio = Fraction(*shape)
            for _ in range(3):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        scores.append(score_of(sensitive, path))
        as_stored.append(score_of(sensitive, image))
    assert np.ptp(scores) < 0.02 < np.ptp(as_stored)


def score_of(pipe, item):
    result = pipe(item, abstain=False)
    return result.get("faces", result.get("people"))[0]["p_fake"]


@pytest.mark.parametrize("name", YUNETS)
def test_faces_are_found_as_those_were_that_the_checkpoint_was_trained_on(tmp_path, portrait, name):
    checkpoint = save_checkpoint(tmp_path / "model", crop=CROP | {"detector": name})
    pipe = FaceForgeryDetectionPipeline.from_pretrained(checkpoint, device="cpu")
    (face,) = pipe(portrait)["faces"]
    assert np.allclose(face["box"], YUNETS[name](fetch("yunet")).detect(portrait)[0].box, atol=1e-3)


def test_a_picture_of_many_faces_can_be_left_between_them(pipe, portrait):
    crowd = np.tile(portrait[:256, 128:384], (3, 4, 1))
    events = list(pipe.stream(crowd, batch_size=2))
    assert len(events[-1]["result"]["faces"]) == 12
    assert [(event["event"], event["total"]) for event in events[:-1]] == [("progress", None)] * 5


@pytest.mark.parametrize(
    "item",
    [
        None,
        3,
        b"x",
        bytearray(b"x"),
        {},
        {"image": 1},
        io.BytesIO(b"x"),
        torch.zeros(4, 4, 3),
        Image.new("RGB", (0, 0)),
        "",
    ],
)
def test_what_is_no_input_is_named_and_costs_the_others_nothing(pipe, item):
    with pytest.raises(InputError):
        pipe(item)
    results = pipe([item, np.full((64, 64, 3), 90, np.uint8)])
    assert [result["kind"] for result in results] == ["error", "image"]


def test_pictures_of_kinds_that_are_not_read_are_named_in_a_folder(pipe, tmp_path):
    (tmp_path / "IMG_1.JXL").write_bytes(b"\xff\x0a" + bytes(99))
    (result,) = pipe(str(tmp_path))
    assert "IMG_1.JXL is a JPEG XL image. Convert it to JPEG." in result["sentence"]


def test_numbers_that_look_alike_are_told_apart(pipe, monkeypatch, portrait):
    with_answers(pipe, monkeypatch, [0.29996])
    assert "p_fake is 0.29996, below 0.30000." in pipe(portrait)["sentence"]


def test_the_frames_of_a_person_follow_the_thresholds_for_videos(pipe, monkeypatch, clip):
    with_answers(pipe, monkeypatch, [0.56, 0.1, 0.2])  # one would be inconclusive in a picture
    result = pipe(clip, num_frames=3)
    assert {frame["verdict"] for frame in result["people"][0]["frames"]} == {result["verdict"]} == {"not_flagged"}
    assert "1 of 3 frames scores at or above the threshold of 0.550 on its own." in result["sentence"]
    with_answers(pipe, monkeypatch, [0.54, 0.1, 0.2])
    assert "on its own" not in pipe(clip, num_frames=3)["sentence"]


def test_two_people_side_by_side_keep_their_numbers(pipe, tmp_path):
    left, right = person_frames(3, 6), person_frames(TALKING, 6)
    encode(tmp_path / "two.mp4", [np.hstack(pair) for pair in zip(left, right, strict=True)], crf=18)
    seen = []
    result = pipe(tmp_path / "two.mp4", num_frames=6)
    assert [person["seen"] for person in result["people"]] == [6, 6]
    for person in result["people"]:
        seen.append({frame["box"][0] > 264 for frame in person["frames"]})
    assert sorted(map(sorted, seen)) == [[False], [True]]


def test_after_a_cut_the_face_at_the_same_place_is_another_person(pipe, tmp_path):
    encode(tmp_path / "cut.mp4", [*person_frames(3, 4), *person_frames(TALKING, 4)], crf=18)
    people = pipe(tmp_path / "cut.mp4", num_frames=8)["people"]
    assert sorted([frame["frame"] for frame in person["frames"]] for person in people) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_face_seen_too_briefly_is_not_judged(pipe, tmp_path):
    frames = [np.full((216, 264, 3), 90, np.uint8)] * 6 + list(person_frames(TALKING, 2))
    encode(tmp_path / "brief.mp4", frames, crf=18)
    (person,) = pipe(tmp_path / "brief.mp4", num_frames=8)["people"]
    assert (
        person["reason"] == "too_brief" and person["p_fake"] is None and (person["judged"], person["seen"]) == (2, 2)
    )
    assert "No score for person 1: only 2 frames of 8 have a score, and a verdict needs 3." in person["sentence"]
    (person,) = pipe(tmp_path / "brief.mp4", num_frames=2)["people"]  # the first of all frames, and the last
    assert person["sentence"].endswith("only 1 frame of 2 has a score, and a verdict needs 2.")


def test_a_long_video_holds_few_crops_at_a_time(pipe, monkeypatch, clip):
    sizes = []
    original = pipe.preprocess
    monkeypatch.setattr(pipe, "preprocess", lambda crops: sizes.append(len(crops)) or original(crops))
    assert pipe(clip, batch_size=5)["frames_read"] == 12
    assert sizes == [5, 5, 2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"most_seconds": 0.2}, r"lasts 0.5 s, more than 0.2 s"), ({"most_pixels": 1000}, "have 264x216 pixels")],
)
def test_videos_beyond_the_limits_are_refused_before_they_are_decoded(pipe, monkeypatch, clip, options, sentence):
    monkeypatch.setattr(pipeline_dcl.Video, "read", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match=sentence):
        pipe(clip, **options)


def test_frames_that_are_larger_than_the_header_claims_are_refused(pipe, monkeypatch, clip):
    monkeypatch.setattr(pipeline_dcl.Video, "_claimed_size", lambda video: (16, 16))
    monkeypatch.setattr(pipe, "_detect", lambda *_: pytest.fail("the frame was looked at"))
    with pytest.raises(InputError, match=r"The frames of .* pixels, more than 50,000"):
        pipe(clip, most_pixels=50_000)


# ------------------------------------------------------------------------------------------------ lists and the stream


def test_events_come_in_order_and_bad_files_cost_only_themselves(pipe, clip, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"<svg/>")
    blank = np.full((64, 64, 3), 90, np.uint8)
    events = list(pipe.stream([fetch("astronaut"), str(tmp_path / "bad.jpg"), clip, blank], num_frames=3))
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        "result",
        "error",
        "result",
        "result",
    ]
    assert [(e["done"], e["total"]) for e in events if e["event"] == "progress"] == [(1, 3), (2, 3), (3, 3)]
    error = next(event for event in events if event["event"] == "error")
    assert error["name"] == str(tmp_path / "bad.jpg") and "is an SVG" in error["sentence"]
    (tmp_path / "nothing").mkdir()
    results = pipe([fetch("astronaut"), str(tmp_path / "bad.jpg"), tmp_path / "nothing", blank])
    assert [result["kind"] for result in results] == ["image", "error", "error", "image"]
    assert results[2]["sentence"] == f"Folder {tmp_path / 'nothing'} contains no images or videos. Check the path."
    with pytest.raises(InputError, match="is an SVG"):
        pipe(str(tmp_path / "bad.jpg"))


def test_faces_of_several_pictures_share_a_batch(pipe, monkeypatch, portrait):
    sizes = []
    original = pipe.preprocess
    monkeypatch.setattr(pipe, "preprocess", lambda crops: sizes.append(len(crops)) or original(crops))
    alone = pipe(portrait)["faces"][0]["p_fake"]
    results = pipe([portrait] * 5, batch_size=4)
    assert sizes == [1, 4, 1]
    assert [result["faces"][0]["p_fake"] for result in results] == pytest.approx([alone] * 5, abs=1e-5)


def test_results_do_not_wait_for_a_batch_that_is_never_full(pipe, portrait):
    blank = np.full((64, 64, 3), 90, np.uint8)
    read = []
    inputs = (read.append(1) or picture for picture in [portrait, *[blank] * 50])
    next(pipe.stream(inputs, batch_size=4))
    assert len(read) <= 5


def test_closing_the_stream_closes_the_video(pipe, monkeypatch, clip):
    closed = []
    original = pipeline_dcl.Video.close
    monkeypatch.setattr(pipeline_dcl.Video, "close", lambda self: closed.append(1) or original(self))
    events = pipe.stream(clip)
    assert next(events)["event"] == "progress"
    assert not closed
    events.close()
    assert closed


def test_a_folder_is_judged_file_by_file(pipe, clip, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    shutil.copy(fetch("astronaut"), tmp_path / "b" / "x.PNG")
    shutil.copy(fetch("astronaut"), tmp_path / ".hidden" / "x.png")
    shutil.copy(clip, tmp_path / "a.mp4")
    (tmp_path / "notes.txt").write_text("no picture")
    assert find_files(tmp_path) == [tmp_path / "a.mp4", tmp_path / "b" / "x.PNG"]
    results = pipe(str(tmp_path), num_frames=3)
    assert [result["kind"] for result in results] == ["video", "image"]
    assert len(pipe([tmp_path, fetch("astronaut")], num_frames=3)) == 3
    with pytest.raises(InputError, match="contains no images or videos"):
        pipe(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("source", "name", "sentence"),
    [
        ("clip", "x.jpg", "is a video with an image extension. Rename it, for example to .mp4"),
        ("photo", "x.mp4", "an image with a video extension. Rename it"),
    ],
)
def test_renamed_files_are_refused(pipe, clip, tmp_path, source, name, sentence):
    shutil.copy(clip if source == "clip" else fetch("astronaut"), tmp_path / name)
    with pytest.raises(InputError, match=sentence):
        pipe(tmp_path / name)


def test_a_playlist_under_the_name_of_a_video_leads_nowhere(pipe, clip, tmp_path):
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.avi").write_text(f"ffconcat version 1.0\nfile {clip}\n")
    for name in ("list.mp4", "concat.avi"):
        with pytest.raises(InputError, match="cannot be opened"):
            pipe(tmp_path / name)


def test_addresses_are_fetched_only_where_that_is_allowed(pipe, tmp_path):
    shutil.copy(fetch("astronaut"), tmp_path / "a.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png?x=1"
        with pytest.raises(InputError, match="Pass allow_urls=True"):
            pipe(address)
        assert len(pipe(address, allow_urls=True)["faces"]) == 1
        with pytest.raises(InputError, match="cannot be fetched"):
            pipe(f"{address.split('?')[0]}.none", allow_urls=True)
        (tmp_path / "b.png").write_text("<svg/>")
        with pytest.raises(InputError) as refusal:
            pipe(address.replace("a.png", "b.png"), allow_urls=True)
        assert str(refusal.value).startswith(f"{address.replace('a.png', 'b.png')} is an SVG")
        assert len(pipe(f"{address} ä", allow_urls=True)["faces"]) == 1
        for malformed in ("http://[", "http://x:port/a.png"):
            with pytest.raises(InputError, match="cannot be fetched"):
                pipe(malformed, allow_urls=True)
        server.shutdown()


class _BadServer(http.server.BaseHTTPRequestHandler):
    """Leads elsewhere, breaks off, or trickles."""

    def do_GET(self):
        self.send_response(302 if self.path == "/elsewhere" else 200)
        self.send_header("Location", "ftp://127.0.0.1:9/a.png")
        self.send_header("Content-Length", "0" if self.path == "/elsewhere" else "100")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range({"/elsewhere": 0, "/short": 2}.get(self.path, 100)):
                self.wfile.write(b"x")
                time.sleep(0.05)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("elsewhere", r"cannot be fetched \(unknown url type: ftp\)"),
        ("short", r"cannot be fetched \(the connection was interrupted\)"),
        ("slow", "could not be downloaded within 0.5 s"),
    ],
)
def test_downloads_go_nowhere_else_are_whole_and_end(pipe, monkeypatch, path, sentence):
    monkeypatch.setattr(media_dcl, "_LONGEST_DOWNLOAD", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _BadServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=sentence):
            pipe(f"http://127.0.0.1:{server.server_port}/{path}", allow_urls=True)
        server.shutdown()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_frames": 0}, "num_frames is 0. Choose a whole number, at least 1"),
        ({"batch_size": True}, "batch_size is True"),
        ({"operating_point": "best"}, "operating_point is 'best'. Choose one of eer"),
        *(({"threshold": at}, f"threshold is {at!r}. Choose a number between") for at in (0, 1, -0.5, "0.5", True)),
        ({"threshold": float("nan")}, "threshold is nan. Choose a number between 0 and 1, or None"),
        ({"threshold": 0.5, "operating_point": "eer"}, "threshold is 0.5 and operating_point is 'eer'. Pass one"),
        ({"most_seconds": -1}, "most_seconds is -1"),
        ({"most_seconds": "3"}, "most_seconds is '3'. Choose a number above 0, or None"),
        ({"abstain": "no"}, "abstain is 'no'. Choose True or False"),
        ({"frames": 3}, "Unknown option 'frames'. Choose from num_frames"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(pipe, options, sentence):
    with pytest.raises(InputError, match=sentence):
        pipe.stream("nowhere.jpg", **options)


# ------------------------------------------------------------------------------------------------- results and drawing


def test_results_are_plain_json(pipe, clip, portrait):
    for result in pipe([portrait, clip], num_frames=3):
        assert json.loads(json.dumps(to_json(result), allow_nan=False)) == to_json(result)
        assert "evidence" not in json.dumps(to_json(result)).replace("evidence_box", "")
    assert np.shape(to_json(pipe(portrait), evidence=True)["faces"][0]["evidence"]) == (3, 3)


def test_an_annotated_picture_shows_what_was_found_and_changes_nothing(pipe, portrait):
    result = pipe(portrait)
    result["faces"][0]["evidence"][:] = 9
    before, pixels = copy.deepcopy(result), portrait.copy()
    drawn = pipe.annotate(portrait, result)
    assert isinstance(drawn, Image.Image) and drawn.size == (512, 512)
    assert np.array_equal(portrait, pixels) and to_json(result, evidence=True) == to_json(before, evidence=True)
    left, top, right, bottom = (round(value) for value in result["faces"][0]["box"])
    changed = (np.asarray(drawn) != portrait).any(axis=2)
    assert changed[top:bottom, left].all() and changed[top:bottom, left:right].mean() > 0.5
    plain = pipe.annotate(portrait, to_json(result))  # without the maps
    assert (np.asarray(plain) != portrait).any(axis=2)[top + 3 : bottom - 3, left + 3 : right - 3].sum() == 0
    kept = json.loads(json.dumps(to_json(result, evidence=True)))
    assert np.array_equal(pipe.annotate(portrait, kept), drawn)


@pytest.mark.parametrize("form", [str, lambda clip: clip.read_bytes(), lambda clip: clip.open("rb")])
def test_an_annotated_video_is_a_list_of_moments_or_an_mp4(pipe, monkeypatch, clip, tmp_path, form):
    with_answers(pipe, monkeypatch, [0.2, 0.9, 0.1])
    item = form(clip)
    result = pipe(item, num_frames=3)
    assert [frame["frame"] for frame in result["people"][0]["frames"]] == [0, 5, 11]
    assert [moment["frame"] for moment in result["people"][0]["moments"]] == [5, 5]  # the highest, and the rise
    (moment,) = pipe.annotate(item, result)
    assert moment.size == (264, 216)
    assert pipe.annotate(item, result, tmp_path / "out.mp4") == tmp_path / "out.mp4"
    with pipeline_dcl.Video(tmp_path / "out.mp4") as drawn, pipeline_dcl.Video(clip) as source:
        assert drawn.numbers == source.numbers and drawn.duration == pytest.approx(source.duration, abs=1e-3)
        pairs = zip(drawn.read(drawn.numbers), source.read(source.numbers), strict=True)
        changed = [np.abs(one.astype(int) - other).mean(2) for (_, one), (_, other) in pairs]
    left, top, _, bottom = (round(value) for value in result["people"][0]["frames"][1]["box"])
    assert changed[5][top : bottom + 1, left].mean() > 40 and (changed[5] < 8).mean() > 0.25


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (lambda result: [result], {}, "The result is a list. Pass the result of the pipeline for this image"),
        (lambda result: result["faces"], {}, "The result is a list"),
        (lambda result: {"kind": "error"}, {}, "The result is of a file that could not be read"),
        (lambda result: result | {"kind": "video"}, {}, "The result is of a video, but the input is an image"),
        (lambda result: result | {"width": 99}, {}, "has 512x512 pixels, but the result is for 99x512"),
        (lambda result: result, {"evidence": 2}, r"evidence is 2. Choose an opacity in \[0, 1\]"),
        (
            lambda result: result,
            {"output": "x.png"},
            r"output and frames are only for videos. Save the .* with its save\(\)",
        ),
        (lambda result: result, {"colour": 1}, "annotate has no option 'colour'"),
    ],
)
def test_what_cannot_be_annotated_is_said(pipe, portrait, change, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        pipe.annotate(portrait, change(pipe(portrait)), **arguments)


def test_a_video_is_not_annotated_with_the_result_of_a_picture_nor_several_at_once(pipe, portrait, clip):
    with pytest.raises(InputError, match=r"The result is of an image, but the input is a video\. Pass its own"):
        pipe.annotate(clip, pipe(portrait))
    for several in ([portrait], portrait[None]):
        with pytest.raises(InputError, match=r"annotate takes one image or video\. Call it for each input"):
            pipe.annotate(several, pipe(portrait))
        with pytest.raises(InputError, match="crops takes one image or video"):
            pipe.crops(several)


def test_crops_give_the_model_what_the_pipeline_gives_it(pipe, checkpoint, portrait, clip):
    processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    model = AutoModelForImageClassification.from_pretrained(checkpoint, trust_remote_code=True).eval()

    def p_fake(crops):
        with torch.no_grad():
            return model.p_fake(model(**processor(crops, return_tensors="pt")).logits).tolist()

    twice = np.hstack(
        [portrait, cv2.resize(portrait, (100, 100)).repeat(6, 0)[:512, :100]]
    )  # the second too distorted
    for item in (portrait, twice):
        crops = pipe.crops(item)
        assert all(crop.size == (112, 112) and crop.mode == "RGB" for crop in crops)
        faces = pipe(item, abstain=False)["faces"]
        assert p_fake(crops) == pytest.approx([face["p_fake"] for face in faces], abs=1e-5)
    (crops,) = pipe.crops(clip, num_frames=3)
    (person,) = pipe(clip, num_frames=3, abstain=False)["people"]
    assert p_fake(crops) == pytest.approx([frame["p_fake"] for frame in person["frames"]], abs=1e-5)


def test_faces_without_a_score_have_crops_and_what_shows_no_face_has_none(pipe, portrait):
    small = cv2.resize(portrait, (100, 100), interpolation=cv2.INTER_AREA)
    assert pipe(small)["faces"][0]["p_fake"] is None and len(pipe.crops(small)) == 1
    assert pipe.crops(np.full((64, 64, 3), 90, np.uint8)) == []


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    ("crop", "sentence"),
    [
        (None, "does not say how faces were cut"),
        ({"kind": "given", "margin": None, "size": 64, "detector": None}, "does not say how faces were cut"),
        (CROP | {"detector": "dsfd"}, "faces were found by 'dsfd', but only yunet_2023mar_multiscale"),
    ],
)
def test_a_checkpoint_for_which_no_face_can_be_cut_is_refused(tmp_path, crop, sentence):
    folder = save_checkpoint(tmp_path / "model", crop)
    with pytest.raises(InputError, match=sentence):
        FaceForgeryDetectionPipeline.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("/nowhere/model", {}, "Model '/nowhere/model' not found"),
        ("lab/none", {}, "Model 'lab/none' not found: .*the Hub cannot be reached"),
        (None, {"device": "cuda:99"}, "Device 'cuda:99' is not available"),
        (None, {"backend": "tensorrt"}, "backend is 'tensorrt'"),
        (None, {"backend": "onnx"}, r"Graph model\.onnx not found in .*\. Export it to another folder"),
        (None, {"graph": "model_int8.onnx"}, "graph is 'model_int8.onnx', but the backend is torch"),
        ("", {}, "Model '' not found"),
        (__file__, {}, "is a file. Give the folder of a checkpoint"),
    ],
)
def test_what_cannot_be_loaded_is_named(checkpoint, name, options, sentence):
    with pytest.raises(InputError, match=sentence):
        FaceForgeryDetectionPipeline.from_pretrained(checkpoint if name is None else name, **options)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", None, "is not a checkpoint: it has no config.json"),
        ("config.json", "[]", "The config.json of .* is not a JSON object"),
        ("config.json", "{", "The config.json of .* cannot be read"),
        ("preprocessor_config.json", None, "it has no preprocessor_config.json"),
        (
            "preprocessor_config.json",
            '{"size": {"height": 96, "width": 95}}',
            r"of shape \(1, 3, 96, 95\), but the",
        ),
        ("preprocessor_config.json", '{"image_mean": "x"}', "The preprocessor_config.json of .* is invalid"),
        ("preprocessor_config.json", '{"image_std": [0, 0, 0]}', "takes finite numbers"),
        ("preprocessor_config.json", '{"crop": 5}', "does not say how faces were cut"),
        ("preprocessor_config.json", '{"crop": {"kind": "oval"}}', "of an unknown kind, 'oval'"),
        ("preprocessor_config.json", '{"crop": {"margin": 0}}', "the margin of its crops is 0, not a number above"),
        ("preprocessor_config.json", '{"crop": {"margin": "1.3"}}', "the margin of its crops is '1.3'"),
        (
            "preprocessor_config.json",
            '{"crop": {"size": 40000}}',
            "the size of its crops is 40000, not a whole number",
        ),
        ("preprocessor_config.json", '{"crop": {"size": 112.5}}', "the size of its crops is 112.5"),
        (
            "config.json",
            '{"backbone_kwargs": {"checkpoint_path": "x.pth"}}',
            "must not load files, got checkpoint_path",
        ),
        ("model.safetensors", None, "has no weights"),
    ],
)
def test_a_checkpoint_that_lacks_something_or_was_edited_is_refused_at_once(
    checkpoint, tmp_path, file, content, sentence
):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    if content is None:
        (folder / file).unlink()
    elif content.startswith("{") and content != "{":
        changes, there = json.loads(content), json.loads((folder / file).read_text())
        if isinstance(changes.get("crop"), dict):
            changes["crop"] = there["crop"] | changes["crop"]
        (folder / file).write_text(json.dumps(there | changes))
    else:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=sentence):
        FaceForgeryDetectionPipeline.from_pretrained(folder, device="cpu")


def test_the_detector_that_came_with_the_checkpoint_is_used_and_checked(checkpoint, tmp_path, monkeypatch, portrait):
    monkeypatch.setenv("DCL_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("DCL_YUNET", raising=False)
    assert len(FaceForgeryDetectionPipeline.from_pretrained(checkpoint, device="cpu")(portrait)["faces"]) == 1
    shutil.copytree(checkpoint, tmp_path / "other")
    (tmp_path / "other" / YUNET_FILE).write_bytes(b"another network")
    with pytest.raises(InputError, match="is not the released"):
        FaceForgeryDetectionPipeline.from_pretrained(tmp_path / "other", device="cpu")(portrait)


def test_a_graph_gives_the_verdicts_of_the_weights(checkpoint, tmp_path, pipe, portrait):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(checkpoint / name, tmp_path)
    write_graph(pipe.model, tmp_path / "model.onnx")
    graph = FaceForgeryDetectionPipeline.from_pretrained(tmp_path, backend="onnx")
    expected = pipe(portrait)["faces"][0]["p_fake"]
    assert graph(portrait)["faces"][0]["p_fake"] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match=r"Graph other\.onnx not found .*\. Choose model\.onnx"):
        FaceForgeryDetectionPipeline.from_pretrained(tmp_path, backend="onnx", graph="other.onnx")
    with pytest.raises(InputError, match="is an ONNX export without weights"):
        FaceForgeryDetectionPipeline.from_pretrained(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "both")
    shutil.copy(tmp_path / "model.onnx", tmp_path / "both")
    both = pipeline(TASK, model=str(tmp_path / "both"), trust_remote_code=True, backend="onnx")
    assert both(portrait)["faces"][0]["p_fake"] == pytest.approx(expected, abs=1e-4)


def test_what_a_checkpoint_says_of_other_embeddings_is_refused_at_once(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "other")
    config = DCLConfig.from_pretrained(checkpoint)
    rows = pack(np.ones((1, 7)))
    statistics = {"dimension": 7, "centres": rows, "directions": rows, "variances": [1.0], "rest": 1.0}
    config.familiarity = {"statistics": statistics, "distance_threshold": 1.0}
    config.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"other is of another model: .* by 7 features, but the network gives \d+"):
        FaceForgeryDetectionPipeline.from_pretrained(tmp_path / "other", device="cpu")


def test_a_model_that_is_uploaded_as_it_is_saved_brings_the_networks_beside_it(pipe, monkeypatch, tmp_path):
    uploads = []

    class Hub:
        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def create_commit(self, operations, **_):
            uploads.append({operation.path_in_repo for operation in operations})

    monkeypatch.setattr("transformers.modeling_utils.hf_api", Hub)
    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr(
        "transformers.modeling_utils.create_and_tag_model_card", lambda *_, **__: ModelCard("---\n---\n")
    )
    for _ in range(2):
        pipe.model.save_pretrained(tmp_path, push_to_hub=True, repo_id="lab/dcl")
    assert len(uploads) == 2
    assert all({YUNET_FILE, REFERENCE_FILE, "model.safetensors", "pipeline_dcl.py"} <= names for names in uploads)


#: What a user runs; `dcl` cannot be imported, as if it were not installed.
PROGRAM = """
import json, sys
sys.modules["dcl_face_forgery"] = None
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

folder, again, picture = sys.argv[1:]
pipe = pipeline("face-forgery-detection", model=folder, trust_remote_code=True)
pipe.save_pretrained(again)
second = pipeline("face-forgery-detection", model=again, trust_remote_code=True, abstain=False)
print(json.dumps({
    "first": pipe(picture)["faces"][0]["p_fake"],
    "second": second(picture)["faces"][0]["p_fake"],
    "modules": [type(pipe).__module__, type(second).__module__],
    "own": [name for name in sys.modules if name.startswith("dcl_face_forgery.")],
}))
"""


def test_a_checkpoint_carries_its_pipeline_also_saved_again_by_remote_code(checkpoint, tmp_path, pipe):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoint), str(tmp_path / "again"), str(fetch("astronaut"))],
        **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "cwd": tmp_path, "timeout": 120},
        env={**os.environ, "DCL_CACHE": str(tmp_path / "empty")},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = pipe(str(fetch("astronaut")))["faces"][0]["p_fake"]
    assert found["first"] == pytest.approx(expected, abs=1e-5) and found["second"] == found["first"]
    assert all(name.startswith("transformers_modules.") for name in found["modules"]) and found["own"] == []
    first, second = ({path.name for path in folder.iterdir()} for folder in (checkpoint, tmp_path / "again"))
    assert first <= second and YUNET_FILE in second


def test_the_installed_pipeline_is_made_by_transformers_too(checkpoint, portrait):
    pipe = pipeline(
        "face-forgery-detection", model=str(checkpoint), trust_remote_code=True, num_frames=7, device="cpu"
    )
    assert pipe.options.num_frames == 7 and pipe.model.config.custom_pipelines == DCLConfig().custom_pipelines
    json.dumps(pipe.model.config.to_dict())
    assert len(pipe(portrait)["faces"]) == 1
