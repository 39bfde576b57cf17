"""The configuration: the paper's defaults, what it refuses, and that it survives saving."""

import math

import pytest
from huggingface_hub.errors import StrictDataclassError

from dcl_face_forgery.configuration_dcl import DCLConfig


def test_defaults_are_the_papers():
    config = DCLConfig()
    assert config.backbone == "tf_efficientnet_b4.ns_jft_in1k"
    assert config.image_size == 299
    assert (config.queue_size, config.hard_samples) == (32768, 5)
    assert (config.momentum, config.prototype_momentum, config.temperature) == (0.999, 0.9, 0.07)
    assert (config.embedding, config.self_pairs) == ("map", True)
    assert config.id2label == {0: "real", 1: "fake"}
    assert config.label2id == {"real": 0, "fake": 1}
    assert config.num_labels == 2


def test_every_class_can_be_found_from_any_checkpoint():
    assert set(DCLConfig().auto_map) >= {"AutoModel", "AutoModelForImageClassification", "AutoModelForPreTraining"}


def test_survives_saving(tmp_path):
    config = DCLConfig(
        backbone="test_vit",
        backbone_kwargs={"global_pool": "avg"},
        image_size=96,
        embedding="pooled",
        momentum=1,
        self_pairs=False,
        seen_methods=["Deepfakes", "FaceSwap"],
    )
    config.save_pretrained(tmp_path)
    loaded = DCLConfig.from_pretrained(tmp_path)
    settings = config.to_dict()
    settings["auto_map"]["AutoConfig"] = "configuration_dcl.DCLConfig"  # saving adds it
    assert loaded.to_dict() == settings
    assert loaded.id2label == {0: "real", 1: "fake"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", 4),
        ("backbone_kwargs", "drop_path_rate=0.1"),
        ("image_size", 299.0),
        ("image_size", True),
        ("dropout", "0.2"),
        ("embedding", "flat"),
        ("queue_size", None),
        ("temperature", True),
        ("self_pairs", 1),
        ("seen_methods", "Deepfakes"),
        ("seen_methods", [1]),
    ],
)
def test_refuses_a_wrong_type(name, value):
    with pytest.raises(StrictDataclassError, match=name):
        DCLConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 0),
        ("embedding_dim", 0),
        ("queue_size", -1),
        ("hard_samples", 0),
        ("momentum", 1.001),
        ("momentum", -0.1),
        ("momentum", math.nan),
        ("prototype_momentum", 2),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("mask_threshold", 1),
        ("mask_threshold", -0.01),
        ("temperature", 0),
        ("temperature", -0.07),
        ("temperature", math.nan),
        ("temperature", math.inf),
    ],
)
def test_refuses_a_value_out_of_range_and_names_it(name, value):
    with pytest.raises(StrictDataclassError, match=rf"`{name}` must be .*, got {value}\."):
        DCLConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("momentum", 0), ("momentum", 1), ("dropout", 0), ("mask_threshold", 0), ("temperature", 1), ("hard_samples", 1)],
)
def test_takes_the_ends_of_the_ranges(name, value):
    assert getattr(DCLConfig(**{name: value}), name) == value


def test_refuses_a_queue_smaller_than_the_hard_keys_of_a_batch():
    with pytest.raises(
        StrictDataclassError, match=r"`queue_size` \(4\) must be at least `hard_samples` \(5\).*Enlarge"
    ):
        DCLConfig(queue_size=4)
    assert DCLConfig(queue_size=5).queue_size == 5


@pytest.mark.parametrize(
    "labels", [{"num_labels": 3}, {"id2label": {0: "fake", 1: "real"}}, {"id2label": {0: "real"}}]
)
def test_refuses_other_classes(labels):
    with pytest.raises(StrictDataclassError, match=r"0 \(real\) and 1 \(fake\), got"):
        DCLConfig(**labels)


@pytest.mark.parametrize(
    "labels", [{"num_labels": 2}, {"id2label": {"0": "real", "1": "fake"}}, {"label2id": {"fake": 0, "real": 1}}]
)
def test_labels_cannot_contradict_each_other(labels):
    config = DCLConfig(**labels)
    assert config.id2label == {0: "real", 1: "fake"}
    assert config.label2id == {"real": 0, "fake": 1}


def test_a_wrong_value_is_found_when_a_configuration_is_changed():
    config = DCLConfig()
    with pytest.raises(StrictDataclassError, match="image_size"):
        config.image_size = "large"
    config.temperature = -1.0
    with pytest.raises(StrictDataclassError, match="temperature"):
        config.validate()
