"""Logs: one JSON object a line, with ids and timings; never pixels, keys or file names."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS, merge_record_extra
from pythonjsonlogger.json import JsonFormatter as BaseFormatter

from purnet_serve.settings import Settings

_NO_EXTRAS = frozenset(RESERVED_ATTRS) | {"taskName", "color_message"}
"""Attributes of a record that no `extra` gave; the last is uvicorn's."""


class JsonFormatter(BaseFormatter):
    """A record as one line of JSON: time, level, logger, event, error, and what `extra` gave."""

    def __init__(self) -> None:
        names = {
            "asctime": "time",
            "levelname": "level",
            "name": "logger",
            "message": "event",
            "exc_info": "error",
        }
        super().__init__(
            list(names)[:4],
            rename_fields=names,
            reserved_attrs=list(_NO_EXTRAS),
            json_default=str,
            json_ensure_ascii=False,
        )

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Time of the record in UTC, to the millisecond, as ISO 8601 has it."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Leave out what has no value."""
        log_data["level"] = log_data["level"].lower()
        return {name: value for name, value in log_data.items() if value is not None}


class TextFormatter(logging.Formatter):
    """The same for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        extras = merge_record_extra(record, {}, _NO_EXTRAS).items()
        pairs = " ".join(f"{name}={value}" for name, value in extras if value not in (None, {}))
        line = f"{record.levelname.lower():7} {record.getMessage()} {pairs}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(settings: Settings) -> None:
    """Send every log to standard error, warnings included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    # Nothing of these is logged, and each costs every record time (Python's logging HOWTO,
    # "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = False
    logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(capture=True)
    # Its access log would hold paths and addresses; the middleware writes one without them.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
