"""Files as callers have them: JSON that is no JSON lines, tables of spreadsheets and databases."""

import datetime
import decimal
import gzip
import io
import json
import os
import uuid

import pyarrow
import pyarrow.parquet
import pytest
from django.core.management import CommandError

from accounts.bulk import USERS
from accounts.models import User
from accounts.tenancy import tenant
from agentmem_site.bulk.encoding import likely
from agentmem_site.bulk.json_array import json_lines
from agentmem_site.bulk.readers import UnreadableFile, open_source, read_options, source_of
from agentmem_site.bulk.reading import BadOption
from agentmem_site.bulk.spec import LineError
from memories.bulk import BLOCKS, MEMORIES, TOOLS
from memories.models import Block
from sessions.bulk import SESSIONS
from tests.bulk.loading import load_file


def read(tmp_path, data, *, spec=MEMORIES, name="rows", **options):
    """(number, row or code, place) of each line, and the notices."""
    file = tmp_path / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    with open_source(str(file), read_options(spec, **options)) as source:
        lines = list(source.lines())
    given = [
        (n, line.code if isinstance(line, LineError) else json.loads(line), at)
        for n, line, at in lines
    ]
    return given, list(source.notices)


def rows(tmp_path, data, **options):
    return [row for _, row, _ in read(tmp_path, data, **options)[0]]


def first_error(tmp_path, data, **options):
    file = tmp_path / "rows.csv"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    with open_source(str(file), read_options(options.pop("spec", MEMORIES), **options)) as source:
        return next(line for _, line, _ in source.lines() if isinstance(line, LineError))


# -- JSON ----------------------------------------------------------------------------------------

ONE_TWO = [{"content": "One."}, {"content": "Two."}]
AS_JSON = {
    "lines": b'{"content": "One."}\n{"content": "Two."}\n',
    "array": b'[{"content":"One."},{"content":"Two."}]',
    "pretty array": json.dumps(ONE_TWO, indent=2).encode(),
    "an array on lines": b'[{"content": "One."},\n{"content": "Two."}]\n',
    "a line of one array": b'\n [{"content":"One."},{"content":"Two."}] \n',
    "pretty objects": "".join(json.dumps(row, indent=4) + "\n" for row in ONE_TWO).encode(),
    "objects without lines": b'{"content":"One."}{"content":"Two."}',
    "results": json.dumps({"results": ONE_TWO}).encode(),
    "a list of ours": json.dumps({"results": ONE_TWO, "next": None, "previous": None}).encode(),
    "pretty results": json.dumps({"count": 2, "results": ONE_TWO}, indent=2).encode(),
    "the resource": json.dumps({"memories": ONE_TWO}, indent="\t").encode(),
    "pages": b'{"results": [{"content": "One."}]}\n{"results": [{"content": "Two."}]}\n',
    "arrays": b'[{"content": "One."}]\n[{"content": "Two."}]',
    "with a mark": b'\xef\xbb\xbf[{"content":"One."},{"content":"Two."}]',
}


@pytest.mark.parametrize("kind", AS_JSON)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz", "rows"])
def test_rows_of_json_come_in_any_shape(tmp_path, kind, name):
    data = gzip.compress(AS_JSON[kind]) if name.endswith(".gz") else AS_JSON[kind]
    given, notices = read(tmp_path, data, name=name)
    assert [(number, row) for number, row, _ in given] == [(1, ONE_TWO[0]), (2, ONE_TWO[1])]
    assert notices == []
    plain = AS_JSON[kind]
    assert [plain[at:].startswith(b"{") for _, _, at in given] == [True, True]


@pytest.mark.parametrize(
    "bad",
    [
        b'{"content": "a"',
        b"{",
        b'{"a": 1,}',
        b'{"content": "a"}{',
        b"[1]",
        b'{"content": "\xff"}',
        b'{"\xae": 1',
        b'{"a":' * 5000,
        b'"text"',
        b"content",
    ],
)
def test_a_bad_first_line_is_one_bad_line(tmp_path, bad):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(bad + b'\n{"content": "b"}\n')
    with open_source(str(file), read_options(MEMORIES)) as source:
        (_, first, _), (number, second, _) = source.lines()
    assert first == bad
    assert (number, json.loads(second)) == (2, {"content": "b"})


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_where_blocks_end_does_not_matter_to_json(size):
    row = {"content": 'with "quotes\\" and ] }', "metadata": {"a": [1, [2, {"b": None}]]}}
    data = json.dumps({"next": "x", "results": [row] * 30, "more": [[1], {"a": "}"}]}).encode()
    data += json.dumps(row, indent=2).encode()
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    given = list(json_lines(blocks, fields=("content",)))
    assert [json.loads(line) for _, line, _ in given] == [row] * 31
    assert [data[at : at + len(line)] for _, line, at in given] == [line for _, line, _ in given]


def test_keys_beside_the_rows_are_reported(tmp_path):
    data = json.dumps({"version": 3, "results": ONE_TWO, "relations": [1], "next": "http://x/?c=1"})
    given, notices = read(tmp_path, data)
    assert len(given) == 2
    assert notices == [
        "Left out beside the rows: version.",
        "Left out beside the rows: relations.",
        "This is one page of a list, whose `next` names the one after it.",
    ]


def test_a_row_whose_field_is_called_as_a_list_is_a_row(tmp_path):
    session = {"session_id": "s", "runs": [{"run_id": "1"}]}
    for data in (json.dumps(session), json.dumps(session, indent=1)):
        assert rows(tmp_path, data, spec=SESSIONS) == [session]


def test_an_array_larger_than_memory_streams():
    class Endless(io.RawIOBase):
        sent = 0

        def read(self, size=-1):
            self.sent += 1
            return b'{"results": [' if self.sent == 1 else b'{"content": "x"},' * 100

    with source_of(Endless(), name="body", options=read_options(MEMORIES)) as source:
        lines = source.lines()
        for _ in range(50_000):
            number, line, _ = next(lines)
    assert (number, line) == (50_000, b'{"content": "x"}')


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"content": "a"}', "at byte 17: a comma or ] is expected, the end"),
        (b'{"results": [{"content": "a"}]', "a comma or } is expected, the end is there"),
        (b'[{"content": "a"}] x', "a JSON array or the { of an object is expected, 'x' is there"),
        (b'[{"content": "a"} {"content": "b"}]', "a comma or ] is expected, '{' is there"),
    ],
)
def test_the_position_of_truncated_json_is_reported(tmp_path, data, message):
    with pytest.raises(UnreadableFile, match="at byte") as refusal:
        read(tmp_path, data)
    assert message in str(refusal.value)


def test_lines_that_say_more_than_a_megabyte_are_one_reject(tmp_path):
    long = {"content": "x" * 1_100_000}
    data = json.dumps({"results": [ONE_TWO[0], long, ONE_TWO[1]]})
    assert rows(tmp_path, data) == [ONE_TWO[0], "line_too_long", ONE_TWO[1]]
    pretty = "\n".join(json.dumps(row, indent=2) for row in (ONE_TWO[0], long, ONE_TWO[1]))
    assert rows(tmp_path, pretty) == [ONE_TWO[0], "line_too_long", ONE_TWO[1]]


# -- encodings -----------------------------------------------------------------------------------

TEXT = "external_id,content\r\na,Café ☕ 🎈\r\nb,ж\r\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.txt"])
def test_a_file_that_says_its_encoding_needs_no_option(tmp_path, encoding, name):
    marked = TEXT if encoding != "utf-16-be" else "\ufeff" + TEXT
    data = marked.encode(encoding)
    given, _ = read(tmp_path, data, name=name)
    assert [row for _, row, _ in given] == [
        {"external_id": "a", "content": "Café ☕ 🎈"},
        {"external_id": "b", "content": "ж"},
    ]
    at = given[1][2]
    plain = encoding if encoding != "utf-8-sig" else "utf-8"
    plain = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(plain, plain)
    assert data[at:] == "b,ж\r\n".encode(plain)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_csv_in_utf_16_is_known_without_a_mark(tmp_path, encoding):
    given, _ = read(tmp_path, TEXT.encode(encoding), name="rows.csv")
    assert [row["content"] for _, row, _ in given] == ["Café ☕ 🎈", "ж"]
    with source_of(io.BytesIO(b'{\0\n{"content": "x"}\n'), name="x") as source:
        assert [line for _, line, _ in source.lines()] == [b"{\0", b'{"content": "x"}']


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_json_in_utf_16_is_known_without_a_mark(tmp_path, encoding):
    for text in (
        '{"content": "Zoë"}\n{"content": "ж"}\n',
        '[{"content": "Zoë"}, {"content": "ж"}]',
    ):
        data = text.encode(encoding)
        given, _ = read(tmp_path, data)
        assert [row["content"] for _, row, _ in given] == ["Zoë", "ж"]
        wide = encoding if encoding != "utf-16" else "utf-16-le"
        assert data[given[1][2] :].startswith('{"content": "ж'.encode(wide))


def test_an_encoding_that_is_named_is_read_and_places_stay_those_of_the_file(tmp_path):
    data = "external_id,content\na,Ärger mit Öl\nb,ü\n".encode("cp1252")
    given, _ = read(tmp_path, data, name="rows.csv", encoding="cp1252")
    assert given[0][1]["content"] == "Ärger mit Öl"
    assert data[given[1][2] :] == "b,ü\n".encode("cp1252")
    with pytest.raises(UnreadableFile, match=r"is not ascii: .*--encoding names another"):
        read(tmp_path, data, name="rows.csv", encoding="ascii")


def test_places_are_right_in_a_large_file_of_another_encoding(tmp_path):
    lines = [f'{{"content": "{"é" * (n % 50)}🎈{n}"}}\n' for n in range(60_000)]
    data = "".join(lines).encode("utf-16-le")
    given, _ = read(tmp_path, data)
    at = 0
    for line, (_, row, place) in zip(lines, given, strict=True):
        assert place == at
        assert row["content"] in line
        at += len(line.encode("utf-16-le"))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("w1,Café au lait", "cp1252"),
        ("w1,Grüße", "cp1252"),
        ("Grüße aus Köln „gut“", "cp1252"),
        ("w1,Привет, мир", "cp1251"),
        ("w1,こんにちは世界", "shift_jis"),
        ("w1,안녕하세요 세계", "euc_kr"),
        ("w1,你好世界。我喜欢喝茶", "gb18030"),
    ],
)
def test_the_likely_encoding_is_named(text, encoding):
    assert likely(text.encode(encoding)) == encoding


def test_a_refusal_names_the_option(acme, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes("external_id,content\nw1,Café au lait\n".encode("cp1252"))
    with pytest.raises(CommandError, match="--encoding cp1252 is likely"):
        load_file(file, "memories")
    assert load_file(file, "memories", encoding="cp1252")["inserted"] == 1
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"content": "Café"}\n'.encode("cp1252"))
    with pytest.raises(CommandError, match="--encoding cp1252 is likely"):
        load_file(file, "memories")


# -- tables --------------------------------------------------------------------------------------

HELLO = {"external_id": "c1", "content": "Hello, you; all", "user_id": "ann"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "-.txt"])
def test_the_delimiter_is_found_by_the_header(tmp_path, delimiter, name):
    cells = ["external_id", "content", "user_id"], ["c1", '"Hello, you; all"', "ann"]
    text = "\r\n".join(delimiter.join(line) for line in cells)
    assert rows(tmp_path, text, name=name) == [HELLO]
    assert rows(tmp_path, text, name=name, delimiter=delimiter) == [HELLO]


def test_lines_may_end_with_a_carriage_return_alone(tmp_path):
    text = "external_id,content\ra,Hello\rb,Bye\r"
    given, _ = read(tmp_path, text, name="rows.csv")
    assert [(number, row["external_id"], at) for number, row, at in given] == [
        (2, "a", text.index("a,H")),
        (3, "b", text.index("b,B")),
    ]


def test_excels_line_is_no_header(tmp_path):
    for first in ("sep=;", '"sep=;"', "SEP=;"):
        text = f"{first}\r\nexternal_id;content\r\ns1;Hello\r\n"
        given, _ = read(tmp_path, text, name="rows.csv")
        assert given == [(3, {"external_id": "s1", "content": "Hello"}, text.index("s1"))]


def test_case_and_blanks_of_a_header_are_forgiven_with_a_notice(tmp_path):
    given, notices = read(tmp_path, "External_ID , CONTENT,user id\nh1,Hello,ann\n", name="x.csv")
    assert given[0][1] == {"external_id": "h1", "content": "Hello", "user_id": "ann"}
    assert notices == [
        "'External_ID ' of the header is read as external_id.",
        "' CONTENT' of the header is read as content.",
        "'user id' of the header is read as user_id.",
    ]


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        (",external_id,content\n0,p1,Hello\n1,p2,Bye\n", "Column 1 has no name; it is left out"),
        ("Unnamed: 0,external_id,content\n0,p1,Hello\n1,p2,Bye\n", "left out as a row number"),
        ("external_id,content,\np1,Hello,\np2,Bye,\n", "Column 3 has no name and no values"),
        ("external_id,content\np1,Hello,,\np2,Bye,,,\n", ""),
    ],
)
def test_columns_without_a_name_are_left_out_with_a_notice(tmp_path, text, notice):
    given, notices = read(tmp_path, text, name="rows.csv")
    assert [row["external_id"] for _, row, _ in given] == ["p1", "p2"]
    assert notice in "".join(notices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ",content\nann,Hello\n",
            "Column 1 has no name in the header, but contains 'ann'; --map =",
        ),
        ("content,\nHello,x\n", "Column 2 has no name in the header, but contains 'x'"),
        ("content\nHello,x\n", "2 cells; the header has 1"),
    ],
)
def test_values_in_a_column_without_a_name_are_refused(tmp_path, text, message):
    assert message in first_error(tmp_path, text).message
    renamed = rows(tmp_path, ",content\nann,Hello\n", name="x.csv", maps=["=user_id"])
    assert renamed == [{"user_id": "ann", "content": "Hello"}]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("nmae,memory,notes", "no field 'nmae', 'memory', 'notes'."),
        ("externalId,content", "Do you mean --map externalId=external_id?"),
        ("memory,user", "Do you mean --map memory=content --map user=user_id?"),
        ("external_id:content", "no field 'external_id:content'"),
    ],
)
def test_unknown_columns_are_all_named_with_what_may_be_meant(tmp_path, header, message):
    with pytest.raises(UnreadableFile) as refusal:
        read(tmp_path, f"{header}\n", name="rows.csv")
    assert message in str(refusal.value)
    assert "--ignore-unknown leaves out" in str(refusal.value)


def test_a_wrong_delimiter_is_suspected(tmp_path):
    with pytest.raises(UnreadableFile, match="Are the columns separated by --delimiter ';'"):
        read(tmp_path, "external_id;content\n", name="rows.csv", delimiter=",")


@pytest.mark.parametrize(
    ("cell", "value"),
    [("TRUE", True), ("False", False), ("yes", True), ("N", False), ("1", True), ("0", False)],
)
def test_booleans_are_written_in_many_ways(tmp_path, cell, value):
    text = f"external_id,label,read_only\nb,l,{cell}\n"
    assert rows(tmp_path, text, spec=BLOCKS, name="b.csv")[0]["read_only"] is value


@pytest.mark.parametrize(
    ("cell", "value"),
    [("0.5", 0.5), (" 0.5", 0.5), (".5", 0.5), ("+1.", 1.0), ("5e-1", 0.5), ("00.5", 0.5)],
)
def test_numbers_are_written_in_many_ways(tmp_path, cell, value):
    assert rows(tmp_path, f"content,importance\nx,{cell}\n", name="b.csv")[0]["importance"] == value


def test_a_whole_number_with_a_point_is_whole(tmp_path):
    text = "external_id,label,limit\nb,l,2000.0\n"
    assert rows(tmp_path, text, spec=BLOCKS, name="b.csv")[0]["limit"] == 2000


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("content;importance\nx;0,5\n", "invalid_value", "written with a point, like 0.5"),
        ("content;importance\nx;1.234,5\n", "invalid_value", "like 1234.5"),
        ("content,importance\nx,high\n", "invalid_value", "A number is needed, got 'high'"),
        ("content,metadata\nx,\"{'a': 1}\"\n", "malformed_json", "write it as JSON (json.dumps"),
        ("content,user_id\nx,NULL\n", "null_word", "--null NULL reads it so"),
        ("content,user_id\nx,4711.0\n", "invalid_value", "pandas writes 4711 in a column with"),
        ("content,user_id\nx,nan\n", "null_word", "--null nan"),
        ("content,agent_id\nx,None\n", "null_word", "--null None"),
        ("content,session_id\nx,NA\n", "null_word", "--null NA"),
        ("content,importance\nx,NaN\n", "null_word", "--null NaN"),
        ("content,metadata\nx,None\n", "null_word", "--null None"),
    ],
)
def test_a_cell_that_may_be_meant_otherwise_is_a_bad_line_with_advice(
    tmp_path, text, code, message
):
    error = first_error(tmp_path, text)
    assert (error.code, message in error.message) == (code, True), error.message


def test_words_for_nothing_are_those_that_are_named(tmp_path):
    text = "external_id,content,user_id,speaker\nd1,One,NULL,\nd2,Two,\\N,None\nd3,Three,,x\n"
    given, notices = read(tmp_path, text, name="n.csv", nulls=["NULL"])
    assert [row for _, row, _ in given] == [
        {"external_id": "d1", "content": "One"},
        {"external_id": "d2", "content": "Two", "speaker": "None"},
        {"external_id": "d3", "content": "Three", "speaker": "x"},
    ]
    assert notices == [
        "speaker: the word None is kept as text; --null None reads such cells as empty."
    ]
    assert rows(tmp_path, text, name="n.csv", nulls=[""])[0]["user_id"] == "NULL"
    assert rows(tmp_path, text, name="n.csv", nulls=["None"])[0] == "null_word"
    usual = rows(tmp_path, text, name="n.csv", nulls=["usual"])
    assert [row.keys() - {"external_id", "content"} for row in usual] == [set(), set(), {"speaker"}]


@pytest.mark.parametrize(
    ("cell", "tags"),
    [
        ('"a,b"', ["a", "b"]),
        ('"[""a"", ""b""]"', ["a", "b"]),
        ('"{a,""b c""}"', ["a", "b c"]),
        ('"{""x \\"" y"",z}"', ['x " y', "z"]),
        ("a", ["a"]),
        ('"a, b,"', ["a", "b"]),
    ],
)
def test_lists_are_json_or_arrays_or_have_commas(tmp_path, cell, tags):
    assert rows(tmp_path, f"name,tags\nt,{cell}\n", spec=TOOLS, name="t.csv") == [
        {"name": "t", "tags": tags}
    ]


def test_a_table_without_a_name_is_known_by_its_header():
    text = b"external_id\tcontent\na\tHello\n"
    with source_of(io.BytesIO(text), name="standard input", options=read_options(MEMORIES)) as it:
        assert [line for _, line, _ in it.lines()] == [b'{"external_id":"a","content":"Hello"}']


def test_a_live_pipe_of_pretty_json_is_not_waited_for():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as stream:
        os.write(writing, b'[\n  {\n    "content": "a"\n  },\n')
        with source_of(stream, name="pipe", options=read_options(MEMORIES)) as source:
            lines = source.lines()
            assert json.loads(next(lines)[1]) == {"content": "a"}
            os.write(writing, b'  {"content": "b"}\n]\n')
            os.close(writing)
            assert json.loads(next(lines)[1]) == {"content": "b"}


# -- --map and --set -----------------------------------------------------------------------------

NESTED = {"memory": "Likes tea", "user": {"id": "ann", "name": "Ann"}, "meta": {"a": 1.50}}
RENAMES = ["memory=content", "user.id=user_id", "user.name=metadata.name", "meta.a=metadata.a"]


@pytest.mark.parametrize("indent", [None, 2])
def test_keys_of_json_get_other_names(tmp_path, indent):
    data = json.dumps([NESTED, {"memory": "x"}], indent=indent)
    given, notices = read(tmp_path, data, maps=RENAMES, sets=["agent_id=bot", "metadata.b=7"])
    assert [row for _, row, _ in given] == [
        {
            "content": "Likes tea",
            "user_id": "ann",
            "metadata": {"name": "Ann", "a": 1.5, "b": "7"},
            "agent_id": "bot",
        },
        {"content": "x", "agent_id": "bot", "metadata": {"b": "7"}},
    ]
    assert notices == []


def test_columns_get_other_names(tmp_path):
    text = "memory,Color,user.id,drop\nLikes tea,red,ann,x\n"
    given = rows(
        tmp_path,
        text,
        name="m.csv",
        maps=["memory=content", "Color=metadata.color", "user.id=user_id", "drop="],
        sets=["importance=0.5"],
    )
    assert given == [
        {
            "content": "Likes tea",
            "metadata": {"color": "red"},
            "user_id": "ann",
            "importance": 0.5,
        }
    ]
    swapped = rows(
        tmp_path,
        "content,context\na,b\n",
        name="m.csv",
        maps=["content=context", "context=content"],
    )
    assert swapped == [{"context": "a", "content": "b"}]


def test_a_key_with_a_point_is_a_key(tmp_path):
    flat = rows(tmp_path, '{"content": "a", "user.id": "ann"}', maps=["user.id=user_id"])
    assert flat == [{"content": "a", "user_id": "ann"}]


def test_an_unused_rename_is_reported(tmp_path):
    _, notices = read(tmp_path, '{"content": "x"}', maps=["memroy=content"])
    assert notices == ["--map memroy: no line has it."]


@pytest.mark.parametrize(
    ("data", "options", "code"),
    [
        ('{"memory": "a", "content": "b"}', {"maps": ["memory=content"]}, "duplicate_key"),
        ('{"content": "a", "user_id": "bob"}', {"sets": ["user_id=ann"]}, "duplicate_key"),
        ('{"content": "a", "c": 1, "metadata": []}', {"maps": ["c=metadata.c"]}, "invalid_value"),
        ('{"content": "a", "content": "b"}', {"sets": ["user_id=ann"]}, "duplicate_key"),
    ],
)
def test_nothing_is_written_over(tmp_path, data, options, code):
    assert rows(tmp_path, data, **options) == [code]


def test_numbers_in_quotes_are_numbers(acme, tmp_path):
    """As BigQuery exports whole ones."""
    file = tmp_path / "blocks.jsonl"
    row = {"external_id": "b", "label": "l", "limit": "7", "value": "5", "read_only": "true"}
    file.write_text(json.dumps(row))
    assert load_file(file, "blocks")["inserted"] == 1
    with tenant(acme):
        block = Block.objects.for_organization(acme).get()
    assert (block.limit, block.value, block.read_only) == (7, "5", True)
    file.write_text('{"content": "a", "score": "nan"}')
    with pytest.raises(CommandError, match="score: NaN and Infinity are not JSON"):
        load_file(file, "memories")


def test_an_unknown_key_is_refused_with_a_suggestion(acme, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"memory": "a"}')
    with pytest.raises(CommandError, match=r"Unknown field \(do you mean content\?\); allowed"):
        load_file(file, "memories")


def test_a_line_that_is_no_object_is_left_to_the_loader(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"content": "a"}\n5\n')
    with open_source(str(file), read_options(MEMORIES, sets=["user_id=ann"])) as source:
        assert [line for _, line, _ in source.lines()] == [
            b'{"content":"a","user_id":"ann"}',
            b"5",
        ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": ["a=conten"]}, "there is no field 'conten' (do you mean content?). Known are"),
        ({"maps": ["a"]}, "--map must be NAME=VALUE, not 'a'"),
        ({"maps": ["a=content", "a=context"]}, "names 'a' twice"),
        ({"sets": ["usr=1"]}, "there is no field 'usr'"),
        ({"sets": ["importance=high"]}, "importance: A number is needed"),
        ({"delimiter": "ab"}, "A delimiter must be one character"),
        ({"encoding": "klingon"}, "There is no encoding 'klingon'"),
        ({"encoding": "base64"}, "There is no encoding 'base64'"),
        ({"encoding": "unicode-escape"}, "There is no encoding 'unicode-escape'"),
        ({"encoding": "idna"}, "There is no encoding 'idna'"),
        ({"encoding": "a\0b"}, "There is no encoding"),
        ({"delimiter": "\0"}, "A delimiter must be one character"),
    ],
)
def test_an_option_that_cannot_be_had_is_refused(options, message):
    with pytest.raises(BadOption) as refusal:
        read_options(MEMORIES, **options)
    assert message in str(refusal.value)


def test_the_command_has_them_all(acme, tmp_path):
    file = tmp_path / "export.json"
    file.write_text(json.dumps({"results": [{"memory": "Likes tea", "id": "m1"}]}))
    report = load_file(
        file, "memories", map=["memory=content", "id=external_id"], set=["user_id=ann"]
    )
    assert (report["inserted"], report["notices"]) == (1, [])
    again = load_file(
        file, "memories", map=["memory=content", "id=external_id"], set=["user_id=ann"]
    )
    assert again["unchanged"] == 1
    with tenant(acme):
        assert User.objects.for_organization(acme).get().external_id == "ann"
    file = tmp_path / "users.csv"
    file.write_text("external_id;name\nu1;NULL\n")
    assert load_file(file, "users", delimiter=";", null=["NULL"])["inserted"] == 1
    with pytest.raises(CommandError, match=r"'nmae' \(do you mean name\?\)") as error:
        load_file(file, "users", map=["x=nmae"])
    assert error.value.returncode == 2


# -- Parquet -------------------------------------------------------------------------------------


def parquet(table):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), sink)
    return sink.getvalue()


def test_types_of_parquet_become_what_fields_take(tmp_path):
    key = uuid.UUID("0198c5d2-0000-7000-8000-000000000001")
    table = {
        "external_id": pyarrow.array([key.bytes, None], pyarrow.binary(16)),
        "user_id": pyarrow.array([4711.0, None], pyarrow.float64()),
        "agent_id": pyarrow.array([12, 13], pyarrow.int32()),
        "session_id": pyarrow.array([decimal.Decimal(7), None]),
        "content": pyarrow.array(["One", "Two"], pyarrow.string_view()),
        "importance": pyarrow.array([decimal.Decimal("0.5"), decimal.Decimal(1)]),
        "memory_type": pyarrow.array(["semantic", None]).dictionary_encode(),
        "speaker": pyarrow.array(["Ann", None], pyarrow.large_string()),
        "created_at": pyarrow.array([datetime.datetime(2026, 1, 31, 10)] * 2, "timestamp[ns]"),
        "expires_at": pyarrow.array([datetime.date(2027, 1, 31)] * 2),
        "__index_level_0__": pyarrow.array([0, 1]),
    }
    given, notices = read(tmp_path, parquet(table), name="m.parquet")
    assert given[0][1] == {
        "external_id": str(key),
        "user_id": "4711",
        "agent_id": "12",
        "session_id": "7",
        "content": "One",
        "importance": 0.5,
        "memory_type": "semantic",
        "speaker": "Ann",
        "created_at": "2026-01-31T10:00:00",
        "expires_at": "2027-01-31",
    }
    assert given[1][1].keys() == {"agent_id", "content", "importance", "created_at", "expires_at"}
    assert notices == ["Column 11 has no name; it is left out as a row number."]


def test_uuids_numbers_and_runs_of_parquet(tmp_path):
    key = uuid.uuid4()
    runs = pyarrow.large_list(pyarrow.struct([("run_id", pyarrow.string())]))
    table = {
        "session_id": pyarrow.array([key], pyarrow.uuid()),
        "runs": pyarrow.array([[{"run_id": "1"}]], runs),
    }
    assert rows(tmp_path, parquet(table), spec=SESSIONS, name="s.parquet") == [
        {"session_id": str(key), "runs": [{"run_id": "1"}]}
    ]
    table = {
        "external_id": ["b"],
        "label": ["l"],
        "limit": [2000.0],
        "read_only": pyarrow.array([1], pyarrow.int8()),
    }
    assert rows(tmp_path, parquet(table), spec=BLOCKS, name="b.parquet") == [
        {"external_id": "b", "label": "l", "limit": 2000, "read_only": True}
    ]


def test_columns_of_parquet_get_other_names(tmp_path):
    table = {"memory": ["a"], "user": [{"id": "ann"}], "x": [1], "index": ["k"]}
    given = rows(
        tmp_path,
        parquet(table),
        name="m.parquet",
        maps=["memory=content", "user.id=user_id", "x=", "index=external_id"],
    )
    assert given == [{"content": "a", "user_id": "ann", "external_id": "k"}]
    with pytest.raises(UnreadableFile, match="what is the column '__index_level_0__'"):
        read(tmp_path, parquet({"content": ["a"], "__index_level_0__": ["k"]}), name="m.parquet")


def test_words_for_nothing_in_parquet(tmp_path):
    table = parquet({"content": ["a", "None"], "user_id": ["None", "ann"]})
    assert rows(tmp_path, table, name="m.parquet") == [
        "null_word",
        {"content": "None", "user_id": "ann"},
    ]


@pytest.mark.parametrize("name", ["book.xlsx", "book"])
def test_a_workbook_is_refused_with_what_to_save_it_as(acme, tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0[Content_Types].xml")
    with pytest.raises(CommandError, match="an Excel workbook: save the sheet as CSV UTF-8"):
        load_file(file, "users")


def test_spec_of_users_has_kinds(tmp_path):
    assert rows(tmp_path, "external_id,name\nNULL,x\n", spec=USERS, name="u.csv") == ["null_word"]
