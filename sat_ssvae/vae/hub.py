"""Autoencoders on the Hugging Face hub."""

import logging
import re
from pathlib import Path

from ..errors import UserError

logger = logging.getLogger(__name__)

PUBLISHED_NAME = "ch48_256p_15w_512p_5w.ckpt"
"""The published weights: 150 000 steps at 256 px, 50 000 at 512 px."""

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt")
"""Of files of weights; a name on the hub has none of them."""


def is_hub_name(path: str) -> bool:
    """Whether a path that does not exist has the form `organisation/name`."""
    return _NAME.fullmatch(path) is not None and not path.endswith(WEIGHT_SUFFIXES)


def snapshot(folder: Path) -> Path:
    """The snapshot of a repository's folder in the hub's cache, models--ORGANISATION--NAME, or of its snapshots/.

    Any other path as it is.

    Raises:
        UserError: there are several snapshots, of which none is that of the main branch.
    """
    repository = folder.parent if folder.name == "snapshots" else folder
    if not repository.name.startswith("models--") or not (repository / "snapshots").is_dir():
        return folder
    found = sorted(path for path in (repository / "snapshots").iterdir() if path.is_dir())
    main = repository / "refs" / "main"
    commit = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    chosen = [path for path in found if path.name == commit] or found
    if len(chosen) > 1:
        raise UserError(f"{folder}: has {len(found)} snapshots, none of its main branch; give one, such as {found[0]}")
    return chosen[0] if chosen else folder


def download_files(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """A local folder with those of `files` that the repository `name` has; each is downloaded once.

    Raises:
        UserError: huggingface_hub is not installed, the hub cannot be reached, or it has no such repository.
    """
    missing = f"{name}: no such checkpoint on this machine"
    try:
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ModuleNotFoundError:
        raise UserError(f"{missing}; for one on the Hugging Face hub: pip install 'sat-ssvae[hub]'") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except RevisionNotFoundError:
        raise UserError(f"{name}: the Hugging Face hub has it, but no revision {revision}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{missing}, nor on the Hugging Face hub; check the name (for a private one: hf auth login)"
        ) from None
    except Exception as error:  # of the network, whichever library huggingface_hub uses for it
        logger.debug("%s", name, exc_info=True)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{missing}, and the Hugging Face hub cannot be reached ({reason})") from None
