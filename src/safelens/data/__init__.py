"""Examples for training and evaluation: records and the readers of other people's data sets."""

from safelens.data.problems import DataError, Problem
from safelens.data.read import Dataset, read_dataset
from safelens.data.records import Record, RecordError, iter_records, read_records, write_records

__all__ = [
    "DataError",
    "Dataset",
    "Problem",
    "Record",
    "RecordError",
    "iter_records",
    "read_dataset",
    "read_records",
    "write_records",
]
