"""Small files that are there whole or not at all."""

from etils import epath


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
    """Writes `content` under a temporary name beside `path`, then renames: a reader meets the old file or the new."""
    path = epath.Path(path)
    partial = path.parent / f"{path.name}.tmp"
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
