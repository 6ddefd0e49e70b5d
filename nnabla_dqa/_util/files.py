"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
from pathlib import Path
from typing import IO, Any, Iterator, Union

from nnabla_dqa._util.messages import one_line

PathLike = Union[str, "os.PathLike[str]"]


def read_yaml(path: PathLike) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: It is not YAML, or has a key twice; one line that names the file.
        OSError: It cannot be read.
    """
    try:
        text = Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not YAML: {one_line(error)}") from None
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_yaml(text: str) -> Any:
    """What a YAML text says; raises ValueError if it is not YAML, or has a key twice."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """PyYAML takes the last of two equal keys without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"key {key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, str(key.value)))
            return super().construct_mapping(node, deep)

    try:
        # The loader is a safe one.
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        where = ' in "<unicode string>",'
        raise ValueError(f"not YAML: {one_line(error).replace(where, ' in')}") from None


def check_target(path: PathLike) -> Path:
    """``path`` if a file can be there.

    Raises:
        OSError: It is a folder, or its folder does not exist or cannot be written to.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {target}: {target.parent} cannot be written to")
    return target


def write_atomically(path: PathLike, data: bytes) -> None:
    """Write ``data`` to ``path``: after a crash it holds the old bytes or the new ones.

    Raises:
        OSError: The folder does not exist or cannot be written to.
    """
    with replacing(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """A stream whose content takes the place of ``path`` when the block ends without an error.

    After a crash ``path`` holds the old content or the new one, and a file
    ``.<name>.*.part`` may be left beside it; :func:`remove_parts` removes those.

    Raises:
        OSError: The folder does not exist or cannot be written to.
    """
    target = check_target(path)
    # The same folder, because renaming is atomic only within a file system. Opened by name, so
    # that others may read it as any other file; the name is new, as "x" makes sure.
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    with _called(target, temporary):
        stream = open(temporary, "xb")  # noqa: SIM115
        try:
            with stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink()
            raise
    _sync_folder(target.parent)


@contextlib.contextmanager
def _called(target: Path, temporary: Path) -> Iterator[None]:
    """Errors of the temporary file name the one that was to be written."""
    try:
        yield
    except OSError as error:
        # A write, onto a full disk for example, names no file.
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None


def remove_parts(path: PathLike) -> None:
    """Remove what killed processes left of their attempts to write ``path``."""
    target = Path(path)
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        part.unlink()


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk too; the content alone is not found again after a crash."""
    if os.name == "nt":
        # Folders cannot be opened there.
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know no such thing for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
