"""Push a prepared data set to the Hub, with a card that describes it."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from ..errors_dcl import InputError, reason
from ..hub_dcl import hub_is_reachable
from ..prepared.names import CLASS_NAMES, FAKE, split_files
from .shards import read_record

TEMPLATE = Path(__file__).parent / "templates" / "dataset_card.md"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def check_hub(repo_id: str) -> None:
    """Raise an `InputError` if the Hub cannot be reached; called before the hours of preparation."""
    if not hub_is_reachable():
        raise InputError(
            f"The Hub cannot be reached to push {repo_id!r}. Run the command without --push_to_hub, and again with it "
            "later. Finished work is kept."
        )


def push_prepared(
    folder: str | Path, repo_id: str, left_out: Mapping[str, Mapping[str, int]] | None = None, private: bool = True
) -> str:
    """Push the shards of a prepared data set and its card in one commit, and remove older shards from the repository.

    The repository is created if necessary, private by default. `left_out` are the counts of `Failures.by_reason`.
    Returns the address; raises `InputError` if the upload fails.
    """
    write_dataset_card(folder, repo_id, left_out)
    api = HfApi()
    try:
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type="dataset",
            commit_message="Prepared faces",
            allow_patterns=["*.parquet", "README.md"],
            delete_patterns="*.parquet",
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"Data set {repo_id!r} cannot be pushed ({reason(error)}). Log in with `hf auth login`, check the name, "
            "and run the same command again. Finished work is kept."
        ) from error
    return str(url)


def write_dataset_card(
    folder: str | Path, repo_id: str, left_out: Mapping[str, Mapping[str, int]] | None = None
) -> Path:
    """Write README.md into the folder of a prepared data set, from its shards, and return its path."""
    folder, splits = Path(folder), []
    files = split_files(folder)
    tables: dict[str, pa.Table] = {}
    for split, paths in files.items():
        columns = ["label", "method", "video_id", "dataset", "crop"]
        tables[split] = pa.concat_tables(pq.read_table(path, columns=columns) for path in paths)
        groups = tables[split].group_by(["method", "label"], use_threads=False)
        parts = groups.aggregate([("video_id", "count_distinct"), ([], "count_all")]).to_pylist()
        splits.append(
            {
                "name": split,
                "parts": [
                    {
                        "method": part["method"],
                        "label": CLASS_NAMES[part["label"]],
                        "clips": f"{part['video_id_count_distinct']:,}",
                        "faces": f"{part['count_all']:,}",
                    }
                    for part in parts
                ],
            }
        )
    rows = pa.concat_tables(tables.values())
    forged = rows.filter(pa.compute.equal(rows["label"], FAKE))
    # Reals always have a mask. The metadata of the files count rows without one, so that no mask is read.
    masks = len(forged) - sum(_nulls(path, "mask.bytes") for paths in files.values() for path in paths)
    data = DatasetCardData(
        license="other",
        task_categories=["image-classification"],
        tags=["face-forgery-detection", "deepfake-detection"],
        size_categories=next((name for limit, name in _SIZES if len(rows) < limit), "n>1M"),
        configs=[
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": [path.name for path in paths]} for split, paths in files.items()
                ],
            }
        ],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        datasets=sorted(set(rows["dataset"].to_pylist())),
        splits=splits,
        masks=f"{masks:,}",
        fakes=f"{len(forged):,}",
        crop=rows["crop"][0].as_py(),
        encoding=read_record(next(iter(files.values()))[0])[0]["encoding"],
        failures=left_out or {},
    )
    path = folder / "README.md"
    card.save(path)
    return path


def _nulls(path: Path, column: str) -> int:
    footer = pq.read_metadata(path)
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
    return sum(chunk.statistics.null_count for chunk in chunks if chunk.path_in_schema == column)
