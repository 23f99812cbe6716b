"""Which parameters a language uses: packed masks, set algebra on them, their file format."""

from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.conversion import convert, write_masks
from subnet.subnetwork.extraction import extract
from subnet.subnetwork.foreign import FORMATS, read_masks, source_files
from subnet.subnetwork.formats import load_subnetwork, load_subnetworks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.selection import Selection, top_k

__all__ = [
    "FORMATS",
    "Selection",
    "Subnetwork",
    "Subnetworks",
    "convert",
    "extract",
    "load_subnetwork",
    "load_subnetworks",
    "read_masks",
    "source_files",
    "top_k",
    "write_masks",
]
