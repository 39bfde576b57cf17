"""The paper's protocols: their configurations train on FaceForensics++ as it lies on disk once it is prepared."""

import json
from pathlib import Path

import pytest

from dcl_face_forgery import train
from dcl_face_forgery.configuration_dcl import DCLConfig
from dcl_face_forgery.data_scripts.prepare import main as prepare
from dcl_face_forgery.tests.shared.raw_data_sets import write_ffpp

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PAPER = {"Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures"}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocols")
    raw = write_ffpp(folder / "raw", methods=(*sorted(PAPER), "FaceShifter"))
    command = ["ffpp", "--root", str(raw.root), "--output", str(folder / "ffpp_c23"), "--families_per_shard", "1"]
    with pytest.raises(SystemExit) as stop:
        prepare([*command, "--frames", "4"])
    assert stop.value.code == 0
    return folder


def run(config, data_root, output_dir, *flags):
    """Train two steps, of the settings changing only what a small machine without network needs."""
    small = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0", "--use_cpu"]
    offline = ["--backbone_weights", "none", "--disable_tqdm", "true"]
    command = ["-c", str(config), "--data_root", str(data_root), "--output_dir", str(output_dir), *small, *offline]
    train.main([*command, *flags])
    return json.loads((output_dir / "all_results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--streaming"]], ids=["loaded", "streamed"])
def test_the_papers_setting_trains_on_faceforensics(data_root, tmp_path, flags):
    results = run(CONFIGS / "ffpp_c23.yaml", data_root, tmp_path, *flags)
    assert results["train_loss"] > 0 and 0 <= results["eval_auc"] <= 1
    config = DCLConfig.from_pretrained(tmp_path)
    assert (config.backbone, config.image_size) == ("tf_efficientnet_b4.ns_jft_in1k", 299)
    assert set(config.seen_methods) == PAPER  # FaceShifter is in the data, too


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        *((f"cross_manipulation_{method.lower()}", {method}) for method in sorted(PAPER)),
        ("gid_df", PAPER - {"Deepfakes"}),
        ("gid_f2f", PAPER - {"Face2Face"}),
    ],
)
def test_each_protocol_learns_from_its_methods_alone(data_root, tmp_path, name, seen):
    tiny = ["--backbone", "test_efficientnet", "--image_size", "96", "--queue_size", "64"]
    run(CONFIGS / f"{name}.yaml", data_root, tmp_path, *tiny)
    assert set(DCLConfig.from_pretrained(tmp_path).seen_methods) == seen
