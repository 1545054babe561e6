"""Messages as text, for the shapes that callers send."""

import base64
import json

import pytest

from sessions.words import in_words, with_placeholders, without_blobs, words_of

DATA = base64.b64encode(bytes(range(240)) * 250).decode()
PNG = f"data:image/png;base64,{DATA}"
PDF = f"data:application/pdf;base64,{DATA}"
SEEN = {"type": "text", "text": "What is this?"}
LINK = "https://x.example/a.png"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Hi!", "Hi!"),
        ({"type": "text", "text": "Hi!"}, "Hi!"),
        (["Hi", " there"], "Hi\n there"),
        ([SEEN, {"type": "image_url", "image_url": {"url": PNG}}], "What is this?\n[image, 60 KB]"),
        ([{"type": "image_url", "image_url": {"url": LINK}}], f"[image {LINK}]"),
        ([{"type": "image_url", "image_url": LINK}], f"[image {LINK}]"),
        ([{"type": "input_text", "text": "Hi!"}], "Hi!"),
        ([{"type": "input_image", "image_url": PNG}], "[image, 60 KB]"),
        (
            [{"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}],
            "[audio, 60 KB]",
        ),
        (
            [{"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}}],
            "[file a.pdf, 60 KB]",
        ),
        ([{"type": "file", "file": {"file_id": "file-1"}}], "[file file-1]"),
        ([{"type": "refusal", "refusal": "No."}], "No."),
        (
            [
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": DATA},
                }
            ],
            "[image, 60 KB]",
        ),
        ([{"type": "image", "source": {"type": "url", "url": LINK}}], f"[image {LINK}]"),
        (
            [{"type": "document", "title": "A", "source": {"type": "base64", "data": DATA}}],
            "[file A, 60 KB]",
        ),
        (
            [{"type": "thinking", "thinking": "Hm.", "signature": DATA}, SEEN],
            "[thinking]\nWhat is this?",
        ),
        (
            [{"type": "tool_use", "id": "t", "name": "look", "input": {"at": "it", "n": [1, 2]}}],
            "[calls look(at: it, n: [1, 2])]",
        ),
        (
            [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [SEEN, {"type": "image", "source": {"data": DATA}}],
                }
            ],
            "What is this?\n[image, 60 KB]",
        ),
        ([{"type": "tool_result", "tool_use_id": "t", "content": "Sunny."}], "Sunny."),
        (
            {
                "role": "user",
                "parts": [{"text": "Hi!"}, {"inlineData": {"mimeType": "image/png", "data": DATA}}],
            },
            "Hi!\n[image, 60 KB]",
        ),
        ([{"functionCall": {"name": "look", "args": {"at": "it"}}}], "[calls look(at: it)]"),
        (
            [
                {"image": {"format": "png", "source": {"bytes": DATA}}},
                {"toolUse": {"name": "look"}},
            ],
            "[image, 60 KB]\n[calls look()]",
        ),
        ([{"type": "image", "image": DATA}], "[image, 60 KB]"),
        ([{"type": "file", "data": DATA, "mediaType": "image/png"}], "[image, 60 KB]"),
        ([{"type": "hologram", "x": DATA}], "[hologram]"),
        ({"a": "ü", "b": {"c": [True, None]}}, "a: ü, b: (c: [true, null])"),
        ({"status": "ok", "image": DATA}, "status: ok, image: [file, 60 KB]"),
        (f"See ![it]({PNG}) and tell.", "See ![it]([image, 60 KB]) and tell."),
        (f"{PNG} and tell", "[image, 60 KB] and tell"),
        (5, "5"),
        (None, ""),
        ("", ""),
        ([], ""),
        ({}, ""),
        ([{"type": "text", "text": ""}], ""),
        ([None, [None]], ""),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_content_as_text(content, words):
    assert in_words(content) == words
    assert words_of(content=content) == words


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"text": "Hi!", "content": [SEEN]}, "Hi!"),
        ({"text": "  ", "content": [SEEN]}, "What is this?"),
        (
            {
                "text": "I look.",
                "tool_calls": [
                    {"id": "1", "function": {"name": "look", "arguments": '{"at": {"x": 1}}'}},
                    {"name": "run", "args": {}},
                ],
            },
            "I look.\n[calls look(at: (x: 1))]\n[calls run()]",
        ),
        ({"tool_calls": {"name": "look", "args": "no JSON {"}}, "[calls look(no JSON {)]"),
        ({"tool_calls": [{"function": {"arguments": "{"}}]}, "[calls a tool({)]"),
        ({"tool_returns": [{"tool_call_id": "1", "content": "Done."}]}, "Done."),
        ({"tool_returns": {"status": "ok", "seen": 2}}, "status: ok, seen: 2"),
        ({"text": "Done.", "tool_returns": [{"content": "Done."}]}, "Done."),
        ({}, ""),
    ],
    ids=str,
)
def test_a_message_as_text(message, words):
    assert words_of(**message) == words


def test_a_tool_call_as_text():
    words = words_of(tool_calls=[{"name": "save", "args": {"text": "x " * 5000}}])
    assert len(words) < 250
    assert words.endswith("…)]")


def test_json_is_shown_with_placeholders():
    value = {"seen": [{"data": PNG, "n": 1}], "ok": True, "none": None}
    expected = {"seen": [{"data": "[image, 60 KB]", "n": 1}], "ok": True, "none": None}
    assert with_placeholders(value) == expected


def test_long_words_and_links_are_not_files():
    for text in ("x" * 5000, "https://x.example/" + "a" * 500, "A1b2" * 63, "word " * 500):
        assert without_blobs(text) == text


@pytest.mark.parametrize(("size", "expected"), [(300, "300 bytes"), (1_200_000, "1.2 MB")])
def test_the_size_is_that_of_the_file(size, expected):
    data = base64.b64encode(b"\0" * size).decode()
    assert in_words([{"type": "image", "source": {"data": data}}]) == f"[image, {expected}]"


def test_deeply_nested_content_is_cut():
    content: list[object] = []
    for _ in range(500):
        content = [content]
    deep: object = "x"
    for _ in range(500):
        deep = {"a": deep}
    assert in_words(content) == "[…]"
    assert in_words(deep).startswith("a: (a: (")
    assert len(in_words(deep)) < 100
