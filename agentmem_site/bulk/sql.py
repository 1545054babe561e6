"""The statements of a batch, composed with psycopg.sql. No value but through a Literal.

{stage} is a temp table of the batch's rows as the file has them, {changed} one of the ids written.
A statement runs as one simple query; every one on a real table carries the organization.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import ceil
from typing import Any
from uuid import UUID

from django.db import connection
from psycopg import sql

from agentmem_site.bulk.spec import (
    LINE_AT,
    LINE_HASH,
    OVERWRITE,
    Column,
    Key,
    LoadSpec,
    Reference,
)
from agentmem_site.db.roles import ADMIN

_OLD, _NEW = sql.Identifier("t"), sql.Identifier("s")
_EXCLUDED = sql.SQL("EXCLUDED")
# A moment that the load gave to a row whose line has none.
_OF_LOAD = "{new}.{column} BETWEEN {begun} AND {now}"
_AND, _OR, _COMMA = sql.SQL(" AND "), sql.SQL(" OR "), sql.SQL(", ")
# Before and after statements that look rows up (`_looked_up`).
LOOK_UPS = sql.SQL("SET LOCAL enable_seqscan = off")
ANY_PLANS = sql.SQL("SET LOCAL enable_seqscan = on")


@dataclass(frozen=True, slots=True)
class Stamp:
    """Whose rows, by whom, when; and when their load began."""

    organization_id: UUID
    actor_id: UUID | None
    now: datetime
    begun: datetime


@dataclass(frozen=True, slots=True)
class Stage:
    """The temp tables of one spec, and the columns in the order in which they are copied."""

    spec: LoadSpec
    columns: tuple[str, ...]
    # Column -> what every new row bears there: a value, or SQL over the staged row {s}.
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keeps_time(self) -> bool:
        """The file's timestamps count; otherwise rows bear the time of their lines."""
        return "created_at" in self.columns

    @property
    def rows(self) -> sql.Identifier:
        return sql.Identifier(f"load_{self.spec.model._meta.db_table}")

    @property
    def changed(self) -> sql.Identifier:
        """(id) of each row written."""
        return sql.Identifier(f"changed_{self.spec.model._meta.db_table}")

    @property
    def met(self) -> sql.Identifier:
        """(staged_id, id, is_deleted, is_gone, is_written): the row that the table has for a staged
        one, and whether it is to be written: it differs, or one of its children does."""
        return sql.Identifier(f"met_{self.spec.model._meta.db_table}")

    def create(self) -> sql.Composed:
        return sql.SQL(
            "{rows}; CREATE TEMP TABLE {changed} (id uuid) ON COMMIT DROP; "
            "CREATE TEMP TABLE {met} (staged_id uuid, id uuid, is_deleted boolean, "
            "is_gone boolean, is_written boolean) ON COMMIT DROP"
        ).format(rows=self.create_rows(), changed=self.changed, met=self.met)

    def copy(self) -> sql.Composed:
        names = _COMMA.join(map(sql.Identifier, self.columns))
        return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(self.rows, names)

    def create_rows(self) -> sql.Composed:
        """The staged rows' table alone."""
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
        return sql.SQL("DROP TABLE {}").format(_COMMA.join([self.rows, self.changed, self.met]))

    @property
    def new(self) -> sql.Composed:
        """The ids of the rows that are new, if they were written: they bear the id that was
        staged for them. An id from the file is also one that was met."""
        if not self.spec.keeps_ids:
            return sql.SQL("(SELECT id FROM {})").format(self.rows)
        return sql.SQL("(SELECT id FROM {} EXCEPT SELECT id FROM {})").format(self.rows, self.met)


def settings(*, timeout_s: float) -> sql.Composed:
    """For one batch: its rows are sorted in memory."""
    return sql.SQL(
        "SET LOCAL work_mem = '64MB'; SET LOCAL statement_timeout = {}; "
        "SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '60s'"
    ).format(sql.Literal(ceil(timeout_s * 1000)))


def rows_known(table: str) -> sql.Composed:
    """How many rows the planner takes the table for; -1 where it was never told."""
    return sql.SQL("SELECT reltuples::bigint FROM pg_class WHERE oid = {}::regclass").format(
        sql.Literal(table)
    )


def analyze(table: str) -> sql.Composed:
    """Tells the planner anew. (A function of the owner's: accounts/migrations/0002.)"""
    return sql.SQL("SELECT agentmem_analyze({}::regclass)").format(sql.Literal(table))


def meet(stage: Stage, key: Key, stamp: Stamp, parents: Stage | None = None) -> sql.Composed:
    """Notes which rows of the table the staged ones are for, and which of them differ. Children
    are looked for where their parents were met, those of the trash left out."""
    same = _same_row(key, stamp)
    source: sql.Composable = stage.rows
    if parents:
        parent = sql.Identifier(stage.spec.parent_column)
        source = sql.SQL(
            "(SELECT c.*, p.id AS met_parent FROM {rows} c JOIN {met} p "
            "ON p.staged_id = c.{parent} AND NOT p.is_deleted)"
        ).format(rows=stage.rows, met=parents.met, parent=parent)
        rest = replace(key, columns=key.columns[1:])
        same = sql.SQL("{} AND t.{} = s.met_parent").format(_same_row(rest, stamp), parent)
    return sql.SQL("; ").join(
        [
            LOOK_UPS,
            sql.SQL(
                "INSERT INTO {met} SELECT s.id, t.id, t.is_deleted, {gone}, "
                "coalesce({differs}, false) FROM {source} s, {looked_up} WHERE {staged}"
            ).format(
                met=stage.met,
                gone=_gone(stage.spec, _OLD, stamp),
                differs=_differs(stage, _OLD, _NEW, stamp),
                source=source,
                looked_up=_looked_up(stage.spec, same),
                staged=_staged(stage.spec.keys, key),
            ),
            ANY_PLANS,
        ]
    )


def hold_references(
    stage: Stage, references: Sequence[Reference], stamp: Stamp, *, is_met: bool
) -> sql.Composed:
    """(place of the reference, id) of what the rows that are to be written refer to and that lies
    in the trash; the others cannot go there before this transaction ends (Records.delete waits).

    Held are parents before what hangs on them, each in the order of ids: as a deletion takes them.
    (OFFSET: or only those that lie in the trash would be held.)
    """
    met = sql.SQL(" LEFT JOIN {} m ON m.staged_id = s.id").format(stage.met)
    written = sql.SQL(" AND (m.id IS NULL OR (m.is_written AND NOT m.is_deleted))")
    return sql.SQL(" UNION ALL ").join(
        sql.SQL(
            "SELECT {place}, t.id FROM (SELECT DISTINCT s.{column} AS id FROM {rows} s{met} "
            "WHERE s.{column} IS NOT NULL{written} ORDER BY 1) AS n, "
            "LATERAL (SELECT t.id, t.is_deleted FROM {table} t WHERE t.organization_id = {own} "
            "AND t.id = n.id OFFSET 0 FOR KEY SHARE) AS t WHERE t.is_deleted"
        ).format(
            place=sql.Literal(place),
            column=sql.Identifier(reference.column),
            rows=stage.rows,
            met=met if is_met else sql.SQL(""),
            written=written if is_met else sql.SQL(""),
            table=sql.Identifier(reference.model._meta.db_table),
            own=sql.Literal(stamp.organization_id),
        )
        for place, reference in enumerate(references)
    )


def rows_that_refer(
    stage: Stage, reference: Reference, ids: Sequence[UUID], *, is_met: bool
) -> sql.Composed:
    """The staged ids of the rows that are to be written and refer to one of these."""
    rows = sql.SQL("SELECT s.id FROM {} s").format(stage.rows)
    if is_met:
        rows += sql.SQL(" LEFT JOIN {} m ON m.staged_id = s.id").format(stage.met)
    rows += sql.SQL(" WHERE s.{} = ANY ({})").format(
        sql.Identifier(reference.column), sql.Literal(list(ids))
    )
    if is_met:
        rows += sql.SQL(" AND (m.id IS NULL OR (m.is_written AND NOT m.is_deleted))")
    return rows


def write_parents_of(stage: Stage, children: Stage) -> sql.Composed:
    """A parent of which a child is new or differs has changed: it is written too."""
    return sql.SQL(
        "UPDATE {met} m SET is_written = true FROM (SELECT DISTINCT c.{parent} AS staged_id "
        "FROM {rows} c LEFT JOIN {met_children} k ON k.staged_id = c.id "
        "WHERE k.id IS NULL OR (k.is_written AND NOT k.is_deleted)) AS touched "
        "WHERE touched.staged_id = m.staged_id AND NOT m.is_written"
    ).format(
        met=stage.met,
        parent=sql.Identifier(children.spec.parent_column),
        rows=children.rows,
        met_children=children.met,
    )


def deleted_rows(stage: Stage) -> sql.Composed:
    """(id) of the rows met in the trash."""
    return sql.SQL("SELECT DISTINCT id FROM {} WHERE is_deleted").format(stage.met)


def bring_back(stage: Stage) -> sql.Composed:
    """The rows met in the trash have been restored."""
    return sql.SQL("UPDATE {} SET is_deleted = false, is_written = true WHERE is_deleted").format(
        stage.met
    )


def insert(
    stage: Stage, key: Key, stamp: Stamp, only: Sequence[UUID] | None = None
) -> sql.Composed:
    """Inserts the staged rows of this key, in its order, or some of them. Fails where one of them
    is there."""
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


def note_all(stage: Stage) -> sql.Composed:
    """All staged rows were written."""
    return sql.SQL("INSERT INTO {} SELECT id FROM {}").format(stage.changed, stage.rows)


def upsert(stage: Stage, key: Key, stamp: Stamp, parents: Stage | None = None) -> sql.Composed:
    """Inserts the staged rows of this key that were not met and updates those that are to be
    written.

    Rows go in the order of their key, so that loaders at work side by side never wait for each
    other in a ring. A row that was met goes in under its own id: by that it is told from one that
    another loader has inserted since, which is updated only where it differs.
    """
    spec = stage.spec
    values = _inserted(stage, stamp)
    values["id"] = sql.SQL("coalesce(m.id, s.id)")
    if stage.keeps_time:
        # (Now stands for none: the row that was met keeps its own, unless it begins anew.)
        values["created_at"] = sql.SQL(
            "coalesce(s.created_at, CASE WHEN m.id IS NULL OR (m.is_gone AND ({gone}) IS NOT TRUE) "
            "THEN {made} ELSE {now} END)"
        ).format(
            gone=_gone(spec, _NEW, stamp),
            made=sql.Identifier("s", LINE_AT),
            now=sql.Literal(stamp.now),
        )
    source = sql.SQL("{} s LEFT JOIN {} m ON m.staged_id = s.id").format(stage.rows, stage.met)
    where: list[sql.Composable] = [
        _staged(spec.keys, key),
        sql.SQL("(m.id IS NULL OR (m.is_written AND NOT m.is_deleted))"),
    ]
    order = [sql.Identifier("s", name) for name in key.columns]
    if parents:
        parent = sql.Identifier(spec.parent_column)
        source = sql.SQL("{} LEFT JOIN {} p ON p.staged_id = s.{}").format(
            source, parents.met, parent
        )
        where.append(sql.SQL("p.is_deleted IS NOT TRUE"))
        values[spec.parent_column] = sql.SQL("coalesce(p.id, s.{})").format(parent)
        order[0] = values[spec.parent_column]  # type: ignore[call-overload]
    return sql.SQL(
        "WITH written AS (INSERT INTO {table} AS t ({names}) SELECT {values} FROM {source} "
        "WHERE {where} ORDER BY {order} ON CONFLICT ({key}){partial} DO UPDATE SET {updates} "
        "WHERE t.organization_id = {organization} AND NOT t.is_deleted "
        "AND (t.id = EXCLUDED.id OR {differs}) RETURNING t.id) "
        "INSERT INTO {changed} SELECT id FROM written"
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
        changed=stage.changed,
    )


def insert_new(stage: Stage, key: Key, stamp: Stamp) -> sql.Composed:
    """The same, but for those that a row stands in the way of; the ids of the others."""
    return sql.SQL("{} ON CONFLICT DO NOTHING RETURNING t.id").format(insert(stage, key, stamp))


def insert_over_gone(stage: Stage, key: Key, stamp: Stamp, staged: Sequence[UUID]) -> sql.Composed:
    """Inserts these staged rows once more, over rows in their way that are gone; the ids of what is
    written. Who waited for another that has done the same writes nothing."""
    return sql.SQL(
        "{insert} ON CONFLICT ({key}){partial} DO UPDATE SET {updates} "
        "WHERE t.organization_id = {organization} AND NOT t.is_deleted AND {gone} RETURNING t.id"
    ).format(
        insert=insert(stage, key, stamp, only=staged),
        key=_COMMA.join(map(sql.Identifier, ("organization_id", *key.columns))),
        partial=_predicate(" WHERE ", key, ""),
        updates=_COMMA.join(_updates(stage, stamp)),
        organization=sql.Literal(stamp.organization_id),
        gone=_gone(stage.spec, _OLD, stamp),
    )


def met_rows(stage: Stage, key: Key, stamp: Stamp, *, compare: str) -> sql.Composed:
    """(staged id, id, is_deleted, whether it is gone, the column `compare`) of the rows that stand
    where staged ones would."""
    return sql.SQL(
        "SELECT s.id, t.id, t.is_deleted, {gone}, t.{compare} FROM {rows} s, {looked_up} "
        "WHERE {staged}"
    ).format(
        gone=_gone(stage.spec, _OLD, stamp),
        compare=sql.Identifier(compare),
        rows=stage.rows,
        looked_up=_looked_up(stage.spec, _same_row(key, stamp)),
        staged=_staged(stage.spec.keys, key),
    )


def _looked_up(spec: LoadSpec, same: sql.Composable) -> sql.Composed:
    """The rows of the table `t` for each row before it. As a join a planner that takes an
    organization for empty would begin with the table, and look through the batch for each of its
    rows (seen: 550 ms for 2,500 lines, instead of 9); OFFSET keeps it from making one of this."""
    return sql.SQL("LATERAL (SELECT * FROM {} t WHERE {} OFFSET 0) AS t").format(spec.table, same)


def count(stage: Stage) -> sql.Composed:
    """(rows written, of them inserted, met, of them in the trash, of them to be written)."""
    return sql.SQL(
        "SELECT written, inserted, met, deleted, due FROM (SELECT count(*) AS written, "
        "count(s.id) AS inserted FROM {changed} c LEFT JOIN {new} s USING (id)) AS w, "
        "(SELECT count(*) AS met, count(*) FILTER (WHERE is_deleted) AS deleted, "
        "count(*) FILTER (WHERE is_written AND NOT is_deleted) AS due FROM {met}) AS m"
    ).format(changed=stage.changed, new=stage.new, met=stage.met)


def count_orphans(stage: Stage, parents: Stage) -> sql.Composed:
    """How many staged children have their parent in the trash."""
    return sql.SQL(
        "SELECT count(*) FROM {} c JOIN {} p ON p.staged_id = c.{} WHERE p.is_deleted"
    ).format(stage.rows, parents.met, sql.Identifier(stage.spec.parent_column))


def forget_lines(stage: Stage, children: Stage, stamp: Stamp) -> sql.Composed:
    """A row of which a child lies in the trash is not as its line says: that is looked at again."""
    return sql.SQL(
        "UPDATE {table} t SET {line_hash} = NULL WHERE t.organization_id = {organization} "
        "AND t.id IN (SELECT p.id FROM {met} k JOIN {rows} c ON c.id = k.staged_id "
        "JOIN {met_parents} p ON p.staged_id = c.{parent} WHERE k.is_deleted AND p.is_written)"
    ).format(
        table=stage.spec.table,
        line_hash=sql.Identifier(LINE_HASH),
        organization=sql.Literal(stamp.organization_id),
        met=children.met,
        rows=children.rows,
        met_parents=stage.met,
        parent=sql.Identifier(children.spec.parent_column),
    )


def changed_rows(stage: Stage) -> sql.Composed:
    """(id, change_type, reason) of the rows written."""
    gone = stage.spec.gone
    return sql.SQL(
        "SELECT c.id, CASE WHEN s.id IS NULL THEN 'updated' ELSE 'created' END, "
        "CASE WHEN m.is_gone THEN {reason} ELSE '' END "
        "FROM {changed} c LEFT JOIN {new} s USING (id) LEFT JOIN {met} m ON m.id = c.id"
    ).format(
        reason=sql.Literal(gone.reason if gone else ""),
        changed=stage.changed,
        new=stage.new,
        met=stage.met,
    )


def ids_of_another_key(stage: Stage, key: Key, stamp: Stamp) -> sql.Composed:
    """Staged ids that the table has under another value of this key; one at most."""
    columns = list(map(sql.Identifier, key.columns))
    return sql.SQL("SELECT s.id FROM {rows} s, {looked_up} WHERE {differ} LIMIT 1").format(
        rows=stage.rows,
        looked_up=_looked_up(stage.spec, _same_row(Key(("id",)), stamp)),
        differ=_OR.join(sql.SQL("t.{0} IS DISTINCT FROM s.{0}").format(c) for c in columns),
    )


def keys_of_another_id(stage: Stage, key: Key, stamp: Stamp) -> sql.Composed:
    """Staged ids whose value of this key another row has; one at most."""
    return sql.SQL(
        "SELECT s.id FROM {rows} s, {looked_up} WHERE {staged} AND t.id <> s.id LIMIT 1"
    ).format(
        rows=stage.rows,
        looked_up=_looked_up(stage.spec, _same_row(key, stamp)),
        staged=_staged_live(stage.spec, key),
    )


def keys_staged_twice(stage: Stage, key: Key) -> sql.Composed:
    """One of the staged ids that share a value of this key; one at most."""
    return sql.SQL(
        "SELECT (array_agg(s.id))[2] FROM {rows} s WHERE {staged} GROUP BY {columns} "
        "HAVING count(*) > 1 LIMIT 1"
    ).format(
        rows=stage.rows,
        staged=_staged_live(stage.spec, key),
        columns=_COMMA.join(sql.Identifier("s", name) for name in key.columns),
    )


def _staged_live(spec: LoadSpec, key: Key) -> sql.Composable:
    """The staged rows that this natural key is for and that its index would hold."""
    staged = _staged(spec.natural_keys, key)
    return _AND.join([staged, _predicate("", key, "s.")]) if key.partial else staged


def enter_platform() -> sql.Composed:
    return sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(ADMIN))


def leave_platform() -> sql.SQL:
    return sql.SQL("SET LOCAL ROLE NONE")


def ids_of_others(stage: Stage, ids: Sequence[UUID], stamp: Stamp) -> sql.Composed:
    """Those of the ids that another organization has; one at most. Between the two above."""
    return sql.SQL(
        "SELECT id FROM {table} WHERE id = ANY ({ids}) AND NOT organization_id = {own} LIMIT 1"
    ).format(
        table=stage.spec.table,
        ids=sql.Literal(list(ids)),
        own=sql.Literal(stamp.organization_id),
    )


def find_references(
    reference: Reference, organization_id: UUID, wanted: Sequence[str], *, holds: bool
) -> sql.Composed:
    """(key, id, is_deleted) of the rows that `wanted` names by their key or their id; `holds`: they
    cannot go to the trash before this transaction ends."""
    return sql.SQL(
        "SELECT {key}, id, is_deleted FROM {table} WHERE organization_id = {organization} "
        "AND ({key} = ANY ({wanted}) OR id = ANY ({ids})){held}"
    ).format(
        held=sql.SQL(" ORDER BY id FOR KEY SHARE" if holds else ""),
        key=sql.Identifier(reference.key),
        table=sql.Identifier(reference.model._meta.db_table),
        organization=sql.Literal(organization_id),
        wanted=sql.Literal(list(wanted)),
        ids=sql.Literal([i for i in map(as_uuid, wanted) if i]),
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
    """New rows (id, key, created_at) with every other column at its default; one made meanwhile
    stays."""
    given = {
        **_audit_values(stamp),
        "id": sql.Identifier("new", "id"),
        "created_at": sql.Identifier("new", "made_at"),
        "organization_id": sql.Literal(stamp.organization_id),
        reference.key: sql.Identifier("new", "key"),
    }
    values = {**given, **_defaults(reference.model, given)}
    return sql.SQL(
        "INSERT INTO {table} ({names}) SELECT {values} "
        "FROM unnest({ids}::uuid[], {keys}::text[], {moments}::timestamptz[]) "
        "AS new (id, key, made_at) ORDER BY new.key "
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


def seen_rows(
    spec: LoadSpec, keys: Sequence[str], hashes: Sequence[bytes], stamp: Stamp
) -> sql.Composed:
    """(place, from 1) of the keys whose row's last line was the one with that hash, and that
    nobody has changed since: whoever does moves `updated_at`. After LOOK_UPS."""
    return sql.SQL(
        "SELECT p.place FROM unnest({keys}::text[], {hashes}::bytea[]) "
        "WITH ORDINALITY AS p (key, hash, place), {looked_up} "
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


def _inserted(stage: Stage, stamp: Stamp) -> dict[str, sql.Composable]:
    """Column -> value of the INSERT: staged, stamped, or the model's default."""
    apart = ("created_at", "updated_at", LINE_AT, LINE_HASH)
    values: dict[str, sql.Composable] = {
        name: sql.Identifier("s", name) for name in stage.columns if name not in apart
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
    """The remaining columns of a new row: Django keeps its defaults in Python, not in the table."""
    rest: dict[str, sql.Composable] = {}
    for column in model._meta.concrete_fields:
        if column.column in given or column.generated:
            continue
        default = column.get_db_prep_save(column.get_default(), connection)
        if default is not None:
            cast = sql.SQL(str(column.db_type(connection)))
            rest[column.column] = sql.SQL("{}::{}").format(sql.Literal(default), cast)
    return rest


def _updates(stage: Stage, stamp: Stamp) -> list[sql.Composable]:
    # EXCLUDED values, constants and the row's own columns: what a sharded database takes.
    updates = [(column.name, column.update) for column in _own_columns(stage.spec)]
    updates += stage.spec.server_columns.items()
    updates += [(name, OVERWRITE) for name in ("updated_at", "last_updated_by_id")]
    if any(field.name == LINE_HASH for field in stage.spec.model._meta.concrete_fields):
        updates.append((LINE_HASH, OVERWRITE))
    kept = "{old}.{column}"
    if stage.keeps_time:
        kept = (
            "CASE WHEN {new}.{column} = {now} OR ({old}.id <> {new}.id AND "
            f"{_OF_LOAD}) THEN {{old}}.{{column}} ELSE {{new}}.{{column}} END"
        )
    if gone := stage.spec.gone:
        # What stood there is over: the row begins anew, unless it stays gone.
        old, new = (gone.when.replace("{row}", row) for row in ("{old}.", "{new}."))
        anew = f"CASE WHEN {old} AND ({new}) IS NOT TRUE THEN {{new}}.{{column}} ELSE {{}} END"
        named = {name for name, _ in updates}
        constants = [name for name in stage.constants if name not in named]
        updates += [(name, anew.replace("{}", "{old}.{column}")) for name in constants]
        updates.append(("created_at", anew.replace("{}", kept)))
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
                begun=sql.Literal(stamp.begun),
            ),
        )
        for name, value in updates
    ]


def _differs(
    stage: Stage, old: sql.Composable, new: sql.Composable, stamp: Stamp
) -> sql.Composable:
    tests = [(column.name, column.differs) for column in _own_columns(stage.spec)]
    if stage.keeps_time:
        # A missing timestamp is no change. (In EXCLUDED it is the load's: the row was not yet there
        # when it was looked up, another loader has inserted it since.)
        given = "({old}.{column} <> {new}.{column} AND {new}.{column} <> {now})"
        made = f"({{old}}.{{column}} <> {{new}}.{{column}} AND NOT {_OF_LOAD})"
        tests += [("created_at", made if new is _EXCLUDED else given), ("updated_at", given)]
    compared = [
        sql.SQL(test).format(
            old=old,
            new=new,
            column=sql.Identifier(name),
            now=sql.Literal(stamp.now),
            begun=sql.Literal(stamp.begun),
        )
        for name, test in tests
        if test
    ]
    return _OR.join(compared) if compared else sql.SQL("false")


def _gone(spec: LoadSpec, row: sql.Composable, stamp: Stamp) -> sql.Composable:
    if spec.gone is None:
        return sql.SQL("false")
    when = sql.SQL(spec.gone.when)
    return when.format(row=sql.SQL("{}.").format(row), now=sql.Literal(stamp.now))


def _own_columns(spec: LoadSpec) -> list[Column]:
    """The columns that may change: not those that the row is found by."""
    keys = {name for key in spec.keys if not key.partial for name in key.columns}
    return [column for column in spec.all_columns if column.name not in {*keys, spec.parent_column}]


def _staged(keys: Sequence[Key], key: Key) -> sql.Composable:
    """The staged rows that this one of the keys is for: those without an earlier one."""
    earlier = keys[: list(keys).index(key)]
    tests: list[sql.Composable] = [
        sql.SQL("s.{} IS NULL").format(sql.Identifier(other.columns[0])) for other in earlier
    ]
    tests.append(sql.SQL("s.{} IS NOT NULL").format(sql.Identifier(key.columns[0])))
    return _AND.join(tests)


def _predicate(keyword: str, key: Key, row: str) -> sql.Composable:
    """The predicate of a partial index, its columns led by `row`."""
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
    compare = sql.SQL("t.{0} = s.{0}")
    loosely = sql.SQL("t.{0} IS NOT DISTINCT FROM s.{0}")
    first, *rest = map(sql.Identifier, key.columns)
    others = ((loosely if key.has_nulls else compare).format(name) for name in rest)
    return _AND.join([compare.format(first), *others])


def as_uuid(text: str) -> UUID | None:
    """The id that the text spells, in any of the ways in which UUIDs are written; None for none."""
    try:
        return UUID(text)
    except ValueError:
        return None
