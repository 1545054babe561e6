"""The bulk loader: lines of JSON into a table, in batches, exactly counted. Knows no app.

    readers.py  bytes -> numbered lines
    spec.py     what a resource's line looks like and where it goes (each app's bulk.py fills it in)
    encode.py   lines -> rows in PostgreSQL's binary COPY format (binary.py), a batch ahead
    sql.py      the statements of a batch
    references.py, copying.py   what lines name -> ids; rows -> a temp table
    loader.py   a file: the last line of a key wins -> INSERT .. ON CONFLICT DO UPDATE -> counts
    inserting.py   a request: new rows alone -> which was inserted, which was there
    export.py   rows -> the lines that they would be loaded from
    growth.py   the planner is told of tables that grow from nothing

Still to come, each in its place: more formats (readers.py), workers, resumable jobs, retries and
a reject file (loader.py), the hash probe for rows seen before (sql.py).
"""

from agentmem_site.bulk.loader import LoadOptions, LoadReport, load
from agentmem_site.bulk.spec import LineError

__all__ = ["LineError", "LoadOptions", "LoadReport", "load"]
