"""How values are displayed on a page. Text of people and agents is escaped here."""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from django.apps import apps
from django.db import models
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from accounts.models import ApiKey, Member

NOTHING = "\u2013"
# A line `"key": value` of json.dumps(indent=...).
_LINE = re.compile(r'(\s*)("(?:[^"\\]|\\.)*")(: )?(.*)', re.DOTALL)
MAX_SHOWN = 200_000  # characters of one value


def when(moment: datetime | None) -> SafeString | str:
    """20 Nov 2026, 16:38; the exact moment on hover."""
    if moment is None:
        return NOTHING
    return format_html(
        '<time class="am-when" datetime="{0}" title="{0}">{1}</time>',
        moment.isoformat(timespec="seconds"),
        date_format(timezone.localtime(moment), "j M Y, H:i"),
    )


def duration(start: datetime | None, end: datetime | None) -> str:
    """1.2 s, 3 min 20 s, 2 h 5 min."""
    if start is None or end is None:
        return NOTHING
    seconds = (end - start).total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clipped(text: str | None, characters: int = 160) -> SafeString | str:
    """One line, truncated with an ellipsis."""
    if not text:
        return NOTHING
    line = " ".join(text[: characters + 1].split())
    if len(text) > characters:
        line = f"{line[:characters]}…"
    return format_html('<span class="am-clip">{}</span>', line)


def long_text(text: str | None) -> SafeString | str:
    """The text with its line breaks."""
    if not text:
        return NOTHING
    rest = "…" if len(text) > MAX_SHOWN else ""
    return format_html('<div class="am-text">{}{}</div>', text[:MAX_SHOWN], rest)


def code(text: str | None) -> SafeString | str:
    return format_html('<code class="am-code">{}</code>', text) if text else NOTHING


def badge(text: str, kind: str = "") -> SafeString:
    """`kind`: good, bad, warn, info, or empty."""
    return format_html('<span class="am-badge {}">{}</span>', kind and f"am-{kind}", text)


def badges(words: Iterable[str]) -> SafeString | str:
    return format_html_join(" ", "{}", ((badge(word),) for word in words)) or NOTHING


def json_tree(value: Any) -> SafeString | str:
    """Indented JSON, with keys in another colour than values."""
    if value in (None, {}, []):
        return NOTHING
    text = json.dumps(value, indent=2, ensure_ascii=False)
    lines = format_html_join("\n", "{}", ((_json_line(line),) for line in _lines(text)))
    return format_html('<pre class="am-json">{}</pre>', lines)


def folded_json(value: Any, summary: str) -> SafeString | str:
    if value in (None, {}, []):
        return ""
    return format_html(
        '<details class="am-fold"><summary>{}</summary>{}</details>', summary, json_tree(value)
    )


def _lines(text: str) -> list[str]:
    rest = ["…"] if len(text) > MAX_SHOWN else []
    return text[:MAX_SHOWN].split("\n") + rest


def _json_line(line: str) -> SafeString:
    match = _LINE.fullmatch(line)
    if match is None:
        return format_html("{}", line)
    indent, quoted, colon, rest = match.groups()
    kind = "am-key" if colon else "am-string"
    return format_html('{}<span class="{}">{}</span>{}{}', indent, kind, quoted, colon or "", rest)


def url_of(record: models.Model, page: str = "change") -> str:
    """The record's page in the console. Raises: NoReverseMatch, if its model has none."""
    meta = record._meta
    return reverse(f"admin:{meta.app_label}_{meta.model_name}_{page}", args=[record.pk])


def list_url(model: type[models.Model], **filters: Any) -> str:
    meta = model._meta
    query = {key: str(value) for key, value in filters.items()}
    return reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist", query=query)


def link(record: models.Model | None, text: str = "") -> SafeString | str:
    if record is None:
        return NOTHING
    try:
        url = url_of(record)
    except NoReverseMatch:
        return text or str(record)
    return format_html('<a class="am-link" href="{}">{}</a>', url, text or str(record))


def resource_link(name: str, record_id: UUID | None) -> SafeString | str:
    """The resource of an audit event, by its model's name; a link if it has a page."""
    model = next((m for m in apps.get_models() if m._meta.model_name == name), None)
    label = str(model._meta.verbose_name) if model else name
    if model is None or record_id is None:
        return label
    return link(model(pk=record_id), label)


def names_of(ids: Iterable[Any], organization: Any) -> dict[Any, str]:
    """The names of these members and keys, by id. Two statements."""
    wanted = {i for i in ids if i}
    if not wanted:
        return {}
    keys = ApiKey.objects.for_organization(organization).filter(pk__in=wanted)
    names = {key.pk: f"{key.name} (key)" for key in keys.only("name")}
    # A platform superuser, who has no organization, may have made changes too.
    members = Member.objects.filter(
        models.Q(organization=organization) | models.Q(organization=None), pk__in=wanted
    )
    return names | {m.pk: str(m) for m in members.only("name", "email")}


def counted(counts: Mapping[str, int], *, at_most: int) -> str:
    """{"agent": 1, "run": 12} -> "1 agent, 12 runs"; beyond `at_most`, "more than 1,000 runs"."""
    models_by_name = {str(m._meta.model_name): m._meta for m in apps.get_models()}
    parts = []
    for name, number in reversed(list(counts.items())):  # services start with the dependents
        meta = models_by_name.get(name)  # None if an old event names a former model
        noun = name if meta is None else meta.verbose_name_plural
        if meta is not None and number == 1:
            noun = meta.verbose_name
        parts.append(f"more than {at_most:,} {noun}" if number > at_most else f"{number:,} {noun}")
    return ", ".join(parts)


def change_words(changes: Any) -> str:
    """The changes of an audit event as text: "status: active → inactive, 3 runs".

    Accepts any JSON: older events have other shapes than accounts/services/audit.py writes now.
    """
    if not isinstance(changes, Mapping):
        return _plain(changes) if changes else ""
    parts = []
    for name, value in changes.items():
        if name == "fields":
            parts += _field_words(value)
        elif name == "rows" and _are_counts(value):
            parts.append(counted(value, at_most=10**9))
        elif name != "ids" and value:
            parts.append(f"{_label(name)}: {_plain(value)}")
    return ", ".join(part for part in parts if part)


def _field_words(fields: Any) -> list[str]:
    if isinstance(fields, list) and all(isinstance(name, str) for name in fields):
        return [_label(name) for name in fields]
    if not isinstance(fields, Mapping):
        return [f"fields: {_plain(fields)}"] if fields else []
    parts = []
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == 2:
            parts.append(f"{_label(name)}: {_plain(value[0])} → {_plain(value[1])}")
        else:
            parts.append(_label(name) if value is None else f"{_label(name)}: {_plain(value)}")
    return parts


def _are_counts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(number) is int for number in value.values())


def _label(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    """A string unchanged, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
