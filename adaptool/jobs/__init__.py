"""The jobs that commands and scripts ask for, one call each: read, transform, write, report."""

from adaptool.jobs.converting import convert, convert_model
from adaptool.jobs.merging import merge_files, save
from adaptool.jobs.reporting import MergeReport

__all__ = ["MergeReport", "convert", "convert_model", "merge_files", "save"]
