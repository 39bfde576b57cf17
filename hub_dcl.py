"""Find checkpoints in folders and on the Hub, without a long wait if the Hub cannot be reached.

This module does not import torch, so that a wrong name is reported before anything slow is loaded.
"""

import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_session, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from .errors_dcl import InputError, chain, reason

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "runs/demo"
MODEL_TYPE = "dcl"  # of DCLConfig, whose module imports torch
REFERENCE_FILE = "reference_network.safetensors"  # beside the weights, see `modeling_dcl.ReferenceNetwork`
#: The files of a checkpoint that each backend needs; `OnnxClassifier` knows the name of the graph.
FILES = {"torch": ("*.json", "*.safetensors", "*.py"), "onnx": ("*.json",)}


@functools.cache
def hub_is_reachable(timeout: float = 5.0) -> bool:
    """Check whether the Hub answers; if not, this process works offline from now on.

    The clients of the Hub retry for minutes if the network drops packets. So this asks once, with a time limit, and
    then sets `HF_HUB_OFFLINE` for huggingface_hub, transformers and datasets, which use their caches.

    Args:
        timeout: seconds.

    Returns:
        Whether it answered.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    failure = _ask(timeout)
    if failure is None:
        return True
    logger.warning(
        "%s cannot be reached (%s). Only files in the local cache can be used.", constants.ENDPOINT, failure
    )
    _go_offline()
    return False


def may_be_repository(name: str) -> bool:
    """Whether a name that is not a folder could be the id of a repository on the Hub."""
    return not (Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1)


def find_model(name: str, allow_patterns: Sequence[str], revision: str | None = None) -> Path:
    """Find a model in a folder or on the Hub.

    Args:
        name: the folder, or the id on the Hub.
        allow_patterns: the files to fetch from the Hub, without sub-folders.
        revision: a branch, tag or commit.

    Returns:
        The folder of the model, in the local cache for one from the Hub.

    Raises:
        InputError: if there is no such model, or it cannot be fetched.
    """
    if name and Path(name).is_dir():
        return Path(name)
    if name == DEFAULT_MODEL:  # it looks like an id
        raise InputError(
            f"Model {name!r} not found. Create it with `make demo`, or name another one: a folder, or a model id on "
            "the Hub."
        )
    if Path(name).exists() or not may_be_repository(name):
        wrong = "is a file" if name and Path(name).exists() else "not found: there is no such folder"
        raise InputError(f"Model {name!r} {wrong}. Give the folder of a checkpoint, or a model id on the Hub.")
    reachable = hub_is_reachable()
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(allow_patterns), ignore_patterns=["*/*"]
        )
    except Exception as error:  # of the Hub, the network, or the disk
        if not reachable:
            raise InputError(
                f"Model {name!r} not found: there is no such folder, it is not in the local cache, and the Hub cannot "
                "be reached. Check the path, or the network."
            ) from error
        raise _not_fetched(f"Model {name!r}", name, revision, error) from error
    return Path(folder)


def file_of_checkpoint(file: str, name: str, revision: str | None = None, ask_hub: bool = True) -> Path | None:
    """Find a file of a checkpoint.

    Args:
        file: its name.
        name: the `name_or_path` of the checkpoint.
        revision: its commit.
        ask_hub: whether to download the file if necessary.

    Returns:
        The path, or None if the checkpoint has no such file.
    """
    if not name or Path(name).is_dir():
        path = Path(name, file)
        return path if name and path.is_file() else None
    try:
        local = not (ask_hub and hub_is_reachable())
        return Path(hf_hub_download(name, file, revision=revision, local_files_only=local))
    except Exception as error:  # of the Hub, the network or the cache, or because a folder was removed
        logger.debug("%s not found for %s: %s", file, name, error)
        return None


def check_dataset(name: str) -> None:
    """Raise an `InputError` if a data set is not on the Hub or, without a connection, not in the local cache."""
    if not hub_is_reachable():
        caches = (
            Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME, "datasets")), name.replace("/", "___")),
            Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}"),
        )
        if not any(cache.exists() for cache in caches):
            raise InputError(
                f"Data set {name!r} not found: there is no such folder, it is not in the local cache, and the Hub "
                "cannot be reached. Check the name."
            )
    else:
        try:
            HfApi().dataset_info(name)
        except Exception as error:  # of the Hub, or the network
            raise _not_fetched(f"Data set {name!r}", f"datasets/{name}", None, error) from error


def _not_fetched(what: str, path: str, revision: str | None, error: BaseException) -> InputError:
    """Return the error for a repository on the Hub that cannot be fetched; `path` is that of its page."""
    for cause in chain(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, GatedRepoError):
            return InputError(
                f"{what} is gated: accept its terms at {constants.ENDPOINT}/{path}, and log in with `hf auth login`."
            )
        if isinstance(cause, RevisionNotFoundError):
            return InputError(f"{what} has no revision {revision!r} on the Hub. Check the branch, tag or commit.")
        # Without a login, the Hub also answers 401 for repositories that do not exist.
        if isinstance(cause, RepositoryNotFoundError | HFValidationError) or status == 401:
            return InputError(
                f"{what} not found: there is no such folder, and no public repository of that name on the Hub. Check "
                "the name, or log in with `hf auth login` if it is private."
            )
        if status == 403:
            return InputError(
                f"{what} is not open to your account. Ask its owner for access, and log in with `hf auth login`."
            )
    return InputError(f"{what} could not be fetched from the Hub ({reason(error)}). Check the name, or try later.")


def find_dcl_checkpoint(name: str, backend: str = "torch") -> Path:
    """Find a DCL checkpoint, see `find_model`, without loading it.

    Args:
        name: the folder, or the id on the Hub.
        backend: a key of `FILES`.

    Returns:
        The folder.

    Raises:
        InputError: if there is no such model, it is of another type, or a file is missing or unreadable.
    """
    folder = find_model(name, FILES[backend])
    model_type = read_settings(folder, "config.json", name).get("model_type")
    if model_type != MODEL_TYPE:
        raise InputError(
            f"Model {name!r} is not a DCL checkpoint: the model type in its config.json is {model_type!r}, not "
            f"{MODEL_TYPE!r}. Give a checkpoint that `dcl-train` wrote."
        )
    read_settings(folder, "preprocessor_config.json", name)
    if backend == "torch" and not any(folder.glob("model*.safetensors")):
        raise no_weights(folder, name)
    return folder


def read_settings(folder: Path, file: str, name: str) -> dict[str, Any]:
    """Read a JSON file of a checkpoint.

    Args:
        folder: of the checkpoint.
        file: the name of the file.
        name: the name of the checkpoint for errors.

    Returns:
        The JSON object.

    Raises:
        InputError: if there is no such file, or it is not a JSON object.
    """
    try:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"Model {name!r} is not a checkpoint: it has no {file}. Give the folder of a checkpoint, or a model id on "
            "the Hub."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"The {file} of model {name!r} cannot be read ({reason(error)}). Save or download the checkpoint again."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"The {file} of model {name!r} is not a JSON object. Save or download the checkpoint again.")
    return content


def no_weights(folder: Path, name: str) -> InputError:
    """Return the error for a checkpoint without weights, which may be an export."""
    if any(folder.glob("model*.onnx")):
        return InputError(
            f"Model {name!r} is an ONNX export without weights. Run it with the onnx backend, or give the checkpoint "
            "that it was made from."
        )
    return InputError(f"Model {name!r} has no weights (*.safetensors). Give the folder of a whole checkpoint.")


def _ask(timeout: float) -> str | None:
    """Send one request as the Hub's clients do, proxies and mirrors included; return why it failed."""
    failures = [f"no answer within {timeout:g} s"]

    def send() -> None:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=timeout, follow_redirects=False).status_code
            failures.append(f"status {status}" if status >= 500 else None)
        except Exception as error:
            failures.append(reason(error))

    # The timeout of the client restarts for each address and phase, and does not cover the DNS lookup.
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(timeout)
    return failures[-1]


def _go_offline() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # for child processes and for modules imported later
    constants.HF_HUB_OFFLINE = True
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_HUB_OFFLINE = True
