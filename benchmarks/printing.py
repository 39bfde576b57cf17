"""How benchmarks print what they measured."""

import json
from collections.abc import Mapping


def print_result(result: Mapping[str, float | int | str], as_json: bool) -> None:
    """Print figures: as one JSON object and nothing else, or a line each."""
    width = max(map(len, result))
    print(json.dumps(result) if as_json else "\n".join(f"{key:{width}} {value}" for key, value in result.items()))


__all__ = ["print_result"]
