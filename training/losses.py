"""The losses of DCL, per image, in float32 whatever the precision around them.

Numbers refer to Sun et al., "Dual Contrastive Learning for General Face Forgery Detection", AAAI 2022, arXiv
2112.13522. Every function returns one value for each image and, if some images may have none, which of them are valid.
`training.distributed` averages over images and processes. Nothing here waits for a GPU.
"""

import torch
import torch.nn.functional as F


def inter_instance_loss(
    query: torch.Tensor,
    key: torch.Tensor,
    labels: torch.Tensor,
    queue: torch.Tensor,
    filled: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Contrast an image with hard samples of the other class (Inter-ICL, Eq. 3).

    L = -log [ e^{d(q,k)/t} / ( e^{d(q,k)/t} + sum_m e^{d(q,k_m)/t} ) ], d the cosine, k the other view of the same
    image by the momentum encoder, k_m the hard keys of the other class.

    On a CPU, the images are split by label, so that each is compared with one queue only: with 32,768 keys, this takes
    two fifths of the time for a batch of 32. To split, the host needs the labels, and would wait for a GPU. There, all
    images are compared with both queues, which is a small part of a step.

    Args:
        query: (N, D) unit embeddings of the query views.
        key: (N, D) unit embeddings of the key views.
        labels: int64 (N,), 0 real, 1 fake.
        queue: (2, K, D) unit keys, real and fake.
        filled: int64 (2,), how many rows of each queue are written; only these serve as negatives.
        temperature: t, above 0.

    Returns:
        float32 (N,), at least 0; 0 where the other class's queue is still empty.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, queue = query.float(), key.float(), queue.float()
        positive = (query * key).sum(1) / temperature
        # The lowest float instead of -inf: with an empty queue, the gradient of the sum below would be NaN.
        unwritten = torch.arange(queue.shape[1], device=queue.device) >= filled[:, None]
        offset = torch.zeros_like(unwritten, dtype=torch.float32).masked_fill_(unwritten, torch.finfo(queue.dtype).min)
        by_queue = []
        for label in (0, 1):
            keys, hidden = queue[1 - label].T, offset[1 - label]
            if query.device.type == "cpu":
                rows = (labels == label).nonzero().squeeze(1)
                scores = torch.addmm(hidden, query[rows], keys, alpha=1 / temperature)
                by_queue.append(torch.zeros_like(positive).index_copy(0, rows, scores.logsumexp(1)))
            else:
                by_queue.append(torch.addmm(hidden, query, keys, alpha=1 / temperature).logsumexp(1))
        negatives = torch.where(labels == 1, by_queue[1], by_queue[0])
        return F.softplus(negatives - positive)  # log(1 + e^x)


def intra_instance_loss(
    features: torch.Tensor,
    labels: torch.Tensor,
    forged_share: torch.Tensor,
    temperature: float,
    mask_threshold: float,
    self_pairs: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrast the regions of each fake, and pull the cells of each real face together (Intra-ICL).

    Fakes (Eq. 7): L = -log [ S_rr / ( S_rr + S_fr ) ], S_rr = sum over pairs of real cells, S_fr = sum over pairs of a
    forged and a real cell, both of e^{d/t}, d the cosine of two feature vectors.

    Reals (Eq. 8): L = -log sum over all pairs of cells of e^{d/t}.

    Args:
        features: (N, C, h, w) feature maps.
        labels: int64 (N,), 0 real, 1 fake.
        forged_share: float (N, h, w) in [0, 1], the forged share of each cell; of reals it is ignored.
        temperature: t, above 0.
        mask_threshold: a cell is forged where its share is above this, real elsewhere.
        self_pairs: whether S_rr counts the pairs of a cell with itself, as published. Reals always count them.

    Returns:
        The loss, float32 (N,), and bool (N,), which images have one. Of fakes it is at least 0, and valid with a
        forged part and a real part (of at least two cells, without self-pairs); otherwise it is 0 and has no gradient.
        Of reals it has no denominator and can be negative: its minimum, with all cells alike, is -1/t - 2 log(hw).
    """
    with torch.autocast(features.device.type, enabled=False):
        similarity = _cell_similarity(features) / temperature
        forged, fake = forged_share.flatten(1) > mask_threshold, labels == 1
        real = ~forged
        contrasted = fake & forged.any(1) & (real.sum(1) >= (1 if self_pairs else 2))
        real_pairs = real[:, :, None] & real[:, None, :]
        if not self_pairs:
            real_pairs &= ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        cross_pairs = forged[:, :, None] & real[:, None, :]
        # All pairs: the loss of reals. Of fakes without forged or without real cells, a sum would be empty and its
        # gradient NaN; all pairs are a placeholder there, whose value is discarded below.
        others = ~contrasted[:, None, None]
        s_rr, s_fr = _log_sum_exp(similarity, real_pairs | others), _log_sum_exp(similarity, cross_pairs | others)
        loss = torch.where(contrasted, F.softplus(s_fr - s_rr), torch.where(fake, 0.0, -s_rr))
        return loss, contrasted | ~fake


def _cell_similarity(features: torch.Tensor) -> torch.Tensor:
    """Return the cosines of all pairs of cells, float32 (N, hw, hw)."""
    cells = features.float().flatten(2)
    # The products are symmetric, so one factor needs no gradient if the other gets that of both, which saves a third.
    products = cells.detach().mT @ cells
    products = products + products.mT - products.detach()
    # Dividing the few products by the lengths is cheaper than normalising the many features.
    lengths = products.diagonal(dim1=1, dim2=2).clamp(min=1e-24).sqrt()
    return products / lengths[:, :, None] / lengths[:, None, :]


def _log_sum_exp(similarity: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    return similarity.masked_fill(~pairs, -torch.inf).flatten(1).logsumexp(1)
