"""The model card: filled in, valid for the Hub, and its example runs."""

import os
import re

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForImageClassification

from dcl_face_forgery import train
from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.tests.shared.prepared_data import make_face, training_flags
from dcl_face_forgery.tests.shared.training import build_trainer
from dcl_face_forgery.training.arguments import parse_training_run
from dcl_face_forgery.training.card import write_model_card


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A trainer after its training, its checkpoint and card saved."""
    folder = tmp_path_factory.mktemp("here") / "my detector"
    trainer = build_trainer(parse_training_run(training_flags(prepared, folder, max_steps=4, image_size=64)))
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    return trainer


@pytest.fixture
def text(trained):
    with open(os.path.join(trained.args.output_dir, "README.md")) as file:
        return file.read()


def sections(text):
    """Return the body of each section, the title's included."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_section_says_something_and_nothing_is_left_open(text):
    found = sections(text.replace("```python", "").split("---", 2)[2])
    assert list(found) == [
        "my detector",
        "Use",
        "Training",
        "Scores on the validation split",
        "Calibration",
        "Limitations",
        "Citation",
    ]
    assert all(len(body.split()) > 10 for body in found.values())
    for open_end in ("{{", "{%", "None", "undefined", "not recorded", "Not measured", "\n\n\n"):
        assert open_end not in text


def test_the_front_matter_is_valid_and_gives_the_result(trained, text):
    card = ModelCard(text)
    assert card.data.pipeline_tag == "image-classification" and card.data.library_name == "transformers"
    assert card.data.license == "apache-2.0" and "deepfake-detection" in card.data.tags
    (result,) = card.data.eval_results
    assert result.dataset_name == "textures (validation)" and result.metric_type == "roc_auc"
    assert result.metric_value == pytest.approx(trained.state.best_metric, abs=1e-6)


def test_it_says_what_was_trained_on_what_and_how(trained, text):
    for said in (
        "Data: textures.",
        "Manipulation methods in the training data: swap, warp.",
        "box, 64 px, margin 0.3, detector none.",
        "| backbone | test_efficientnet |",
        "| learning_rate | 0.0002 |",
        "| lr_scheduler_type | linear |",
        "| contrastive_weight | 0.5 |",
        f"Optimizer steps: {trained.state.best_global_step}.",
    ):
        assert said in " ".join(text.split())


def test_the_scores_are_those_of_the_checkpoint_that_is_kept(trained, text):
    (entry,) = [
        one for one in trained.state.log_history if "eval_auc" in one and one["step"] == trained.state.best_global_step
    ]
    names = {"Frame AUC": "auc", "Frame EER": "eer", "Video AUC": "video_auc", "Frame accuracy": "accuracy"}
    for name, key in names.items():
        assert f"| {name} | {entry['eval_' + key]:.4f} |" in text


def test_the_example_runs(trained, text, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert code.count(f'"{trained.args.output_dir}"') == 2
    Image.fromarray(make_face(0, 0)).save(tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert 0 <= names["p_fake"] <= 1 and names["evidence"].shape == (2, 2)
    model = AutoModelForImageClassification.from_pretrained(trained.args.output_dir, trust_remote_code=True).eval()
    with torch.no_grad():
        expected = model.p_fake(model(**names["inputs"]).logits)[0].item()
    assert names["p_fake"] == expected


def test_where_faces_can_be_found_for_it_the_card_shows_the_pipeline_and_it_runs(trained, text, tmp_path, monkeypatch):
    assert 'face-forgery-detection",' not in text, "the detector of these crops is not known"
    processor, crop = trained.processing_class, trained.processing_class.crop
    monkeypatch.setattr(processor, "crop", crop | {"detector": "yunet_2023mar", "margin": 1.3})
    folder = tmp_path / "model"
    trained.model.save_pretrained(folder)
    processor.save_pretrained(folder)
    card = write_model_card(trained, "a", str(folder), trained.was_contrastive()).read_text()
    code = re.search(r"```python\n(.*?)```", card, flags=re.S).group(1)
    Image.open(fetch("astronaut")).convert("RGB").save(tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    (face,) = names["result"]["faces"]
    assert 0 <= face["p_fake"] <= 1
    trained.create_model_card()


def test_a_card_before_any_validation_says_that_nothing_was_measured(prepared, tmp_path):
    trainer = build_trainer(parse_training_run(training_flags(prepared, tmp_path, image_size=64)))
    card = ModelCard.load(write_model_card(trainer, "early", "someone/early", trainer.was_contrastive()))
    assert "Not measured." in card.text and "Optimizer steps: 0." in card.text
    assert card.data.eval_results is None


def test_the_last_weights_get_the_scores_of_the_last_weights(prepared, tmp_path):
    flags = training_flags(prepared, tmp_path, max_steps=4, image_size=64, load_best_model_at_end=False)
    trainer = build_trainer(parse_training_run(flags))
    trainer.compute_metrics = lambda _, left=[0.9, 0.6]: {"auc": left.pop(0)}
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "| Frame AUC | 0.6000 |" in text and "Optimizer steps: 4." in text


def test_a_crop_of_which_little_is_known_is_described_without_gaps(prepared, tmp_path):
    trainer = build_trainer(parse_training_run(training_flags(prepared, tmp_path, image_size=64)))
    trainer.processing_class.crop = {"kind": "given", "margin": None, "size": 256, "detector": None}
    text = " ".join(write_model_card(trainer, "a", "a", trainer.was_contrastive()).read_text().split())
    assert "cut like the training data: given, 256 px. For any other picture" in text
    trainer.processing_class.crop = None
    text = " ".join(write_model_card(trainer, "a", "a", trainer.was_contrastive()).read_text().split())
    assert "cut like the training data. For any other picture" in text


def test_a_card_says_so_where_the_contrastive_losses_never_entered(prepared, tmp_path):
    flags = training_flags(prepared, tmp_path, max_steps=2, image_size=64, contrastive_weight=0)
    train.main(flags)
    text = (tmp_path / "README.md").read_text()
    assert "Trained with cross-entropy alone" in text and "Trained by **Dual" not in text
