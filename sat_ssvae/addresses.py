"""Files of object stores by their address: `s3://bucket/folder`, `gs://...`, `hf://...`, whatever fsspec opens.

    folder = path_of("s3://bucket/shards")      # a `Path` where the text is no address
    upload(Path("a.tar"), folder / "a.tar")     # whole or not at all
    download("s3://bucket/shards/a.tar", Path("copy.tar"))

Credentials come from the environment, as each store's own client expects them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a
profile or the machine's role for S3), never from an address. Failures are an `OSError` of one line.
"""

import contextlib
import errno
import logging
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.callbacks import Callback
from fsspec.registry import known_implementations
from upath import UPath
from upath.extensions import ProxyUPath

from .errors import UserError, one_line

logger = logging.getLogger(__name__)

TRIES = 3
_AT_ONCE = 16
PAUSE = 1.0
"""Seconds before the first retry; they double with each further one."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_WEB = ("http", "https")
_WHOLE_PUTS = frozenset({"gs", "gcs", "az", "abfs", "abfss"})
"""Stores besides S3 in which an upload becomes visible at its end; in others a file is uploaded, then renamed."""
_PART = 16 * 2**20  # bytes; s3fs uploads files of two or more parts part by part, ten at once
_NO_FILE = frozenset({"NoSuchKey", "NoSuchBucket", "404"})
_NO_RIGHTS = frozenset({"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "GoogleAuthError"})
_CHANGED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "409", "412"})
"""Answers to a conditional request whose condition does not hold."""
_UNCONDITIONAL = frozenset({"NotImplemented", "InvalidArgument", "InvalidRequest", "400", "501"})
"""Answers of servers of the S3 API that do not know conditional requests."""
_upath: Any = UPath  # its overloads for each protocol do not take options by name
_OPTIONS: dict[str, Any] = {"use_listings_cache": False}  # other machines write there as well


def is_address(text: object) -> bool:
    """Whether a path is an address that fsspec opens; https:// and file:// are not."""
    match = _ADDRESS.match(str(text))
    return match is not None and match[1].lower() not in ("file", "local", *_WEB)


def path_of(text: str | Path) -> Path:
    """A local path, or for an address an object with the same methods: reading, listing, deleting, names, `/`.

    Folders of a store need not be created. Write whole files with `storage.atomic` or `storage.write_text`.

    Raises:
        UserError: no such kind of address, its package is not installed, it names no bucket or contains a password; the
            address of a web server.
    """
    if not isinstance(text, str):
        return text
    if text.partition("://")[0].lower() in _WEB:
        raise UserError(f"{without_secrets(text)}: web servers are not read here, download it first")
    if not is_address(text):
        return Path(re.sub(r"^(file|local)://", "", text))
    check_address(text)
    return cast(Path, Address(text))


def check_address(address: str) -> None:
    """Refuse an address that cannot be that of a file or folder.

    Raises:
        UserError: as `path_of`.
    """
    scheme, rest = address.split("://", 1)
    scheme = scheme.lower()
    shown = without_secrets(address)
    if scheme not in known_implementations:
        raise UserError(f"{shown}: no such kind of address; there are s3://, gs://, hf:// and others of fsspec")
    if "@" in rest.split("/")[0]:
        raise UserError(f"{shown}: an address holds no credentials, the environment does (docs/data.md)")
    if "::" in rest:
        raise UserError(f"{shown}: give one address, without `::`")
    if not rest.strip("/") or (rest.startswith("/") and scheme != "memory"):
        raise UserError(f"{shown}: which bucket? {scheme}://BUCKET/FOLDER")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        package = known_implementations[scheme]["class"].partition(".")[0].replace("_", "-")
        raise UserError(f"{shown}: {scheme}:// needs a package: pip install {package}") from None


class Address(ProxyUPath):
    """A file or folder of a store, with the methods of `Path`."""

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists as soon as it has a file, and no bucket is created by accident."""

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is a file or folder; an error if the store cannot say."""
        return self._mode() is not None

    def is_file(self) -> bool:
        """Whether there is a file; an error if the store cannot say."""
        mode = self._mode()
        return mode is not None and stat.S_ISREG(mode)

    def is_dir(self) -> bool:
        """Whether files are below it; an error if the store cannot say."""
        mode = self._mode()
        return mode is not None and stat.S_ISDIR(mode)

    def _mode(self) -> int | None:
        try:
            return int(self.stat().st_mode)
        except FileNotFoundError:
            return None

    def __fspath__(self) -> str:
        raise UserError(f"{self}: only a local path works here; copy it to this machine first")


def _guarded(name: str) -> Callable[..., Any]:
    """The method `name` of a new path: after a fork, connections of an older one belong to the parent."""

    def call(self: Address, *args: Any, **options: Any) -> Any:
        with failures(self):
            result = getattr(_upath(str(self), **_OPTIONS), name)(*args, **options)
            if name in ("glob", "rglob", "iterdir"):
                return iter([Address(str(found)) for found in result])
            return result

    call.__name__, call.__doc__ = name, getattr(Path, name).__doc__
    return call


for _name in ("stat", "open", "read_bytes", "read_text", "unlink", "glob", "rglob", "iterdir"):
    setattr(Address, _name, _guarded(_name))


@contextlib.contextmanager
def failures(address: object) -> Iterator[None]:
    """Turn any error of a store's client into an OSError with a reason of one line, and the address as its file.

    Raises:
        FileNotFoundError: there is no such file or bucket.
        PermissionError: no rights, or no credentials.
        OSError: anything else, such as no connection.
    """
    try:
        yield
    except (UserError, UnicodeError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # a local file's, or known already
            raise
        raise OSError(_number(error), _reason(error), without_secrets(address)) from None


def _code(error: BaseException) -> str:
    """What the server answered, in its own words; empty if it did not."""
    response = getattr(error, "response", getattr(error.__cause__, "response", None))  # s3fs wraps botocore's errors
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    # of a request: huggingface_hub's, gcsfs's
    return str(getattr(response, "status_code", getattr(error, "code", "")))


def _number(error: Exception) -> int:
    code = _code(error)
    if isinstance(error, FileNotFoundError) or code in _NO_FILE:
        return errno.ENOENT
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_RIGHTS or code in ("401", "403"):
        return errno.EACCES
    return errno.EIO


def _reason(error: Exception) -> str:
    if type(error).__name__ in _NO_RIGHTS:
        return "no credentials in the environment"
    return without_secrets(one_line(error))


def upload(local: Path, target: Path) -> None:
    """Copy a file to an address, which then has the whole file, or if this fails, its previous contents.

    Retried if the connection fails. A killed process leaves no object; the parts of its unfinished upload to S3 are
    removed by the next upload to that address.

    Raises:
        OSError: it cannot be written there.
    """
    _with_retries(lambda: _put(local, str(target)), target, TRIES)


def _with_retries(work: Callable[[], None], address: object, tries: int) -> None:
    """Do work that needs a connection, and retry it after failures that may be temporary."""
    for attempt in range(tries):
        try:
            with failures(address):
                work()
            return
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            if attempt + 1 == tries:
                raise
            logger.debug("%s: once more (%s)", address, error.strerror)
            time.sleep(PAUSE * 2**attempt)


def _put(local: Path, address: str) -> None:
    system, path = fsspec.url_to_fs(address, **_OPTIONS)
    scheme = address.partition("://")[0].lower()
    if scheme in ("s3", "s3a"):
        if local.stat().st_size >= 2 * _PART:
            _abort_uploads(system, path)
        system.put_file(str(local), path, chunksize=_PART)
        return
    if scheme in _WHOLE_PUTS:
        system.put_file(str(local), path)
        return
    if scheme == "hf":
        _commit(system, local, path)
        return
    partial = f"{path}.{secrets.token_hex(4)}.partial"
    try:
        system.put_file(str(local), partial)
        if system.size(partial) != local.stat().st_size:
            raise OSError(errno.EIO, "the upload is incomplete")
        system.mv(partial, path)
    except BaseException:
        with contextlib.suppress(Exception):
            system.rm_file(partial)
        raise


def _commit(system: Any, local: Path, path: str) -> None:
    """Upload in one commit, which closing a file of the Hugging Face hub makes, even after an error."""
    with local.open("rb") as source, system.open(path, "wb") as target:
        try:
            shutil.copyfileobj(source, target, 1 << 20)
        except BaseException:
            target.closed = True
            raise


def _abort_uploads(system: Any, path: str) -> None:
    """Abort unfinished uploads of killed processes to this S3 address: their parts are invisible and cost money."""
    bucket, key, _ = system.split_path(path)
    with contextlib.suppress(Exception):  # some keys may not list them, some servers do not know them
        found = system.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", [])
        for begun in (begun for begun in found if begun["Key"] == key):
            system.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=begun["UploadId"])


def download(address: str, file: Path, tries: int = 1) -> bool:
    """Copy the file at an address; returns whether its length is known to be right.

    Raises:
        OSError: it is not there, may not be read, or came incomplete.
    """
    sizes = Callback()

    def get() -> None:
        system, path = fsspec.url_to_fs(address, **_OPTIONS)
        system.get_file(path, str(file), callback=sizes)
        came = file.stat().st_size
        if sizes.size is not None and sizes.size != came:
            raise OSError(f"{came} of {sizes.size} bytes arrived")

    _with_retries(get, address, tries)
    return sizes.size is not None


def contents_at(address: Path) -> bytes | None:
    """The bytes of a small file as they are now; None if it does not exist.

    Raises:
        OSError: the store cannot say.
    """
    with failures(address):
        system, path = fsspec.url_to_fs(str(address), **_OPTIONS)
        with contextlib.suppress(FileNotFoundError):
            return bytes(system.cat_file(path))
    return None


def swap(address: Path, old: bytes | None, new: bytes) -> bool:
    """Write a small file if its contents are `old`, or if there is none and `old` is None; returns whether they were.

    S3 decides which of several writers is the first. Where a store cannot, two writers at the same moment may both be
    told that they were, and the file has the contents of the last one.

    Raises:
        OSError: it cannot be written.
    """
    with failures(address):
        system, path = fsspec.url_to_fs(str(address), **_OPTIONS)
        try:
            condition = _condition(system, path, old)
            if contents_at(address) != old:
                return False
            system.pipe_file(path, new, **condition)
        except Exception as error:
            gone = old is not None and _number(error) == errno.ENOENT
            if _code(error) in _UNCONDITIONAL:
                system.pipe_file(path, new)
            elif gone or isinstance(error, FileExistsError) or _code(error) in _CHANGED:
                # perhaps by this request itself, sent again after its answer was lost
                return contents_at(address) == new
            else:
                raise
    return True


def _condition(system: Any, path: str, old: bytes | None) -> dict[str, str]:
    """Options of `pipe_file` that make it fail if the file changes before."""
    if old is None:
        return {"mode": "create"}
    return {"IfMatch": system.info(path, refresh=True)["ETag"]} if "s3" in system.protocol else {}


def copy_files(address: str, names: Sequence[str], folder: Path) -> None:
    """Copy files below an address to a local folder, under the same names, many at once.

    Raises:
        OSError: one cannot be read.
    """
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(lambda name: download(f"{address.rstrip('/')}/{name}", folder / name, TRIES), names):
            pass


def files_at(address: str) -> list[tuple[str, int]]:
    """Names, relative to a folder of a store, and sizes in bytes of all files below it, sorted; hidden ones left out.

    Raises:
        OSError: it cannot be listed.
    """
    with failures(address):
        system, path = fsspec.url_to_fs(address, **_OPTIONS)
        found = system.find(path, detail=True)
    prefix = f"{path.rstrip('/')}/"
    names = ((name.removeprefix(prefix), info) for name, info in found.items() if name.startswith(prefix))
    return sorted(
        (name, int(info.get("size") or 0))
        for name, info in names
        if info.get("type") == "file" and not any(part.startswith(".") for part in name.split("/"))
    )


def without_secrets(text: object) -> str:
    """A text without the query strings (signatures) and user names (passwords) of its addresses."""

    def public(address: re.Match[str]) -> str:
        return f"{address[1]}{address[2]}{'?...' if address[3] else ''}"

    return re.sub(
        r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/\s@]*@)?([^\s?'\"]*)(\?(?:[^\s'\"]*[^\s'\",:)])?)?", public, str(text)
    )
