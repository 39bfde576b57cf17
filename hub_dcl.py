"""Never wait long for a Hub that cannot be reached."""

import functools
import logging
import os
import sys
import threading

from huggingface_hub import constants, get_session

from .errors_dcl import reason

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


__all__ = ["hub_is_reachable"]
