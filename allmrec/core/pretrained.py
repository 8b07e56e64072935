"""Where a pretrained model's files are, and what makes it the same model: hub names, folders and s3:// prefixes.

`standins/llm` and `standins/encoder` are the stand-ins that come with the package.

Knows nothing of what is in the files, but whether these are the weights that a model asks for.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, copy_files
from torch import nn

from allmrec.core.file_digests import file_sha256
from allmrec.core.hashing import fingerprint
from allmrec.core.machine_cache import filled_folder
from allmrec.core.storage import open_storage

COPIES = "models"  # of s3:// prefixes, see `machine_cache`
_SHIPPED = Path(__file__).parents[1] / "demo"
_WEIGHTS, OTHER_DATA = "*.safetensors", ["*.json", "*.txt", "*.model"]  # configs and vocabularies


def model_folder(
    name: str,
    revision: str | None,
    key: str,
    weights: bool = True,
    remedy: str = "save the model as safetensors",
) -> Path:
    """The folder of a pretrained model's files. Only data is fetched: no code, and nothing that is pickled.

    Args:
        name: hub name, folder, s3:// prefix, or a stand-in of this package.
        key: of the config, for messages.
        weights: or else its config and vocabulary alone.
        remedy: what to do about weights that are not safetensors.

    Raises:
        ValueError: no such model, or weights that are not safetensors.
    """
    folder = fetch_files(name, revision, key, [_WEIGHTS, *OTHER_DATA] if weights else OTHER_DATA)
    if weights and not any(folder.rglob(_WEIGHTS)):
        raise ValueError(
            f"{key} {name!r} has no weights as safetensors, and nothing pickled is read; name a revision that has them "
            f"(on the hub often refs/pr/<n>), or {remedy}"
        )
    return folder


def fetch_files(name: str, revision: str | None, key: str, wanted: list[str]) -> Path:
    """A folder that has a model's files of these patterns, and perhaps others.

    An s3:// prefix is copied once a node, however many workers ask. The store is reached as the environment says
    (AWS_ENDPOINT_URL and so on).

    Raises:
        ValueError: no such model.
    """
    from huggingface_hub import snapshot_download

    folder = _copied(name, wanted) if name.startswith("s3://") else _folder(name)
    try:
        return folder if folder.is_dir() else Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise _unreachable(name, key, error) from None


def list_files(name: str, revision: str | None, key: str) -> tuple[list[str], str]:
    """The names of a model's files, and which model it is: the commit of a hub name, else `model_identity`.

    Raises:
        ValueError: no such model.
    """
    from huggingface_hub import HfApi

    if name.startswith("s3://"):
        _, root, files = _files(name)
        return [file.path.removeprefix(root).lstrip("/") for file in files], model_identity(name)
    folder = _folder(name)
    if folder.is_dir():
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        return sorted(names), model_identity(name)
    try:
        found = HfApi().model_info(name, revision=revision)
    except Exception as error:  # whichever HTTP library the hub's client uses, its errors have no base in common
        raise _unreachable(name, key, error) from None
    return [file.rfilename for file in found.siblings or []], found.sha or revision or "main"


def _unreachable(name: str, key: str, error: Exception) -> ValueError:
    why = next(iter(str(error).splitlines()), type(error).__name__)
    return ValueError(
        f"{key} {name!r} cannot be loaded ({why}); give a hub name, a folder or an s3:// "
        "prefix with the model's files, or standins/llm and standins/encoder, which come with allmrec"
    )


def refuse_incomplete_encoder(name: str, model: nn.Module, found: dict[str, Any]) -> None:
    """`refuse_other_weights` of an encoder whose token states alone are used.

    Args:
        found: what `from_pretrained` says with `output_loading_info` and `ignore_mismatched_sizes`.
    """
    # Beside the model's parts are heads of the task that it was trained on.
    parts = {part for part, _ in model.named_children()} | {model.base_model_prefix}
    refuse_other_weights(
        name,
        model,
        # Token states are pooled elsewhere, and many checkpoints have no weights for a pooler of their own.
        missing_keys=[key for key in found["missing_keys"] if not key.startswith("pooler.")],
        unexpected_keys=[key for key in found["unexpected_keys"] if key.split(".")[0] in parts],
        mismatched_keys=found["mismatched_keys"],
        error_msgs=found["error_msgs"],
    )


def refuse_other_weights(
    name: str,
    model: nn.Module,
    missing_keys: Iterable[str],
    unexpected_keys: Iterable[str],
    mismatched_keys: Iterable[tuple[str, Any, Any]],
    error_msgs: Iterable[str] = (),
) -> None:
    """Raises ValueError naming weights that a checkpoint lacks, has besides, or has in another shape than the model.

    A weight that is tied to another may be absent, and old checkpoints hold buffers that the model computes.

    Args:
        name: of the checkpoint, for messages.
        mismatched_keys: name, shape in the checkpoint, shape in the model.
    """
    buffers = {_ending(buffer) for buffer, _ in model.named_buffers()}
    wrong = {
        "lacks": sorted(missing_keys),
        "has besides": sorted(key for key in unexpected_keys if _ending(key) not in buffers),
        "has in another shape": sorted(f"{key} {list(here)} for {list(there)}" for key, here, there in mismatched_keys),
        "cannot be read": sorted(error_msgs),
    }
    parts = [
        f"{what} {len(keys)} weights: {', '.join(keys[:5])}{' …' * (len(keys) > 5)}"
        for what, keys in wrong.items()
        if keys
    ]
    if parts:
        raise ValueError(
            f"{name} is not a checkpoint of the model that its config describes ({type(model).__name__}); it "
            f"{'; it '.join(parts)}. Name a complete one: weights that it lacks would be random"
        )


def _ending(key: str) -> str:
    """A tensor's name within its module, and the module's: `rotary_emb.inv_freq`."""
    return ".".join(key.split(".")[-2:])


def _copied(name: str, wanted: list[str]) -> Path:
    def fill(draft: Path) -> None:
        filesystem, root, files = _files(name)
        for file in files:
            target = draft / file.path.removeprefix(root).lstrip("/")
            if any(target.match(pattern) for pattern in wanted):
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_files(file.path, str(target), source_filesystem=filesystem)

    return filled_folder(COPIES, fingerprint([model_identity(name), wanted]), fill)


def model_identity(name: str, revision: str | None = None) -> str:
    """What a model is: a fingerprint of a folder's files, name@revision of a hub model; of an s3:// prefix a
    fingerprint of its files' names, sizes and times. A folder's large files are read again only if they have changed.

    Raises:
        ValueError: the prefix is empty.
    """
    if name.startswith("s3://"):
        _, root, files = _files(name)
        return fingerprint(sorted([file.path.removeprefix(root), file.size, file.mtime_ns] for file in files))
    folder = _folder(name)
    if not folder.is_dir():
        return f"{name}@{revision or 'main'}"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint({path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def _folder(name: str) -> Path:
    """The folder of that name, here or in this package, whether or not there is one."""
    shipped = _SHIPPED / name
    return shipped if name.startswith("standins/") and not Path(name).is_dir() else Path(name)


def _files(name: str) -> tuple[FileSystem, str, list[FileInfo]]:
    """Of an s3:// prefix: the file system, the prefix in it, and its files. Raises ValueError if there are none."""
    filesystem, root = open_storage(name).arrow()
    found = filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    files = [info for info in found if info.type == FileType.File]
    if not files:
        raise ValueError(f"{name} has no model: there is no object under that prefix")
    return filesystem, root, files
