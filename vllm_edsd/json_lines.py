"""Files of JSON lines, gzipped or not, each line an object of one schema."""

import codecs
import gzip
import json
import zlib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from vllm_edsd.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


def read_lines(path: Path, model: type[Model], what: str, keys: str, example: str) -> list[Model]:
    """The lines of a file, at least one; empty ones are passed over.

    `what` the file is ("prompt file"), the `keys` of a line and an `example` of one are for messages. Raises UserError,
    naming the file and line, for a missing, unreadable, empty or malformed file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist; give a .jsonl or .jsonl.gz file with {keys}")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            lines = file.read().removeprefix(codecs.BOM_UTF8).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{what} {path} is not readable: {error}; give UTF-8 JSON lines, gzipped or not") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"{what} {path} is empty; each line must be a JSON object with {keys}")
    return [_parse(line, f"{path}:{number}", model, keys, example) for number, line in numbered]


def _parse(line: bytes, place: str, model: type[Model], keys: str, example: str) -> Model:
    try:
        return model.model_validate(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 ({error.reason}, byte {error.start + 1}); mend or delete the line") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON ({error.msg}, column {error.colno}); mend or delete the line") from None
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        field = ".".join(str(part) for part in first["loc"]) or "line"
        raise UserError(
            f"{place}: field {field!r}: {reason} (got {str(first['input'])[:80]!r}); a line is a JSON object with "
            f"{keys}, as in {example}"
        ) from None
