"""The parameters that the pages of a model accept in the URL and in POST data."""

from collections.abc import Mapping
from typing import Any

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IS_POPUP_VAR, TO_FIELD_VAR
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.views.main import (
    ALL_VAR,
    ERROR_FLAG,
    ORDER_VAR,
    PAGE_VAR,
    SEARCH_VAR,
)
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.http import HttpRequest, QueryDict

from accounts.console.parameters import (
    Check,
    check_parameters,
    check_sent,
    filter_parameters,
    fits,
    is_address,
    is_flag,
    is_id,
    is_number,
    is_text,
    one_of,
    refusals,
)
from accounts.console.rows import TenantRows

PRESERVED = "_changelist_filters"  # the parameters of the list that a page was opened from


class CheckedParameters(TenantRows):
    """Checks the parameters of a request before its view runs."""

    # Further parameters of the page of one row.
    takes: Mapping[str, Check] = {}

    def check_request(self, request: HttpRequest, view: str) -> None:
        """Called before each view; `view` is the method's name: `changelist_view`, `add_view`, ...

        Raises: RefusedParameters.
        """
        if view == "changelist_view":
            check_parameters(request, self.list_parameters(request))
            check_sent(request, self._sent_by_list)
        else:
            check_parameters(request, self.page_parameters(request, view))
            check_sent(request, {TO_FIELD_VAR: self._takes_key})

    def list_parameters(self, request: HttpRequest) -> dict[str, Check]:
        return {
            SEARCH_VAR: is_text,
            ORDER_VAR: self._order_of(request),
            PAGE_VAR: is_number,
            ALL_VAR: is_flag,
            ERROR_FLAG: is_flag,
            IS_POPUP_VAR: is_flag,
            TO_FIELD_VAR: self._takes_key,
            **filter_parameters(self, request),
        }

    def page_parameters(self, request: HttpRequest, view: str) -> dict[str, Check]:
        declared: dict[str, Check] = {
            PRESERVED: lambda value: self._takes_preserved(request, value),
            IS_POPUP_VAR: is_flag,
            TO_FIELD_VAR: self._takes_key,
        }
        match view:
            case "add_view":
                declared |= {name: fits(c) for name, c in self._filled_in(request).items()}
            case "change_view":
                declared |= self.takes
                declared |= dict.fromkeys(self._pages_of_inlines(request), is_number)
            case "history_view":
                declared[PAGE_VAR] = is_number
        return declared

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Django's own check would accept look-ups of every local column."""
        return request is not None and not refusals(
            _query({lookup: value}), self.list_parameters(request)
        )

    def to_field_allowed(self, request: HttpRequest, to_field: str) -> bool:
        return self._takes_key(to_field)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        columns = self._filled_in(request)
        return {
            name: columns[name].to_python(value)
            for name, value in request.GET.items()
            if name in columns and value
        }

    def _filled_in(self, request: HttpRequest) -> dict[str, Any]:
        """The columns whose initial value the URL of the add form may set."""
        shown = set(flatten_fieldsets(self.get_fieldsets(request)))
        shown -= set(self.get_readonly_fields(request))
        return {
            column.name: column
            for column in self.opts.concrete_fields
            if column.name in shown and not isinstance(column, models.JSONField | ArrayField)
        }

    def _pages_of_inlines(self, request: HttpRequest) -> list[str]:
        paged = [inline for inline in self.get_inline_instances(request) if inline.per_page]
        return [f"{i.get_formset(request).get_default_prefix()}-page" for i in paged]

    def _takes_key(self, value: str) -> bool:
        """`to_field` may only be the primary key."""
        return value in ("", self.opts.pk.name)

    def _takes_preserved(self, request: HttpRequest, value: str) -> bool:
        return is_address(value) and not refusals(QueryDict(value), self.list_parameters(request))

    def _order_of(self, request: HttpRequest) -> Check:
        """Only `sortable_by` columns: others have no index."""
        columns = [*self.get_list_display(request)]
        if self.get_actions(request):
            columns.insert(0, "action_checkbox")
        offered = self.get_sortable_by(request)
        numbers = {str(number) for number, column in enumerate(columns) if column in offered}
        return lambda value: (
            value == ""
            or (is_text(value) and all(n.removeprefix("-") in numbers for n in value.split(".")))
        )

    @property
    def _sent_by_list(self) -> dict[str, Check]:
        return {
            ACTION_CHECKBOX_NAME: is_id,
            "action": is_text,
            "index": is_text,
            "select_across": one_of("", "0"),  # only rows that were shown
            TO_FIELD_VAR: self._takes_key,
        }


def _query(values: Mapping[str, str]) -> QueryDict:
    query = QueryDict(mutable=True)
    query.update(values)
    return query
