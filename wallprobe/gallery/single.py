"""A whole site as one file: a zip that opens anywhere."""

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from wallprobe.gallery.build import WRITTEN, Site, build_site
from wallprobe.storage import read_json, write_atomic

if TYPE_CHECKING:
    from wallprobe.runs import Run

TOP = "wallprobe-gallery"  # the folder within the zip


def write_zip(results_root: Path | None, target: Path, *, runs: "Sequence[Run]" = ()) -> Site:
    """The site as a zip; the same store gives the same bytes.

    Raises:
        StoreError: if `target` cannot be written.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        site = build_site(results_root, folder, runs=runs)
        packed = BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in read_json(folder / WRITTEN):
                # ZipInfo's own date is 1980: no clock gets into the bytes.
                entry = zipfile.ZipInfo(f"{TOP}/{name}")
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, (folder / name).read_bytes())
        write_atomic(target, packed.getvalue())
    return replace(site, index=target)


def write_single(results_root: Path | None, target: Path, *, runs: "Sequence[Run]" = ()) -> Site:
    """The site as one HTML file."""
    raise NotImplementedError
