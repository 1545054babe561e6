"""The bulk loader: lines of JSON into a table, in batches, exactly counted. Knows no app.

packing.py, encoding.py, readers.py   files and streams -> text -> numbered lines of JSON
json_array.py, tables.py, columns.py   other JSON, CSV and Parquet; what their columns are
reading.py, mapping.py   what a caller says of a file; other names for its fields
spec.py, checks.py   what a resource's line looks like and where it goes; what no line may hold
lines.py    what a line is on its way, and how far a file is done
times.py    what msgspec does not read as a time; notices.py, wording.py   what callers are told
encode.py   lines -> rows in PostgreSQL's binary COPY format (binary.py)
feed.py     a thread that does so a batch ahead, for all workers
options.py  what the caller of a load chooses, prepares and keeps
loader.py   a load: its workers, its report (report.py), its checkpoint
worker.py   a batch: committed once, whatever comes between (faults.py)
writing.py  a batch's transaction; its statements are in sql.py
references.py, copying.py   what lines name -> ids; rows -> a temp table
growth.py   the planner is told of tables that grow from nothing
rejects.py  the file of bad lines
inserting.py   a request: new rows alone -> which was inserted, which was there
export.py   rows -> the lines that they would be loaded from
"""

from agentmem_site.bulk.library import bulk_upsert
from agentmem_site.bulk.options import LoadOptions
from agentmem_site.bulk.report import LoadReport, LoadStopped
from agentmem_site.bulk.spec import LineError, LoadSpec

__all__ = ["LineError", "LoadOptions", "LoadReport", "LoadSpec", "LoadStopped", "bulk_upsert"]
