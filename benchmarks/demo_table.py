"""Make the README's results table: a linear probe, cross-entropy alone and DCL, with the demo's data and budget.

`train.py -c configs/demo.yaml` trains every network, with `--contrastive_weight 0` for cross-entropy alone, and
`evaluate_dcl.py` scores them on the test split. The probe is a logistic regression on frozen features of the same
pretrained backbone, with the regularisation chosen on the validation split. Finished runs are reused, and killed runs
resume.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from dcl_face_forgery.evaluation.metrics.binary import binary_metrics
from dcl_face_forgery.image_processing_dcl import DCLImageProcessor
from dcl_face_forgery.modeling_dcl import DCLForPreTraining
from dcl_face_forgery.prepared.dataset import decode_image, load_prepared, metadata
from dcl_face_forgery.prepared.names import FAKE, REAL
from dcl_face_forgery.training.arguments import ModelArguments
from dcl_face_forgery.training.backbone import load_backbone_weights

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "demo.yaml"
PROBE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TRAINED = {"Cross-entropy only": ["--contrastive_weight", "0"], "DCL": []}


def main() -> None:
    """Parse the command line, run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo_table"))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; each network is trained once for each"
    )
    options = parser.parse_args()
    settings = yaml.safe_load(CONFIG.read_text())
    rows = {"Linear probe": [probe(settings)]}
    for name, flags in TRAINED.items():
        rows[name] = [train_and_evaluate(name, flags, seed, settings, options) for seed in options.seeds]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "table.json").write_text(json.dumps(rows, indent=2))
    table = as_markdown(rows, settings["methods"], len(options.seeds))
    (options.output_dir / "table.md").write_text(table)
    print(table)


def probe(settings: dict[str, Any]) -> dict[str, float]:
    """Fit a linear classifier on frozen features and return its frame AUC for each method."""
    model = DCLForPreTraining(
        ModelArguments(backbone=settings["backbone"], image_size=settings["image_size"]).config()
    )
    load_backbone_weights(model, settings["backbone_weights"])
    size = settings["image_size"]
    processor = DCLImageProcessor(size={"height": size, "width": size})
    splits = {
        split: features_of(model, processor, settings["dataset"][0], split, settings["data_root"])
        for split in ("train", "validation", "test")
    }
    (train_x, train_rows), (val_x, val_rows), (test_x, test_rows) = splits.values()
    seen = [
        split_rows.label.eq(REAL) | split_rows.method.isin(settings["methods"])
        for split_rows in (train_rows, val_rows)
    ]

    def fit(strength: float) -> Any:
        regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        return make_pipeline(StandardScaler(), regression).fit(train_x[seen[0]], train_rows.label[seen[0]])

    def validate(model: Any) -> float:
        return binary_metrics(val_rows.label[seen[1]], model.predict_proba(val_x[seen[1]])[:, FAKE])["auc"]

    best = max((fit(strength) for strength in PROBE_STRENGTHS), key=validate)
    test_rows["p_fake"] = best.predict_proba(test_x)[:, FAKE]
    return {
        method: binary_metrics(rows.label, rows.p_fake)["auc"]
        for method in test_rows.method[test_rows.label == FAKE].unique()
        for rows in [test_rows[(test_rows.label == REAL) | (test_rows.method == method)]]
    }


@torch.no_grad()
def features_of(
    model: DCLForPreTraining, processor: DCLImageProcessor, name: str, split: str, data_root: str
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the pooled features (n, C) of a split, and its metadata."""
    rows = load_prepared(name, split, data_root)
    features = []
    for start in tqdm(range(0, len(rows), 32), desc=f"features of {split}"):
        cells = rows[start : start + 32]["image"]
        images = [decode_image(cell, f"row {start + index}") for index, cell in enumerate(cells)]
        pixel_values = processor(images, return_tensors="pt")["pixel_values"]
        features.append(model.dcl.eval()(pixel_values).pooler_output.numpy())
    return np.concatenate(features), metadata(rows.select_columns(["label", "method"])).to_pandas()


def train_and_evaluate(
    name: str, flags: list[str], seed: int, settings: dict[str, Any], options: argparse.Namespace
) -> dict[str, float]:
    """Train one network and return its frame AUC for each method of the test split."""
    folder = options.output_dir / f"{name.lower().replace(' ', '_')}-{seed}"
    train = ["train.py", "-c", str(CONFIG), "--data_root", settings["data_root"], "--output_dir", str(folder)]
    train += ["--seed", str(seed), *flags]
    evaluate = ["evaluate_dcl.py", "--model", str(folder), "--data_root", settings["data_root"]]
    evaluate += ["--dataset", *settings["dataset"], "--output_dir", str(folder / "evaluation")]
    for command, *arguments in (train, evaluate):
        subprocess.run([sys.executable, str(ROOT / command), *arguments], check=True)
    (metrics,) = json.loads((folder / "evaluation" / "metrics.json").read_text()).values()
    return {method: levels["frame"]["auc"] for method, levels in metrics["by_method"].items()}


def as_markdown(rows: dict[str, list[dict[str, float]]], seen: list[str], seeds: int) -> str:
    """Format the frame AUCs, as means over seeds and, with several seeds, ranges."""
    methods = sorted(rows["DCL"][0], key=lambda method: (method not in seen, method))
    groups = {"seen, mean": [m for m in methods if m in seen], "unseen, mean": [m for m in methods if m not in seen]}
    columns = {method: [method] for method in methods} | groups
    titles = [name if name in groups else f"{name} ({'seen' if name in seen else 'unseen'})" for name in columns]
    lines = [f"| Frame AUC | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for members in columns.values():
            values = [statistics.mean(run[method] for method in members) for run in runs]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(f"Mean of {seeds} seed{'s' if seeds > 1 else ''} (min to max in brackets).")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
