"""What a command says of a wrong name or flag: at once, before torch and what else takes seconds is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
#: Runs a command; at its end, tells what it imported and the processor time that it took.
PROBE = """
import atexit, json, resource, runpy, sys

HEAVY = ("torch", "timm", "datasets", "pandas", "sklearn", "gradio", "transformers.training_args")

@atexit.register
def report():
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps([[name for name in HEAVY if name in sys.modules], used.ru_utime + used.ru_stime]))

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
MOST_SECONDS = 3  # of processor time


def run(folder, command, *arguments, **variables):
    """Run a command in a folder; return its exit status, what it printed, what it imported, and how long it took."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(REPOSITORY / command), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    *printed, report = done.stdout.splitlines()
    return done.returncode, "\n".join(printed), done.stderr, *json.loads(report)


@pytest.fixture
def place(prepared, tmp_path):
    """A folder with a data set, a file, and a model that is not of DCL."""
    (tmp_path / "textures").symlink_to(prepared)
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit/config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "dcl").mkdir()
    (tmp_path / "dcl/config.json").write_text('{"model_type": "dcl"}')
    (tmp_path / "dcl/preprocessor_config.json").write_text("{}")
    (tmp_path / "dcl/model.safetensors").touch()
    (tmp_path / "typo.yaml").write_text("temprature: 0.1")
    return tmp_path


COMMANDS = ("train.py", "evaluate_dcl.py", "detect.py", "detection/export.py", "data_scripts/prepare.py", "app.py")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(tmp_path, command):
    status, printed, said, heavy, seconds = run(tmp_path, command, "--help")
    assert (status, said, heavy) == (0, "", []) and printed.startswith("usage: ")
    assert seconds < MOST_SECONDS


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("train.py --temprature 0.1", "Unknown argument '--temprature'. Did you mean 'temperature'?"),
        ("train.py --lr_scheduler_type cosin", "invalid choice: 'cosin' (choose from 'linear', 'cosine', "),
        ("train.py -c typo.yaml", "Configuration file typo.yaml: unknown key 'temprature'. Did you mean"),
        ("train.py -c none.yaml", "Configuration file none.yaml not found."),
        ("train.py --dataset txtures", "Data set 'txtures' not found: looked for the folder txtures. Create it with"),
        ("train.py --dataset textures --train_split trian", "no split 'trian': it has train, validation."),
        ("train.py --dataset textures --model vit", "Model 'vit' is not a DCL checkpoint: the model type"),
        ("evaluate_dcl.py --output_dir out --modle vit", "unrecognized arguments: --modle vit"),
        ("evaluate_dcl.py --output_dir out --model vit --dataset none", "Data set 'none' not found"),
        ("evaluate_dcl.py --output_dir out --model vit --dataset textures", "has no split 'test'"),
        ("evaluate_dcl.py --output_dir out --model none --dataset textures --split train", "Model 'none' not found"),
        ("evaluate_dcl.py --output_dir out --predictions none.csv", "Table of predictions 'none.csv' not found."),
        ("detect.py photo.jpg --model dcl --operating_point eer", "The checkpoint has no threshold eer for a frame"),
        (
            "evaluate_dcl.py --output_dir out --model vit --dataset some/none",
            "Data set 'some/none' not found: there is",
        ),
        ("detect.py photo.jpg --operating_point fpr", "invalid choice: 'fpr'"),
        ("detect.py photo.jpeg", "File or folder photo.jpeg not found."),
        ("detect.py photo.jpg", "Model 'runs/demo' not found. Create it with `make demo`, or name another one"),
        ("detect.py . --model vit", "Model 'vit' is not a DCL checkpoint: the model type in its config.json is 'vit'"),
        ("detection/export.py --model vit --output out", "Model 'vit' is not a DCL checkpoint"),
        ("data_scripts/prepare.py foldr", "invalid choice: 'foldr'"),
        ("data_scripts/prepare.py folder --root none --output out", "Folder none not found"),
        ("data_scripts/prepare.py blend --source none --output out", "--source none not found."),
        (
            "data_scripts/prepare.py blend --source . --output out --split_shares 80 10",
            "(sum 90) is invalid. Pass two or three",
        ),
        ("data_scripts/prepare.py check prepared --root none", "Folder none contains no prepared data set"),
        ("app.py --port 80", "unrecognized arguments: --port 80"),
    ],
)
def test_a_wrong_name_is_told_before_torch_is_imported(place, command, sentence):
    status, printed, said, heavy, seconds = run(place, *command.split())
    assert status in (1, 2) and sentence in said and "Traceback" not in said
    assert (printed, heavy) == ("", []) and seconds < MOST_SECONDS


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("./none", "Model ./none not found. Create it with `make demo`, or set DCL_MODEL"),
        ("textures", "textures is not a checkpoint"),
    ],
)
def test_the_app_tells_a_wrong_model_before_torch_is_imported(place, model, sentence):
    status, _, said, heavy, seconds = run(place, "app.py", DCL_MODEL=model)
    assert status == 1 and sentence in said and not heavy and seconds < MOST_SECONDS
