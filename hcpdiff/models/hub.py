"""Where a model is: a folder, or a repository of the Hugging Face hub, which is downloaded once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PACKAGED = "hcpdiff"  # the owner of models that come with this package, e.g. hcpdiff/tiny-sd3


def local_folder(
    path: str | Path, *, revision: str | None = None, allow: Sequence[str], ignore: Sequence[str] = ()
) -> Path:
    """The folder at `path`, or that of the hub repository of this name.

    Args:
        revision: branch, tag or commit of the repository.
        allow: patterns of the files that are needed.
        ignore: patterns of files that are not, though allowed.

    Raises:
        FileNotFoundError: there is no such folder, or the repository cannot be reached and is not in the cache.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    packaged = Path(__file__).parent.parent / "assets" / Path(path).name
    if str(path) == f"{PACKAGED}/{packaged.name}" and packaged.is_dir():
        return packaged
    if folder.is_file():
        raise FileNotFoundError(
            f"{path} is a file; give the folder of a model in diffusers' layout, or a .safetensors or .ckpt file"
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        raise FileNotFoundError(f"no folder at {path}; give a model's folder, or owner/name on the Hugging Face hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(str(path), revision=revision, allow_patterns=list(allow), ignore_patterns=list(ignore))
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"no folder at {path}, and the Hugging Face hub gave no repository of this name{at} "
            f"({type(error).__name__}): check the name, the connection, and access (`hf auth login`)"
        ) from error
