"""The losses where batches are not as the paper imagines them: one class, one part, nothing at all."""

import contextlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from dcl_face_forgery.training.distributed import gather_rows, means_over_processes
from dcl_face_forgery.training.losses import inter_instance_loss, intra_instance_loss

T, THRESHOLD = 0.07, 0.01
N, C, H, W, D, K = 4, 8, 3, 3, 9, 6


@pytest.fixture
def batch():
    query = F.normalize(torch.randn(N, D), dim=1).requires_grad_()
    key = F.normalize(torch.randn(N, D), dim=1)
    queue = F.normalize(torch.randn(2, K, D), dim=2)
    return query, key, torch.tensor([0, 1, 0, 1]), queue


@pytest.fixture
def features():
    return torch.randn(N, C, H, W).requires_grad_()


def contrast(features, mask, temperature=T, threshold=THRESHOLD, self_pairs=True):
    """Eq. 7: all images are fakes."""
    return intra_instance_loss(features, torch.ones(N, dtype=torch.long), mask, temperature, threshold, self_pairs)


def uniformity(features, temperature=T):
    """Eq. 8: all images are real."""
    loss, valid = intra_instance_loss(
        features, torch.zeros(N, dtype=torch.long), half_mask(), temperature, THRESHOLD, self_pairs=False
    )
    assert valid.all()
    return loss


def half_mask():
    mask = torch.zeros(N, H, W)
    mask[:, :, :1] = 1
    return mask


def assert_finite(loss, *inputs):
    assert loss.isfinite().all()
    for gradient in torch.autograd.grad(loss.sum(), inputs):
        assert gradient.isfinite().all()


# ------------------------------------------------------------------------------------------- between images, Eq. 3


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]])
@pytest.mark.parametrize("filled", [[0, 0], [K, 0], [0, 1], [K, K]])
def test_inter_is_finite_whatever_the_batch_and_the_queue(batch, labels, filled):
    query, key, _, queue = batch
    loss = inter_instance_loss(query, key, torch.tensor(labels), queue, torch.tensor(filled), T)
    assert loss.shape == (N,)
    assert (loss >= 0).all()
    assert_finite(loss, query)


def test_inter_is_zero_while_the_queues_are_empty(batch):
    query, key, labels, queue = batch
    loss = inter_instance_loss(query, key, labels, queue, torch.tensor([0, 0]), T)
    assert torch.equal(loss, torch.zeros(N))
    assert torch.equal(torch.autograd.grad(loss.sum(), query)[0], torch.zeros(N, D))


def test_inter_contrasts_with_the_other_class_only(batch):
    query, key, labels, queue = batch
    filled = torch.tensor([K, K])
    before = inter_instance_loss(query, key, labels, queue, filled, T)
    queue = torch.stack([queue[0], F.normalize(torch.randn(K, D), dim=1)])  # other fakes
    after = inter_instance_loss(query, key, labels, queue, filled, T)
    assert torch.equal(after[labels == 1], before[labels == 1])
    assert (after[labels == 0] != before[labels == 0]).all()


@pytest.mark.parametrize("garbage", [1.0, 1e30])
def test_unwritten_rows_are_no_negatives(batch, garbage):
    query, key, labels, queue = batch
    filled = torch.tensor([2, 4])
    clean, dirty = queue.clone(), queue.clone()
    for label, count in enumerate(filled):
        clean[label, count:] = 0
        dirty[label, count:] = garbage
    losses = [inter_instance_loss(query, key, labels, rows, filled, T) for rows in (clean, dirty)]
    gradients = [torch.autograd.grad(loss.sum(), query)[0] for loss in losses]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(gradients[0], gradients[1])


def test_inter_grows_with_every_negative_and_falls_with_the_positive(batch):
    query, key, labels, queue = batch
    losses = [inter_instance_loss(query, key, labels, queue, torch.tensor([k, k]), T) for k in range(K + 1)]
    assert all((after > before).all() for before, after in itertools.pairwise(losses))
    closer = inter_instance_loss(query, query.detach(), labels, queue, torch.tensor([K, K]), T)
    assert (closer < losses[-1]).all()


def test_a_gradient_step_moves_the_query_to_its_key_and_away_from_the_negative(batch):
    query, key, labels, queue = batch
    loss = inter_instance_loss(query, key, labels, queue, torch.tensor([1, 1]), T)
    step = -torch.autograd.grad(loss.sum(), query)[0]
    negative = queue[1 - labels, 0]
    torch.testing.assert_close(F.normalize(step, dim=1), F.normalize(key - negative, dim=1))


def test_images_may_come_in_any_order_of_labels(batch):
    query, key, _, queue = batch
    filled = torch.tensor([K - 1, K - 2])
    for labels in itertools.product((0, 1), repeat=N):
        loss = inter_instance_loss(query, key, torch.tensor(labels), queue, filled, T)
        for image, label in enumerate(labels):
            negatives = queue[1 - label, : filled[1 - label]] @ query[image]
            scores = torch.cat([(query[image] @ key[image])[None], negatives]) / T
            torch.testing.assert_close(loss[image], F.cross_entropy(scores, torch.tensor(0)))


def test_no_loss_asks_a_device_for_a_value(monkeypatch):
    """Tensors on `meta` have none: `nonzero` and `item` fail there, as does whatever else would wait for a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which `meta` does not have
    query, queue, labels, features = (
        torch.empty(shape, device="meta") for shape in ((N, D), (2, K, D), (N,), (N, C, H, W))
    )
    inter = inter_instance_loss(query, query, labels.long(), queue, torch.empty(2, device="meta"), T)
    intra, valid = intra_instance_loss(features, labels.long(), features[:, 0], T, THRESHOLD, self_pairs=False)
    assert inter.shape == intra.shape == valid.shape == (N,)


# ------------------------------------------------------------------------------------- inside an image, Eq. 7 and 8


@pytest.mark.parametrize("self_pairs", [True, False])
def test_intra_takes_faces_with_both_parts_only(features, self_pairs):
    mask = torch.zeros(N, H, W)  # none, one and all cells but one forged, all forged
    mask[1, 0, 0] = 1
    mask[2] = 1
    mask[2, 2, 2] = 0
    mask[3] = 1
    loss, valid = contrast(features, mask, self_pairs=self_pairs)
    # One real cell has no other real cell to be paired with.
    assert valid.tolist() == [False, True, self_pairs, False]
    assert (loss[valid] > 0).all()
    assert torch.equal(loss[~valid], torch.zeros_like(loss[~valid]))
    with torch.autograd.set_detect_anomaly(True):  # not even on the way is anything not a number
        gradient = torch.autograd.grad(loss.sum(), features)[0]
    assert torch.equal(gradient[~valid], torch.zeros_like(gradient[~valid]))
    assert (gradient[valid].flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("self_pairs", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_intra_of_identical_cells_is_finite_and_counts_pairs(self_pairs, value):
    features = torch.full((N, C, H, W), value, requires_grad=True)
    loss, valid = contrast(features, half_mask(), self_pairs=self_pairs)
    assert valid.all()
    assert_finite(loss, features)
    real, forged = 6, 3
    pairs = real * real if self_pairs else real * (real - 1)
    torch.testing.assert_close(loss, torch.full((N,), math.log((pairs + forged * real) / pairs)))


def test_intra_of_dead_activations_sends_no_gradient_through_them():
    values = torch.full((N, C, H, W), -1.0, requires_grad=True)
    loss, _ = contrast(values.relu(), half_mask())
    gradient = torch.autograd.grad((loss + uniformity(values.relu())).sum(), values)[0]
    assert torch.equal(gradient, torch.zeros_like(values))


def test_fakes_and_reals_of_a_batch_each_get_their_own_term(features):
    labels = torch.tensor([0, 1, 0, 1])
    loss, valid = intra_instance_loss(features, labels, half_mask(), T, THRESHOLD)
    assert valid.all()
    torch.testing.assert_close(loss[labels == 1], contrast(features, half_mask())[0][labels == 1])
    torch.testing.assert_close(loss[labels == 0], uniformity(features)[labels == 0])
    nothing, valid = intra_instance_loss(features, labels, torch.zeros(N, H, W), T, THRESHOLD)
    assert valid.tolist() == [True, False, True, False]
    assert torch.equal(nothing[labels == 0], loss[labels == 0])


def test_intra_is_as_exact_as_with_unit_cells_in_double_precision(features):
    labels = torch.tensor([0, 1, 0, 1])
    loss, _ = intra_instance_loss(features, labels, half_mask(), T, THRESHOLD, self_pairs=False)
    cells = F.normalize(features.double().flatten(2), dim=1)
    powers = (cells.mT @ cells / T).exp()
    real, forged = half_mask()[0].flatten() == 0, half_mask()[0].flatten() == 1
    others = ~torch.eye(H * W, dtype=torch.bool)[real][:, real]
    inside, across = (powers[:, real][:, :, real] * others).sum((1, 2)), powers[:, forged][:, :, real].sum((1, 2))
    expected = torch.where(labels == 1, -(inside / (inside + across)).log(), -powers.sum((1, 2)).log())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    actual, exact = (torch.autograd.grad(value.sum(), features)[0] for value in (loss, expected))
    torch.testing.assert_close(actual, exact, rtol=1e-3, atol=1e-4)


def test_a_cell_is_forged_strictly_above_the_threshold(features):
    mask = torch.zeros(N, H, W)
    mask[0, 0, 0] = THRESHOLD
    mask[1, 0, 0] = THRESHOLD + 1e-4
    _, valid = contrast(features, mask)
    assert valid.tolist() == [False, True, False, False]


def test_intra_falls_as_the_parts_separate():
    direction = torch.zeros(N, C, H, W)
    direction[:, 0] = 1
    apart = direction.clone()
    apart[:, 0, :, 0], apart[:, 1, :, 0] = 0, 1  # forged cells at a right angle to the real ones
    together, separate = (contrast(f, half_mask())[0] for f in (direction, apart))
    assert (separate < 1e-5).all()
    assert (together > 0.3).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_local_losses_do_not_depend_on_the_length_of_features(features, scale):
    expected, _ = contrast(features, half_mask())
    actual, _ = contrast(features * scale, half_mask())
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(uniformity(features * scale), uniformity(features))


def test_uniformity_is_lowest_where_all_cells_are_alike(features):
    floor = -1 / T - 2 * math.log(H * W)
    alike = torch.ones(N, C, H, W, requires_grad=True)
    torch.testing.assert_close(uniformity(alike), torch.full((N,), floor))
    assert (uniformity(features) > floor).all()
    assert_finite(uniformity(alike), alike)
    zero = torch.zeros(N, C, H, W, requires_grad=True)
    assert_finite(uniformity(zero), zero)


# ------------------------------------------------------------------------------------------------------- precision


def losses_of(query, key, labels, queue, features):
    inter = inter_instance_loss(query, key, labels, queue, torch.tensor([K, K]), T)
    intra, _ = contrast(features, half_mask())
    return inter, intra, uniformity(features)


def test_half_precision_input_is_computed_in_float32(batch, features):
    query, key, labels, queue = batch
    rounded = [tensor.detach().bfloat16() for tensor in (query, key, queue, features)]
    q, k, m, f = rounded
    with torch.autocast("cpu", torch.bfloat16):
        actual = losses_of(q, k, labels, m, f)
    q, k, m, f = (tensor.float() for tensor in rounded)
    for value, expected in zip(actual, losses_of(q, k, labels, m, f), strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)


def test_a_small_temperature_does_not_overflow(batch, features):
    query, key, labels, queue = batch
    assert_finite(inter_instance_loss(query, key, labels, queue, torch.tensor([K, K]), 1e-3), query)
    assert_finite(contrast(features, half_mask(), 1e-3)[0], features)
    assert_finite(uniformity(features, 1e-3), features)


# ------------------------------------------------------------------------------------------------------------ means


def test_mean_leaves_out_what_is_not_valid():
    values = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    mean = means_over_processes({"term": (values, torch.tensor([True, False, True]))})["term"]
    assert mean == 2
    assert torch.equal(torch.autograd.grad(mean, values)[0], torch.tensor([0.5, 0.0, 0.5]))


def test_mean_of_nothing_is_zero_with_a_zero_gradient():
    values = torch.tensor([1.0, math.nan], requires_grad=True)
    mean = means_over_processes({"term": (values, torch.tensor([False, False]))})["term"]
    assert mean == 0
    assert torch.equal(torch.autograd.grad(mean, values)[0], torch.zeros(2))


def test_one_process_gathers_its_own_rows():
    rows = torch.randn(3, 2)
    assert torch.equal(gather_rows(rows), rows)
