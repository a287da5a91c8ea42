"""Which fields of a row hold its text, its id and its URL, and which stay with the document.

Names may be dotted, ``metadata.url``; see `data.readers.metadata.lookup`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.errors import UserError
from data.documents import REMOVED_FIELDS, SCHEMA
from data.readers import conversations
from data.readers.metadata import ALL, keep, lookup
from data.readers.records import MAX_RECORD_BYTES, Corrupt, Item, RawRecord, RowNotes

# Tried in this order when no name is given; pairs of `data.readers.conversations` come last.
HTML_FIELDS = ("html", "raw_html")
TEXT_FIELDS = ("text", *conversations.FIELDS, "content", "raw_content", "contents", "body",
               "page_content", "document", "article", "passage", "markdown", "code", *HTML_FIELDS)
ID_FIELDS = ("id", "doc_id", "_id", "uuid", "hexsha")
URL_FIELDS = ("source", "url", "uri", "link", "metadata.url", "meta.url")
DOMAIN_FIELD = "domain"
TAKEN = {*SCHEMA.names, *REMOVED_FIELDS}
ABSENT = "no field"
MAX_NAMES = 20          # of a row without a text, for the message


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the fields of rows; an empty name stands for the usual ones.

    Attributes:
        text, id, url, domain: of the document's text, id, source and domain.
        meta: names of the fields that stay with the document; see `data.readers.metadata.keep`.
    """

    text: str = ""
    id: str = ""
    url: str = ""
    domain: str = ""
    meta: tuple[str, ...] = (ALL,)

    @property
    def named(self) -> tuple[str, ...]:
        """All names that the config gives, without the text's."""
        names = (self.id, self.url, self.domain, *self.meta)
        return tuple(dict.fromkeys(name for name in names if name and name != ALL))

    def select(self, columns: Iterable[str]) -> list[str]:
        """Those columns of a table, or fields of its structs, dotted, that are needed."""
        if ALL in self.meta:
            return list(columns)
        names = {*((self.text,) if self.text else (*TEXT_FIELDS, *conversations.PAIR_FIELDS)),
                 *((self.id,) if self.id else ID_FIELDS),
                 *((self.url,) if self.url else URL_FIELDS),
                 self.domain or DOMAIN_FIELD, *self.meta}
        return [name for column in columns for name in
                ([column] if column in names else
                 sorted(name for name in names if name.startswith(f"{column}.")))]


USUAL = Fields()


def from_config(section: Mapping[str, Any]) -> Fields:
    """The fields that ``config.curate`` names.

    Raises:
        UserError: a name is no string, or a column would replace one of the corpus.
    """
    for field in ("text_field", "id_field", "url_field"):
        _check_name(f"curate.{field}", section[field])
    columns = dict(section["columns"])
    for column, name in columns.items():
        _check_name(f"curate.columns.{column}", name)
        if (column in TAKEN and column != DOMAIN_FIELD) or not name:
            raise UserError(f"curate.columns={columns!r}",
                            f"{column!r} is a column of every corpus" if name else
                            f"{column!r} names no field",
                            "name a new column, or `domain`, and the field that it is taken from")
    domain = columns.pop(DOMAIN_FIELD, "")
    given = section["meta_fields"]
    names = [part.strip() for name in ([given] if isinstance(given, str) else given)
             for part in _check_name("curate.meta_fields", name).split(",")]
    return Fields(section["text_field"], section["id_field"], section["url_field"], domain,
                  tuple(dict.fromkeys(filter(None, [*names, *columns.values()]))))


def _check_name(field: str, name: Any) -> str:
    if not isinstance(name, str):
        raise UserError(f"{field}={name!r}", "is not the name of a field", "write a string")
    return name


def make_record(row: Mapping[str, Any], place: str, kind: str, fields: Fields,
                unread: Sequence[str] = ()) -> Item:
    """The record of a row, or the reason why it has no text.

    Args:
        place: the row's file and position, its source if no field gives one.
        kind: of the file, for the reason.
        unread: columns of the file that are not in the row: images, for example.
    """
    used, text, problem = _find_text(row, fields.text)
    if problem:
        names = tuple(sorted(map(str, row))[:MAX_NAMES]) if problem.startswith(ABSENT) else ()
        return Corrupt(place, f"{kind}: {problem}", fields=names)
    if len(text) > MAX_RECORD_BYTES:
        return Corrupt(place, f"{kind}: record is too large")
    is_conversation = len(used) > 1 or _is_conversation(lookup(row, used[0]), used[0])
    domain = _find_string(row, [fields.domain or DOMAIN_FIELD]) or (
        conversations.DOMAIN if is_conversation else None)
    source = _find_string(row, [fields.url]) if fields.url else _find_source(row)
    meta, cut = keep(row, used, fields.meta)
    missing = tuple(name for name in fields.named if lookup(row, name) is None)
    return RawRecord(source or place, text,
                     "text/html" if used[0].rpartition(".")[2] in HTML_FIELDS else "text/plain",
                     domain, _find_string(row, [fields.id] if fields.id else ID_FIELDS),
                     meta=meta, notes=RowNotes(", ".join(used), missing, (*cut, *unread)))


def _find_text(row: Mapping[str, Any],
               name: str) -> tuple[tuple[str, ...], str | bytes, str]:
    """The fields that hold a text, the text, and what is wrong if there is none."""
    empty, problem = (), ""
    for field in (name,) if name else TEXT_FIELDS:
        value = lookup(row, field)
        text = None if value is None else _as_text(value, field, row)
        if text:
            return (field,), text, ""
        if text is not None:
            empty = empty or (field,)
        elif value is not None:
            problem = problem or ("messages are not roles and contents"
                                  if field in conversations.FIELDS or isinstance(value, list)
                                  else f"`{field}` is not a string")
    if not name and (pair := conversations.render_pair(row)):
        return *pair, ""
    if empty:
        return empty, "", ""
    absent = f"{ABSENT} `{name}`" if name else f"{ABSENT} `text` or `messages`"
    return (), "", problem or absent


def _as_text(value: Any, field: str, row: Mapping[str, Any]) -> str | bytes | None:
    """A field's value as text: a string, bytes, paragraphs, parts of a content, or messages."""
    if _is_conversation(value, field):
        system = next((row[name] for name in conversations.SYSTEM_FIELDS if row.get(name)), None)
        return conversations.render(value, system)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n\n".join(value)
    return value if isinstance(value, bytes) else conversations.content_text(value)


def _is_conversation(value: Any, field: str) -> bool:
    return field in conversations.FIELDS or (bool(value) and isinstance(value, list) and all(
        isinstance(part, dict) and "type" not in part for part in value))


def _find_string(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of some fields that has a value, as a string."""
    value = next((value for name in names if (value := lookup(row, name)) not in (None, "")), None)
    return None if value is None else _as_string(value)


def _as_string(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _find_source(row: Mapping[str, Any]) -> str:
    """The first URL of the usual fields, else the first of them: the name of a collection."""
    first = ""
    for name in URL_FIELDS:
        if value := lookup(row, name):
            value = _as_string(value)
            if "://" in value:
                return value
            first = first or value
    return first
