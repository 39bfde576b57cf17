"""Laws of the memory: against a plain ring of lists, and what may never happen to it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dcl_face_forgery.modeling_dcl import DCLMemory

DIM = 4


def unit_keys(rng, count):
    return F.normalize(torch.from_numpy(rng.standard_normal((count, DIM))).float(), dim=1)


def state(memory):
    return {name: buffer.clone() for name, buffer in memory.named_buffers()}


def assert_equal_state(memory, expected, only_class=None):
    for name, buffer in memory.named_buffers():
        select = slice(None) if only_class is None else only_class
        assert torch.equal(buffer[select], expected[name][select]), name


class PlainMemory:
    """The same in float64 with lists: a ring is the last K keys, written where the pointer was."""

    def __init__(self, size, hard, momentum):
        self.size, self.hard, self.momentum = size, hard, momentum
        self.history = [[], []]
        self.prototype = np.zeros((2, DIM))

    def update(self, keys, labels):
        keys, labels = keys.double().numpy(), labels.numpy()
        usable = np.isfinite(keys).all(1)
        groups = [keys[usable & (labels == label)] for label in (0, 1)]
        for label, group in enumerate(groups):
            if len(group):
                mean = group.mean(0)
                self.prototype[label] = self.momentum * self.prototype[label] + (1 - self.momentum) * mean
        for label, group in enumerate(groups):
            other = self.prototype[1 - label]
            hardness = group @ other / max(np.linalg.norm(other), 1e-12)
            self.history[label] += [group[i] for i in np.argsort(-hardness, kind="stable")[: self.hard]]

    def queue(self):
        queue = np.zeros((2, self.size, DIM))
        for label, history in enumerate(self.history):
            for number, key in enumerate(history):
                queue[label, number % self.size] = key
        return queue


@st.composite
def runs(draw):
    size = draw(st.integers(1, 7))
    batches = st.lists(st.tuples(st.sampled_from([0, 1]), st.booleans()), max_size=6)
    return size, draw(st.integers(1, size)), draw(st.lists(batches, min_size=1, max_size=8)), draw(st.integers(0, 999))


@given(runs())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_memory_is_a_ring_of_the_hardest_finite_keys(run):
    size, hard, batches, seed = run
    rng = np.random.default_rng(seed)
    memory, plain = DCLMemory(size, DIM, hard, 0.9), PlainMemory(size, hard, 0.9)
    for batch in batches:
        keys = unit_keys(rng, len(batch))
        for row, (_, broken) in enumerate(batch):
            if broken:
                keys[row, rng.integers(DIM)] = rng.choice([np.nan, np.inf, -np.inf])
        labels = torch.tensor([label for label, _ in batch], dtype=torch.long)
        memory.update(keys, labels)
        plain.update(keys, labels)
        written = [len(history) for history in plain.history]
        assert memory.filled.tolist() == [min(count, size) for count in written]
        assert memory.pointer.tolist() == [count % size for count in written]
        np.testing.assert_allclose(memory.prototype, plain.prototype, atol=1e-6)
        np.testing.assert_allclose(memory.queue, plain.queue(), atol=1e-6)


@pytest.fixture
def memory():
    """Half full, and about to wrap."""
    memory = DCLMemory(queue_size=6, dim=DIM, hard_samples=2, prototype_momentum=0.9)
    rng = np.random.default_rng(0)
    for _ in range(2):
        memory.update(unit_keys(rng, 8), torch.tensor([0, 1] * 4))
    return memory


@pytest.mark.parametrize("present", [0, 1])
def test_a_one_class_batch_leaves_the_other_class_alone(memory, present):
    before = state(memory)
    memory.update(unit_keys(np.random.default_rng(1), 5), torch.full((5,), present))
    assert_equal_state(memory, before, only_class=1 - present)
    assert not torch.equal(memory.prototype[present], before["prototype"][present])
    assert memory.filled[present] == 6


def test_a_class_of_one_sample_is_enqueued(memory):
    keys = unit_keys(np.random.default_rng(1), 4)
    memory.update(keys, torch.tensor([0, 0, 1, 0]))
    assert memory.filled.tolist() == [6, 5]
    assert torch.equal(memory.queue[1, 4], keys[2])


def test_hardest_key_comes_first(memory):
    towards_fake = F.normalize(memory.prototype[1], dim=0)
    memory.update(torch.stack([-towards_fake, towards_fake, -towards_fake]), torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(memory.queue[0, 4], towards_fake)
    torch.testing.assert_close(memory.queue[0, 5], -towards_fake)


def test_the_ring_replaces_its_oldest_rows(memory):
    before = state(memory)
    memory.update(unit_keys(np.random.default_rng(1), 8), torch.tensor([0, 1] * 4))  # rows 4 and 5
    assert torch.equal(memory.queue[:, :4], before["queue"][:, :4])
    memory.update(unit_keys(np.random.default_rng(2), 8), torch.tensor([0, 1] * 4))  # rows 0 and 1
    assert torch.equal(memory.queue[:, 2:4], before["queue"][:, 2:4])
    assert not torch.equal(memory.queue[:, 0], before["queue"][:, 0])
    assert memory.pointer.tolist() == [2, 2]
    assert memory.filled.tolist() == [6, 6]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_batch_of_broken_keys_changes_nothing(memory, value):
    before = state(memory)
    memory.update(torch.full((4, DIM), value), torch.tensor([0, 1, 0, 1]))
    assert_equal_state(memory, before)


def test_an_empty_batch_changes_nothing(memory):
    before = state(memory)
    memory.update(torch.zeros(0, DIM), torch.zeros(0, dtype=torch.long))
    assert_equal_state(memory, before)


def test_equal_input_gives_equal_state():
    first, second = (DCLMemory(6, DIM, 2, 0.9) for _ in range(2))
    for memory in (first, second):
        rng = np.random.default_rng(0)
        for _ in range(5):
            memory.update(unit_keys(rng, 8), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1]))
    assert_equal_state(first, state(second))


@given(st.permutations(range(8)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_order_in_which_processes_are_gathered_does_not_matter(order):
    first, second = (DCLMemory(6, DIM, 2, 0.9) for _ in range(2))
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    rng = np.random.default_rng(0)
    # Without a prototype of the other class every key is as hard as the next, so one step is seen beforehand.
    for memory in (first, second):
        memory.update(unit_keys(np.random.default_rng(7), 8), labels)
    for _ in range(3):
        keys = unit_keys(rng, 8)
        first.update(keys, labels)
        second.update(keys[list(order)], labels[list(order)])
    for name, buffer in first.named_buffers():
        torch.testing.assert_close(second.get_buffer(name), buffer)


def test_keys_of_half_precision_and_autocast_change_only_the_rounding(memory):
    keys, labels = unit_keys(np.random.default_rng(3), 8).bfloat16(), torch.tensor([0, 1] * 4)
    expected = DCLMemory(6, DIM, 2, 0.9)
    expected.load_state_dict(memory.state_dict())
    expected.update(keys.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        memory.update(keys, labels)
    assert_equal_state(memory, state(expected))


def test_a_memory_in_half_precision_goes_on(memory):
    memory.to(torch.bfloat16)
    memory.update(unit_keys(np.random.default_rng(3), 8), torch.tensor([0, 1] * 4))
    assert memory.queue.dtype == torch.bfloat16
    assert memory.filled.dtype == torch.int64
    assert memory.filled.tolist() == [6, 6]
    assert memory.queue.isfinite().all()


def test_no_gradient_enters(memory):
    keys = unit_keys(np.random.default_rng(3), 8).requires_grad_()
    memory.update(keys, torch.tensor([0, 1] * 4))
    assert not any(buffer.requires_grad for buffer in memory.buffers())


def test_everything_that_is_remembered_is_saved(memory):
    assert set(memory.state_dict()) == {"queue", "pointer", "filled", "prototype"}


@pytest.mark.parametrize("split", [1, 2, 4])
def test_a_share_fills_the_queues_alike_whatever_the_batch(split):
    """A number of hard samples does not: smaller batches would fill the queues faster."""
    keys = F.normalize(torch.randn(64, 4), dim=1)
    labels = torch.arange(64) % 2
    memory = DCLMemory(40, 4, 5, 0.9, hard_share=0.25)
    for part in range(split):
        rows = slice(part * 64 // split, (part + 1) * 64 // split)
        memory.update(keys[rows], labels[rows])
    assert memory.filled.tolist() == [8, 8]


def test_a_share_takes_the_hardest_keys_and_at_least_one():
    memory, counted = DCLMemory(9, 4, 5, 0.9, hard_share=0.5), DCLMemory(9, 4, 3, 0.9)
    keys, labels = F.normalize(torch.randn(7, 4), dim=1), torch.tensor([0, 0, 0, 0, 0, 0, 1])
    for one in (memory, counted):
        one.update(keys, labels)
    assert memory.filled.tolist() == [3, 1] and torch.equal(memory.queue[0], counted.queue[0])
    tiny = DCLMemory(2, 4, 2, 0.9, hard_share=1.0)  # more keys than rows
    tiny.update(keys, labels)
    assert tiny.filled.tolist() == [2, 1]
