"""Examples for training and evaluation: records and the readers of other people's data sets."""

from safelens.data.records import Record, RecordError, iter_records, read_records, write_records

__all__ = ["Record", "RecordError", "iter_records", "read_records", "write_records"]
