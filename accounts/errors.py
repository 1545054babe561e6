"""Errors of the services, with messages for the caller. Each door renders them in its own way.

The docstring is the default message; `code` is stable and machine-readable; `field` names the
invalid input, if there is one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DataError, IntegrityError, models
from psycopg import errors as postgres


class ServiceError(Exception):
    """The request could not be carried out."""

    code = "error"

    def __init__(self, message: str = "", *, field: str | None = None, code: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.field = field
        self.code = code or self.code


class NotFound(ServiceError):
    """There is no such row."""

    code = "not_found"


class Invalid(ServiceError):
    """The values are not acceptable."""

    code = "invalid"


class Conflict(ServiceError):
    """This conflicts with an existing row."""

    code = "conflict"

    def __init__(self, message: str = "", *, constraint: str = "", **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.constraint = constraint


class Stale(Conflict):
    """Somebody else has changed this in the meantime."""

    code = "stale"


class Forbidden(ServiceError):
    """The role or the key does not allow this."""

    code = "forbidden"


class Unavailable(ServiceError):
    """A service that this needs is unavailable right now."""

    code = "unavailable"


@contextmanager
def named_violations(model: type[models.Model]) -> Iterator[None]:
    """Turns database errors into Conflict or Invalid, with the message of the model's constraint.

    The surrounding transaction or savepoint is aborted, as after any database error.
    """
    try:
        yield
    except (IntegrityError, DataError) as error:
        cause = error.__cause__
        name = getattr(getattr(cause, "diag", None), "constraint_name", None) or ""
        constraint = next((c for c in model._meta.constraints if c.name == name), None)
        if isinstance(cause, postgres.UniqueViolation):
            raise _conflict(model, constraint, name) from error
        if isinstance(cause, postgres.ForeignKeyViolation):
            raise Invalid(
                "It refers to a row that does not exist, or another row still refers to it.",
                code="broken_reference",
            ) from error
        message = str(constraint.get_violation_error_message()) if constraint else ""
        raise Invalid(message) from error


def _conflict(
    model: type[models.Model], constraint: models.BaseConstraint | None, name: str
) -> Conflict:
    own = [f for f in getattr(constraint, "fields", ()) if f != "organization"]
    if constraint is not None and constraint.violation_error_message != (
        constraint.default_violation_error_message
    ):
        return Conflict(str(constraint.get_violation_error_message()), constraint=name)
    label = model._meta.verbose_name
    if not own:
        own = [f.name for f in model._meta.fields if f.unique and f.name in name]
    return Conflict(
        f"There is another {label} with this {' and '.join(own) or 'key'}, perhaps in the trash.",
        constraint=name,
        field=own[-1] if own else None,
        code="duplicate",
    )
