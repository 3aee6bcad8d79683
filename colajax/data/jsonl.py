"""Writing texts as .jsonl, the corpus format: one {"text": ...} a line, UTF-8."""

import json
from collections.abc import Iterable

from etils import epath

from colajax.errors import UserError
from colajax.files import whole


def write_jsonl(path: epath.PathLike, texts: Iterable[str]) -> None:
    """Writes the texts under a temporary sibling and renames it to `path` (local or gs://) when all are written.

    Raises UserError when the file cannot be written; whatever is raised, `path` is as it was.
    """
    try:
        with whole(path) as unfinished, unfinished.open("w") as lines:
            for text in texts:
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); give a path that you may write"
        ) from error
