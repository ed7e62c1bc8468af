"""Files of captions that tests write."""

import io

import pyarrow
from pyarrow import parquet


def parquet_file(**columns):
    """The bytes of a Parquet file."""
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
