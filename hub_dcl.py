"""Fetch from the Hub, and never wait long for one that cannot be reached."""

import functools
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download, snapshot_download

from .errors_dcl import InputError, reason

logger = logging.getLogger(__name__)


@functools.cache
def hub_is_reachable(timeout: float = 5.0) -> bool:
    """Whether the Hub answers; where it does not, this process works from the local cache from now on.

    The Hub's clients retry for minutes when the network swallows packets, so this asks once, with a bound: if nothing
    is answered within `timeout` seconds, `HF_HUB_OFFLINE` is set for huggingface_hub, transformers and datasets, which
    then fall back to their caches and fail at once where those hold nothing.

    Args:
        timeout: seconds to wait for an answer, all in all.

    Returns:
        False when offline mode was asked for, or had to be entered.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    failure = _ask(timeout)
    if failure is None:
        return True
    logger.warning(
        "%s cannot be reached (%s): only what is in the local cache can be used.", constants.ENDPOINT, failure
    )
    _go_offline()
    return False


def may_be_repository(name: str) -> bool:
    """Whether a name that is no folder could be the id of a repository on the Hub."""
    return not (Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1)


def fetch_model(name: str, allow_patterns: Sequence[str], revision: str | None = None) -> Path:
    """Return the folder of the local cache that has files of a model on the Hub, fetched if need be.

    Args:
        name: its id.
        allow_patterns: of the files wanted, none of them in a folder.
        revision: the branch, tag or commit.

    Raises:
        InputError: if there is no such model.
    """
    reachable = hub_is_reachable()
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(allow_patterns), ignore_patterns=["*/*"]
        )
    except Exception as error:  # of the Hub, the network, or the disk
        if not reachable:
            raise InputError(
                f"there is no folder {name!r}, the local cache has no model of that name, and the Hub cannot be "
                "reached: check the path, or the network."
            ) from error
        raise InputError(
            f"there is no folder {name!r}, and no model of that name came from the Hub ({reason(error)}): "
            "check the name, and log in if it is private."
        ) from error
    return Path(folder)


def file_of_checkpoint(file: str, name: str, revision: str | None = None, ask_hub: bool = True) -> Path | None:
    """Return a file that came with a checkpoint, None if none did.

    Args:
        file: its name.
        name: the checkpoint's folder or its id on the Hub, as `PreTrainedModel.name_or_path` says it; may be empty.
        revision: the commit on the Hub.
        ask_hub: whether it may be downloaded; else only what was downloaded before is looked through.
    """
    if not name or Path(name).is_dir():
        path = Path(name, file)
        return path if name and path.is_file() else None
    try:
        local = not (ask_hub and hub_is_reachable())
        return Path(hf_hub_download(name, file, revision=revision, local_files_only=local))
    except Exception as error:  # of the Hub, the network, the cache; a folder that is gone names no repository
        logger.debug("%s did not come with %s: %s", file, name, error)
        return None


def _ask(timeout: float) -> str | None:
    """Send one request as the Hub's clients do, proxies and mirrors included; return why it failed."""
    failures = [f"no answer within {timeout:g} s"]

    def send() -> None:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=timeout, follow_redirects=False).status_code
            failures.append(f"status {status}" if status >= 500 else None)
        except Exception as error:
            failures.append(reason(error))

    # The client's timeout holds for each address and phase anew, and not at all for the look-up of the name.
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(timeout)
    return failures[-1]


def _go_offline() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # for child processes and for modules imported later
    constants.HF_HUB_OFFLINE = True
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_HUB_OFFLINE = True


__all__ = ["fetch_model", "file_of_checkpoint", "hub_is_reachable", "may_be_repository"]
