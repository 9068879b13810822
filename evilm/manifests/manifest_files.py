"""List the files that --manifest names: one, several by commas, globs, or those in folders, in any file system."""

import posixpath
from collections.abc import Sequence
from typing import Any

from evilm.errors import ManifestError
from evilm.io import storage
from evilm.manifests.records import ENDINGS

_GLOB = "*?["


def list_manifests(manifest: str) -> list[str]:
    """List the named files, each once: in the order they are named, those of a glob or folder by name.

    Raises:
        ManifestError: a part names nothing.
    """
    parts = [part.strip() for part in manifest.split(",") if part.strip()]
    if len(parts) > 1 and storage.exists(manifest):
        parts = [manifest]
    if not parts:
        raise ManifestError("--manifest names no file; give a table, tars, a glob or a folder")
    return list(dict.fromkeys(uri for part in parts for uri in _expand(part)))


def is_tar(uri: str) -> bool:
    """Return whether a manifest is a tar of clips."""
    return uri.lower().endswith((".tar", ".tar.gz", ".tgz"))


def names_of(uris: Sequence[str]) -> list[str]:
    """Return short names of files: their paths below the folder that contains them all."""
    if len(uris) == 1:
        return [uris[0].rsplit("/", 1)[-1]]
    folder = common_folder(uris)
    return [uri[len(folder) :].lstrip("/") for uri in uris]


def common_folder(uris: Sequence[str]) -> str:
    """Find the innermost folder that holds all files."""
    folders = [uri.rpartition("/")[0].split("/") for uri in uris]
    shared = 0
    while all(len(folder) > shared for folder in folders) and len({folder[shared] for folder in folders}) == 1:
        shared += 1
    return "/".join(folders[0][:shared])


def _expand(part: str) -> list[str]:
    fs, path = storage.resolve(part)
    fs.invalidate_cache()
    return storage.with_retries(part, lambda: _expanded(fs, path, part))


def _expanded(fs: Any, path: str, part: str) -> list[str]:
    try:
        if any(character in part for character in _GLOB) and not fs.exists(path):
            found = sorted(_uri(fs, name) for name in fs.glob(path) if not name.endswith("/"))
            found = [uri for uri in found if not posixpath.basename(uri).startswith((".", "_"))]
            if not found:
                raise ManifestError(f"no file matches {part}; check the pattern, and that a shell did not expand it")
            return found
        if fs.isdir(path):
            return _of_folder(fs, path, part)
    except PermissionError:
        raise ManifestError(f"may not read {part}; check the rights or credentials") from None
    return [_uri(fs, path)]


def _of_folder(fs: Any, path: str, part: str) -> list[str]:
    """Return the tables of a folder, and the tars that no table of the same name describes."""
    names = sorted(_uri(fs, name) for name in fs.ls(path, detail=False))
    names = [name for name in names if not posixpath.basename(name).startswith((".", "_"))]
    tables = [name for name in names if name.lower().endswith(ENDINGS)]
    described = {table.rpartition(".")[0] for table in tables}
    tars = [name for name in names if name.lower().endswith(".tar") and name[: -len(".tar")] not in described]
    if not tables and not tars:
        raise ManifestError(f"{part} is a folder without tables or tars ({', '.join(ENDINGS[:5])}, .tar)")
    return sorted([*tables, *tars])


def _uri(fs: Any, path: str) -> str:
    """Write a path as all files of its file system are named; a local one is absolute."""
    return str(fs.unstrip_protocol(path)).removeprefix("file://")
