"""Log lines as JSON objects, one a line, with the request they belong to."""

import json
import logging
import traceback
from datetime import UTC, datetime

from agentmem_site.middleware import current_request_id


class JsonFormatter(logging.Formatter):
    """Message, logger, level, time, request id; on an exception its type and frames, never locals
    (they hold the content of memories)."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current_request_id.get():
            line["request_id"] = request_id
        if record.exc_info and record.exc_info[1]:
            kind, _, trace = record.exc_info
            line["exception"] = kind.__name__ if kind else ""
            line["frames"] = "".join(traceback.format_tb(trace))
        return json.dumps(line)
