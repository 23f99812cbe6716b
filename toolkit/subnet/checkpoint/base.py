"""Which base an adapter was trained on: found on disk where possible, known by name otherwise."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from subnet.checkpoint.inventory import Root
from subnet.checkpoint.tensors import TensorStore, has_model, open_model_store

#: Identity of a base that neither an adapter nor the directory names.
NOT_STATED = "not stated"


class Bases:
    """The base models of one checkpoint, each opened once."""

    def __init__(self) -> None:
        self._stores: dict[Path, TensorStore] = {}
        self._fingerprints: dict[Path, str] = {}

    def store(self, folder: Path | None) -> TensorStore | None:
        """Tensors of a base folder; None where it has no weights."""
        if folder is None or not has_model(folder):
            return None
        key = folder.resolve()
        if key not in self._stores:
            self._stores[key] = open_model_store(folder)
        return self._stores[key]

    def fingerprint(self, store: TensorStore) -> str:
        """Identity of a base by its content."""
        key = store.folder.resolve()
        if key not in self._fingerprints:
            self._fingerprints[key] = f"{store.folder.name} ({store.fingerprint()})"
        return self._fingerprints[key]

    def locate(self, stated: str | None, root: Root, adapter: Path) -> TensorStore | None:
        """The base's tensors: where the adapter says, else the directory's base."""
        return self.store(_place(stated, root, adapter) or root.base)

    def identity(self, stated: str | None, root: Root, adapter: Path) -> str:
        """What makes two bases the same: their content where the adapter's own words lead to it.

        A hub name stays a name, whether or not a copy of it is here as `base/`.
        """
        place = _place(stated, root, adapter)
        store = self.store(place)
        if store is not None:
            return self.fingerprint(store)
        return stated or (place.name if place is not None else NOT_STATED)


def _place(stated: str | None, root: Root, adapter: Path) -> Path | None:
    """Folder that `base_model_name_or_path` means, None where it is not here."""
    if stated is None:
        return root.base
    for folder in (root.path / stated, adapter / stated):
        if folder.is_dir():
            return folder
    # The path as it was where training ran, of a directory that was moved since.
    if root.base is not None and PurePosixPath(stated.replace("\\", "/")).name == root.base.name:
        return root.base
    return None
