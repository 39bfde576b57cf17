"""Checkpoints as files: what is saved, its card, and what goes to the Hub."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers import trainer as hf_trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import PushInProgress

from .card import write_model_card

#: Files to upload: all that loading the model, its pipeline and the face detector needs. Pickles and optimizer state
#: are left out.
PUBLISHED_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "preprocessor_config.json"),
    *("*_dcl.py", "*.onnx", "run_settings.json", "learning_curve.png"),
)


class PublishingTrainer(Trainer):
    """A `Trainer` that saves no pickle beside the model, writes its card, and publishes what loading it needs."""

    def was_contrastive(self) -> bool:
        """Whether the contrastive losses had a weight, for the card."""
        raise NotImplementedError

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.save_for_inference and Path(output_dir or self.args.output_dir) == Path(self.args.output_dir):
            kept = ("dcl.", "classifier.")
            state_dict = {name: value for name, value in self.model.state_dict().items() if name.startswith(kept)}
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)  # an unused pickle
            (folder / "training_args.json").write_text(self.args.to_json_string())

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> None:
        """Write the model card, README.md: usage, training, validation scores and limitations."""
        if self.is_world_process_zero():
            repository = model_name or self.hub_model_id or self.args.hub_model_id
            folder = self.args.output_dir
            write_model_card(self, repository or Path(folder).name, repository or folder, self.was_contrastive())

    def push_to_hub(self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs: Any) -> Any:
        """Publish the model, its code, its processor and its card.

        Args:
            commit_message: the message of the commit.
            blocking: wait for the upload.
            **kwargs: `token` and `private`, for a new repository.

        Returns:
            The commit, or its future; None on all processes but the first.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"), private=kwargs.get("private"))
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self._upload(commit_message, run_as_future=not blocking, token=kwargs.get("token"))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The Trainer's own version omits the code that `auto_map` refers to, and adds a pickle.
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        for pattern in PUBLISHED_FILES:
            for source in Path(checkpoint_folder).glob(pattern):
                shutil.copy(source, self.args.output_dir)
        job = self._upload(f"Training in progress, step {self.state.global_step}", run_as_future=True)
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress([])
        self.push_in_progress.jobs.append(job)

    def _upload(self, commit_message: str | None, run_as_future: bool, token: str | None = None) -> Any:
        self.create_model_card()
        return hf_trainer.hf_api().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            allow_patterns=[*PUBLISHED_FILES, "README.md"],
            ignore_patterns=["*/*"],  # not the checkpoint folders, since `*` matches slashes, too
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=self.args.hub_revision,
            run_as_future=run_as_future,
        )


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the latest complete checkpoint: one with a trainer state, which is written last."""
    found = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            found[json.loads((folder / "trainer_state.json").read_text())["global_step"]] = folder
        except (OSError, ValueError, KeyError):
            continue
    return found[max(found)] if found else None
