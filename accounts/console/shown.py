"""What a form has shown, carried along by it: so a save writes what the person has changed, and
knows where somebody else has meanwhile.

A field is touched where the browser sends another text than it does from the form as it was shown.
Values would double the form: digests of them go along, signed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from django import forms
from django.core import signing

from accounts.services.seen import digest

_SALT = "accounts.console.shown"


class Shown(NamedTuple):
    sent: str  # digest of what the browser sends from the untouched field
    stored: str  # digest_of() the column


def sealed(record_id: Any, fields: Mapping[str, Shown]) -> str:
    return signing.dumps([str(record_id), fields], salt=_SALT)


def unsealed(text: Any, record_id: Any) -> dict[str, Shown]:
    """Empty where nothing was carried along, or not of this row, or not by this server."""
    try:
        whose, fields = signing.loads(str(text or ""), salt=_SALT)
    except signing.BadSignature:
        return {}
    if whose != str(record_id):
        return {}
    return {name: Shown(*both) for name, both in fields.items()}


def sent_digest(value: Any) -> str:
    """Of what came from the browser, or would come. Each line break is sent as CR LF."""
    return digest(_with_plain_breaks(value))


def as_sent(bound: forms.BoundField) -> Any:
    """What the browser sends from the field as it shows the row, in the shape of `bound.data`."""
    return _sent(bound.field.widget, bound.field.prepare_value(bound.initial))


def put(data: Any, bound: forms.BoundField, sent: Any) -> None:
    """Writes what as_sent() gave into a form's data."""
    _put(data, _plain(bound.field.widget), bound.html_name, sent)


def _plain(widget: Any) -> Any:
    """Without what the admin wraps around the widget of a reference."""
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
    line = str(shown).replace("\r", "").replace("\n", "")  # an input is of one line
    return line.strip() if widget.input_type == "email" else line


def _put(data: Any, widget: Any, name: str, sent: Any) -> None:
    if isinstance(widget, forms.MultiWidget):
        suffixes = widget.widgets_names  # type: ignore[attr-defined]
        for part, suffix, one in zip(widget.widgets, suffixes, sent, strict=True):
            _put(data, part, name + suffix, one)
    elif sent is False:  # a box without its tick is not sent
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
