"""Deleting, restoring and purging rows, from a row's page or from a list."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.admin import action
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from accounts.console import show
from accounts.console.context import actor_of
from accounts.console.rows import TenantRows
from accounts.errors import ServiceError
from accounts.services.dependents import Counts

# A confirmation page counts up to this many dependent rows per model.
MAX_COUNTED = 1_000


@dataclass(frozen=True)
class ConfirmationText:
    """The texts of a confirmation page, and of the message afterwards."""

    question: str
    done: str
    consequence: str = ""
    is_danger: bool = True
    for_good: bool = False  # counts rows in the trash too


TO_TRASH = ConfirmationText(
    "Move to the trash",
    "Moved to the trash",
    "It can be restored from there, with everything that was deleted with it.",
)
RESTORE = ConfirmationText(
    "Restore",
    "Restored",
    "Everything that was deleted with it is restored too.",
    is_danger=False,
)
FOR_GOOD = ConfirmationText(
    "Delete for good", "Deleted for good", "This cannot be undone.", for_good=True
)


class TrashMoves(TenantRows):
    """Delete, restore and purge: a confirmation page for one row, actions for selected rows."""

    for_good = FOR_GOOD
    actions = ("move_to_trash", "restore_selected", "purge_selected")
    delete_confirmation_template = "console/confirm.html"

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        self._carry_out(request, self.records.delete, self.rows_of(obj))

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        self._carry_out(request, self.records.delete, queryset)

    def _carry_out(self, request: HttpRequest, verb: Callable[..., Counts], rows: Any) -> Counts:
        """Calls the verb once per organization of the rows (a superuser may select several)."""
        counts: Counts = {}
        for organization, part in self._by_organization(rows):
            done = verb(part, organization=organization, actor=actor_of(request))
            counts = {k: counts.get(k, 0) + done.get(k, 0) for k in {**counts, **done}}
        return counts

    def _run_or_redirect(
        self, request: HttpRequest, page: Callable[[], HttpResponse], url: str
    ) -> HttpResponse:
        """The page; or a redirect with the message of a service that refused the change."""
        try:
            with transaction.atomic():
                return page()
        except ServiceError as refusal:
            self.message_user(request, str(refusal), messages.ERROR)
            return HttpResponseRedirect(url)

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        view = self.admin_site.admin_view
        own = [
            path("<path:object_id>/restore/", view(self.restore_view), name=f"{name}_restore"),
            path("<path:object_id>/purge/", view(self.purge_view), name=f"{name}_purge"),
        ]
        return own + super().get_urls()

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        allowed = self.has_delete_permission
        return self._verb_view(request, object_id, allowed, self.records.delete, TO_TRASH)

    def restore_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        allowed = self.has_restore_permission
        return self._verb_view(request, object_id, allowed, self.records.restore, RESTORE)

    def purge_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        allowed = self.has_purge_permission
        return self._verb_view(request, object_id, allowed, self.records.purge, self.for_good)

    def _verb_view(
        self,
        request: HttpRequest,
        object_id: str,
        allowed: Callable[..., bool],
        verb: Callable[..., Counts],
        text: ConfirmationText,
    ) -> HttpResponse:
        """A confirmation page on GET, the change on POST."""
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        if not allowed(request, obj):
            raise PermissionDenied
        if request.method != "POST":
            affected = self._affected(self.rows_of(obj), text) if text.is_danger else ""
            return self._confirm(request, text, object=obj, affected=affected)

        def page() -> HttpResponse:
            self._run(request, verb, self.rows_of(obj), text)
            return HttpResponseRedirect(self._next_url(request, obj, text))

        return self._run_or_redirect(request, page, self._next_url(request, obj, text))

    def _run(
        self, request: HttpRequest, verb: Callable[..., Counts], rows: Any, text: ConfirmationText
    ) -> None:
        counts = show.counted(self._carry_out(request, verb, rows), at_most=10**9)
        self.message_user(request, f"{text.done}: {counts}.", messages.SUCCESS)

    def _affected(self, rows: Any, text: ConfirmationText) -> str:
        """How many rows the verb will change, as text; counts stop at MAX_COUNTED."""
        counts: Counts = {}
        for organization, part in self._by_organization(rows):
            counted = self.records.count_affected(
                part, organization=organization, at_most=MAX_COUNTED, for_good=text.for_good
            )
            counts = {k: counts.get(k, 0) + counted.get(k, 0) for k in {**counts, **counted}}
        return show.counted(counts, at_most=MAX_COUNTED)

    def _confirm(
        self, request: HttpRequest, text: ConfirmationText, **context: Any
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": text.question,
            "text": text,
            "back": self._list_url(),
            **context,
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.delete_confirmation_template, context)

    def _next_url(self, request: HttpRequest, obj: Any, text: ConfirmationText) -> str:
        if "trash" in request.POST:
            return reverse(f"{self.admin_site.name}:trash")
        return show.url_of(obj) if text is RESTORE else self._list_url()

    # -- actions for selected rows ---------------------------------------------------------------

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        names = {"restore_selected", "purge_selected"}
        if not self._is_trash(request):
            names = {"move_to_trash"}
        return {k: v for k, v in super().get_actions(request).items() if k in names}

    def response_action(self, request: HttpRequest, queryset: Any) -> Any:
        respond = super().response_action
        return self._run_or_redirect(
            request, lambda: respond(request, queryset), request.get_full_path()
        )

    @action(description="Move to the trash", permissions=["delete"])
    def move_to_trash(self, request: HttpRequest, rows: Any) -> Any:
        return self._confirm_selected(request, rows, "move_to_trash", self.records.delete, TO_TRASH)

    @action(description="Restore", permissions=["restore"])
    def restore_selected(self, request: HttpRequest, rows: Any) -> None:
        self._run(request, self.records.restore, rows, RESTORE)

    @action(description="Delete for good", permissions=["purge"])
    def purge_selected(self, request: HttpRequest, rows: Any) -> Any:
        return self._confirm_selected(
            request, rows, "purge_selected", self.records.purge, self.for_good
        )

    def _confirm_selected(
        self,
        request: HttpRequest,
        rows: Any,
        name: str,
        verb: Callable[..., Counts],
        text: ConfirmationText,
    ) -> Any:
        if "confirmed" in request.POST:
            self._run(request, verb, rows, text)
            return None
        picked = request.POST.getlist(ACTION_CHECKBOX_NAME)
        return self._confirm(
            request,
            text,
            affected=self._affected(rows, text),
            objects=list(rows[: self.list_per_page]),
            hidden=[("action", name), *((ACTION_CHECKBOX_NAME, pk) for pk in picked)],
        )
