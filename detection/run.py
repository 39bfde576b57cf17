"""Analyze files one by one: progress, JSON lines, a table, annotated pictures, and final counts."""

import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from ..decision_dcl import to_json
from ..media_dcl import say_skipped, skipped_files
from ..onnx_dcl import GRAPH
from ..pipeline_dcl import DetectionOptions, FaceForgeryDetectionPipeline, result_of
from .results import JsonLines, Table, UnreadableError, counted, draw, record_of, stamp_of


def detect(arguments: Namespace, files: list[str], roots: dict[str, Path]) -> Counter[str]:
    """Analyze files, write the requested outputs, and count verdicts, with unreadable files as "error".

    `roots` maps each file to the root folder for the relative path of its annotated picture.
    """
    disable_progress_bar()  # for reading weights
    pipe = FaceForgeryDetectionPipeline.from_pretrained(
        arguments.model,
        arguments.backend,
        arguments.device,
        arguments.graph or GRAPH,
        abstain=not arguments.no_abstain,
        **{each.name: getattr(arguments, each.name) for each in fields(DetectionOptions) if each.name in arguments},
    )

    lines = None
    if arguments.json is not None:
        lines = JsonLines(arguments.json, record_of(pipe, arguments.model, arguments.backend), files)
    counts = Counter(lines.done.values() if lines is not None else ())
    left = [name for name in files if lines is None or os.path.abspath(name) not in lines.done]
    done = len(files) - len(left)
    if done and not arguments.quiet:
        drawn = "" if arguments.annotate is None else " (no new annotated pictures for these)"
        print(f"{done} of {len(files)} files already have results{drawn}: {arguments.json}", file=sys.stderr)
    stamps: dict[str, dict | None] = {}

    def stamped() -> Iterator[str]:
        for name in left:
            stamps[name] = stamp_of(name)
            yield name

    with (
        lines or nullcontext(),
        Table(arguments.csv) as table,
        tqdm(total=len(files), initial=done, unit=" files", disable=arguments.quiet) as progress,
    ):
        if lines is not None and arguments.csv is not None:
            for result in lines.results():
                table.add(result)
        for event in pipe.stream(stamped()):
            if event["event"] == "progress":
                if event["total"] is not None:
                    of = f"{_shown(Path(event['name']).name)}: {event['done']} of {event['total']} frames"
                    progress.set_postfix_str(of, refresh=event["done"] % 10 == 0)
                continue
            result = result_of(event)
            name = result["name"]
            if arguments.annotate is not None and result["kind"] != "error":
                target = arguments.annotate / Path(name).relative_to(roots[name])
                try:
                    draw(pipe, result, target, arguments.evidence)
                except UnreadableError as error:  # the file was changed or removed in the meantime
                    result = {"kind": "error", "name": name, "sentence": str(error)}
            plain = to_json(result) | {"file": stamps.pop(name)}
            table.add(plain)
            if lines is not None:
                lines.add(plain)
            if (lines is None and not arguments.quiet) or result["kind"] == "error":
                where = sys.stderr if result["kind"] == "error" else sys.stdout
                sentence = result["sentence"] if name in result["sentence"] else f"{name}: {result['sentence']}"
                tqdm.write(_shown(sentence), file=where)
                for note in result.get("notes", ()):
                    tqdm.write(f"  Note: {_shown(note)}", file=where)
            counts["error" if result["kind"] == "error" else result["verdict"]] += 1
            progress.set_postfix_str("", refresh=False)
            progress.update()
    if not arguments.quiet:
        for folder in filter(os.path.isdir, arguments.files):
            if skipped := say_skipped(skipped_files(folder)):
                print(f"{_shown(folder)}: {skipped}", file=sys.stderr)
        print(counted(counts), file=sys.stderr)
    return counts


def _shown(text: str) -> str:
    """Return a text that is safe for a terminal, with any file name in it."""
    return text if text.isprintable() else ascii(text)[1:-1]
