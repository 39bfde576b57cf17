"""Evidence, cell similarities and embeddings of selected rows, from a second pass through the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel

from ...prepared.cells import forged_cells
from ...prepared.dataset import decode_image, decode_mask, metadata
from ...prepared.names import FAKE
from ...prepared.splits import PreparedSplit

MOST_EMBEDDINGS = 1500
MOST_METHODS = 24
WORST = 6
FEWEST_FOR_TSNE = 10
PERPLEXITY = 30
PARTS = ("real_real", "forged_forged", "real_forged")


@dataclass
class Example:
    """One frame with its score, evidence and cell similarities."""

    why: str
    """"median", "lowest fake" or "highest real"."""
    method: str
    label: int
    video_id: str
    frame: int
    p_fake: float
    image: np.ndarray
    """uint8 (height, width, 3)."""
    mask: np.ndarray | None = None
    """uint8 (height, width), 255 where forged; None for a real, or if unknown."""
    evidence: np.ndarray | None = None
    """float32 (h, w); None if the model has none."""
    similarities: np.ndarray | None = None
    """float32 (h * w, h * w), cosine similarities of the cells in row-major order; None without a feature map."""
    grid: tuple[int, int] = (0, 0)
    """h and w."""
    forged: np.ndarray | None = None
    """bool (h * w,), whether the mask covers each cell; None if unknown."""

    def cells_by_part(self) -> tuple[np.ndarray, int]:
        """Return the order of cells with the forged ones last, and the number of forged cells."""
        forged = np.zeros(self.grid[0] * self.grid[1], bool) if self.forged is None else self.forged
        return np.argsort(forged, kind="stable"), int(forged.sum())


@dataclass
class Looks:
    """Results of the second pass over one data set."""

    examples: list[Example] = field(default_factory=list)
    left_out_methods: int = 0
    """Number of methods without an example, if there are too many."""
    points: np.ndarray | None = None
    """float32 (n, 2), t-SNE of the embeddings; None without a feature map, or with too few frames."""
    methods: list[str] = field(default_factory=list)
    """Method of each point."""
    labels: np.ndarray | None = None
    """Label of each point."""
    similarity: list[dict[str, Any]] = field(default_factory=list)
    """See `mean_similarities`."""

    @property
    def limit(self) -> float | None:
        """Evidence drawn in full colour in every sheet: the 99 % quantile over the cells of the examples."""
        found = [np.abs(example.evidence).ravel() for example in self.examples if example.evidence is not None]
        found = np.concatenate(found) if found else np.empty(0)
        found = found[np.isfinite(found)]
        return float(np.quantile(found, 0.99)) or None if len(found) else None


def choose_examples(predictions: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Choose the frames to show by their scores alone.

    Args:
        predictions: predictions of one data set.

    Returns:
        Rows with the column `why`: the frame with the median score of each method ("median"), then the fakes with the
        lowest scores ("lowest fake") and the reals with the highest ("highest real"), at most `WORST` of each and one
        per video. Ties are broken by video and frame. With more than `MOST_METHODS` methods, those with the lowest
        medians are chosen. And the number of omitted methods.
    """
    rows = predictions[np.isfinite(predictions["p_fake"].to_numpy(float))]
    rows = rows.sort_values(["p_fake", "video_id", "frame"], kind="stable")
    fake = rows["label"] == FAKE
    medians = [group.iloc[(len(group) - 1) // 2] for _, group in rows[~fake].groupby("method", sort=True)]
    of_fakes = [group.iloc[(len(group) - 1) // 2] for _, group in rows[fake].groupby("method", sort=True)]
    kept = sorted(sorted(of_fakes, key=lambda row: row["p_fake"])[:MOST_METHODS], key=lambda row: row["method"])
    parts = [
        pd.DataFrame([*medians, *kept]).assign(why="median"),
        rows[fake].drop_duplicates("video_id").head(WORST).assign(why="lowest fake"),
        rows[~fake][::-1].drop_duplicates("video_id").head(WORST).assign(why="highest real"),
    ]
    return pd.concat([part for part in parts if len(part)]), len(of_fakes) - len(kept)


def choose_evenly(predictions: pd.DataFrame, most: int) -> pd.DataFrame:
    """Choose rows evenly over methods, and over the videos of each method.

    Args:
        predictions: predictions of one data set.
        most: maximum number of rows.

    Returns:
        The chosen rows in the order of `predictions`. The choice depends neither on that order nor on the scores.
    """
    groups = [
        group.sort_values(["video_id", "frame"]) for _, group in predictions.groupby(["label", "method"], sort=True)
    ]
    chosen, left = [], most
    for done, group in enumerate(sorted(groups, key=len)):  # smallest first: large groups use the rest of their share
        count = min(len(group), left // (len(groups) - done))
        left -= count
        place = group.groupby("video_id").cumcount()
        frames = group.groupby("video_id")["frame"].transform("size")
        # The first frames of all videos come before any second frame; equal ranks are spread evenly over videos.
        rank = (place / frames).to_numpy()
        order = np.lexsort((_spread(group["video_id"]), rank))
        chosen.append(group.iloc[order[:count]])
    return pd.concat(chosen).sort_index() if chosen else predictions.head(0)


def _spread(names: pd.Series) -> np.ndarray:
    """Return a rank for each video, by bit reversal of its number, so that low ranks are spread over all videos."""
    codes, videos = pd.factorize(names, sort=True)
    bits = max(1, int(len(videos) - 1).bit_length())
    places = np.zeros(len(codes), np.int64)
    for bit in range(bits):
        places |= (codes >> bit & 1) << (bits - 1 - bit)
    return places


def mean_similarities(methods: Sequence[str], labels: Sequence[int], blocks: Sequence[Mapping[str, float]]) -> list:
    """Average the similarities of cells within and between real and forged parts, over the faces of each method.

    Args:
        methods: method of each face.
        labels: label of each face.
        blocks: for each face, the mean cosine similarity of pairs of different cells, under `PARTS`; NaN if the face
            has no such pair, or an unknown mask.

    Returns:
        One dictionary per method, reals first: `method`, `label`, `n`, and under each of `PARTS` the mean over the
        faces with a value, or None.
    """
    if not len(methods):
        return []
    table = pd.DataFrame(blocks, columns=list(PARTS)).assign(method=list(methods), label=list(labels))
    found = []
    for (label, method), rows in table.groupby(["label", "method"], sort=True):
        means = {part: float(rows[part].mean()) if rows[part].notna().any() else None for part in PARTS}
        found.append({"method": method, "label": int(label), "n": len(rows), **means})
    return found


def cell_similarities(features: np.ndarray) -> np.ndarray:
    """Compute the cosine similarities of the cells of a feature map (C, h, w): (h * w, h * w)."""
    cells = F.normalize(torch.from_numpy(features).flatten(1).T, dim=1)
    return (cells @ cells.T).clamp(-1, 1).numpy()


def _block_means(similarities: np.ndarray, forged: np.ndarray | None) -> dict[str, float]:
    means = dict.fromkeys(PARTS, float("nan"))
    if forged is None:
        return means
    different = ~np.eye(len(forged), dtype=bool)
    for part, (one, other) in zip(PARTS, ((~forged, ~forged), (forged, forged), (~forged, forged)), strict=True):
        chosen = np.outer(one, other) & different
        if chosen.any():
            means[part] = float(similarities[chosen].mean())
    return means


def embed_in_plane(embeddings: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Embed vectors in the plane with t-SNE, reproducibly.

    Args:
        embeddings: floats (n, D).
        seed: random seed of t-SNE.

    Returns:
        float32 (n, 2); None for fewer than 10 vectors, if one is not finite, or if all are the same.
    """
    from sklearn.manifold import TSNE

    if len(embeddings) < FEWEST_FOR_TSNE or not np.isfinite(embeddings).all() or np.ptp(embeddings, axis=0).max() == 0:
        return None
    perplexity = min(PERPLEXITY, (len(embeddings) - 1) / 3)
    with threadpool_limits(1):  # several threads would change the order of sums
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(embeddings)


class _FeatureMaps:
    """Captures the feature map of a model: `feature_map` of its output, or `last_hidden_state` of its base model."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.hidden, self.handle = model, None, None

    def __enter__(self) -> "_FeatureMaps":
        base = getattr(self.model, "base_model", self.model)
        if base is not self.model:
            self.handle = base.register_forward_hook(self._keep)
        return self

    def __exit__(self, *error: object) -> None:
        if self.handle is not None:
            self.handle.remove()

    def _keep(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        self.hidden = getattr(output, "last_hidden_state", None)

    def __call__(self, pixel_values: torch.Tensor) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return evidence (N, h, w) and feature map (N, C, h, w) as float32, or None if the model has none."""
        self.hidden = None
        outputs = self.model(pixel_values.to(self.model.device))
        features = getattr(outputs, "feature_map", None)
        features = self.hidden if features is None else features
        if features is not None and features.ndim != 4:  # tokens have no position
            features = None
        evidence = getattr(outputs, "evidence", None)
        return tuple(None if values is None else values.float().cpu().numpy() for values in (evidence, features))


@torch.inference_mode()
def look_again(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: PreparedSplit,
    predictions: pd.DataFrame,
    batch_size: int = 32,
    most: int = MOST_EMBEDDINGS,
    seed: int = 0,
) -> Looks:
    """Process selected rows of a data set again, for details that a table of predictions does not hold.

    Args:
        model: any classifier; without evidence or a feature map in its output, the result has none either.
        processor: its image processor.
        data: the rows.
        predictions: predictions of this data set, with the columns `method`, `video_id`, `frame`, `label` and
            `p_fake`.
        batch_size: images in a batch.
        most: maximum number of rows to embed.
        seed: random seed of t-SNE.
    """
    predictions = predictions.reset_index(drop=True)
    examples, left_out = choose_examples(predictions)
    embedded = choose_evenly(predictions, most)
    keys = metadata(data.dataset.select_columns(["video_id", "frame"])).to_pydict()
    where = {key: index for index, key in enumerate(zip(keys["video_id"], keys["frame"], strict=True))}
    rows = predictions.loc[sorted({*examples.index, *embedded.index})]
    found, embeddings, blocks = {}, {}, {}
    with _FeatureMaps(model) as see, tqdm(total=len(rows), desc=f"{data.name}, examples", unit=" frames") as progress:
        for start in range(0, len(rows), batch_size):
            batch = rows.iloc[start : start + batch_size]
            cells = [data.dataset[where[row.video_id, row.frame]] for row in batch.itertuples()]
            images = [decode_image(cell["image"], f"a row of {data.where}") for cell in cells]
            evidence, features = see(processor(images, return_tensors="pt")["pixel_values"])
            for place, (index, row) in enumerate(batch.iterrows()):
                is_fake = row["label"] == FAKE
                mask = decode_mask(cells[place].get("mask"), f"a row of {data.where}") if is_fake else None
                similarities, grid, forged = None, (0, 0), None
                if features is not None:
                    grid = features.shape[2:]
                    if not is_fake:
                        forged = np.zeros(grid, bool).ravel()
                    elif mask is not None:
                        forged = forged_cells(mask, grid, model.config)
                    similarities = cell_similarities(features[place])
                    mean = features[place].mean((1, 2))
                    embeddings[index] = mean / max(float(np.linalg.norm(mean)), 1e-12)
                    blocks[index] = _block_means(similarities, forged)
                if index in examples.index:
                    found[index] = {
                        "image": images[place],
                        "mask": mask,
                        "evidence": None if evidence is None else evidence[place],
                        "similarities": similarities,
                        "grid": tuple(grid),
                        "forged": forged,
                    }
            progress.update(len(batch))
    looks = Looks(left_out_methods=left_out)
    for index, row in examples.iterrows():
        known = {name: row[name] for name in ("why", "method", "video_id")}
        numbers = {"label": int(row["label"]), "frame": int(row["frame"]), "p_fake": float(row["p_fake"])}
        looks.examples.append(Example(**known, **numbers, **found[index]))
    if embeddings:
        looks.methods, looks.labels = embedded["method"].tolist(), embedded["label"].to_numpy()
        looks.points = embed_in_plane(np.stack([embeddings[index] for index in embedded.index]), seed)
        looks.similarity = mean_similarities(looks.methods, looks.labels, [blocks[index] for index in embedded.index])
    return looks


def look_at_results(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    sets: Sequence[PreparedSplit],
    folder: Path,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Looks]:
    """Call `look_again` for the data sets of a results folder; they share `MOST_EMBEDDINGS` evenly."""
    columns = ["dataset", "method", "video_id", "frame", "label", "p_fake"]
    predictions = pd.read_parquet(folder / "predictions.parquet", columns=columns)
    rows = {data.name: predictions[predictions["dataset"] == data.name] for data in sets}
    most = MOST_EMBEDDINGS // len(sets)
    return {data.name: look_again(model, processor, data, rows[data.name], batch_size, most, seed) for data in sets}
