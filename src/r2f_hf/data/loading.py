"""From a file, a folder or the Hub to rows, with every text as it stands in the file."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from .containers import Rows, as_rows


def load_rows(source: str, name: str = "data") -> Rows:
    """
    Load rows from a file, a folder or the Hub.

    Texts stay what they are: a date, a number or `NA` in a text file is read as text, and nothing is written to a
    cache, in which rows that are to be forgotten would live on. Neither is promised of a Hub dataset, which `datasets`
    downloads and reads.

    Args:
        source (`str`):
            A `.json`, `.jsonl`, `.csv`, `.tsv`, `.txt`, `.parquet` or `.arrow` file (letter case does not matter; text
            files may be gzipped, `.gz`); a folder of [`~datasets.Dataset.save_to_disk`]; or a Hub dataset as
            `owner/name`, `owner/name:config` or `owner/name:config:split` (`split` defaults to `train`). A `.txt` file
            is one document; JSON may be a list of rows, of texts, or one row per line.
        name (`str`, *optional*, defaults to `"data"`):
            Which set it is: chooses a split where a folder has several.

    Returns:
        [`~datasets.Dataset`], or a list of rows where a column of a JSON file has nested values, such as messages, or
        values of several kinds.

    Raises:
        `FileNotFoundError`: If the source looks like a file that is not there.
        `ValueError`: If a file is empty, cannot be read or is of another kind; the message never shows its text.
    """
    path = Path(source)
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    gzipped = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if gzipped else suffixes)[-1:]
    read = _READERS.get(kind[0]) if kind else None
    if read is not None and not (gzipped and kind[0] in _BINARY):
        if not path.is_file():
            raise FileNotFoundError(f"There is no data file {source}.")
        try:
            rows = read(path, gzipped)
        except UnicodeDecodeError:
            raise ValueError(f"The data file {source} is not UTF-8. Save it in UTF-8.") from None
        except _RowError as error:
            raise ValueError(f"The data file {source} is not {kind[0].removeprefix('.')}: {error}") from None
        except (ValueError, OSError, EOFError, StopIteration, DatasetGenerationError):
            rows = None
        if rows is None or len(rows) == 0:
            # Without the cause: parsers quote the text that they stumble over.
            raise ValueError(f"The data file {source} is empty or is not {kind[0].removeprefix('.')}.")
        return as_rows(rows, name)
    if path.is_dir():
        try:
            saved = load_from_disk(source, keep_in_memory=True)
        except FileNotFoundError as error:
            raise ValueError(
                f"The folder {source} was not written by `Dataset.save_to_disk`. Name one file of {_kinds()}."
            ) from error
        except IndexError as error:
            # `datasets` writes a set without rows, and cannot read it.
            raise ValueError(f"The folder {source} holds a set without rows.") from error
        return as_rows(saved, name)
    if path.is_file():
        raise ValueError(f"The data file {source} is of a kind that is not read. Files are {_kinds()}.")
    dataset, config, split = [*source.split(":"), "", ""][:3]
    return as_rows(load_dataset(dataset, config or None, split=split or "train"), name)


def _kinds() -> str:
    *first, last = _READERS
    return f"{', '.join(first)} or {last}, text files also with .gz"


class _RowError(ValueError):
    """What is wrong with a row, by its number and never by its text."""


def _read_text(path: Path, gzipped: bool) -> str:
    with gzip.open(path, "rb") if gzipped else open(path, "rb") as file:
        content = file.read()
    if b"\0" in content:
        # UTF-16 without its mark can be read as UTF-8 with a zero after each letter.
        raise UnicodeDecodeError("utf-8", b"", 0, 0, "zero byte")
    return content.decode("utf-8-sig")


def _read_json(path: Path, gzipped: bool) -> Rows | None:
    text = _read_text(path, gzipped)
    written, meant = _parse(text, str, str), _parse(text, int, float)
    if isinstance(written, dict) and all(map(_is_column, written.values())):
        return as_rows(written, path.name)
    if isinstance(written, dict):
        written, meant = [written], [meant]
    if not isinstance(written, list) or not written:
        return None
    # A row may lack a column that others have.
    written = [{"text": row} if isinstance(row, str) else row for row in written]
    if not all(isinstance(row, dict) for row in written):
        return None
    if any(_is_nested(value) for row in written for value in row.values()):
        # Arrow would give each message and each tool the keys of all others.
        return [
            {column: _with_numbers(value, other[column]) for column, value in row.items()}
            if isinstance(other, dict)
            else row
            for row, other in zip(written, meant, strict=True)
        ]
    try:
        return Dataset.from_list(written)
    except (ValueError, TypeError, NotImplementedError, OverflowError):
        # A column with values of several kinds, which Arrow does not hold. The check of the rows names the row.
        return written


def _parse(text: str, integer: Callable[[str], Any], real: Callable[[str], Any]) -> Any:
    """JSON, or one value per line. With `str`, numbers stay as they are written, trailing zeros included."""
    parse: Callable[[str], Any] = json.JSONDecoder(parse_int=integer, parse_float=real, parse_constant=str).decode
    try:
        return parse(text)
    except json.JSONDecodeError:
        # Not by `splitlines`, which also cuts at line ends of Unicode that a text may have.
        return [parse(line) for line in text.split("\n") if line.strip()]


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_is_nested, value)))


def _with_numbers(written: Any, meant: Any) -> Any:
    """A value of a row: texts as they are written, and numbers inside of tools and their calls as numbers."""
    if not _is_nested(written):
        return written
    if isinstance(written, dict):
        texts = {key: written[key] for key in ("content", "value") if key in written and not _is_nested(written[key])}
        return meant | texts
    return [
        _with_numbers(*pair) if isinstance(pair[0], dict) else pair[1] for pair in zip(written, meant, strict=True)
    ]


def _is_column(value: Any) -> bool:
    """Whether a value of a JSON object is a column of a set, and not a text or the messages of one row."""
    return isinstance(value, list) and not any(isinstance(each, dict) for each in value)


def _read_csv(path: Path, gzipped: bool) -> Dataset:
    return _table(_quoted_records(_read_text(path, gzipped), ","))


def _read_tsv(path: Path, gzipped: bool) -> Dataset:
    """
    Tab-separated values, which have no one rule for quotes.

    If each line has as many fields as the header, lines are rows. Their quotes are then taken off only if all fields
    that begin with one are quoted as in CSV. Otherwise the file has to be CSV with tabs. A file of a single column is
    CSV if it can be.
    """
    text = _read_text(path, gzipped)
    lines = [(line.split("\t"), number) for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1) if line]
    sizes = {len(fields) for fields, _ in lines}
    if sizes == {1} and '"' in text:
        # Any line has as many fields as the header.
        with contextlib.suppress(_RowError):
            return _table(_quoted_records(text, "\t"))
    if len(sizes) > 1 and '"' in text:
        # A quote that is a text's own could take in the rest of its line, which a lack of fields shows.
        return _table(_quoted_records(text, "\t"), may_lack_fields=False)
    if all(_QUOTED.fullmatch(field) for fields, _ in lines for field in fields if field.startswith('"')):
        lines = [([_unquoted(field) for field in fields], number) for fields, number in lines]
    return _table(lines)


_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if field.startswith('"') else field


def _quoted_records(text: str, separator: str) -> list[tuple[list[str], int]]:
    """The records of a table with CSV's quotes (RFC 4180), each with the number of its last line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    before, records = csv.field_size_limit(2**31 - 1), []
    try:
        for fields in reader:
            if fields:
                records.append((fields, reader.line_num))
    except csv.Error:
        number = max(len(records) - 1, 0)
        raise _RowError(
            f"the quotes of row {number} (line {reader.line_num}) do not match. Write a quote inside "
            "of a quoted text twice."
        ) from None
    finally:
        csv.field_size_limit(before)
    return records


def _table(records: list[tuple[list[str], int]], may_lack_fields: bool = True) -> Dataset:
    """Rows from the fields of a header and of records, each with the number of its line."""
    if not records:
        raise ValueError
    header = [name or f"unnamed {column}" for column, name in enumerate(records[0][0])]
    if len(set(header)) < len(header):
        raise _RowError("its header has two columns of the same name. Rename one.")
    for number, (fields, line) in enumerate(records[1:]):
        if len(fields) > len(header) or (len(fields) < len(header) and not may_lack_fields):
            raise _RowError(
                f"row {number} (line {line}) has {len(fields)} fields, and the header {len(header)}. Put a text that "
                "has the separator in it in quotes."
            )
        fields += [None] * (len(header) - len(fields))
    columns = zip(*(fields for fields, _ in records[1:]), strict=True)
    return Dataset.from_dict(dict(zip(header, map(list, columns), strict=True)) if len(records) > 1 else {})


def _read_document(path: Path, gzipped: bool) -> Dataset | None:
    text = _read_text(path, gzipped)
    return Dataset.from_dict({"text": [text]}) if text.strip() else None


def _read_binary(builder: str) -> Callable[[Path, bool], Dataset]:
    def read(path: Path, gzipped: bool) -> Dataset:
        with tempfile.TemporaryDirectory() as cache:
            return load_dataset(builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True)

    return read


_READERS: dict[str, Callable[[Path, bool], Rows | None]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_document,
    ".parquet": _read_binary("parquet"),
    ".arrow": _read_binary("arrow"),
}
_BINARY = (".parquet", ".arrow")
