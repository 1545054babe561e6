"""The statements of a batch, composed with psycopg.sql. Every value is a Literal.

A batch goes through temporary tables (`Staging`). Each statement is sent as one simple query. On
other tables it names the organization.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import ceil
from typing import Any
from uuid import UUID

from django.db import connection
from psycopg import sql

from agentmem_site.bulk.spec import LINE_AT, LINE_HASH, OVERWRITE, Column, Key, LoadSpec, Reference
from agentmem_site.db.keys import as_id
from agentmem_site.db.roles import ADMIN

_OLD, _NEW = sql.Identifier("t"), sql.Identifier("s")
_EXCLUDED = sql.SQL("EXCLUDED")
# The load set this timestamp: the row's line has none.
_SET_BY_LOAD = "{new}.{column} BETWEEN {started} AND {now}"
_AND, _OR, _COMMA = sql.SQL(" AND "), sql.SQL(" OR "), sql.SQL(", ")
# Of a staged row, once existing rows are matched.
_TO_WRITE = sql.SQL("(m.id IS NULL OR (m.needs_write AND NOT m.is_deleted))")
# Around statements that use `_looked_up`.
INDEX_SCANS_ONLY = sql.SQL("SET LOCAL enable_seqscan = off")
ALL_SCANS = sql.SQL("SET LOCAL enable_seqscan = on")


@dataclass(frozen=True, slots=True)
class Stamp:
    """Whose rows are written, by whom and when; and when their load started."""

    organization_id: UUID
    actor_id: UUID | None
    now: datetime
    started: datetime


@dataclass(frozen=True, slots=True)
class Staging:
    """The staging table of one spec, and two temporary tables beside it. `columns` are in the order
    in which they are copied."""

    spec: LoadSpec
    columns: tuple[str, ...]
    # Column -> what it is in every new row: a value, or SQL over the staged row `s`.
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keeps_time(self) -> bool:
        """Rows keep the timestamps of the file; otherwise the load sets them."""
        return "created_at" in self.columns

    @property
    def rows(self) -> sql.Identifier:
        """The staging table: the batch's rows as the file has them."""
        return sql.Identifier(f"load_{self.spec.model._meta.db_table}")

    @property
    def written(self) -> sql.Identifier:
        """(id) of each row written."""
        return sql.Identifier(f"written_{self.spec.model._meta.db_table}")

    @property
    def existing(self) -> sql.Identifier:
        """(staged_id, id, is_deleted, is_expired, needs_write) of each existing row that a staged
        row matches. `needs_write`: it differs, or one of its children does."""
        return sql.Identifier(f"existing_{self.spec.model._meta.db_table}")

    def create(self) -> sql.Composed:
        return sql.SQL(
            "{rows}; CREATE TEMP TABLE {written} (id uuid) ON COMMIT DROP; "
            "CREATE TEMP TABLE {existing} (staged_id uuid, id uuid, is_deleted boolean, "
            "is_expired boolean, needs_write boolean) ON COMMIT DROP"
        ).format(rows=self.create_rows(), written=self.written, existing=self.existing)

    def copy(self) -> sql.Composed:
        names = _COMMA.join(map(sql.Identifier, self.columns))
        return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(self.rows, names)

    def create_rows(self) -> sql.Composed:
        """The staging table alone."""
        types = {f.column: f.db_type(connection) for f in self.spec.model._meta.concrete_fields}
        types[LINE_AT] = types["created_at"]
        return sql.SQL("CREATE TEMP TABLE {} ({}) ON COMMIT DROP").format(
            self.rows,
            _COMMA.join(
                sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(str(types[name])))
                for name in self.columns
            ),
        )

    def drop(self) -> sql.Composed:
        return sql.SQL("DROP TABLE {}, {}, {}").format(self.rows, self.written, self.existing)

    @property
    def new(self) -> sql.Composed:
        """Ids that a written row has only if it is new: the staged ones. An id that comes from the
        file may also be an existing row's."""
        if not self.spec.keeps_ids:
            return sql.SQL("(SELECT id FROM {})").format(self.rows)
        return sql.SQL("(SELECT id FROM {} EXCEPT SELECT id FROM {})").format(
            self.rows, self.existing
        )


def settings(*, timeout_s: float) -> sql.Composed:
    """The settings of one batch's transaction. `work_mem` lets it sort its rows in memory."""
    return sql.SQL(
        "SET LOCAL work_mem = '64MB'; SET LOCAL statement_timeout = {}; "
        "SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '60s'"
    ).format(sql.Literal(ceil(timeout_s * 1000)))


def estimated_rows(table: str) -> sql.Composed:
    """The planner's estimate of the table's rows; -1 if it was never analyzed."""
    return sql.SQL("SELECT reltuples::bigint FROM pg_class WHERE oid = {}::regclass").format(
        sql.Literal(table)
    )


def analyze(table: str) -> sql.Composed:
    """ANALYZE, by a function that runs as the owner (accounts/migrations/0002)."""
    return sql.SQL("SELECT agentmem_analyze({}::regclass)").format(sql.Literal(table))


def match_existing(
    stage: Staging, key: Key, stamp: Stamp, parents: Staging | None = None
) -> sql.Composed:
    """Records which existing rows the staged rows match, and which of them differ. Children are
    looked up below their existing parents, unless these are in the trash."""
    same = _same_row(key, stamp)
    source: sql.Composable = stage.rows
    if parents:
        parent = sql.Identifier(stage.spec.parent_column)
        source = sql.SQL(
            "(SELECT c.*, p.id AS existing_parent FROM {rows} c JOIN {existing} p "
            "ON p.staged_id = c.{parent} AND NOT p.is_deleted)"
        ).format(rows=stage.rows, existing=parents.existing, parent=parent)
        rest = replace(key, columns=key.columns[1:])
        same = sql.SQL("{} AND t.{} = s.existing_parent").format(_same_row(rest, stamp), parent)
    return sql.SQL("; ").join(
        [
            INDEX_SCANS_ONLY,
            sql.SQL(
                "INSERT INTO {existing} SELECT s.id, t.id, t.is_deleted, {is_expired}, "
                "coalesce({differs}, false) FROM {source} s, {looked_up} WHERE {staged}"
            ).format(
                existing=stage.existing,
                is_expired=_is_expired(stage.spec, _OLD, stamp),
                differs=_differs(stage, _OLD, _NEW, stamp),
                source=source,
                looked_up=_looked_up(stage.spec, same),
                staged=_staged(stage.spec.keys, key),
            ),
            ALL_SCANS,
        ]
    )


def lock_references(
    stage: Staging, references: Sequence[Reference], stamp: Stamp, *, is_matched: bool
) -> sql.Composed:
    """Locks the rows that the rows to be written refer to, so that they cannot go to the trash
    before this transaction ends (Records.delete waits). Returns those that are in the trash
    already: (index of the reference, id).

    References are locked in their order, rows in that of their ids: as a deletion locks them.
    (OFFSET: without it, only rows in the trash would be locked.)
    """
    existing = sql.SQL(" LEFT JOIN {} m ON m.staged_id = s.id").format(stage.existing)
    return sql.SQL(" UNION ALL ").join(
        sql.SQL(
            "SELECT {index}, t.id FROM (SELECT DISTINCT s.{column} AS id FROM {rows} s{existing} "
            "WHERE s.{column} IS NOT NULL{to_write} ORDER BY 1) AS n, "
            "LATERAL (SELECT t.id, t.is_deleted FROM {table} t WHERE t.organization_id = {own} "
            "AND t.id = n.id OFFSET 0 FOR KEY SHARE) AS t WHERE t.is_deleted"
        ).format(
            index=sql.Literal(index),
            column=sql.Identifier(reference.column),
            rows=stage.rows,
            existing=existing if is_matched else sql.SQL(""),
            to_write=sql.SQL(" AND {}").format(_TO_WRITE) if is_matched else sql.SQL(""),
            table=sql.Identifier(reference.model._meta.db_table),
            own=sql.Literal(stamp.organization_id),
        )
        for index, reference in enumerate(references)
    )


def rows_referring_to(
    stage: Staging, reference: Reference, ids: Sequence[UUID], *, is_matched: bool
) -> sql.Composed:
    """The staged ids of the rows that are to be written and refer to one of `ids`."""
    rows = sql.SQL("SELECT s.id FROM {} s").format(stage.rows)
    if is_matched:
        rows += sql.SQL(" LEFT JOIN {} m ON m.staged_id = s.id").format(stage.existing)
    rows += sql.SQL(" WHERE s.{} = ANY ({})").format(
        sql.Identifier(reference.column), sql.Literal(list(ids))
    )
    if is_matched:
        rows += sql.SQL(" AND {}").format(_TO_WRITE)
    return rows


def mark_parents(stage: Staging, children: Staging) -> sql.Composed:
    """Marks parents with a new or different child: they are written too."""
    return sql.SQL(
        "UPDATE {existing} m SET needs_write = true FROM (SELECT DISTINCT c.{parent} AS staged_id "
        "FROM {rows} c LEFT JOIN {existing_children} k ON k.staged_id = c.id "
        "WHERE k.id IS NULL OR (k.needs_write AND NOT k.is_deleted)) AS touched "
        "WHERE touched.staged_id = m.staged_id AND NOT m.needs_write"
    ).format(
        existing=stage.existing,
        parent=sql.Identifier(children.spec.parent_column),
        rows=children.rows,
        existing_children=children.existing,
    )


def deleted_rows(stage: Staging) -> sql.Composed:
    """(id) of the existing rows in the trash."""
    return sql.SQL("SELECT DISTINCT id FROM {} WHERE is_deleted").format(stage.existing)


def mark_restored(stage: Staging) -> sql.Composed:
    """Records that the existing rows have been restored from the trash."""
    return sql.SQL("UPDATE {} SET is_deleted = false, needs_write = true WHERE is_deleted").format(
        stage.existing
    )


def insert(
    stage: Staging, key: Key, stamp: Stamp, only: Sequence[UUID] | None = None
) -> sql.Composed:
    """Inserts the staged rows of this key, or those in `only`, in the order of the key. Fails if
    one exists."""
    values = _inserted(stage, stamp)
    staged = _staged(stage.spec.keys, key)
    if only is not None:
        staged = sql.SQL("{} AND s.id = ANY ({})").format(staged, sql.Literal(list(only)))
    return sql.SQL(
        "INSERT INTO {table} AS t ({names}) SELECT {values} FROM {rows} s WHERE {staged} "
        "ORDER BY {order}"
    ).format(
        table=stage.spec.table,
        names=_COMMA.join(map(sql.Identifier, values)),
        values=_COMMA.join(values.values()),
        rows=stage.rows,
        staged=staged,
        order=_COMMA.join(sql.Identifier("s", name) for name in key.columns),
    )


def record_all_written(stage: Staging) -> sql.Composed:
    """Records that all staged rows were written."""
    return sql.SQL("INSERT INTO {} SELECT id FROM {}").format(stage.written, stage.rows)


def upsert(stage: Staging, key: Key, stamp: Stamp, parents: Staging | None = None) -> sql.Composed:
    """Inserts the staged rows of this key that are new and updates existing ones that need it.

    Rows are written in the order of their key, so that concurrent loaders do not deadlock. A row
    that was matched is written with its existing id. This distinguishes it from a row that another
    loader has inserted since, which is updated only if it differs.
    """
    spec = stage.spec
    values = _inserted(stage, stamp)
    values["id"] = sql.SQL("coalesce(m.id, s.id)")
    if stage.keeps_time:
        # (`now` means that none was given: an existing row keeps its own, unless it had expired.)
        values["created_at"] = sql.SQL(
            "coalesce(s.created_at, CASE WHEN m.id IS NULL "
            "OR (m.is_expired AND ({is_still_expired}) IS NOT TRUE) THEN {line_at} ELSE {now} END)"
        ).format(
            is_still_expired=_is_expired(spec, _NEW, stamp),
            line_at=sql.Identifier("s", LINE_AT),
            now=sql.Literal(stamp.now),
        )
    source = sql.SQL("{} s LEFT JOIN {} m ON m.staged_id = s.id").format(stage.rows, stage.existing)
    where: list[sql.Composable] = [
        _staged(spec.keys, key),
        _TO_WRITE,
    ]
    order = [sql.Identifier("s", name) for name in key.columns]
    if parents:
        parent = sql.Identifier(spec.parent_column)
        source = sql.SQL("{} LEFT JOIN {} p ON p.staged_id = s.{}").format(
            source, parents.existing, parent
        )
        where.append(sql.SQL("p.is_deleted IS NOT TRUE"))
        values[spec.parent_column] = sql.SQL("coalesce(p.id, s.{})").format(parent)
        order[0] = values[spec.parent_column]  # type: ignore[call-overload]
    return sql.SQL(
        "WITH upserted AS (INSERT INTO {table} AS t ({names}) SELECT {values} FROM {source} "
        "WHERE {where} ORDER BY {order} ON CONFLICT ({key}){partial} DO UPDATE SET {updates} "
        "WHERE t.organization_id = {organization} AND NOT t.is_deleted "
        "AND (t.id = EXCLUDED.id OR {differs}) RETURNING t.id) "
        "INSERT INTO {written} SELECT id FROM upserted"
    ).format(
        table=spec.table,
        names=_COMMA.join(map(sql.Identifier, values)),
        values=_COMMA.join(values.values()),
        source=source,
        where=_AND.join(where),
        order=_COMMA.join(order),
        key=_COMMA.join(map(sql.Identifier, ("organization_id", *key.columns))),
        partial=_predicate(" WHERE ", key, ""),
        updates=_COMMA.join(_updates(stage, stamp)),
        organization=sql.Literal(stamp.organization_id),
        differs=_differs(stage, _OLD, _EXCLUDED, stamp),
        written=stage.written,
    )


def insert_new(stage: Staging, key: Key, stamp: Stamp) -> sql.Composed:
    """The same, but rows whose key is taken are left out. Returns the ids of the others."""
    return sql.SQL("{} ON CONFLICT DO NOTHING RETURNING t.id").format(insert(stage, key, stamp))


def insert_over_expired(
    stage: Staging, key: Key, stamp: Stamp, staged: Sequence[UUID]
) -> sql.Composed:
    """Inserts these staged rows again, over conflicting rows that have expired. Returns the ids of
    what is written: nothing if another transaction has done the same meanwhile."""
    return sql.SQL(
        "{insert} ON CONFLICT ({key}){partial} DO UPDATE SET {updates} "
        "WHERE t.organization_id = {organization} AND NOT t.is_deleted AND {is_expired} "
        "RETURNING t.id"
    ).format(
        insert=insert(stage, key, stamp, only=staged),
        key=_COMMA.join(map(sql.Identifier, ("organization_id", *key.columns))),
        partial=_predicate(" WHERE ", key, ""),
        updates=_COMMA.join(_updates(stage, stamp)),
        organization=sql.Literal(stamp.organization_id),
        is_expired=_is_expired(stage.spec, _OLD, stamp),
    )


def conflicting_rows(stage: Staging, key: Key, stamp: Stamp, *, compare: str) -> sql.Composed:
    """(staged id, id, is_deleted, is_expired, the column `compare`) of the rows with which staged
    ones conflict."""
    return sql.SQL(
        "SELECT s.id, t.id, t.is_deleted, {is_expired}, t.{compare} FROM {rows} s, {looked_up} "
        "WHERE {staged}"
    ).format(
        is_expired=_is_expired(stage.spec, _OLD, stamp),
        compare=sql.Identifier(compare),
        rows=stage.rows,
        looked_up=_looked_up(stage.spec, _same_row(key, stamp)),
        staged=_staged(stage.spec.keys, key),
    )


def _looked_up(spec: LoadSpec, same: sql.Composable) -> sql.Composed:
    """The rows of the table `t` for each preceding row. OFFSET keeps the planner from turning this
    into a join: if it thought the organization empty, it would start with the table and scan the
    batch for each of its rows (measured: 550 ms for 2,500 lines instead of 9)."""
    return sql.SQL("LATERAL (SELECT * FROM {} t WHERE {} OFFSET 0) AS t").format(spec.table, same)


def count(stage: Staging) -> sql.Composed:
    """(rows written, of them inserted; existing rows, of them in the trash, of them to update)."""
    return sql.SQL(
        "SELECT written, inserted, existing, deleted, to_update FROM (SELECT count(*) AS written, "
        "count(s.id) AS inserted FROM {written} c LEFT JOIN {new} s USING (id)) AS w, "
        "(SELECT count(*) AS existing, count(*) FILTER (WHERE is_deleted) AS deleted, "
        "count(*) FILTER (WHERE needs_write AND NOT is_deleted) AS to_update "
        "FROM {existing}) AS m"
    ).format(written=stage.written, new=stage.new, existing=stage.existing)


def count_orphans(stage: Staging, parents: Staging) -> sql.Composed:
    """The number of staged children whose parent is in the trash."""
    return sql.SQL(
        "SELECT count(*) FROM {} c JOIN {} p ON p.staged_id = c.{} WHERE p.is_deleted"
    ).format(stage.rows, parents.existing, sql.Identifier(stage.spec.parent_column))


def forget_lines(stage: Staging, children: Staging, stamp: Stamp) -> sql.Composed:
    """Clears the line hash of rows with a child in the trash: they are not as their lines say, so
    the same lines must be compared again."""
    return sql.SQL(
        "UPDATE {table} t SET {line_hash} = NULL WHERE t.organization_id = {organization} "
        "AND t.id IN (SELECT p.id FROM {existing} k JOIN {rows} c ON c.id = k.staged_id "
        "JOIN {existing_parents} p ON p.staged_id = c.{parent} "
        "WHERE k.is_deleted AND p.needs_write)"
    ).format(
        table=stage.spec.table,
        line_hash=sql.Identifier(LINE_HASH),
        organization=sql.Literal(stamp.organization_id),
        existing=children.existing,
        rows=children.rows,
        existing_parents=stage.existing,
        parent=sql.Identifier(children.spec.parent_column),
    )


def written_rows(stage: Staging) -> sql.Composed:
    """(id, change_type, reason) of the rows written."""
    expiry = stage.spec.expiry
    return sql.SQL(
        "SELECT c.id, CASE WHEN s.id IS NULL THEN 'updated' ELSE 'created' END, "
        "CASE WHEN m.is_expired THEN {reason} ELSE '' END "
        "FROM {written} c LEFT JOIN {new} s USING (id) LEFT JOIN {existing} m ON m.id = c.id"
    ).format(
        reason=sql.Literal(expiry.reason if expiry else ""),
        written=stage.written,
        new=stage.new,
        existing=stage.existing,
    )


def ids_of_another_key(stage: Staging, key: Key, stamp: Stamp) -> sql.Composed:
    """At most one staged id that exists with another value of this key."""
    columns = list(map(sql.Identifier, key.columns))
    return sql.SQL("SELECT s.id FROM {rows} s, {looked_up} WHERE {differ} LIMIT 1").format(
        rows=stage.rows,
        looked_up=_looked_up(stage.spec, _same_row(Key(("id",)), stamp)),
        differ=_OR.join(sql.SQL("t.{0} IS DISTINCT FROM s.{0}").format(c) for c in columns),
    )


def keys_of_another_id(stage: Staging, key: Key, stamp: Stamp) -> sql.Composed:
    """At most one staged id whose value of this key belongs to another row."""
    return sql.SQL(
        "SELECT s.id FROM {rows} s, {looked_up} WHERE {staged} AND t.id <> s.id LIMIT 1"
    ).format(
        rows=stage.rows,
        looked_up=_looked_up(stage.spec, _same_row(key, stamp)),
        staged=_staged_live(stage.spec, key),
    )


def keys_staged_twice(stage: Staging, key: Key) -> sql.Composed:
    """At most one staged id that shares its value of this key with another."""
    return sql.SQL(
        "SELECT (array_agg(s.id))[2] FROM {rows} s WHERE {staged} GROUP BY {columns} "
        "HAVING count(*) > 1 LIMIT 1"
    ).format(
        rows=stage.rows,
        staged=_staged_live(stage.spec, key),
        columns=_COMMA.join(sql.Identifier("s", name) for name in key.columns),
    )


def _staged_live(spec: LoadSpec, key: Key) -> sql.Composable:
    """Selects the staged rows that this natural key identifies and that its index would contain."""
    staged = _staged(spec.natural_keys, key)
    return _AND.join([staged, _predicate("", key, "s.")]) if key.partial else staged


def enter_platform() -> sql.Composed:
    return sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(ADMIN))


def leave_platform() -> sql.SQL:
    return sql.SQL("SET LOCAL ROLE NONE")


def ids_of_others(stage: Staging, ids: Sequence[UUID], stamp: Stamp) -> sql.Composed:
    """At most one of the ids that belongs to another organization. Runs between the two above."""
    return sql.SQL(
        "SELECT id FROM {table} WHERE id = ANY ({ids}) AND NOT organization_id = {own} LIMIT 1"
    ).format(
        table=stage.spec.table,
        ids=sql.Literal(list(ids)),
        own=sql.Literal(stamp.organization_id),
    )


def find_references(
    reference: Reference, organization_id: UUID, wanted: Sequence[str], *, locks: bool
) -> sql.Composed:
    """(key, id, is_deleted) of the rows that `wanted` names by their key or their id. With `locks`,
    they cannot go to the trash before this transaction ends."""
    return sql.SQL(
        "SELECT {key}, id, is_deleted FROM {table} WHERE organization_id = {organization} "
        "AND ({key} = ANY ({wanted}) OR id = ANY ({ids})){lock}"
    ).format(
        lock=sql.SQL(" ORDER BY id FOR KEY SHARE" if locks else ""),
        key=sql.Identifier(reference.key),
        table=sql.Identifier(reference.model._meta.db_table),
        organization=sql.Literal(organization_id),
        wanted=sql.Literal(list(wanted)),
        ids=sql.Literal([i for i in map(as_id, wanted) if i]),
    )


def find_references_within(
    reference: Reference, organization_id: UUID, wanted: Sequence[tuple[UUID, str]]
) -> sql.Composed:
    """(outer id, key, id, is_deleted) of the rows that `wanted` names within their outer row."""
    outer: Any = reference.model._meta.get_field(reference.within.removesuffix("_id"))
    return sql.SQL(
        "SELECT {outer}, {key}, id, is_deleted FROM {table} WHERE organization_id = {organization} "
        "AND ({outer}, {key}) IN (SELECT * FROM unnest({outers}::uuid[], {keys}::text[]))"
    ).format(
        outer=sql.Identifier(outer.column),
        key=sql.Identifier(reference.key),
        table=sql.Identifier(reference.model._meta.db_table),
        organization=sql.Literal(organization_id),
        outers=sql.Literal([outer_id for outer_id, _ in wanted]),
        keys=sql.Literal([key for _, key in wanted]),
    )


def create_references(
    reference: Reference, stamp: Stamp, rows: Sequence[tuple[UUID, str, datetime]]
) -> sql.Composed:
    """Inserts rows (id, key, created_at) with defaults in all other columns. An existing row
    stays as it is."""
    given = {
        **_audit_values(stamp),
        "id": sql.Identifier("new", "id"),
        "created_at": sql.Identifier("new", "created_at"),
        "organization_id": sql.Literal(stamp.organization_id),
        reference.key: sql.Identifier("new", "key"),
    }
    values = {**given, **_defaults(reference.model, given)}
    return sql.SQL(
        "INSERT INTO {table} ({names}) SELECT {values} "
        "FROM unnest({ids}::uuid[], {keys}::text[], {moments}::timestamptz[]) "
        "AS new (id, key, created_at) ORDER BY new.key "
        "ON CONFLICT (organization_id, {key}) DO NOTHING"
    ).format(
        table=sql.Identifier(reference.model._meta.db_table),
        names=_COMMA.join(map(sql.Identifier, values)),
        values=_COMMA.join(values.values()),
        ids=sql.Literal([i for i, _, _ in rows]),
        keys=sql.Literal([k for _, k, _ in rows]),
        moments=sql.Literal([m for _, _, m in rows]),
        key=sql.Identifier(reference.key),
    )


def unchanged_rows(
    spec: LoadSpec, keys: Sequence[str], hashes: Sequence[bytes], stamp: Stamp
) -> sql.Composed:
    """The positions, from 1, of the keys whose row was last loaded from the line with that hash
    and has not changed since: a change moves `updated_at`. After INDEX_SCANS_ONLY."""
    return sql.SQL(
        "SELECT p.position FROM unnest({keys}::text[], {hashes}::bytea[]) "
        "WITH ORDINALITY AS p (key, hash, position), {looked_up} "
        "WHERE NOT t.is_deleted AND t.{line_hash} = p.hash || timestamptz_send(t.updated_at)"
    ).format(
        keys=sql.Literal(list(keys)),
        hashes=sql.Literal(list(hashes)),
        looked_up=_looked_up(
            spec,
            sql.SQL("t.organization_id = {} AND t.{} = p.key").format(
                sql.Literal(stamp.organization_id), sql.Identifier(spec.keys[0].columns[0])
            ),
        ),
        line_hash=sql.Identifier(LINE_HASH),
    )


def _inserted(stage: Staging, stamp: Stamp) -> dict[str, sql.Composable]:
    """Column -> value of the INSERT: staged, stamped, or the model's default."""
    set_below = ("created_at", "updated_at", LINE_AT, LINE_HASH)
    values: dict[str, sql.Composable] = {
        name: sql.Identifier("s", name) for name in stage.columns if name not in set_below
    }
    values |= {
        name: value if isinstance(value, sql.Composable) else sql.Literal(value)
        for name, value in stage.constants.items()
    }
    values["organization_id"] = sql.Literal(stamp.organization_id)
    values |= _audit_values(stamp)
    values["created_at"] = sql.Identifier("s", LINE_AT)
    if stage.keeps_time:
        for name in ("created_at", "updated_at"):
            values[name] = sql.SQL("coalesce(s.{}, {})").format(sql.Identifier(name), values[name])
    if LINE_HASH in stage.columns:
        values[LINE_HASH] = sql.SQL("s.{} || timestamptz_send({})").format(
            sql.Identifier(LINE_HASH), values["updated_at"]
        )
    return values | _defaults(stage.spec.model, values)


def _audit_values(stamp: Stamp) -> dict[str, sql.Composable]:
    now, actor = sql.Literal(stamp.now), sql.SQL("{}::uuid").format(sql.Literal(stamp.actor_id))
    return {
        "created_at": now,
        "updated_at": now,
        "created_by_id": actor,
        "last_updated_by_id": actor,
    }


def _defaults(model: Any, given: Any) -> dict[str, sql.Composable]:
    """The other columns of a new row. Django keeps its defaults in Python, not in the table."""
    rest: dict[str, sql.Composable] = {}
    for column in model._meta.concrete_fields:
        if column.column in given or column.generated:
            continue
        default = column.get_db_prep_save(column.get_default(), connection)
        if default is not None:
            cast = sql.SQL(str(column.db_type(connection)))
            rest[column.column] = sql.SQL("{}::{}").format(sql.Literal(default), cast)
    return rest


def _updates(stage: Staging, stamp: Stamp) -> list[sql.Composable]:
    # EXCLUDED values, constants and the row's own columns: a sharded database accepts only these.
    updates = [(column.name, column.update) for column in _own_columns(stage.spec)]
    updates += stage.spec.server_columns.items()
    updates += [(name, OVERWRITE) for name in ("updated_at", "last_updated_by_id")]
    if any(field.name == LINE_HASH for field in stage.spec.model._meta.concrete_fields):
        updates.append((LINE_HASH, OVERWRITE))
    kept = "{old}.{column}"
    if stage.keeps_time:
        kept = (
            "CASE WHEN {new}.{column} = {now} OR ({old}.id <> {new}.id AND "
            f"{_SET_BY_LOAD}) THEN {{old}}.{{column}} ELSE {{new}}.{{column}} END"
        )
    if expiry := stage.spec.expiry:
        # An expired row starts over, unless the new values are expired too.
        old, new = (expiry.when.replace("{row}", row) for row in ("{old}.", "{new}."))
        renewed = f"CASE WHEN {old} AND ({new}) IS NOT TRUE THEN {{new}}.{{column}} ELSE {{}} END"
        named = {name for name, _ in updates}
        constants = [name for name in stage.constants if name not in named]
        updates += [(name, renewed.replace("{}", "{old}.{column}")) for name in constants]
        updates.append(("created_at", renewed.replace("{}", kept)))
    elif stage.keeps_time:
        updates.append(("created_at", kept))
    return [
        sql.SQL("{} = {}").format(
            sql.Identifier(name),
            sql.SQL(value).format(
                old=_OLD,
                new=_EXCLUDED,
                column=sql.Identifier(name),
                now=sql.Literal(stamp.now),
                started=sql.Literal(stamp.started),
            ),
        )
        for name, value in updates
    ]


def _differs(
    stage: Staging, old: sql.Composable, new: sql.Composable, stamp: Stamp
) -> sql.Composable:
    tests = [(column.name, column.differs) for column in _own_columns(stage.spec)]
    if stage.keeps_time:
        # A missing timestamp is no change. (In EXCLUDED it is the load's: another loader has
        # inserted the row since it was looked up.)
        given = "({old}.{column} <> {new}.{column} AND {new}.{column} <> {now})"
        created = f"({{old}}.{{column}} <> {{new}}.{{column}} AND NOT {_SET_BY_LOAD})"
        tests += [("created_at", created if new is _EXCLUDED else given), ("updated_at", given)]
    compared = [
        sql.SQL(test).format(
            old=old,
            new=new,
            column=sql.Identifier(name),
            now=sql.Literal(stamp.now),
            started=sql.Literal(stamp.started),
        )
        for name, test in tests
        if test
    ]
    return _OR.join(compared) if compared else sql.SQL("false")


def _is_expired(spec: LoadSpec, row: sql.Composable, stamp: Stamp) -> sql.Composable:
    if spec.expiry is None:
        return sql.SQL("false")
    when = sql.SQL(spec.expiry.when)
    return when.format(row=sql.SQL("{}.").format(row), now=sql.Literal(stamp.now))


def _own_columns(spec: LoadSpec) -> list[Column]:
    """The columns that may change: not those of the conflict key."""
    keys = {name for key in spec.keys if not key.partial for name in key.columns}
    return [column for column in spec.all_columns if column.name not in {*keys, spec.parent_column}]


def _staged(keys: Sequence[Key], key: Key) -> sql.Composable:
    """Selects the staged rows that this key identifies: those without an earlier key."""
    earlier = keys[: list(keys).index(key)]
    tests: list[sql.Composable] = [
        sql.SQL("s.{} IS NULL").format(sql.Identifier(other.columns[0])) for other in earlier
    ]
    tests.append(sql.SQL("s.{} IS NOT NULL").format(sql.Identifier(key.columns[0])))
    return _AND.join(tests)


def _predicate(keyword: str, key: Key, row: str) -> sql.Composable:
    """The predicate of a partial index, with `row` before its columns."""
    return sql.SQL(keyword + key.partial if key.partial else "").format(row=sql.SQL(row))


def _same_row(key: Key, stamp: Stamp) -> sql.Composed:
    tests: list[sql.Composable] = [
        sql.SQL("t.organization_id = {}").format(sql.Literal(stamp.organization_id)),
        _same_key(key),
    ]
    if key.partial:
        tests.append(_predicate("", key, "t."))
    return _AND.join(tests)


def _same_key(key: Key) -> sql.Composed:
    equal = sql.SQL("t.{0} = s.{0}")
    not_distinct = sql.SQL("t.{0} IS NOT DISTINCT FROM s.{0}")
    first, *rest = map(sql.Identifier, key.columns)
    others = ((not_distinct if key.has_nulls else equal).format(name) for name in rest)
    return _AND.join([equal.format(first), *others])
