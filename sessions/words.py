"""The words of a message: its texts, and a short placeholder for everything else.

Accepts content parts, tool calls and tool results as OpenAI, Anthropic and Gemini define them, and
any other JSON. Pure functions, without tables.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

MAX_ARGUMENTS = 200  # characters of a call's arguments
_MAX_NAME = 80
_MAX_DEPTH = 8
MAX_JSON_DEPTH = 100  # deeper values stay as they are
# A blob in a text or a value: a data URL, or plain base64.
_DATA_URL = re.compile(r"data:([\w.+-]*)/?[\w.+-]*(?:;[\w.=+-]+)*;base64,([A-Za-z0-9+/=_-]*)")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{256,}={0,2}")
_NEWLINES = re.compile(r"\s*\n\s*")

# Types of content parts in the APIs, by their placeholder.
_KINDS = {
    "image": ("image", "image_url", "input_image", "image_file", "inline_image"),
    "audio": ("audio", "input_audio", "output_audio", "audio_url"),
    "video": ("video", "video_url", "input_video"),
    "file": ("file", "input_file", "document", "file_data", "file_url", "media"),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_CALLS = {"tool_use", "toolUse", "tool-call", "tool_call", "function_call", "functionCall"}
_CALLS |= {"function", "server_tool_use"}
_RESULTS = {"tool_result", "toolResult", "tool-result", "function_call_output", "tool_return"}
_RESULTS |= {"functionResponse", "function_response"}
_THOUGHTS = {"thinking", "redacted_thinking", "reasoning", "reasoning_content"}
_TEXTS = ("text", "refusal", "transcript")
_ANSWERS = ("content", "output", "result", "response", "return", "func_response", "value", "parts")
_NAMES = ("name", "toolName", "tool_name", "function_name")
_ARGUMENTS = ("arguments", "args", "input", "parameters")
_TITLES = ("filename", "file_name", "title", "name", "file_id", "fileId", "id")
_LINKS = ("url", "uri", "file_uri", "fileUri", "file_url", "image_url")
_DATA = ("data", "file_data", "bytes", "base64", "b64_json", "image", "url", "image_url")


def words_of(
    *, text: str = "", content: Any = None, tool_calls: Any = None, tool_returns: Any = None
) -> str:
    """The words of a message: of its text, or else its content; then its tool calls. Tool results
    are only used if there is nothing else."""
    words = in_words(text) if text.strip() else in_words(content)
    words = "\n".join(filter(None, [words, *_each(tool_calls, _call, 0)]))
    return words or "\n".join(filter(None, _each(tool_returns, _result, 0)))


def in_words(content: Any) -> str:
    """The words of content: a text, a part, a list of parts, or any JSON."""
    return "\n".join(filter(None, (part.strip("\n") for part in _parts(content, 0))))


def without_blobs(text: str) -> str:
    """The text, with a placeholder for each image or other file in it."""
    if len(text) < _SHORTEST_BLOB:
        return text
    text = _DATA_URL.sub(lambda match: _blob(match[1] or "file", match[2]), text)
    return _BASE64.sub(_maybe_blob, text)


def with_placeholders(value: Any, depth: int = 0) -> Any:
    """The JSON value, with a placeholder for each image or other file in its texts."""
    if isinstance(value, str):
        return without_blobs(value)
    if depth < MAX_JSON_DEPTH and isinstance(value, dict):
        return {name: with_placeholders(one, depth + 1) for name, one in value.items()}
    if depth < MAX_JSON_DEPTH and isinstance(value, list):
        return [with_placeholders(one, depth + 1) for one in value]
    return value


_SHORTEST_BLOB = len("data:,;base64,")


def _maybe_blob(match: re.Match[str]) -> str:
    """Base64 has digits and letters of both cases; a long word does not."""
    text = match[0]
    tests = (str.isdigit, str.isupper, str.islower)
    return _blob("file", text) if all(any(map(test, text)) for test in tests) else text


def _parts(content: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        yield "[…]"
    elif isinstance(content, str):
        yield without_blobs(content)
    elif isinstance(content, list):
        for part in content:
            yield from _parts(part, depth + 1)
    elif isinstance(content, dict):
        yield _part(content, depth)
    elif content is not None:
        yield json.dumps(content)


def _part(part: dict[str, Any], depth: int) -> str:
    kind = part.get("type")
    if not isinstance(kind, str):  # in Gemini's and Bedrock's parts the kind is the key
        kind = next((n for n, one in part.items() if n in _BY_KEY and isinstance(one, dict)), "")
        part = part[kind] if kind else part
    if kind in _CALLS:
        return _call(part, depth)
    if kind in _RESULTS:
        return _result(part, depth)
    if kind in _THOUGHTS:
        return "[thinking]"
    if kind in _KIND_OF or kind in _INLINE:
        return _file(_KIND_OF.get(kind, ""), part)
    for name in _TEXTS:
        if isinstance(part.get(name), str):
            return without_blobs(part[name])
    if (kind or "role" in part) and (name := next((n for n in _ANSWERS if n in part), "")):
        return "\n".join(_parts(part[name], depth + 1))
    if part.get("type") == kind:
        return f"[{kind[:_MAX_NAME]}]"
    return _pairs(part, depth)


_INLINE = {"inline_data", "inlineData", "fileData"}
_BY_KEY = {*_CALLS, *_RESULTS, *_KIND_OF, *_INLINE}


def _call(call: Any, depth: int) -> str:
    """`[calls lookup(city: Rome, days: 3)]`"""
    if not isinstance(call, dict):
        return "\n".join(_parts(call, depth + 1))
    function = call.get("function")
    call = function if isinstance(function, dict) else call
    name = next((str(call[n]) for n in _NAMES if call.get(n)), "a tool")[:_MAX_NAME]
    arguments = next((call[n] for n in _ARGUMENTS if call.get(n)), "")
    if isinstance(arguments, str) and arguments.lstrip().startswith(("{", "[")):
        # A model may write invalid JSON: it stays as it is.
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return f"[calls {name}({_clipped(_value(arguments, 0), MAX_ARGUMENTS)})]"


def _result(result: Any, depth: int) -> str:
    if not isinstance(result, dict):
        return "\n".join(_parts(result, depth + 1))
    name = next((n for n in _ANSWERS if n in result), "")
    return "\n".join(_parts(result[name], depth + 1)) if name else _pairs(result, depth)


def _each(values: Any, describe: Any, depth: int) -> list[str]:
    if not values:
        return []
    return [describe(one, depth) for one in (values if isinstance(values, list) else [values])]


def _file(kind: str, part: dict[str, Any]) -> str:
    """`[image, 60 KB]`, `[file report.pdf, 1.2 MB]`, `[image https://...]`"""
    inner = [part, *(value for value in part.values() if isinstance(value, dict))]
    inner += [value for one in inner[1:] for value in one.values() if isinstance(value, dict)]
    media = _first(inner, ("media_type", "mime_type", "mimeType", "mediaType"))
    name = _first(inner, _TITLES)
    data = _first(inner, _DATA)
    if match := _DATA_URL.match(data):
        media, data = media or match[1], match[2]
    elif data.startswith(("http://", "https://")):
        data = ""
    link = next((u for u in _all(inner, _LINKS) if u.startswith(("http:", "https:", "gs:"))), "")
    if kind in ("", "file"):
        main = media.partition("/")[0]
        kind = main if main in ("image", "audio", "video") else "file"
    label = " ".join(filter(None, [kind, _clipped(name or link, MAX_ARGUMENTS)]))
    return _blob(label, data) if data else f"[{label}]"


def _first(parts: list[dict[str, Any]], names: tuple[str, ...]) -> str:
    return next(_all(parts, names), "")


def _all(parts: list[dict[str, Any]], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        yield from (p[name] for p in parts if isinstance(p.get(name), str) and p[name])


def _blob(label: str, base64: str) -> str:
    size = len(base64.rstrip("=\n ")) * 3 // 4
    if size < 1_000:
        return f"[{label}, {size} bytes]"
    if size < 1_000_000:
        return f"[{label}, {size / 1_000:.0f} KB]"
    return f"[{label}, {size / 1_000_000:.1f} MB]"


def _pairs(value: dict[str, Any], depth: int) -> str:
    return ", ".join(f"{name}: {_value(one, depth + 1)}" for name, one in value.items())


def _value(value: Any, depth: int) -> str:
    """A JSON value on one line."""
    if depth > _MAX_DEPTH:
        return "…"
    if isinstance(value, str):
        return _NEWLINES.sub(" ", without_blobs(value))
    if isinstance(value, dict):
        text = _pairs(value, depth)
        return f"({text})" if depth and text else text
    if isinstance(value, list):
        text = ", ".join(_value(one, depth + 1) for one in value)
        return f"[{text}]" if depth else text
    return json.dumps(value)


def _clipped(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
