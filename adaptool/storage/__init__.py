"""Files, safely: open bounded, stage, write extents in parallel, commit atomically.

    with Staging(target, kind="directory", required=size, inputs=[base], force=False) as staging:
        write_files(staging, plans, workers=8, progress=None)
        staging.write_file("config.json", text)
        staging.commit()

Whatever happens - an error, Ctrl-C, a killed process, a full disk - the target is
what it was before, or complete.
"""

from adaptool.storage.extents import Bytes, Chunk, Computed, Content, Copy, Extent, FilePlan
from adaptool.storage.failures import blaming, shown, storage_error
from adaptool.storage.reading import (
    TEXT_LIMIT,
    SourceFile,
    inside,
    read_json,
    read_object,
    read_text,
    refuse_surrogates,
)
from adaptool.storage.scratch import scratch_beside
from adaptool.storage.staging import Staging
from adaptool.storage.writing import write_files

__all__ = [
    "TEXT_LIMIT",
    "Bytes",
    "Chunk",
    "Computed",
    "Content",
    "Copy",
    "Extent",
    "FilePlan",
    "SourceFile",
    "Staging",
    "blaming",
    "inside",
    "read_json",
    "read_object",
    "read_text",
    "refuse_surrogates",
    "scratch_beside",
    "shown",
    "storage_error",
    "write_files",
]
