"""Vectors of images: what a network knows of an image before its classifier, for search, clustering and the like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from resnext import durable
from resnext.body import Body, width
from resnext.engine import TorchEngine
from resnext.errors import UserError
from resnext.inference.classifier import Classifier, Unreadable
from resnext.inference.files import as_split, files_of, reader

if TYPE_CHECKING:
    import pyarrow as pa

    from resnext.layers import Network


@dataclass(frozen=True)
class Embedded:
    """A file of vectors: where it is, how many images and numbers each it holds, and which could not be read."""

    path: Path
    images: int
    width: int
    unreadable: tuple[Unreadable, ...]


def embedder(classifier: Classifier, *, device: str = "auto", precision: str = "fp32") -> Classifier:
    """Return a classifier of the same bundle whose engine gives vectors float32 N×F in place of logits."""
    body = Body(cast("Network", classifier.network))
    engine = TorchEngine(body, classifier.preprocessing, device=device, precision=precision)
    return Classifier(classifier.bundle, engine)


def embed_files(
    classifier: Classifier, paths: Sequence[str | Path], out: Path, *, device: str = "auto", precision: str = "fp32"
) -> Embedded:
    """Write the vectors of images, and of those below folders, to a Parquet file; return what it holds.

    Its columns are `path` (text) and `vector` (F numbers, float32), in order; its metadata name the bundle's network
    and identity. Images that cannot be read are left out. Raises UserError for a folder without images, where no image
    can be read, or where the file cannot be written.
    """
    import pyarrow.parquet as pq

    embeds = embedder(classifier, device=device, precision=precision)
    size = width(classifier.network)
    split = as_split(classifier, [file for path in paths for file in files_of(path)])
    loader = reader(embeds, split)
    schema = _schema(classifier, size)
    beside, images = out.with_name(f".{out.name}.new"), 0
    try:
        with pq.ParquetWriter(beside, schema) as writer:
            for table in _tables(embeds, loader, schema):
                writer.write_table(table)
                images += table.num_rows
        unreadable = tuple(Unreadable(str(split.path(row)), why) for row, why in sorted(loader.unreadable.items()))
        if not images:
            raise UserError(f"Not one of {len(split)} images could be read, for example {unreadable[0].path}.")
        durable.sync_path(beside)
        beside.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}. Choose another --out.") from error
    finally:
        beside.unlink(missing_ok=True)
    return Embedded(out, images, size, unreadable)


def _schema(classifier: Classifier, size: int) -> pa.Schema:
    import pyarrow as pa

    about = {"network": classifier.bundle.contents.network, "identity": classifier.bundle.identity}
    columns = [("path", pa.string()), ("vector", pa.list_(pa.float32(), size))]
    return pa.schema(columns, metadata=about)


def _tables(embeds: Classifier, loader: Any, schema: pa.Schema) -> Iterator[pa.Table]:
    import pyarrow as pa

    for batch in loader.sequential():
        vectors = embeds.engine(batch.pixels)
        paths = [str(loader.split.path(index)) for index in batch.indices.tolist()]
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        yield pa.Table.from_arrays([pa.array(paths, pa.string()), column], schema=schema)
