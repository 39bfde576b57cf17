"""The benchmarks print what they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcl_face_forgery.benchmarks import gpu, report, sweep
from dcl_face_forgery.benchmarks.demo_table import as_markdown
from dcl_face_forgery.tests.shared.checkpoints import save_checkpoint
from dcl_face_forgery.tests.shared.prepared_data import make_rows, write_split

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_page_of_benchmarks_is_what_the_command_makes():
    """If this fails, run `python benchmarks/report.py`."""
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.read_results())


def test_rows_of_a_gpu_are_not_measured_until_they_are():
    result = {"backbone": "tf_efficientnet_b4", "image_size": 299, "batch_size": 8, "precision": "float32"}
    result |= {"channels_last": False, "cpu_time": True} | dict.fromkeys(sweep.KEPT, 1.25)
    step = {"command": "command", "machine": "2 CPU cores", "date": "2026-12-01", "versions": {}, "result": result}
    page = report.page({"train_step_float32": step})
    setting = "2 CPU cores: tf_efficientnet_b4, 299 px, batch 8, float32, CPU time of one thread"
    assert f"| {setting} | 1.250 s | 1.250 s | 1.250 (1.250 to 1.250) | 1.25 GiB | 1.25 GiB |" in page
    assert "| a GPU | not measured |" in page and "On a GPU: not measured." in page
    part = {"command": "", "seconds": 1.0, "status": "passed", "result": result}
    late = {"command": "", "seconds": 9.0, "status": "timed out", "output": ""}
    measured = report.page({"gpu": {**step, "machine": "A GPU", "parts": {"train_step_bf16": part, "sweep": late}}})
    assert "| A GPU: tf_efficientnet_b4" in measured and "| sweep | timed out | 9.0 |" in measured
    assert "On a GPU: not measured." in measured


def test_a_part_of_the_gpu_run_that_fails_or_hangs_is_recorded():
    part = gpu.run_part(["-c", "print('some text'); print('{\"a\": 1}')"], 60)
    assert part["status"] == "passed" and part["result"] == {"a": 1}
    part = gpu.run_part(["-c", "raise SystemExit('broken')"], 60)
    assert part["status"] == "failed" and "broken" in part["output"]
    part = gpu.run_part(["-c", "import time; print('begun', flush=True); time.sleep(60)"], 1.5)
    assert part["status"] == "timed out" and part["seconds"] < 30
    assert gpu.run_part(["-c", ""], 0)["status"] == "no time left"


def test_the_parts_of_the_gpu_run_fit_into_ten_minutes():
    assert gpu.TOTAL < 600 and all(limit <= gpu.TOTAL for _, limit in gpu.PARTS.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_gpu_run_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path / "gpu.json")])
    gpu.main()
    assert capsys.readouterr().out == "PyTorch sees no GPU on this machine, so nothing was measured.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_drawn_along_each_of_the_three(tmp_path):
    usual = {"queue_size": 32768, "batch_size": 8, "cells": 10}
    measured = dict.fromkeys(sweep.KEPT, 1.0)
    points = [usual, {**usual, "cells": 24}, {**usual, "batch_size": 4}, {**usual, "queue_size": 1024}]
    rows = [point | measured for point in points]
    assert [row["cells"] for row in sweep.line_of(rows, "cells")] == [10, 24]
    assert [row["batch_size"] for row in sweep.line_of(rows, "batch_size")] == [4, 8]
    sweep.plot(rows, tmp_path / "sweep.webp")
    assert (tmp_path / "sweep.webp").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["bare", "released"])
def test_the_training_step_is_timed_against_a_baseline(baseline):
    flags = ["--backbone", "test_efficientnet", "--image_size", "96", "--batch_size", "4", "--steps", "2", "--json"]
    flags += ["--baseline", baseline]
    command = [sys.executable, str(BENCHMARKS / "train_step.py"), *flags]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["dcl_s"] > 0 and result[f"{baseline}_s"] > 0
    over = f"dcl_over_{baseline}"
    assert result[f"{over}_min"] <= result[over] <= result[f"{over}_max"]
    assert result["dcl_peak_gib"] >= result[f"{baseline}_peak_gib"] * 0.9 > 0


@pytest.mark.slow
def test_training_samples_are_timed_against_their_decoding():
    flags = ["--people", "2", "--samples", "4", "--turns", "2", "--json"]
    command = [sys.executable, str(BENCHMARKS / "data_path.py"), *flags]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["sample_ms"] > result["floor_ms"] > 0 and result["released_ms"] > 0
    assert 1 < result["over_floor_min"] <= result["over_floor"] <= result["over_floor_max"]
    assert result["undecoded_over_released"] > 0 and result["two_workers_over_one"] > 0
    assert 1 <= result["images_of_a_sample"] <= 3


def test_forged_cells_are_counted_by_both_rules(tmp_path):
    write_split(tmp_path, "train", make_rows(range(2)))
    command = [sys.executable, str(BENCHMARKS / "forged_cells.py"), "--data", str(tmp_path), "--masks", "20", "--json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result.keys() == {"ellipses", "swap", "warp", "unseen"}
    for counts in result.values():
        assert counts["area 0.5"] == pytest.approx(counts["released"], rel=0.15)
        assert counts["area 0.01"] > counts["released"]


@pytest.mark.slow
def test_the_ways_to_run_a_classifier_are_timed_against_eager_floats():
    pytest.importorskip("onnxruntime")
    flags = ["--backbone", "test_efficientnet", "--image_size", "96", "--batch_size", "2", "--turns", "3", "--json"]
    command = [sys.executable, str(BENCHMARKS / "export.py"), *flags]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(result["ways"]) == {"float32 eager", "bf16 autocast", "ONNX float32", "ONNX int8"}
    for way in result["ways"].values():
        assert way["seconds"] > 0 and 0 < way["least"] <= way["times_as_fast"] <= way["largest"]
    assert result["ways"]["float32 eager"]["times_as_fast"] == 1 and result["cpu"]


@pytest.mark.slow
def test_detection_is_timed_against_its_parts(tmp_path):
    flags = ["--model", str(save_checkpoint(tmp_path)), "--clips", "1", "--frames", "4", "--turns", "1", "--json"]
    command = [sys.executable, str(BENCHMARKS / "detect.py"), *flags]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["faces"] == 4 and result["faces_per_s"] > 0
    assert result["over_floor_min"] <= result["over_floor"] <= result["over_floor_max"]
    assert all(result[f"{part}_share"] > 0 for part in ("decode", "detection", "model"))


def test_the_table_puts_seen_methods_first_and_averages_over_seeds_and_methods():
    runs = [{"swap": 0.9, "warp": 0.6, "blend": 0.7}, {"swap": 0.8, "warp": 0.5, "blend": 0.7}]
    table = as_markdown({"Linear probe": [runs[0]], "DCL": runs}, seen=["swap", "blend"], seeds=2)
    header, _, probe, dcl = table.splitlines()[:4]
    assert header.split(" | ")[1:] == [
        *("blend (seen)", "swap (seen)", "warp (unseen)", "seen, mean", "unseen, mean |"),
    ]
    assert probe == "| Linear probe | 0.700 | 0.900 | 0.600 | 0.800 | 0.600 |"
    assert "0.850 (0.800-0.900)" in dcl and "0.775 (0.750-0.800)" in dcl and "0.550 (0.500-0.600)" in dcl


@pytest.mark.slow
def test_visitors_of_the_app_are_answered_or_refused_in_turn(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    flags = ["--model", str(checkpoint), "--clients", "30", "--seconds", "20", "--json"]
    command = [sys.executable, str(BENCHMARKS / "load.py"), *flags]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["alive"] and result["without_words"] == 0
    assert not [outcome for outcome in result["outcomes"] if "no answer" in outcome]
    assert result["outcomes"]["picture: answered"] > 0 and result["outcomes"]["video: answered"] > 0
    assert result["outcomes"]["address: refused"] > 0
    assert result["wait_over_time_of_those_ahead_median"] < 1.5  # its tail is the noise of so tiny a model
