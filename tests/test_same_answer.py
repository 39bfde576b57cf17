"""One picture has one score, verdict and threshold, whichever way it is asked for."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from dcl_face_forgery import detect, evaluate_dcl
from dcl_face_forgery.data_scripts.assets import fetch, fetch_detector
from dcl_face_forgery.faces_dcl import crop_transform, cut
from dcl_face_forgery.tests.shared.app_server import serve
from dcl_face_forgery.tests.shared.checkpoints import CROP, save_checkpoint
from dcl_face_forgery.tests.shared.prepared_data import make_row, write_split

#: transformers alone: the pipeline that the checkpoint brings, in a process that cannot import this repository.
ALONE = """
import json, sys
sys.modules["dcl_face_forgery"] = None
from transformers import pipeline
pipe = pipeline("face-forgery-detection", model=sys.argv[1], trust_remote_code=True, device="cpu", abstain=False)
print(json.dumps(pipe.to_json(pipe(sys.argv[2]))))
"""


@pytest.mark.slow
def test_pipeline_command_app_and_evaluation_agree(tmp_path):
    detector = fetch_detector()
    checkpoint = save_checkpoint(tmp_path / "model")
    photograph = Image.open(fetch("astronaut")).convert("RGB")
    photograph.save(tmp_path / "portrait.png")
    pixels = np.asarray(photograph)
    (face,) = detector.detect(pixels)
    crop = cut(pixels, crop_transform(face, CROP), CROP["size"])
    rows = [make_row(crop, np.zeros(crop.shape[:2], np.uint8), 0, "original", "a", "a", 0)]
    rows.append(make_row(crop, np.full(crop.shape[:2], 255, np.uint8), 1, "swap", "a", "a", 0))
    write_split(tmp_path / "data", "test", [row | {"crop": CROP} for row in rows])

    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(checkpoint), str(tmp_path / "portrait.png")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    results = {"pipeline": json.loads(done.stdout.splitlines()[-1])}
    flags = ["--model", str(checkpoint), "--device", "cpu"]
    detect.main([str(tmp_path / "portrait.png"), *flags, "--json", str(tmp_path / "found.jsonl")])
    results["command"] = json.loads((tmp_path / "found.jsonl").read_text().splitlines()[-1])
    out = ["--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--bootstrap", "0"]
    evaluate_dcl.main([*flags, *out])
    evaluated = pd.read_parquet(tmp_path / "out/predictions.parquet")["p_fake"].unique().tolist()
    verdicts = json.loads((tmp_path / "out/metrics.json").read_text())["data"]["frame"]["verdicts"]
    (tmp_path / "app").mkdir()
    with serve(checkpoint, tmp_path / "app") as server:
        _, results["app"] = Client(server.url, verbose=False).predict(
            handle_file(tmp_path / "portrait.png"), api_name="/detect_image"
        )
    first = results["pipeline"]
    p_fake = first["faces"][0]["p_fake"]
    for way, result in results.items():
        assert [face["p_fake"] for face in result["faces"]] == pytest.approx([p_fake], abs=1e-4), way
        for name in ("verdict", "threshold", "operating_point", "band", "expected_fpr"):
            assert result[name] == first[name], (way, name)
    assert evaluated == pytest.approx([p_fake], abs=1e-4)
    assert verdicts["fake"][first["verdict"]] == verdicts["real"][first["verdict"]] == 1
    assert (verdicts["not_flagged_below"], verdicts["flagged_from"]) == (first["band"]["low"], first["band"]["high"])
    assert 0.001 < p_fake < 0.999  # where all would agree whatever was done
