"""The equations against an independent float64 implementation (fixtures/dcl_equations.npz), step after step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dcl_face_forgery.modeling_dcl import DCLMemory
from dcl_face_forgery.training.losses import inter_instance_loss, intra_instance_loss

REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "dcl_equations.npz")
TEMPERATURE, MASK_THRESHOLD = 0.07, 0.01


def reference(name):
    array = REFERENCE[name]
    return torch.from_numpy(array).float() if array.dtype == np.float64 else torch.from_numpy(array.copy())


def both(name):
    return torch.stack([reference(f"{name}_real"), reference(f"{name}_fake")])


def assert_agrees(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def memory():
    memory = DCLMemory(queue_size=96, dim=25, hard_samples=2, prototype_momentum=0.9)
    memory.queue.copy_(both("init_queue"))
    memory.prototype.copy_(both("init_prototype"))
    memory.pointer.copy_(both("init_pointer"))
    memory.filled.fill_(96)
    return memory


def test_memory_and_inter_instance_loss_agree_over_three_steps(memory):
    for step in range(3):
        query, key, labels = (reference(f"step{step}_{name}") for name in ("query", "key", "labels"))
        before = memory.pointer.clone()
        memory.update(key, labels)
        assert_agrees(memory.prototype, both(f"step{step}_prototype"))
        assert_agrees(memory.queue, both(f"step{step}_queue"))
        assert torch.equal(memory.pointer, both(f"step{step}_pointer"))
        for label, name in enumerate(("real", "fake")):
            hard = reference(f"step{step}_hard_{name}")
            rows = (before[label] + torch.arange(len(hard))) % 96
            assert_agrees(memory.queue[label, rows], hard)
        loss = inter_instance_loss(query, key, labels, memory.queue, memory.filled, TEMPERATURE)
        assert_agrees(loss, reference(f"step{step}_inter_per_image"))


@pytest.mark.parametrize("step", range(3))
@pytest.mark.parametrize("self_pairs", [True, False])
def test_intra_instance_loss_of_fakes_agrees(step, self_pairs):
    features, mask, labels = (reference(f"step{step}_{name}") for name in ("feature_map", "mask", "labels"))
    expected = reference(f"step{step}_intra_fake{'' if self_pairs else '_without_self_pairs'}_per_image")
    loss, valid = intra_instance_loss(features, labels, mask, TEMPERATURE, MASK_THRESHOLD, self_pairs)
    valid &= labels == 1
    assert torch.equal(valid, ~expected.isnan())
    assert_agrees(loss[valid], expected[valid])


@pytest.mark.parametrize("step", range(3))
def test_intra_instance_loss_of_reals_agrees(step):
    features, mask, labels = (reference(f"step{step}_{name}") for name in ("feature_map", "mask", "labels"))
    expected = reference(f"step{step}_intra_real_per_image")
    assert torch.equal(labels == 0, ~expected.isnan())
    loss, _ = intra_instance_loss(features, labels, mask, TEMPERATURE, MASK_THRESHOLD)
    assert_agrees(loss[labels == 0], expected[labels == 0])
