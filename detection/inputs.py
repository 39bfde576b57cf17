"""What a detection run reads and writes, checked before torch is imported."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..errors_dcl import InputError, reason
from ..media_dcl import find_files


def check_files(arguments: Namespace) -> tuple[list[str], dict[str, Path]]:
    """Find the files that a command line of `dcl-detect` names, and check that its outputs can be written.

    Returns the files, each once, and the folder to which the drawing of each is relative. Raises `InputError` if a
    name is of nothing, a folder holds nothing to judge, or an output cannot be written, would overwrite an input, or
    be judged by the next run.
    """
    try:
        files, roots = _find_inputs(arguments.files)
        _check_outputs(arguments, roots)
    except OSError as error:  # a name that is too long, or lies where nothing may be looked up
        raise InputError(
            f"{error.filename} cannot be reached ({reason(error)}): check its path and its permissions."
        ) from error
    return files, roots


def _find_inputs(names: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    roots: dict[str, Path] = {}
    seen: set[str] = set()  # absolute paths: one file may be named in two ways
    for name in names:
        path = Path(name)
        if not name:  # to a Path, the current folder
            raise InputError("one of the names of files and folders is empty: leave it out.")
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
            raise InputError(f"{path} would be overwritten by the results: choose another file for them.")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} for {path.name}: make it.")
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file in it.")
        if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"{path} cannot be written: check its permissions, or choose another file.")
    if outputs[0] is not None and outputs[1] is not None and outputs[0].resolve() == outputs[1].resolve():
        raise InputError(f"--csv and --json are both {outputs[0]}: choose two files.")
    if arguments.annotate is not None:
        place = next(path for path in (arguments.annotate, *arguments.annotate.absolute().parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise InputError(f"no drawings can be written to {arguments.annotate}: choose another folder for them.")
        for name in arguments.files:
            if Path(name).is_dir() and arguments.annotate.resolve().is_relative_to(Path(name).resolve()):
                raise InputError(
                    f"the drawings in {arguments.annotate} would lie in {name}, among what is judged: choose a folder "
                    "outside of it."
                )
        targets: dict[Path, str] = {}
        for name, root in roots.items():
            other = targets.setdefault(Path(name).relative_to(root), name)
            if other != name:
                raise InputError(
                    f"the drawings of {other} and {name} would have one name: give one --annotate folder to each."
                )
