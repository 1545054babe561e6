"""What every operation of the OpenAPI schema has in common: the shape of its errors."""

from typing import Any

from agentmem_site.api.problems import PROBLEM

_PROBLEM_SCHEMA = {
    "type": "object",
    "description": "RFC 9457. `code` is stable; `errors` names the fields at fault.",
    "required": ["type", "title", "status", "detail", "code", "request_id", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "code", "message"],
                "properties": {
                    "field": {"type": "string", "nullable": True},
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                },
            },
        },
    },
}


def describe_problems(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Adds the shape of errors to every operation of the schema."""
    result["components"]["schemas"]["Problem"] = _PROBLEM_SCHEMA
    answer = {
        "description": "What went wrong.",
        "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for operations in result["paths"].values():
        for operation in operations.values():
            operation["responses"]["default"] = answer
    return result
