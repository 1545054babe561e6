"""The bulk loader: lines of JSON into a table, in batches, with exact counts. Knows no app.

packing.py, encoding.py, readers.py   files and streams -> text -> numbered lines of JSON
json_array.py, tables.py, columns.py   other JSON, CSV and Parquet; the types of their columns
reading.py, mapping.py   how the caller describes a file; other names for its fields
spec.py, checks.py   a resource's lines and columns; what no line may contain
lines.py    the forms of a line on its way; checkpoints
times.py    times that msgspec cannot read
notices.py, wording.py, explaining.py   messages to callers
encode.py   lines -> rows in PostgreSQL's binary COPY format (binary.py)
feed.py     a thread that does so one batch ahead, for all workers
options.py  what the caller of a load provides
loader.py   a load: its workers, its report (report.py), its checkpoint
worker.py   commits each batch once, with retries (faults.py)
writing.py  a batch's transaction; its statements are in sql.py
references.py, copying.py   names in lines -> ids; rows -> a staging table
growth.py   planner statistics for tables that grow from nothing
rejects.py  the file of rejected lines
inserting.py   inserts the new rows of a request, and finds the existing ones
export.py   rows -> the lines that they could be loaded from
"""

from agentmem_site.bulk.library import bulk_upsert
from agentmem_site.bulk.options import LoadOptions
from agentmem_site.bulk.report import LoadReport, LoadStopped
from agentmem_site.bulk.spec import LineError, LoadSpec

__all__ = ["LineError", "LoadOptions", "LoadReport", "LoadSpec", "LoadStopped", "bulk_upsert"]
