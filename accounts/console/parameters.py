"""The URL parameters that a page of the console accepts. Others are refused by name, before any
query: an undeclared look-up such as `?password__regex=` could read a column letter by letter, or
keep a thread busy for minutes.

A page declares the names, each with a check of its values.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from django.contrib.admin import FieldListFilter, ListFilter, SimpleListFilter
from django.contrib.admin.utils import get_fields_from_path
from django.core.exceptions import TooManyFieldsSent, ValidationError
from django.db import models
from django.http import HttpRequest, QueryDict

Check = Callable[[str], bool]
Parameters = Mapping[str, Check]

MAX_TEXT = 1_000  # characters of a search
MAX_ADDRESS = 16_000  # characters of a URL in a parameter
MAX_NAME = 100  # displayed characters of a refused parameter's name
UNKNOWN = "This page has no such parameter."
BAD_VALUE = "The value is not valid."


class RefusedParameters(Exception):
    """The URL has parameters that the page does not accept. `reasons`: by parameter name."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{_shown(name)}: {why}" for name, why in reasons.items()))
        self.reasons = reasons

    @property
    def shown(self) -> list[tuple[str, str]]:
        return [(_shown(name), why) for name, why in self.reasons.items()]


def parameters_of(request: HttpRequest) -> QueryDict:
    """Raises: RefusedParameters (more parameters than a request may have)."""
    try:
        return request.GET
    except TooManyFieldsSent as error:
        raise RefusedParameters({"": "There are too many parameters."}) from error


def check_parameters(request: HttpRequest, declared: Parameters) -> None:
    """Raises: RefusedParameters (undeclared names, invalid values)."""
    if refused := refusals(parameters_of(request), declared):
        raise RefusedParameters(refused)


def check_sent(request: HttpRequest, declared: Parameters) -> None:
    """The same for POST data; the form itself checks other names."""
    refused = {
        name: BAD_VALUE
        for name, check in declared.items()
        if not _fit(request.POST.getlist(name), check)
    }
    if refused:
        raise RefusedParameters(refused)


def refusals(query: QueryDict, declared: Parameters) -> dict[str, str]:
    """The refused parameters, each with the reason."""
    reasons = {}
    for name, values in query.lists():
        if name not in declared:
            reasons[name] = UNKNOWN
        elif not _fit(values, declared[name]):
            reasons[name] = BAD_VALUE
    return reasons


def takes(**declared: Check) -> Callable[[Any], Any]:
    """Declares the parameters of a view of the site. Without it a view accepts none."""

    def declare(view: Any) -> Any:
        view.takes = declared
        return view

    return declare


def _fit(values: Iterable[str], check: Check) -> bool:
    return all("\0" not in value and check(value) for value in values)


def _shown(name: str) -> str:
    return name.replace("\0", "\N{REPLACEMENT CHARACTER}")[:MAX_NAME]


# -- checks of values (without NUL bytes) ---------------------------------------------------------


def is_text(value: str) -> bool:
    return len(value) <= MAX_TEXT


def is_address(value: str) -> bool:
    return len(value) <= MAX_ADDRESS


def is_flag(value: str) -> bool:
    return value in ("", "1")


def is_number(value: str) -> bool:
    """A page number from 1, or empty."""
    return value == "" or re.fullmatch("0*[1-9][0-9]{0,8}", value) is not None


def is_id(value: str) -> bool:
    try:
        UUID(value)
    except ValueError:
        return False
    return True


def one_of(*values: Any) -> Check:
    known = {str(value) for value in values}
    return lambda value: value in known


def fits(column: Any) -> Check:
    """Values that the column's own validation accepts, and empty."""
    column = column.target_field if column.is_relation else column

    def check(value: str) -> bool:
        try:
            return value == "" or column.clean(value, None) is not None
        except (ValidationError, ValueError, TypeError, OverflowError):
            return False

    return check


# -- parameters of list filters -------------------------------------------------------------------


def filter_parameters(page: Any, request: HttpRequest) -> dict[str, Check]:
    """The parameters of the filters in a ModelAdmin's `list_filter`. A filter may check values in
    a method `takes(name, value)`. Otherwise its choices are valid, or what its column can hold."""
    return {
        name: _check_of(spec, name)
        for spec in _filters(page, request)
        for name in spec.expected_parameters()
        if name is not None
    }


def _filters(page: Any, request: HttpRequest) -> Iterator[ListFilter]:
    """As a ChangeList creates them (django.contrib.admin.views.main), without parameters."""
    for declared in page.get_list_filter(request):
        if callable(declared):
            spec = declared(request, {}, page.model, page)
        else:
            path, kind = declared, FieldListFilter.create
            if isinstance(declared, tuple | list):
                path, kind = declared
            column = get_fields_from_path(page.model, path)[-1]
            spec = kind(column, request, {}, page.model, page, field_path=path)
        if spec is not None:
            yield spec


def _check_of(spec: Any, name: str) -> Check:
    if hasattr(spec, "takes"):
        return partial(spec.takes, name)
    if isinstance(spec, SimpleListFilter):
        return one_of("", *(value for value, _ in spec.lookup_choices))
    column: models.Field[Any, Any] | None = getattr(spec, "field", None)
    if column is None:
        return is_text
    if name.endswith("__isnull"):
        return one_of("", "0", "1", "False", "True") if column.null else one_of("")
    fitting = fits(column)
    return lambda value: is_text(value) and fitting(value)
