"""Masks and adapters that other tools wrote, read as subnetworks."""

from subnet.subnetwork.foreign.reading import FORMATS, read_masks, source_files

__all__ = ["FORMATS", "read_masks", "source_files"]
