"""What a message says, in words: its texts as they are, what is no text as a short placeholder.

Takes what callers send: OpenAI's, Anthropic's and Gemini's parts of content, calls of tools and
what they return, and any other JSON. Pure: knows no table.
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
# A blob in a text or a value: a data URL, or base64 by itself.
_DATA_URL = re.compile(r"data:([\w.+-]*)/?[\w.+-]*(?:;[\w.=+-]+)*;base64,([A-Za-z0-9+/=_-]*)")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{256,}={0,2}")
_NEWLINES = re.compile(r"\s*\n\s*")

# Types of parts, as the APIs call them, by what stands for them.
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
    """The words of a message: its text, else those of its content; then the calls of tools. What
    tools have returned stands where nothing else does."""
    said = in_words(text) if text.strip() else in_words(content)
    told = "\n".join(filter(None, [said, *_each(tool_calls, _call, 0)]))
    return told or "\n".join(filter(None, _each(tool_returns, _result, 0)))


def in_words(content: Any) -> str:
    """The words of a content: a text, a part, a list of parts, or any JSON."""
    return "\n".join(filter(None, (part.strip("\n") for part in _parts(content, 0))))


def without_blobs(text: str) -> str:
    """The text, with a placeholder for each picture or other file in it."""
    if len(text) < _SHORTEST_BLOB:
        return text
    text = _DATA_URL.sub(lambda found: _blob(found[1] or "file", found[2]), text)
    return _BASE64.sub(_maybe_blob, text)


def with_placeholders(value: Any, depth: int = 0) -> Any:
    """The JSON value, with a placeholder for each picture or other file in its texts."""
    if isinstance(value, str):
        return without_blobs(value)
    if depth < MAX_JSON_DEPTH and isinstance(value, dict):
        return {name: with_placeholders(one, depth + 1) for name, one in value.items()}
    if depth < MAX_JSON_DEPTH and isinstance(value, list):
        return [with_placeholders(one, depth + 1) for one in value]
    return value


_SHORTEST_BLOB = len("data:,;base64,")


def _maybe_blob(found: re.Match[str]) -> str:
    """Of both cases and digits, base64 of something has all; a long word does not."""
    it = found[0]
    mixed = any(map(str.isdigit, it)) and any(map(str.isupper, it)) and any(map(str.islower, it))
    return _blob("file", it) if mixed else it


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
    if not isinstance(kind, str):  # Gemini's and Bedrock's name the kind by the key
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
    told = function if isinstance(function, dict) else call
    name = next((str(told[n]) for n in _NAMES if told.get(n)), "a tool")[:_MAX_NAME]
    arguments = next((told[n] for n in _ARGUMENTS if told.get(n)), "")
    if isinstance(arguments, str) and arguments.lstrip().startswith(("{", "[")):
        # A model may write what is no JSON: it stands as it came.
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return f"[calls {name}({_clipped(_value(arguments, 0), MAX_ARGUMENTS)})]"


def _result(result: Any, depth: int) -> str:
    if not isinstance(result, dict):
        return "\n".join(_parts(result, depth + 1))
    name = next((n for n in _ANSWERS if n in result), "")
    return "\n".join(_parts(result[name], depth + 1)) if name else _pairs(result, depth)


def _each(given: Any, tell: Any, depth: int) -> list[str]:
    if not given:
        return []
    return [tell(one, depth) for one in (given if isinstance(given, list) else [given])]


def _file(kind: str, part: dict[str, Any]) -> str:
    """`[image, 60 KB]`, `[file report.pdf, 1.2 MB]`, `[image https://...]`"""
    inner = [part, *(value for value in part.values() if isinstance(value, dict))]
    inner += [value for one in inner[1:] for value in one.values() if isinstance(value, dict)]
    media = _first(inner, ("media_type", "mime_type", "mimeType", "mediaType"))
    name = _first(inner, _TITLES)
    data = _first(inner, _DATA)
    if found := _DATA_URL.match(data):
        media, data = media or found[1], found[2]
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
        told = _pairs(value, depth)
        return f"({told})" if depth and told else told
    if isinstance(value, list):
        told = ", ".join(_value(one, depth + 1) for one in value)
        return f"[{told}]" if depth else told
    return json.dumps(value)


def _clipped(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
