"""Files of a folder that are whole or found out: written to disk in order, listed with checksums in `files.json`."""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

MANIFEST = "files.json"
"""Names and checksums of all other files of a folder, and a checksum of these. Of some there is the size alone."""

MOST_BYTES = 64 << 20
"""Of a list of files: far more than any has."""


class ChangedError(Exception):
    """A file is not what was written; the message says which."""


def sync(path: Path) -> None:
    """Has the system put a file, or what a folder lists, on disk."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside it, an error of the system that does not say of which file it is says this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_manifest(folder: Path, checked: str = "/") -> None:
    """Lists the folder's files, and puts all of them on disk, then the list, then the folder.

    Args:
        folder: see above.
        checked: how the names of files begin that have checksums of their own: to read them again would take as long
            as to write them.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    checksums: dict[str, int | dict[str, int]] = {}
    for name in names:
        path = folder / name
        checksums[name] = {"size": path.stat().st_size} if name.startswith(checked) else checksum(path)
        sync(path)
    (folder / MANIFEST).write_text(json.dumps({"files": checksums, "of this list": _of_list(checksums)}))
    sync(folder / MANIFEST)
    sync(folder)


def check_manifest(folder: Path) -> bool:
    """Looks whether all files of a folder are what was written. Returns False if there is no list of them.

    Raises:
        ChangedError: if a file is missing or another one, the list among them.
        OSError, ValueError: if the list cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        return False
    if path.stat().st_size > MOST_BYTES:
        raise ChangedError(f"{MANIFEST} is not what was written")
    content = json.loads(path.read_text())
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or content.get("of this list") != _of_list(files):
        raise ChangedError(f"{MANIFEST} is not what was written")
    check_files(folder, files)
    return True


def check_files(folder: Path, checksums: Mapping[str, int | Mapping[str, int]]) -> None:
    """Raises `ChangedError` if a file of the folder has another checksum or size, or is not there, or is elsewhere."""
    for name, expected in checksums.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ChangedError(f"{MANIFEST} names {str(name)[:80]!r}, which is no file of this folder")
        try:
            path = folder / name
            found = {"size": path.stat().st_size} if isinstance(expected, Mapping) else checksum(path)
        except FileNotFoundError:
            raise ChangedError(f"{name} is not there") from None
        if found != expected:
            raise ChangedError(f"{name} is not what was written")


def checksum(file: Path) -> int:
    """The CRC-32 of a file."""
    found = 0
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def _of_list(checksums: Mapping[str, int | Mapping[str, int]]) -> int:
    return zlib.crc32(json.dumps(checksums, sort_keys=True).encode())
