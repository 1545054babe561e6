"""Lists that stay cheap on big tables: the paginator, the list itself, its filters."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.contrib.admin import FieldListFilter
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR
from django.core.paginator import Paginator
from django.http import HttpRequest
from django.utils.functional import cached_property
from unfold.contrib.filters.admin import DropdownFilter, RangeDateFilter
from unfold.contrib.filters.forms import SearchForm
from unfold.utils import parse_date_str
from unfold.views import ChangeList

from accounts.console.parameters import RefusedParameters, is_text

COUNT_BOUND = 10_000


def search_term(text: str) -> str:
    """The search term that a person typed, without NUL bytes, which PostgreSQL refuses."""
    return text.replace("\0", "").strip()


class BoundedPaginator(Paginator):
    """Counts up to COUNT_BOUND, and has no pages beyond it."""

    template_name = "console/pagination.html"

    @cached_property
    def counted(self) -> int:
        rows: Any = self.object_list
        if not hasattr(rows, "query"):
            return len(rows)
        return rows.order_by().values("pk")[: COUNT_BOUND + 1].count()

    @property
    def count(self) -> int:
        return min(self.counted, COUNT_BOUND)

    @property
    def total(self) -> str:
        """For people: "1,234", "more than 10,000"."""
        return f"{'more than ' if self.counted > COUNT_BOUND else ''}{self.count:,}"


class TenantChangeList(ChangeList):
    def _get_default_ordering(self) -> list[str]:
        """None besides get_ordering(): only columns with an index are sortable."""
        return []

    def get_filters_params(self, params: Any = None) -> dict[str, Any]:
        """Without empty parameters: a form sends its empty fields too."""
        filters = super().get_filters_params(params)
        return {name: values for name, values in filters.items() if any(values)}

    def get_results(self, request: HttpRequest) -> None:
        try:
            super().get_results(request)
        except IncorrectLookupParameters as error:
            raise RefusedParameters({PAGE_VAR: "There is no such page."}) from error
        # The header shows the number of results of a search or filter.
        is_filtered = bool(self.query) or self.has_active_filters
        self.full_result_count = None if is_filtered else self.result_count


class TrashFilter(DropdownFilter):
    """Live rows, or with `?is_deleted=1` those in the trash."""

    title = "trash"
    parameter_name = "is_deleted"
    all_option = ["", "Not deleted"]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("1", "In the trash")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.deleted() if self.value() == "1" else queryset.live()


class DayRangeFilter(RangeDateFilter):
    """From the start of one day to the end of another, in UTC."""

    def takes(self, name: str, value: str) -> bool:
        day = parse_date_str(value)
        # (date.max has no next day.)
        return value == "" or (day is not None and day < date.max)

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        for end, lookup, days in (("from", "gte", 0), ("to", "lt", 1)):
            day = parse_date_str(self.used_parameters.get(f"{self.parameter_name}_{end}") or "")
            if day is not None:
                moment = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=days)
                queryset = queryset.filter(**{f"{self.parameter_name}__{lookup}": moment})
        return queryset


class ExactTextFilter(FieldListFilter):
    """Rows whose column equals the typed text, for columns without choices."""

    template = "unfold/filters/filters_field.html"
    form_class = SearchForm

    def __init__(
        self, field: Any, request: HttpRequest, params: Any, *args: Any, **kw: Any
    ) -> None:
        self.parameter = kw["field_path"]
        super().__init__(field, request, params, *args, **kw)

    def expected_parameters(self) -> list[str | None]:
        return [self.parameter]

    def takes(self, name: str, value: str) -> bool:
        return is_text(value)

    def value(self) -> str:
        values: Any = self.used_parameters.get(self.parameter) or [""]
        return search_term(values if isinstance(values, str) else values[-1])

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(**{self.parameter: self.value()}) if self.value() else queryset

    def choices(self, changelist: Any) -> Iterator[Any]:
        data = {self.parameter: self.value()}
        label = f" By {self.title} "
        yield {"form": self.form_class(name=self.parameter, label=label, data=data)}
