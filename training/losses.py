"""The losses of DCL, per image, in float32 whatever the precision around them.

Numbers refer to Sun et al., "Dual Contrastive Learning for General Face Forgery Detection", AAAI 2022, arXiv
2112.13522. Every function returns one value for each image and, if some images may have none, which of them are valid.
`training.distributed` averages over images and processes.
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
        positive = (query * key).sum(1, keepdim=True)
        similarity = torch.einsum("nd,ckd->nck", query, queue)
        unwritten = torch.arange(queue.shape[1], device=queue.device) >= filled[:, None]
        similarity = similarity.masked_fill(unwritten, -torch.inf)
        negatives = similarity.take_along_dim((1 - labels)[:, None, None], dim=1).squeeze(1)
        scores = torch.cat([positive, negatives], dim=1) / temperature
        return scores.logsumexp(1) - scores[:, 0]


def intra_instance_loss(
    features: torch.Tensor,
    forged_share: torch.Tensor,
    temperature: float,
    mask_threshold: float,
    self_pairs: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrast the real with the forged regions inside each face (Intra-ICL for fakes, Eq. 7).

    L = -log [ S_rr / ( S_rr + S_fr ) ], S_rr = sum over pairs of real cells, S_fr = sum over pairs of a forged and a
    real cell, both of e^{d/t}, d the cosine of two feature vectors.

    Args:
        features: (N, C, h, w) feature maps.
        forged_share: float (N, h, w) in [0, 1], the forged share of each cell.
        temperature: t, above 0.
        mask_threshold: a cell is forged where its share is above this, real elsewhere.
        self_pairs: whether S_rr counts the pairs of a cell with itself, as published.

    Returns:
        The loss, float32 (N,), at least 0, and bool (N,): whether the image has a forged part and a real part (of at
        least two cells, without self-pairs). For other images the loss is 0 and has no gradient.
    """
    with torch.autocast(features.device.type, enabled=False):
        similarity = _cell_similarity(features, temperature)
        forged = forged_share.flatten(1) > mask_threshold
        real = ~forged
        valid = forged.any(1) & (real.sum(1) >= (1 if self_pairs else 2))
        real_pairs = real[:, :, None] & real[:, None, :]
        if not self_pairs:
            real_pairs &= ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        cross_pairs = forged[:, :, None] & real[:, None, :]
        # Without forged or without real cells, a sum is empty and its gradient NaN. Use all pairs as a placeholder
        # here; the value is discarded below.
        real_pairs, cross_pairs = real_pairs | ~valid[:, None, None], cross_pairs | ~valid[:, None, None]
        s_rr, s_fr = _log_sum_exp(similarity, real_pairs), _log_sum_exp(similarity, cross_pairs)
        return torch.where(valid, torch.logaddexp(s_rr, s_fr) - s_rr, 0.0), valid


def uniformity_loss(features: torch.Tensor, temperature: float) -> torch.Tensor:
    """Pull the cells of a real face together (Intra-ICL for reals, Eq. 8).

    L = -log sum over all pairs of cells of e^{d/t}.

    Args:
        features: (N, C, h, w) feature maps.
        temperature: t, above 0.

    Returns:
        float32 (N,). The loss has no denominator and can be negative: its minimum, with all cells alike, is
        -1/t - 2 log(hw).
    """
    with torch.autocast(features.device.type, enabled=False):
        return -_cell_similarity(features, temperature).flatten(1).logsumexp(1)


def _cell_similarity(features: torch.Tensor, temperature: float) -> torch.Tensor:
    cells = F.normalize(features.float().flatten(2), dim=1)
    return torch.einsum("nci,ncj->nij", cells, cells) / temperature


def _log_sum_exp(similarity: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    return similarity.masked_fill(~pairs, -torch.inf).flatten(1).logsumexp(1)
