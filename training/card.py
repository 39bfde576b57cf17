"""The model card of a checkpoint: what it is, how it was trained, its scores, and its limitations."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import Trainer

from ..abstention_dcl import describe_abstention
from ..decision_dcl import describe_calibration
from ..faces_dcl import why_not_cut
from ..prepared.dataset import metadata
from .settings import AugmentationSettings, DataArguments, ModelArguments, TrainingSettings, ViewSettings

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"

#: Name of the file with the settings of a run, in its folder.
RECORD = "run_settings.json"
CURVE = "learning_curve.png"
#: Settings that the card lists: all of DCL, and those of the Trainer that affect the weights most.
LISTED = (
    *(item.name for group in (ModelArguments, DataArguments, ViewSettings) for item in fields(group)),
    *(item.name for group in (AugmentationSettings, TrainingSettings) for item in fields(group)),
    *("max_steps", "gradient_accumulation_steps", "optim", "lr_scheduler_type", "warmup_steps", "max_grad_norm"),
    *("seed", "bf16", "fp16", "world_size", "data"),
)
METRIC_NAMES = {"auc": "Frame AUC", "eer": "Frame EER", "video_auc": "Video AUC", "accuracy": "Frame accuracy"}


def write_model_card(trainer: Trainer, name: str, source: str, contrastive: bool) -> Path:
    """Write README.md into the trainer's output folder, from the trainer's current state.

    Args:
        trainer: a trainer before, during or after training.
        name: the title of the card.
        source: repository id or folder that the card's examples load.
        contrastive: whether the contrastive losses had a weight above 0.

    Returns:
        The path of the card.
    """
    model, args = trainer.model, trainer.args
    config, processor = model.config, trainer.processing_class
    datasets = _names_of(trainer.train_dataset)
    step = _step_of_weights(trainer)
    scores = _scores_at(trainer, step)
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="face-forgery",
            dataset_name=f"{', '.join(_names_of(trainer.eval_dataset)) or 'unnamed'} (validation)",
            metric_type="roc_auc",
            metric_name=METRIC_NAMES["auc"],
            metric_value=round(value, 6),
        )
        for key, value in scores.items()
        if key == "auc"
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        tags=sorted(model.model_tags),
        metrics=["roc_auc"],
        model_name=name,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        source=source,
        config=config,
        crop=processor.crop,
        finds_faces=why_not_cut(processor.crop) is None,
        contrastive=contrastive,
        datasets=datasets,
        scores={METRIC_NAMES[key]: f"{value:.4f}" for key, value in scores.items()},
        calibration=describe_calibration(config.calibration),
        abstention=describe_abstention(config.familiarity),
        step=step,
        settings=settings_of_run(trainer),
        curve=CURVE if draw_learning_curve(trainer.state.log_history, Path(args.output_dir, CURVE)) else None,
    )
    path = Path(args.output_dir) / "README.md"
    card.save(path)
    return path


def settings_of_run(trainer: Trainer) -> dict[str, Any]:
    """Return the settings of a run that the card lists, from its record, or else from the model and the arguments."""
    record = Path(trainer.args.output_dir, RECORD)
    known = json.loads(record.read_text()) if record.is_file() else {}
    known = trainer.model.config.to_dict() | trainer.args.to_dict() | {"world_size": trainer.args.world_size} | known
    return {name: known[name] for name in LISTED if known.get(name) is not None}


def draw_learning_curve(history: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw the loss and the validation metrics over the steps; returns whether there was something to draw."""
    training = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    validation = [entry for entry in history if "eval_auc" in entry]
    if not training or not validation:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*training, strict=True), color="tab:blue", label="training")
    left.plot(
        [entry["step"] for entry in validation],
        [entry["eval_loss"] for entry in validation],
        "o-",
        color="tab:orange",
        label="validation, cross-entropy",
    )
    for key, name in METRIC_NAMES.items():
        values = [(entry["step"], entry[f"eval_{key}"]) for entry in validation if f"eval_{key}" in entry]
        if values:
            right.plot(*zip(*values, strict=True), "o-", label=name)
    for axes, title in ((left, "Loss"), (right, "Validation split")):
        axes.set(xlabel="optimizer step", title=title)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return True


def _names_of(dataset: Any) -> list[str]:
    rows = getattr(dataset, "rows", None)
    return sorted(set(metadata(rows.select_columns(["dataset"]))["dataset"].to_pylist())) if rows is not None else []


def _step_of_weights(trainer: Trainer) -> int:
    """Return the step of the current weights; after training, that of the best checkpoint."""
    state = trainer.state
    chosen = trainer.args.load_best_model_at_end and not trainer.is_in_train and state.best_model_checkpoint
    return state.best_global_step if chosen else state.global_step


def _scores_at(trainer: Trainer, step: int) -> dict[str, float]:
    """Return the validation metrics of a step; empty if that step was not validated."""
    found = [entry for entry in trainer.state.log_history if entry["step"] == step and "eval_auc" in entry]
    entry = found[-1] if found else {}
    return {key: entry[f"eval_{key}"] for key in METRIC_NAMES if f"eval_{key}" in entry}
