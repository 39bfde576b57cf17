"""The model card of a checkpoint: what it is, how it was trained, its scores, and its limitations."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import Trainer

from ..abstention_dcl import describe_abstention
from ..decision_dcl import describe_calibration
from ..faces_dcl import why_not_cut
from ..prepared.dataset import metadata

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"

#: Arguments that the card lists: those that affect the trained weights.
HYPERPARAMETERS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_step_epochs",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "num_train_epochs",
    "max_steps",
    "seed",
    "bf16",
    "contrastive_weight",
    "intra_weight",
    "intra_real_weight",
    "contrastive_warmup_epochs",
    "contrastive_warmup_steps",
)
ARCHITECTURE = (
    "backbone",
    "image_size",
    "embedding",
    "queue_size",
    "hard_samples",
    "momentum",
    "temperature",
    "self_pairs",
    "mask_rule",
    "mask_threshold",
)
VALIDATION_METRICS = {"auc": "Frame AUC", "eer": "Frame EER", "video_auc": "Video AUC", "accuracy": "Frame accuracy"}


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
            dataset_name=f"{', '.join(datasets) or 'unnamed'} (validation)",
            metric_type="roc_auc",
            metric_name=VALIDATION_METRICS["auc"],
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
        scores={VALIDATION_METRICS[key]: f"{value:.4f}" for key, value in scores.items()},
        calibration=describe_calibration(config.calibration),
        abstention=describe_abstention(config.familiarity),
        step=step,
        architecture={key: getattr(config, key) for key in ARCHITECTURE},
        hyperparameters={key: _plain(getattr(args, key)) for key in HYPERPARAMETERS},
    )
    path = Path(args.output_dir) / "README.md"
    card.save(path)
    return path


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
    return {key: entry[f"eval_{key}"] for key in VALIDATION_METRICS if f"eval_{key}" in entry}


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
