"""The reference network: its weights are the published ones, its features depend on the face alone, and it ships."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dcl_face_forgery.data_scripts.assets import fetch
from dcl_face_forgery.errors_dcl import InputError
from dcl_face_forgery.media_dcl import read_picture
from dcl_face_forgery.modeling_dcl import (
    REFERENCE_FEATURES,
    REFERENCE_FILE,
    ReferenceNetwork,
    copy_reference,
    find_reference,
)
from dcl_face_forgery.training.backbone import EXPANDED_BLOCK, PLAIN_BLOCK


@pytest.fixture(scope="module")
def network():
    return ReferenceNetwork(find_reference())


@pytest.fixture(scope="module")
def faces():
    paths = sorted(fetch("orl").glob("s[1-4]/1.pgm"))
    return [cv2.resize(read_picture(path), (112, 112)) for path in paths]


def test_its_weights_are_those_of_efficientnet_lite0():
    ours = load_file(find_reference())
    published = torch.load(fetch("efficientnet_lite0"), map_location="cpu", weights_only=True)
    numbers = {"blocks.0.0": 0, "blocks.1.0": 1, "blocks.1.1": 2, "blocks.2.0": 3, "blocks.2.1": 4}
    seen = 0
    for name, value in ours.items():
        if name.endswith("num_batches_tracked"):
            continue
        block, _, rest = name.rpartition(".")
        block, _, module = block.rpartition(".")
        if block in numbers:
            names = PLAIN_BLOCK if numbers[block] == 0 else EXPANDED_BLOCK
            theirs = f"_blocks.{numbers[block]}.{({v: k for k, v in names.items()})[module]}.{rest}"
        else:
            theirs = {"conv_stem": "_conv_stem", "bn1": "_bn0"}[module] + "." + rest
        torch.testing.assert_close(value, published[theirs].to(value.dtype), rtol=0, atol=0)
        seen += 1
    assert seen == 75


def test_features_of_a_face_depend_on_no_other_face(network, faces):
    together, alone = network(faces), np.concatenate([network([face]) for face in faces])
    assert together.shape == (len(faces), REFERENCE_FEATURES) and together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 0.5


def test_colour_and_blur_move_the_features_further_than_another_person_does(network, faces):
    features = network(faces)
    between = np.linalg.norm(features[0] - features[1:], axis=1).min()
    tinted = [np.clip(face * np.array([1.2, 1.0, 0.8]), 0, 255).astype(np.uint8) for face in faces]
    blurred = [cv2.GaussianBlur(face, (0, 0), 4) for face in faces]
    for changed in (tinted, blurred):
        assert np.linalg.norm(network(changed) - features, axis=1).min() > between


def test_a_checkpoint_brings_the_weights_and_they_are_found_there_first(tmp_path):
    copy_reference("", None, tmp_path)
    assert (tmp_path / REFERENCE_FILE).read_bytes() == find_reference().read_bytes()
    assert find_reference(str(tmp_path)) == tmp_path / REFERENCE_FILE


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(find_reference().read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="a is not the released reference network"):
        ReferenceNetwork(tmp_path / "a")
    with pytest.raises(InputError, match="b cannot be read"):
        ReferenceNetwork(tmp_path / "b")
