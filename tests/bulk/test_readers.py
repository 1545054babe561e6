"""Files and streams as numbered lines: each format, packed or not."""

import datetime
import decimal
import gzip
import io
import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from accounts.bulk import USERS
from agentmem_site.bulk.columns import kinds_of
from agentmem_site.bulk.readers import (
    UnreadableFile,
    lines_of,
    open_source,
    source_of,
    source_of_rows,
)
from agentmem_site.bulk.reading import ReadOptions
from agentmem_site.bulk.spec import LineError
from memories.bulk import MEMORIES, TOOLS
from tests.bulk.loading import load_file

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024


def read(file: Path, **options):
    with open_source(str(file), ReadOptions(**options)) as source:
        return list(source.lines())


def rows(file: Path, **options):
    """(number, row or code) of each line."""
    return [
        (number, line.code if isinstance(line, LineError) else json.loads(line))
        for number, line, _ in read(file, **options)
    ]


# -- JSON lines ----------------------------------------------------------------------------------


def test_lines_are_numbered_from_one_with_the_byte_they_start_at(tmp_path):
    file = tmp_path / "users.jsonl"
    file.write_bytes(b'{"a": 1}\n\n   \n{"a": 2}\r\n\t\r\n{"a": 3}')
    assert read(file) == [(1, b'{"a": 1}', 0), (4, b'{"a": 2}\r', 14), (6, b'{"a": 3}', 27)]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    file = tmp_path / "users.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')
    assert read(file) == [(1, b'{"a": 1}', 3), (2, b'{"a": 2}', 12)]


@pytest.mark.parametrize("data", [b"", b"\n", b"\n \n\r\n\t\n", b"\xef\xbb\xbf"])
def test_a_file_of_nothing_has_no_lines(tmp_path, data):
    file = tmp_path / "users.jsonl"
    file.write_bytes(data)
    assert read(file) == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_where_blocks_end_does_not_matter(size):
    data = b'\xef\xbb\xbf{"a": 1}\n\n{"long": "' + b"x" * 60 + b'"}\r\n{"b": 2}\n' + b"y" * 90
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    (whole, parts) = (
        [(n, getattr(line, "code", line), at) for n, line, at in lines_of(b, max_line_bytes=80)]
        for b in ([data], blocks)
    )
    assert parts == whole
    assert [number for number, *_ in whole] == [1, 3, 4, 5]
    assert whole[-1][1] == "line_too_long"


def test_a_line_as_long_as_is_allowed_is_given_and_one_more_byte_is_not(tmp_path):
    file = tmp_path / "users.jsonl"
    file.write_bytes(b"x" * 100 + b"\n" + b"y" * 101 + b"\nz\n")
    first, second, third = read(file, max_line_bytes=100)
    assert first == (1, b"x" * 100, 0)
    assert (second[0], second[1].code, second[2]) == (2, "line_too_long", 101)
    assert second[1].message == "Over 100 bytes; --max-line allows longer lines"
    assert third == (3, b"z", 203)


# -- packed --------------------------------------------------------------------------------------

PACKED = {
    "plain.jsonl": bytes,
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.zst": zstandard.compress,
    "members.jsonl.gz": lambda data: (
        gzip.compress(data[:40]) + gzip.compress(data[40:]) + b"\0" * 9
    ),
    "frames.jsonl.zst": lambda data: (
        b"\x50\x2a\x4d\x18\x03\0\0\0abc"  # a frame to be skipped
        + zstandard.compress(data[:40])
        + zstandard.ZstdCompressor(write_checksum=True).compress(data[40:])
    ),
    "nameless": gzip.compress,  # by what stands in it
}


@pytest.mark.parametrize("name", PACKED)
def test_compressed_files_are_recognized_by_their_content(tmp_path, name):
    data = b"".join(b'{"external_id": "user-%d"}\n' % n for n in range(50_000))
    file = tmp_path / name
    file.write_bytes(PACKED[name](data))
    with open_source(str(file)) as source:
        lines = list(source.lines())
        assert source.bytes_read() == source.size == file.stat().st_size
    assert b"".join(line + b"\n" for _, line, _ in lines) == data
    assert [number for number, *_ in lines] == list(range(1, 50_001))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_truncated_file_is_reported_with_its_last_whole_line(tmp_path, pack):
    data = b"".join(b'{"id": "%s"}\n' % os.urandom(20).hex().encode() for _ in range(50_000))
    file = tmp_path / "users.jsonl.x"
    for kept in (0.5, 0.99):
        packed = pack(data)
        file.write_bytes(packed[: int(len(packed) * kept)])
        given = []
        with (
            open_source(str(file)) as source,
            pytest.raises(UnreadableFile, match=r"is cut off: .* Copy the file again") as refusal,
        ):
            given.extend(source.lines())
        assert given[-1][0] == len(given) > 20_000
        assert f"(The last whole line is line {len(given):,}.)" in str(refusal.value)
        assert all(len(line) == len(given[0][1]) for _, line, _ in given)


@pytest.mark.parametrize(
    "pack", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress]
)
def test_a_damaged_file_is_refused(tmp_path, pack):
    packed = bytearray(pack(os.urandom(300_000).hex().encode()))
    packed[len(packed) // 2] ^= 0xFF
    packed[100] ^= 0xFF
    file = tmp_path / "users.jsonl.x"
    file.write_bytes(packed)
    with pytest.raises(UnreadableFile, match=r"is damaged: .* line is line 0"):
        read(file)


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: zstandard.compress(data, 19)])
def test_a_small_file_that_unpacks_to_a_large_one_is_stopped(tmp_path, pack):
    file = tmp_path / "bomb"
    file.write_bytes(pack(b'{"external_id": "user-1"}\n' * 10_000_000))
    assert file.stat().st_size < 1_000_000
    read_bytes = 0
    with (
        open_source(str(file)) as source,
        pytest.raises(UnreadableFile, match=r"more than 200 times its size: .*unpack it first"),
    ):
        for _, line, _ in source.lines():
            read_bytes += len(line)
    assert 40 * MIB < read_bytes < 140 * MIB


def test_a_frame_of_zstd_that_holds_gigabytes_costs_little_memory(tmp_path):
    file = tmp_path / "bomb.zst"
    # Blocks that repeat one byte 128 KiB times: 4 bytes each.
    block = ((128 * 1024) << 3 | 1 << 1).to_bytes(3, "little") + b"x"
    file.write_bytes(b"\x28\xb5\x2f\xfd\x00\x58" + block * 100_000)
    tracemalloc.start()
    with pytest.raises(UnreadableFile, match="more than 200 times its size"):
        read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * MIB


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_more_bytes_than_are_allowed_are_refused(tmp_path, pack):
    file = tmp_path / "users.jsonl"
    file.write_bytes(pack(b"x\n" * 5_000))
    assert len(read(file, max_bytes=10_000)) == 5_000
    with pytest.raises(UnreadableFile, match=r"holds more than 9,999 bytes: .* --max-bytes"):
        read(file, max_bytes=9_999)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04...", "is a zip archive: unpack it first"),
        (b"BZh91AY", "packed with bzip2"),
        (b"\xfd7zXZ\0", "packed with xz"),
        (b"PK\x03\x04 [Content_Types].xml", "is an Excel workbook: save the sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0..", "is an old Excel workbook: save the sheet as CSV UTF-8"),
        (b"SQLite format 3\0", "is a SQLite database: write a table of it as CSV"),
    ],
)
def test_known_formats_without_lines_are_named(tmp_path, data, message):
    file = tmp_path / "users.jsonl"
    file.write_bytes(data)
    with pytest.raises(UnreadableFile, match=message):
        read(file)


# -- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_a_live_pipe_is_not_waited_for_until_a_block_is_full(pack):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as stream:
        os.write(writing, pack(b'{"a": 1}\n'))
        with source_of(stream, name="a pipe") as source:
            lines = source.lines()
            assert next(lines) == (1, b'{"a": 1}', 0)
            os.write(writing, pack(b'{"a": 2}\n'))
            assert next(lines) == (2, b'{"a": 2}', 9)
            os.close(writing)
            assert list(lines) == []


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_the_first_bytes_are_looked_at_and_not_lost(tmp_path, pack):
    class Slow(io.BytesIO):
        def read1(self, size=-1):
            return super().read1(1)

    data = b"".join(b'{"n": %d}\n' % n for n in range(1000))
    packed = pack(data)
    file = tmp_path / "users.jsonl"
    file.write_bytes(packed)
    for opened in (
        open_source(str(file)),
        source_of(io.BytesIO(packed), name="body"),
        source_of(Slow(packed), name="body"),
    ):
        with opened as source:
            assert len(source.head) >= 4
            assert packed.startswith(source.head)
            assert b"".join(line + b"\n" for _, line, _ in source.lines()) == data
            assert source.bytes_read() == len(packed)


def test_a_broken_stream_is_reported_with_its_last_whole_line():
    class Broken(io.RawIOBase):
        sent = 0

        def read(self, size=-1):
            self.sent += 1
            if self.sent > 3:
                raise ConnectionResetError(104, "Connection reset by peer")
            return b'{"a": 1}\n{"a":'

    with (
        source_of(Broken(), name="the body") as source,
        pytest.raises(UnreadableFile, match=r"the body: Connection reset.* line is line 3"),
    ):
        list(source.lines())


def test_standard_input_is_read_as_a_file_is(tmp_path):
    code = (
        "import django; django.setup()\n"
        "from agentmem_site.bulk.readers import open_source\n"
        "with open_source('-') as source:\n"
        "    print(source.size, len(list(source.lines())), source.name)"
    )
    file = tmp_path / "users.jsonl"
    file.write_bytes(b'{"a": 1}\n' * 1000)

    def run(**stdin):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "agentmem_site.settings"},
            **stdin,
        )
        return done.stdout.decode().strip()

    assert run(input=zstandard.compress(file.read_bytes())) == "None 1000 standard input"
    with file.open("rb") as stdin:
        assert run(stdin=stdin) == "9000 1000 standard input"


# -- memory --------------------------------------------------------------------------------------


def peak_of_one_line(size: int) -> int:
    """Peak memory, in bytes, of a process that reads a line so long and a good one behind it."""
    code = f"""
import io, re
from pathlib import Path
import django; django.setup()
from agentmem_site.bulk.readers import source_of

class Long(io.RawIOBase):
    left = {size}
    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        if size:
            return b"x" * size
        if self.left == 0:
            self.left = -1
            return b"\\n{{}}\\n"
        return b""

with source_of(Long(), name="long") as source:
    (number, error, _), last = source.lines()
assert (number, error.code) == (1, "line_too_long"), error
assert last == (2, b"{{}}", {size} + 1), last
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "agentmem_site.settings"},
    )
    return int(done.stdout)


def test_a_line_of_200_megabytes_costs_little_memory():
    assert peak_of_one_line(200 * MIB) < 150 * MIB


@pytest.mark.slow
def test_a_line_of_2_gigabytes_costs_little_memory():
    assert peak_of_one_line(2048 * MIB) < 150 * MIB


# -- CSV -----------------------------------------------------------------------------------------

USER_FIELDS = kinds_of(USERS.line)


def csv_rows(tmp_path, text, **options):
    file = tmp_path / "rows.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return rows(file, **{"fields": USER_FIELDS, **options})


def test_cells_are_text_or_json_by_their_field(tmp_path):
    assert {"content": "text", "importance": "number", "metadata": "json"}.items() <= kinds_of(
        MEMORIES.line
    ).items()
    assert kinds_of(TOOLS.line)["source_type"] == "text"
    assert kinds_of(MEMORIES.line)["embedding"] == "either"
    text = (
        "external_id,content,importance,metadata,embedding,created_at,updated_at\r\n"
        '7,"5",0.5,"{""a"": [1, null]}","[0.5, 1]",2024-02-01T00:00:00Z,1700000000\r\n'
        "8,true,,,AAAA,,\r\n"
    )
    assert csv_rows(tmp_path, text, fields=kinds_of(MEMORIES.line)) == [
        (
            2,
            {
                "external_id": "7",
                "content": "5",
                "importance": 0.5,
                "metadata": {"a": [1, None]},
                "embedding": [0.5, 1],
                "created_at": "2024-02-01T00:00:00Z",
                "updated_at": 1700000000,
            },
        ),
        (3, {"external_id": "8", "content": "true", "embedding": "AAAA"}),
    ]


def test_a_record_has_the_number_of_the_line_it_starts_on(tmp_path):
    text = '\ufeffexternal_id,name\na,"two\n\nlines, ""quoted"""\n\nb,B\n"c","C\r\nD"'
    assert csv_rows(tmp_path, text) == [
        (2, {"external_id": "a", "name": 'two\n\nlines, "quoted"'}),
        (6, {"external_id": "b", "name": "B"}),
        (7, {"external_id": "c", "name": "C\r\nD"}),
    ]
    (*_, (_, _, offset)) = read(tmp_path / "rows.csv", fields=USER_FIELDS)
    assert (tmp_path / "rows.csv").read_bytes()[offset:].startswith(b'"c"')


@pytest.mark.parametrize(
    ("record", "code", "message"),
    [
        (b"a,b,c", "malformed_csv", "3 cells; the header has 2"),
        (b"a", "malformed_csv", "1 cells; the header has 2"),
        (b'"a"x,b', "malformed_csv", "',' expected after '\"'"),
        (b"a,\xff", "invalid_utf8", "Invalid UTF-8 at byte 2 of the line"),
        (b"a," + b"x" * 200, "line_too_long", "Over 100 bytes"),
        (b'a,"' + b"x\n" * 70 + b'"', "line_too_long", "Over 100 bytes"),
        (b"a,{", "malformed_json", "Expected JSON: "),
        (b'a,"{} {}"', "malformed_json", "Expected JSON: "),
        (b"a,NaN", "null_word", "The word NaN likely means an empty value; --null NaN reads"),
    ],
)
def test_a_bad_record_is_reported_and_the_next_one_read(tmp_path, record, code, message):
    text = b"external_id,metadata\n" + record + b"\nb,{}\n"
    file = tmp_path / "rows.csv"
    file.write_bytes(text)
    (number, error, offset), *_, last = read(file, fields=USER_FIELDS, max_line_bytes=100)
    assert (number, error.code, error.line, offset) == (2, code, 2, 21)
    assert message in error.message
    assert last[1] == b'{"external_id":"b","metadata":{}}'


def test_a_quote_that_nothing_closes_takes_in_no_more_than_a_line_may_hold(tmp_path):
    text = b'external_id,name\na,"never closed\n' + b"b,B\n" * 1_000_000
    file = tmp_path / "rows.csv"
    file.write_bytes(text)
    given = read(file, fields=USER_FIELDS)
    assert (given[0][0], given[0][1].code) == (2, "line_too_long")
    assert "a quote is not closed" in given[0][1].message
    assert given[-1] == (1_000_002, b'{"external_id":"b","name":"B"}', len(text) - 4)
    file.write_bytes(b'external_id,name\na,"never closed\nb,B\n')
    ((number, error, _),) = read(file, fields=USER_FIELDS)
    assert (number, error.code, error.message) == (2, "malformed_csv", "Unexpected end of data")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "external_id,nmae",
            r"no field 'nmae'. Do you mean --map nmae=name\? Known are",
        ),
        ("external_id:name", r"no field 'external_id:name'"),
        ("external_id,name,name", "has the column 'name' twice"),
        ("name,External ID,external-id", "has the column 'external_id' twice"),
        ('external_id,"name', "its header: Unexpected end of data"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, header, message):
    with pytest.raises(UnreadableFile, match=message):
        csv_rows(tmp_path, header + "\na,b\n")


def test_columns_that_nobody_knows_can_be_left_out(tmp_path):
    text = "note,external_id\nx,a\n"
    assert csv_rows(tmp_path, text, ignore_unknown=True) == [(2, {"external_id": "a"})]


@pytest.mark.parametrize("name", ["users.CSV.gz", "users.csv.zst"])
def test_packed_csv_is_loaded(acme, tmp_path, name):
    pack = gzip.compress if name.endswith("gz") else zstandard.compress
    file = tmp_path / name
    file.write_bytes(pack(b"external_id,name,metadata\n" + b'u1,Ann,"{""a"": 1}"\nu2,,\n'))
    assert load_file(file, "users")["inserted"] == 2


# -- Parquet -------------------------------------------------------------------------------------


def parquet(tmp_path, table, **options):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), file, **options)
    return file


def test_columns_of_every_type_become_json(tmp_path):
    utc = datetime.UTC
    moment = datetime.datetime(2024, 2, 1, 12, 30, 0, 250_000, utc)
    file = parquet(
        tmp_path,
        {
            "external_id": pyarrow.array(["a", "b"]).dictionary_encode(),
            "embedding": pyarrow.array([[0.5, 1.0], None], pyarrow.list_(pyarrow.float32())),
            "fixed": pyarrow.array([[0.5, 1], [2, 3]], pyarrow.list_(pyarrow.float16(), 2)),
            "metadata": pyarrow.array([{"a": 1, "b": None}, {"a": None, "b": "x"}]),
            "map": pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "created_at": pyarrow.array([moment, None], pyarrow.timestamp("ns", "Europe/Berlin")),
            "naive": pyarrow.array([moment.replace(tzinfo=None)] * 2, pyarrow.timestamp("us")),
            "price": pyarrow.array([decimal.Decimal("1.50"), decimal.Decimal("2")]),
            "runs": pyarrow.array([[{"run_id": "1", "model": None}], []]),
            "blob": pyarrow.array([b"text", "ä".encode()], pyarrow.binary()),
            "state": pyarrow.array(['{"x": [1]}', None]),
            "flag": [True, False],
            "day": [datetime.date(2024, 2, 1)] * 2,
        },
        row_group_size=1,
    )
    fields = dict.fromkeys(pyarrow.parquet.read_schema(file).names, "text") | {"state": "json"}
    (_, first), (_, second) = rows(file, fields=fields)
    assert first == {
        "external_id": "a",
        "embedding": [0.5, 1.0],
        "fixed": [0.5, 1.0],
        "metadata": {"a": 1},
        "map": {"k": 1},
        "created_at": "2024-02-01T13:30:00.250000+01:00",
        "naive": "2024-02-01T12:30:00.250000",
        "price": 1.5,
        "runs": [{"run_id": "1"}],
        "blob": "text",
        "state": {"x": [1]},
        "flag": True,
        "day": "2024-02-01",
    }
    assert second["metadata"] == {"b": "x"}
    assert second["blob"] == "ä"
    assert not {"embedding", "created_at", "state"} & second.keys()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_rows_of_parquet_are_numbered_through_all_groups(tmp_path, pack):
    table = {"external_id": [f"u{n}" for n in range(1, 11)]}
    file = parquet(tmp_path, table, row_group_size=3)
    file.write_bytes(pack(file.read_bytes()))
    assert [(n, line) for n, line, _ in read(file, fields=USER_FIELDS)] == [
        (n, b'{"external_id":"u%d"}' % n) for n in range(1, 11)
    ]


def test_bad_cells_of_parquet_are_reported_by_row(tmp_path):
    table = {
        "external_id": [f"u{n}" for n in range(1, 5)],
        "metadata": ['{"a": 1}', "{", "{}", '{"b": "' + "x" * 200 + '"}'],
        "email": pyarrow.array([b"a", b"b", b"\xff", b"d"], pyarrow.binary()),
    }
    file = parquet(tmp_path, table)
    assert [
        (number, line if isinstance(line, str) else "fine")
        for number, line in rows(file, fields=USER_FIELDS, max_line_bytes=100)
    ] == [(1, "fine"), (2, "malformed_json"), (3, "invalid_value"), (4, "line_too_long")]
    file = parquet(tmp_path, {"embedding": [[0.5], [float("nan")]], "score": [1.0, None]})
    assert [row for _, row in rows(file)][1] == "not_finite"


def test_what_is_no_parquet_and_unknown_columns_are_refused(tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(UnreadableFile, match="is no Parquet that can be read"):
        read(file)
    with pytest.raises(UnreadableFile, match="no field 'nmae'"):
        read(parquet(tmp_path, {"nmae": ["a"]}), fields=USER_FIELDS)


def test_parquet_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    file = parquet(tmp_path, {"external_id": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnreadableFile, match=r"pip install -r requirements-parquet\.txt"):
        read(file)


def test_parquet_is_loaded(acme, tmp_path):
    table = {
        "external_id": ["m1", "m2"],
        "content": ["one", "two"],
        "embedding": np.random.default_rng(1).normal(size=(2, 384)).astype("f4").tolist(),
        "metadata": [{"a": 1}, {"a": 2}],
        "created_at": [datetime.datetime(2024, 2, 1, tzinfo=datetime.UTC)] * 2,
    }
    report = load_file(parquet(tmp_path, table), "memories", preserve_timestamps=True)
    assert report["inserted"] == 2


# -- rows from Python ----------------------------------------------------------------------------


def test_rows_are_lines_of_json_and_bad_ones_are_reported():
    moment = datetime.datetime(2024, 2, 1, tzinfo=datetime.UTC)
    given = [
        {"a": np.float32(0.5), "b": np.array([1.0, 2.0]), "c": moment, "d": decimal.Decimal("1.5")},
        {"a": None, "b": "null"},
        {"a": float("nan")},
        {"a": [{"b": np.array([1.0, np.inf])}]},
        {"a": object()},
        {"a": "\ud800"},
        {"a": 1},
    ]
    lines = [(n, getattr(line, "code", line)) for n, line, _ in source_of_rows(given).lines()]
    assert lines == [
        (1, b'{"a":0.5,"b":[1.0,2.0],"c":"2024-02-01T00:00:00Z","d":1.5}'),
        (2, b'{"a":null,"b":"null"}'),
        (3, "not_finite"),
        (4, "not_finite"),
        (5, "invalid_value"),
        (6, "lone_surrogate"),
        (7, b'{"a":1}'),
    ]


def test_rows_are_taken_as_they_are_wanted():
    taken = []
    numbers = (taken.append(n) or {"n": n} for n in itertools.count())
    lines = source_of_rows(numbers).lines()
    assert [next(lines)[1], next(lines)[1]] == [b'{"n":0}', b'{"n":1}']
    assert taken == [0, 1]
