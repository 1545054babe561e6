"""How a model's columns become form fields in the console."""

from typing import Any

from django.db import models
from django.http import HttpRequest

from accounts.console.forms import Autocomplete, empty_value_of
from agentmem_site.db.fields import TenantForeignKey


class ReferenceFields:
    """Form fields of columns: indented JSON, and references to live rows by autocomplete."""

    admin_site: Any

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if isinstance(db_field, models.JSONField):
            kwargs["empty"] = empty_value_of(db_field)
        field = super().formfield_for_dbfield(  # type: ignore[misc]
            db_field, request, **kwargs
        )
        if isinstance(db_field, models.TextField) and field is not None:
            field.strip = False  # surrounding whitespace belongs to prompts and source code
            if db_field.null:
                field.empty_value = None
        if isinstance(db_field, models.ForeignKey) and field is not None:
            wrapper = field.widget
            wrapper.can_add_related = wrapper.can_change_related = False
            wrapper.can_delete_related = False
        return field

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if isinstance(db_field, TenantForeignKey):
            kwargs["widget"] = Autocomplete(db_field, self.admin_site)
            kwargs["queryset"] = db_field.related_model._default_manager.none()
        return super().formfield_for_foreignkey(  # type: ignore[misc]
            db_field, request, **kwargs
        )
