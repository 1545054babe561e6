"""Digests of the values that a form has shown, in a signed hidden field. They show which fields the
person has edited, and which ones somebody else has changed since.

A field is edited if the browser sends another value than it does from the unchanged form. (Digests,
because the values themselves would double the size of the form.)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from django import forms
from django.core import signing

from accounts.services.seen import digest

_SALT = "accounts.console.shown"


class FieldDigests(NamedTuple):
    sent: str  # digest of the value that the browser sends from the unchanged field
    stored: str  # digest_of() the column


def sign_digests(record_id: Any, fields: Mapping[str, FieldDigests]) -> str:
    return signing.dumps([str(record_id), fields], salt=_SALT)


def read_digests(text: Any, record_id: Any) -> dict[str, FieldDigests]:
    """Empty if there is no valid signature, or it belongs to another row."""
    try:
        signed_id, fields = signing.loads(str(text or ""), salt=_SALT)
    except signing.BadSignature:
        return {}
    if signed_id != str(record_id):
        return {}
    return {name: FieldDigests(*both) for name, both in fields.items()}


def sent_digest(value: Any) -> str:
    """The digest of a value from the browser, which sends each line break as CR LF."""
    return digest(_with_plain_breaks(value))


def browser_value(bound: forms.BoundField) -> Any:
    """The value that the browser sends from the unchanged field, in the form of `bound.data`."""
    return _sent(bound.field.widget, bound.field.prepare_value(bound.initial))


def put(data: Any, bound: forms.BoundField, sent: Any) -> None:
    """Writes a browser_value() to a form's data."""
    _put(data, _plain(bound.field.widget), bound.html_name, sent)


def _plain(widget: Any) -> Any:
    """The widget without the admin's wrapper for references."""
    return getattr(widget, "widget", widget)


def _sent(widget: Any, value: Any) -> Any:
    widget = _plain(widget)
    if isinstance(widget, forms.CheckboxInput):
        return bool(widget.check_test(value))
    if isinstance(widget, forms.MultiWidget):
        parts: Any = widget.decompress(value)
        return [_sent(part, one) for part, one in zip(widget.widgets, parts, strict=True)]
    shown = widget.format_value(value)
    if isinstance(widget, forms.widgets.ChoiceWidget):
        return shown if widget.allow_multiple_selected else next(iter(shown), "")
    if shown is None:
        return ""
    if isinstance(widget, forms.Textarea):
        return shown
    line = str(shown).replace("\r", "").replace("\n", "")  # an input has one line
    return line.strip() if widget.input_type == "email" else line


def _put(data: Any, widget: Any, name: str, sent: Any) -> None:
    if isinstance(widget, forms.MultiWidget):
        suffixes = widget.widgets_names  # type: ignore[attr-defined]
        for part, suffix, one in zip(widget.widgets, suffixes, sent, strict=True):
            _put(data, part, name + suffix, one)
    elif sent is False:  # an unchecked box is not sent
        data.pop(name, None)
    elif isinstance(sent, list):
        data.setlist(name, sent)
    else:
        data[name] = "on" if sent is True else sent


def _with_plain_breaks(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_with_plain_breaks(one) for one in value]
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    return "" if value is None else value
