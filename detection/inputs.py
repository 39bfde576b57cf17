"""Checks of the inputs and outputs of a detection run, before torch is imported."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..decision_dcl import Rule, check_calibration
from ..errors_dcl import InputError, reason
from ..hub_dcl import read_settings
from ..media_dcl import find_files
from ..video_dcl import VIDEO_SUFFIXES


def check_files(arguments: Namespace) -> tuple[list[str], dict[str, Path]]:
    """Find the input files of a `dcl-detect` command, and check that its outputs can be written.

    Returns the distinct files, and for each the root folder for the relative path of its annotated picture. Raises
    `InputError` if a file does not exist, a folder has no pictures and videos, or an output cannot be written, would
    overwrite an input, or would become an input of the next run.
    """
    try:
        files, roots = _find_inputs(arguments.files)
        _check_outputs(arguments, roots)
    except OSError as error:  # such as a name that is too long, or a folder without permission
        raise InputError(
            f"{error.filename} cannot be accessed ({reason(error)}). Check its path and permissions."
        ) from error
    return files, roots


def _find_inputs(names: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    roots: dict[str, Path] = {}
    seen: set[str] = set()  # absolute paths, since one file may have two spellings
    for name in names:
        path = Path(name)
        if not name:  # Path would read it as the current folder
            raise InputError("One of the file names is empty. Leave it out.")
        if path.is_dir():
            found = {str(file): path for file in find_files(path)}
        elif path.is_file():
            found = {str(path): path.parent}
        else:
            raise InputError(f"File or folder {name} not found. Check its path.")
        for file, root in found.items():
            if (path_of_file := os.path.abspath(file)) not in seen:
                seen.add(path_of_file)
                roots[file] = root
    return list(roots), roots


def _check_outputs(arguments: Namespace, roots: dict[str, Path]) -> None:
    outputs = [arguments.csv, None if arguments.json in (None, "-") else Path(arguments.json)]
    for path in outputs:
        if path is not None and path.exists() and any(path.samefile(name) for name in roots):
            raise InputError(f"{path} is an input, and the results would overwrite it. Choose another output file.")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"Folder {path.parent} for {path.name} not found. Create it.")
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder. Pass a file name.")
        if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"{path} cannot be written. Check its permissions, or choose another file.")
    if outputs[0] is not None and outputs[1] is not None and outputs[0].resolve() == outputs[1].resolve():
        raise InputError(f"--csv and --json are both {outputs[0]}. Choose different files.")
    if arguments.annotate is not None:
        place = next(path for path in (arguments.annotate, *arguments.annotate.absolute().parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise InputError(f"--annotate folder {arguments.annotate} cannot be written. Choose another folder.")
        for name in arguments.files:
            if Path(name).is_dir() and arguments.annotate.resolve().is_relative_to(Path(name).resolve()):
                raise InputError(
                    f"--annotate folder {arguments.annotate} lies inside the input folder {name}. Choose a folder "
                    "outside of it."
                )
        targets: dict[Path, str] = {}
        for name, root in roots.items():
            other = targets.setdefault(Path(name).relative_to(root), name)
            if other != name:
                raise InputError(
                    f"The annotated pictures of {other} and {name} would have the same name. Annotate each file into "
                    "its own --annotate folder."
                )


def check_operating_point(folder: Path, operating_point: str, files: Sequence[str]) -> None:
    """Raise `InputError` if a checkpoint has the threshold of an operating point for none of the input files.

    If it lacks that of one kind of file only, the others get results, and each file of that kind an error.
    """
    calibration = read_settings(folder, "config.json", str(folder)).get("calibration")
    try:
        check_calibration(calibration)
    except (ValueError, TypeError, AttributeError, KeyError):
        return  # reported when the checkpoint is loaded
    refusal = None
    for level in sorted({"video" if Path(name).suffix.lower() in VIDEO_SUFFIXES else "frame" for name in files}):
        try:
            Rule.of(calibration, level, operating_point, None)
            return
        except InputError as error:
            refusal = error
    if refusal is not None:
        raise refusal
