"""Make a prepared data set of real faces and their forgeries from photographs or from another prepared data set."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Image
from tqdm import tqdm

from ..errors_dcl import InputError
from ..faces_dcl import ALIGNED_LANDMARKS, FaceDetector, fit_similarity, map_points
from ..media_dcl import PICTURE_SUFFIXES
from ..prepared.blending import METHODS, Portrait, random_generator
from ..prepared.copies import Pictures, picture_hash, refuse_copies
from ..prepared.dataset import FEATURES, decode_image, encode_image, load_prepared, metadata
from ..prepared.names import DEFAULT_ENCODING, FAKE, REAL, split_files
from .assets import fetch_detector
from .clips import check_shares
from .failures import Failures
from .photographs import CORRUPT, MARGIN, NO_FACE, SIZE, find_photographs, real_rows
from .shards import FORMAT, PreparedFolder, Report, state_of
from .splitting import KEPT_APART, Families, count_faces

_CANDIDATES, _NEAREST = 40, 4  # candidates from other people, and the number of those nearest in pose to choose from


def forge_families(
    rows: Sequence[dict[str, Any]],
    methods: Sequence[str],
    variants: int,
    seed: int,
    missing: Counter[str],
    encoding: str = DEFAULT_ENCODING,
) -> Iterator[list[dict[str, Any]]]:
    """Yield each family of a split, a list of rows: its real rows, then the forgeries made from them.

    A forgery has the frame number, crop and landmarks of its real, and the video name `<method>/<clip>`, with `-v2`,
    `-v3` and so on for further variants. It depends on the seed, method, video, frame and variant, and on the other
    reals of the split, from which partners are chosen. Rows must have landmarks. Forgeries without a partner that they
    need, and those that change nothing, are left out and counted in `missing`.
    """
    reals = _Reals(rows)
    for indices in reals.families.values():
        family = []
        for index in indices:
            untouched = encode_image(np.zeros(reals.portrait(index).image.shape[:2], np.uint8))
            family.append({**rows[index], "mask": untouched, "label": REAL})
        originals = list(zip(indices, family, strict=True))
        for name in methods:
            for variant in range(1, variants + 1):
                for index, row in originals:
                    rng = random_generator(seed, name, row["video_id"], row["frame"], variant)
                    partner = reals.partner(index, METHODS[name].partner, rng)
                    if partner is None and METHODS[name].partner is not None:
                        missing[f"{name}: no photograph of the {METHODS[name].partner} person"] += 1
                        continue
                    target = reals.portrait(index)
                    forgery = METHODS[name].forge(target, partner, rng)
                    if np.array_equal(forgery.image, target.image):
                        missing[f"{name}: no pixel changed"] += 1
                        continue
                    clip = reals.clip(row["video_id"]) + (f"-v{variant}" if variant > 1 else "")
                    image = encode_image(forgery.image, encoding)
                    made = {"image": image, "mask": encode_image(forgery.mask), "label": FAKE}
                    made["phash"] = picture_hash(forgery.image)
                    family.append({**row, **made, "method": name, "video_id": f"{name}/{clip}"})
        yield family


class _Reals:
    """The real rows of a split: its families and videos, the pose of each face, and the last decoded portraits."""

    def __init__(self, rows: Sequence[dict[str, Any]]):
        self._rows = rows
        self.families: dict[str, list[int]] = {}
        self._videos: dict[str, list[int]] = {}
        self._keys = metadata(rows).to_pylist() if isinstance(rows, Dataset) else rows
        for index, row in enumerate(self._keys):
            self.families.setdefault(row["source_id"], []).append(index)
            self._videos.setdefault(row["video_id"], []).append(index)
        self._clips = Counter(_clip(video) for video in self._videos)
        landmarks = [np.asarray(row["landmarks"], np.float64) for row in self._keys]
        self._poses = np.stack([map_points(points, fit_similarity(points, ALIGNED_LANDMARKS)) for points in landmarks])
        self.portrait = lru_cache(maxsize=512)(self._portrait)

    def _portrait(self, index: int) -> Portrait:
        row = self._rows[index]
        image = decode_image(row["image"], f"{row['video_id']}, frame {row['frame']}")
        return Portrait(image, np.asarray(row["landmarks"], np.float64))

    def clip(self, video: str) -> str:
        """Return the name of a video without its method, or the whole name if two videos would have the same one."""
        return _clip(video) if self._clips[_clip(video)] == 1 else video

    def partner(self, index: int, whose: str | None, rng: np.random.Generator) -> Portrait | None:
        """Choose another photograph of the same video, or one of another family in a similar pose."""
        row = self._keys[index]
        if whose is None:
            return None
        if whose == "same":
            others = [other for other in self._videos[row["video_id"]] if other != index]
            return self.portrait(others[rng.integers(len(others))]) if others else None
        family = set(self.families[row["source_id"]])
        number = min(len(self._keys), len(family) + _CANDIDATES)
        others = [
            int(other) for other in rng.choice(len(self._keys), number, replace=False) if int(other) not in family
        ]
        if not others:
            return None
        distance = np.square(self._poses[others] - self._poses[index]).sum(axis=(1, 2))
        nearest = np.argsort(distance, kind="stable")[:_NEAREST]
        return self.portrait(others[rng.choice(nearest)])


def _clip(video: str) -> str:
    return video.split("/", 1)[-1]


def prepare_forgeries(
    source: str | Path,
    output: str | Path,
    methods: Sequence[str],
    variants: int = 1,
    seed: int = 0,
    size: int | None = None,
    margin: float | None = None,
    split: str = "train",
    name: str | None = None,
    overwrite: bool = False,
    encoding: str = DEFAULT_ENCODING,
    split_shares: Sequence[float] | None = None,
) -> dict[str, Report]:
    """Prepare a data set of the reals of a source and of forgeries made from them; returns a report for each split.

    The source is a folder of photographs (`photographs.find_photographs`) or a prepared data set, whose real rows of
    every split are used without cutting them again. Existing splits with the same settings are kept. Size, margin,
    split and name are for photographs: the side of the crops in pixels (default 380), the margin as in
    `faces_dcl.crop_box` (default 1.3), the split of all photographs if there are no `split_shares`, and the name of
    the data set (default: that of the folder).

    Raises:
        InputError: if an argument is invalid, the source contains no usable real, `output` contains another data set,
            two splits share a source video or picture, or there are too few families.
    """
    methods, source, reports = list(dict.fromkeys(methods)), Path(source), {}
    if source.resolve() == Path(output).resolve():
        raise InputError(f"{output} is both source and output. Choose another --output.")
    files = sorted(source.glob("*.parquet"))
    name = name or source.resolve().name
    if name in METHODS:
        raise InputError(f"The data set cannot be named {name!r}, which is a forgery method. Pass another --name.")
    splits = split_files(source) or [split]
    fractions = {} if split_shares is None else check_shares(split_shares)
    if fractions and len(splits) > 1:
        raise InputError(f"{source} is already split into {', '.join(splits)}. Remove --split_shares.")
    origin, splits = next(iter(splits)), fractions or splits
    photographs, crop, unread = [], None, Failures()
    if not files:
        photographs = find_photographs(source, unread)
        files = [photograph.path for photograph in photographs]
        crop = {"kind": "box", "margin": margin or MARGIN, "size": size or SIZE}
    elif size or margin:
        raise InputError(f"The faces of {source} are already cropped. Remove --size and --margin.")
    settings = {
        "source": state_of(source, files),
        **{"methods": methods, "variants": variants, "seed": seed, "crop": crop, "name": name},
        "encoding": encoding,
        "format": FORMAT,
    }
    # A folder can be filled from several sources, split by split.
    own = ("source", "methods", "variants", "seed", "name")
    if fractions:
        settings["split_shares"] = [*split_shares]
    else:
        own = (*own, "split_shares")
    folder = PreparedFolder(output, dict.fromkeys(splits, settings), overwrite=overwrite, own=own)
    for group in [[*splits]] if fractions else [[current] for current in splits]:  # the splits of one reading
        reports |= {current: report for current in group if (report := folder.done(current)) is not None}
        missing = [current for current in group if current not in reports]
        if not missing:
            continue
        detector, failures = fetch_detector(), Failures()
        failures.extend(unread)
        if photographs:
            progress = tqdm(photographs, "faces", unit="photo")
            found = real_rows(progress, detector, crop, name, failures, encoding)
        else:
            found = _prepared_rows(source, origin if fractions else group[0], detector, failures)
        with tempfile.TemporaryDirectory(prefix=".reals-", dir=folder.path) as temporary:
            reals = _stored(found, Path(temporary) / "reals.arrow")
            if reals is None:
                first = next(iter(failures), None)
                raise InputError(
                    f"{source} has no usable real face for the split {group[0]!r}"
                    + (f" ({first})" if first else "")
                    + ". Pass photographs with faces, or a prepared data set with real rows."
                )
            rows = dict.fromkeys(group, reals)
            if fractions:
                rows = _divided(reals, fractions, str(source), seed)
            for current in missing:
                others = [path for path in folder.others(current) if path not in map(folder.file, group)]
                _refuse_shared_families(rows[current], others, current, by_clip=bool(photographs))
                _refuse_shared_pictures(rows[current], others, current)
                report = Report()
                if current == group[0]:  # skipped files are in no split
                    report.failures = failures
                families = forge_families(rows[current], methods, variants, seed, report.missing, encoding)
                number = len(set(rows[current]["source_id"]))
                progress = tqdm(families, current, total=number, unit="family")
                reports[current] = folder.write(current, progress, report)
    return {split: reports[split] for split in splits}


def _divided(reals: Dataset, shares: dict[str, float], where: str, seed: int) -> dict[str, Dataset]:
    """Split real rows by family; families that stay together because they share an image are printed."""
    families = Families(count_faces(reals["source_id"], reals["label"]))
    for note in families.join_copies(Pictures.of_rows(reals, where)):
        print(note)
    splits = families.deal(shares, where, seed)
    chosen = np.array([splits[source] for source in reals["source_id"]])
    return {split: reals.select(np.flatnonzero(chosen == split)) for split in shares}


def _refuse_shared_pictures(reals: Dataset, others: Sequence[Path], split: str) -> None:
    """Raise an `InputError` if an image is also in another split."""
    splits: dict[str, list[Path]] = {}
    for path in others:
        splits.setdefault(path.stem.partition("-")[0], []).append(path)
    for other, files in splits.items():
        refuse_copies(Pictures.of_rows(reals, split), Pictures.of_files(files, other), KEPT_APART)


def _prepared_rows(source: Path, split: str, detector: FaceDetector, failures: Failures) -> Iterator[dict[str, Any]]:
    """Yield the real rows of a prepared split; missing landmarks are detected on the crop."""
    dataset = load_prepared(str(source), split)
    optional = {column: None for column in FEATURES if column not in dataset.column_names}
    labels = metadata(dataset).column("label").to_pylist()
    for index in tqdm([index for index, label in enumerate(labels) if label == REAL], "faces", unit="face"):
        row = {**optional, **dataset[index]}
        where = f"{split}, row {index} ({row['video_id']}, frame {row['frame']})"
        try:
            image = decode_image(row["image"], where)
        except InputError:
            failures.add(where, CORRUPT)
            continue
        if np.shape(row["landmarks"]) != (5, 2):
            faces = detector.detect(image)
            if not faces:
                failures.add(where, NO_FACE)
                continue
            row["landmarks"] = faces[0].landmarks.tolist()
        row["phash"] = row["phash"] or picture_hash(image)
        yield row


def _refuse_shared_families(reals: Dataset, others: Iterable[Path], split: str, by_clip: bool) -> None:
    """Raise an `InputError` if one of the source videos is also in another split.

    The names of photographs begin with their folder, so people of two folders are compared by their own names
    (`by_clip`). Loose files are compared by full name, since their own names are often just numbers.
    """

    def name(source: str) -> str:
        return _clip(source) if by_clip and Path(source).suffix.lower() not in PICTURE_SUFFIXES else source

    for path in others:
        there = pq.read_table(path, columns=["source_id"])["source_id"].to_pylist()
        shared = {name(source) for source in reals["source_id"]} & {name(source) for source in there}
        if shared:
            number = "1 person or video" if len(shared) == 1 else f"{len(shared)} people or videos"
            raise InputError(
                f"The split {split!r} shares {number} with {path} (such as {min(shared)}). Remove them from one, or "
                "rename folders if they are different people."
            )


def _stored(rows: Iterable[dict[str, Any]], path: Path) -> Dataset | None:
    """Store rows in a file for access without keeping all in memory; returns None if there are none."""
    schema, number = FEATURES.arrow_schema, 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for row in rows:
            writer.write_table(pa.Table.from_pylist([row], schema))
            number += 1
    if not number:
        return None
    return (
        Dataset.from_file(str(path)).cast_column("image", Image(decode=False)).cast_column("mask", Image(decode=False))
    )
