"""Which parameters a language uses: packed masks, set algebra on them, their file format."""

from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.extraction import extract
from subnet.subnetwork.formats import load_subnetwork, load_subnetworks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.selection import Selection, top_k

__all__ = [
    "Selection",
    "Subnetwork",
    "Subnetworks",
    "extract",
    "load_subnetwork",
    "load_subnetworks",
    "top_k",
]
