"""An AnnData in memory, written to a new store by anndata, without its `obsp`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError
from ..source.layout import told
from .zarr_files import ZarrFormat, encoding

_PARTS = ("X", "obs", "var", "obsm", "varm", "varp", "layers", "uns", "raw")


def check_object(adata: Any, path: str) -> None:
    """Raise a SourceError if anndata cannot write an AnnData, as far as that is seen at once."""
    if hasattr(adata.obs, "ds"):  # anndata's table of what is still in the store
        raise SourceError(
            f"{path} is read lazily, and a new store cannot be made of it. Give the path of its "
            "store."
        )


def write_object(adata: Any, folder: Path, zarr_format: ZarrFormat) -> int:
    """Have anndata write an AnnData in memory, without `obsp`; return the bytes of files."""
    import zarr
    from anndata.experimental import write_dispatched

    group = zarr.open_group(str(folder), mode="a", zarr_format=zarr_format)
    group.attrs.update(encoding("anndata", "0.1.0"))
    for name in _PARTS:
        value = getattr(adata, name, None)
        if value is not None:
            if isinstance(value, Mapping):  # anndata 0.13 has X among the layers, without a name
                value = {key: item for key, item in value.items() if key is not None}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    write_dispatched(group, name, value, _write_element)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # what anndata cannot write may be anything
                raise SourceError(
                    f"{name} of {type(adata).__name__} in memory cannot be copied: {told(error)}. "
                    "Remove what anndata cannot write, or give the path of a store."
                ) from error
    n_bytes = 0
    for above, _, names in os.walk(folder):
        for name in names if not Path(above).is_relative_to(folder / "obsp") else ():
            n_bytes += Path(above, name).stat().st_size
    return n_bytes


def _write_element(
    write: Any, group: Any, name: str, value: Any, dataset_kwargs: Any, iospec: Any
) -> None:
    """Have anndata write an element; of a data frame, the index as an array of texts."""
    if iospec.encoding_type == "dataframe" and hasattr(value, "set_axis"):
        names = value.index.astype(object)
        if names.inferred_type == "string":
            value = value.set_axis(names)
    write(group, name, value, dataset_kwargs=dataset_kwargs)
