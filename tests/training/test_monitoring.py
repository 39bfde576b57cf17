"""What the log says: means that lose nothing, losses that are not finite, and measures of the contrast."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerState

from dcl_face_forgery.modeling_dcl import DCLMemory
from dcl_face_forgery.training.monitoring import LossMonitor, NonFiniteError, contrast_measures, gradient_shares

ROWS = torch.arange(4)
VALID = torch.tensor([True, True, False, True])


def terms(*values, loss=1.0):
    return {"loss_ce": (torch.tensor(values), VALID), "loss": (torch.tensor([loss]), torch.ones(1))}


def test_means_are_of_the_values_that_count_and_start_again_after_each_entry():
    monitor = LossMonitor()
    monitor.add(terms(1.0, 2.0, 99.0, 3.0), 1, ROWS)
    monitor.add(terms(4.0, 5.0, math.nan, 9.0, loss=3.0), 2, ROWS)
    assert monitor.means() == {"loss_ce": 4.0, "loss": 2.0}
    assert monitor.means() == {}
    monitor.add(terms(7.0, 7.0, 0.0, 7.0), 3, ROWS)
    assert monitor.means()["loss_ce"] == 7.0


def test_a_term_without_values_that_count_is_left_out():
    monitor = LossMonitor()
    monitor.add({"loss_intra_fake": (torch.zeros(4), torch.zeros(4, dtype=torch.bool))}, 1, ROWS)
    assert monitor.means() == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_step_whose_loss_is_not_finite_is_named_with_its_term_and_rows(value):
    monitor = LossMonitor()
    monitor.add(terms(1.0, 1.0, 1.0, 1.0), 6, ROWS)
    monitor.add(terms(1.0, value, 1.0, 1.0, loss=value), 7, ROWS + 10)
    monitor.add(terms(math.nan, 1.0, 1.0, 1.0, loss=math.nan), 8, ROWS + 20)
    with pytest.raises(NonFiniteError) as error:
        monitor.means()
    assert (error.value.term, error.value.step, error.value.rows.tolist()) == ("loss_ce", 7, [10, 11, 12, 13])


def test_a_term_without_a_weight_may_be_what_it_will():
    monitor = LossMonitor()
    monitor.add(terms(math.nan, 1.0, 1.0, 1.0), 1, ROWS)
    means = monitor.means()
    assert math.isnan(means["loss_ce"]) and means["loss"] == 1.0


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def memory_of(filled=(6, 3), size=6):
    memory = DCLMemory(size, 8, 2, 0.9)
    memory.queue.copy_(unit(2, size, 8))
    memory.prototype.copy_(unit(2, 8))
    memory.filled.copy_(torch.tensor(filled))
    return memory


def test_the_contrast_is_measured_as_its_definitions_say():
    query, key, labels, memory = unit(4, 8), unit(4, 8), torch.tensor([0, 1, 1, 0]), memory_of()
    measures = contrast_measures(query, key, labels, memory, torch.tensor([2, 1]))
    rows = [memory.queue[1, :3] if label == 0 else memory.queue[0] for label in labels]
    hardest = [max(float(q @ row) for row in part) for q, part in zip(query, rows, strict=True)]
    pairs = [math.exp(-2 * float((query[i] - query[j]).square().sum())) for i in range(4) for j in range(i)]
    expected = {
        "similarity_positive": sum(float(q @ k) for q, k in zip(query, key, strict=True)) / 4,
        "similarity_hardest_negative": sum(hardest) / 4,
        "uniformity": math.log(sum(pairs) / 6),
        "prototype_cosine": float(memory.prototype[0] @ memory.prototype[1]),
        "queue_filled_real": 1.0,
        "queue_filled_fake": 0.5,
        "queue_age_real": 3.0,
        "queue_age_fake": 3.0,
    }
    assert measures == pytest.approx(expected, abs=1e-5)


def test_without_negatives_or_pairs_their_measures_are_missing():
    measures = contrast_measures(unit(1, 8), unit(1, 8), torch.tensor([0]), memory_of((0, 3)), torch.tensor([1, 0]))
    assert measures.keys().isdisjoint({"similarity_hardest_negative", "uniformity"})
    assert all(math.isfinite(value) for value in measures.values())


def test_gradient_shares_add_up_and_follow_the_weights():
    features = torch.randn(2, 3, 2, 2, requires_grad=True)
    first, second = features.sum(), 3 * features.sum()
    shares = gradient_shares({"a": first, "b": second, "none": 0 * features.sum()}, features)
    assert shares == pytest.approx({"a": 0.25, "b": 0.75, "none": 0.0})
    with pytest.raises(RuntimeError):  # a term of another graph has no share
        gradient_shares({"a": torch.ones((), requires_grad=True) * 2}, features)


def test_a_second_training_starts_from_nothing():
    monitor = LossMonitor()
    monitor.add(terms(3.0, 3.0, 3.0, 3.0), 1, ROWS)
    state = TrainerState(stateful_callbacks=[monitor], is_world_process_zero=True)
    monitor.on_train_begin(None, state, None)
    monitor.add(terms(1.0, 1.0, 1.0, 1.0), 1, ROWS)
    assert monitor.means()["loss_ce"] == 1.0


def test_a_resumed_training_takes_the_sums_of_its_checkpoint_even_of_one_without():
    monitor, resumed = LossMonitor(), LossMonitor()
    monitor.add(terms(3.0, 3.0, 3.0, 3.0), 1, ROWS)
    monitor.fold()
    state = TrainerState(stateful_callbacks=[monitor], is_world_process_zero=True, global_step=1)
    state.stateful_callbacks = json.loads(json.dumps(state.stateful_callbacks))
    resumed.on_train_begin(None, state, None)
    resumed.add(terms(1.0, 1.0, 1.0, 1.0), 2, ROWS)
    assert resumed.means()["loss_ce"] == 2.0
    older = TrainerState(is_world_process_zero=True, global_step=1)
    older.stateful_callbacks = {}
    resumed.on_train_begin(None, older, None)
    assert "LossMonitor" in older.stateful_callbacks  # the Trainer looks for it when it saves
