"""Nothing half-written, nothing executed, every failure one line."""

import json
import math
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subnet import _files
from subnet.errors import (
    FileFormatError,
    InputError,
    MissingInputError,
    OutputError,
    UnsafeFileError,
)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_directory_appears_only_when_it_is_complete(tmp_path):
    with _files.new_directory(tmp_path / "a" / "out") as building:
        (building / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert entries(tmp_path / "a") == ["out"]
    assert entries(tmp_path / "a" / "out") == ["x"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_directory_that_failed_half_way_leaves_nothing(tmp_path, failure):
    with pytest.raises(failure), _files.new_directory(tmp_path / "out") as building:  # noqa: PT012
        (building / "x").write_text("1")
        raise failure
    assert entries(tmp_path) == []


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_replacement_keeps_the_old_directory(tmp_path, failure):
    with _files.new_directory(tmp_path / "out") as building:
        (building / _files.RUN_FILE).write_text("old")
    with pytest.raises(failure), _files.new_directory(tmp_path / "out", overwrite=True) as building:  # noqa: PT012
        (building / _files.RUN_FILE).write_text("new")
        raise failure
    assert entries(tmp_path) == ["out"]
    assert (tmp_path / "out" / _files.RUN_FILE).read_text() == "old"


def test_only_our_own_directory_is_replaced_and_only_when_asked(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with _files.new_directory(target) as building:  # an empty one is free
        (building / _files.RUN_FILE).write_text("old")
    with pytest.raises(OutputError, match=r"is already there.*--overwrite"):
        _files.check_output(target)
    with _files.new_directory(target, overwrite=True) as building:
        (building / _files.RUN_FILE).write_text("new")
    assert (target / _files.RUN_FILE).read_text() == "new"
    assert entries(tmp_path) == ["out"]
    (target / _files.RUN_FILE).rename(target / "thesis.tex")
    with pytest.raises(OutputError, match="was not written by this tool and is not replaced"):
        _files.check_output(target, overwrite=True)
    assert entries(target) == ["thesis.tex"]


def test_a_place_inside_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OutputError, match=r"file is no directory; choose another place to write to"
    ):
        _files.check_output(tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="is not writable"):
        _files.check_output(tmp_path / "out")


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "f.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), _files.new_file(target) as building:  # noqa: PT012
        building.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"
    with _files.new_file(target) as building:
        building.write_text("new")
    assert (target.read_text(), entries(tmp_path)) == ("new", ["f.txt"])


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("place", ["file", "directory"])
def test_others_may_read_what_a_library_gives_to_its_owner_only(tmp_path, place, umask):
    before = os.umask(umask)
    try:
        if place == "file":
            with _files.new_file(tmp_path / "f") as building:
                building.unlink()  # as safetensors renames a file of its own to this place
                building.touch(0o600)
        else:
            with _files.new_directory(tmp_path / "out") as building:
                (building / "in").mkdir()
                (building / "in" / "f").touch(0o600)
                (building / "in" / "program").touch(0o700)
                (building / "in" / "link").symlink_to("nowhere")
        modes = {
            str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777
            for path in tmp_path.rglob("*")
            if not path.is_symlink()
        }
    finally:
        os.umask(before)
    file, folder = 0o666 & ~umask, 0o777 & ~umask
    assert modes == (
        {"f": file}
        if place == "file"
        else {"out": folder, "out/in": folder, "out/in/f": file, "out/in/program": file | 0o700}
    )


@pytest.mark.parametrize("new", [_files.new_file, _files.new_directory])
def test_a_file_system_that_knows_no_permissions_takes_what_is_written(tmp_path, monkeypatch, new):
    def unknown(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "chmod", unknown)
    with new(tmp_path / "out") as building:
        file = building / "f" if new is _files.new_directory else building
        file.unlink(missing_ok=True)
        file.touch(0o600)
    assert entries(tmp_path) == ["out"]


def test_what_a_library_leaves_beside_its_file_is_in_a_directory_that_goes(tmp_path):
    with _files.new_file(tmp_path / "f.txt") as building:
        building.write_text("new")
        building.with_name(".tmpAbCdEf").write_text("half")
        # What a killed process leaves is known by the name of the file.
        assert [name[:7] for name in entries(tmp_path)] == [".f.txt-"]
    assert entries(tmp_path) == ["f.txt"]


def test_sha256_is_that_of_the_standard(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert _files.sha256(tmp_path / "f") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "link/x"])
def test_a_path_may_not_leave_the_directory(tmp_path, path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"subnet\.toml: the path .* leaves the directory"):
        _files.inside(path, root, source=Path("subnet.toml"))
    assert _files.inside("a/../b", root, source=Path("subnet.toml")) == root / "a/../b"


def header_file(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_a_header_says_what_the_library_says(tmp_path):
    from safetensors.numpy import save_file

    tensors = {
        "a": np.zeros((2, 3), np.float32),
        "b": np.zeros(0, np.uint8),
        "c": np.zeros((), np.int64),
    }
    save_file(tensors, tmp_path / "f.safetensors", metadata={"k": "v"})
    infos, metadata = _files.read_safetensors_header(tmp_path / "f.safetensors")
    assert {name: (info.dtype, info.shape, info.size) for name, info in infos.items()} == {
        "a": ("F32", (2, 3), 6), "b": ("U8", (0,), 0), "c": ("I64", (), 1),
    }  # fmt: skip
    assert metadata == {"k": "v"}


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_starts_like_a_pickle_is_no_pickle(tmp_path, length):
    # 640 bytes is 80 02 in little-endian order, the first bytes of a pickle.
    header = {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "__metadata__": {"p": ""},
    }
    header["__metadata__"]["p"] = "x" * (length - len(json.dumps(header)))
    path = header_file(tmp_path / "f", header, b"\0" * 4)
    assert path.read_bytes()[:2] == bytes([0x80, length >> 8])
    assert set(_files.read_safetensors_header(path)[0]) == {"a"}


@pytest.mark.parametrize("cut", [0, 3, 8, 20, -1])
def test_a_truncated_file_is_noticed_by_its_header(tmp_path, cut):
    entry = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    path = header_file(tmp_path / "f", entry, b"\0" * 16)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileFormatError, match="is truncated"):
        _files.read_safetensors_header(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"\xff\xff",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0]}}',
    ],
)
def test_a_damaged_header_is_one_line(tmp_path, header):
    with pytest.raises(FileFormatError, match="has a damaged header") as caught:
        _files.read_safetensors_header(header_file(tmp_path / "f", header))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_unread(tmp_path, protocol):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    (tmp_path / "f").write_bytes(pickle.dumps([Bomb(), "x" * 50], protocol))
    with pytest.raises(UnsafeFileError, match="can execute code"):
        _files.read_safetensors_header(tmp_path / "f")
    assert not (tmp_path / "executed").exists()


def test_a_zip_of_a_pickle_is_refused(tmp_path):
    import torch

    torch.save({"w": torch.zeros(3)}, tmp_path / "f")
    with pytest.raises(UnsafeFileError, match="expected safetensors"):
        _files.read_safetensors_header(tmp_path / "f")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(MissingInputError, match="is not there"):
        _files.read_safetensors_header(tmp_path / "f")
    with pytest.raises(MissingInputError, match="is not there"):
        _files.read_json(tmp_path / "f")


def test_rows_of_a_table_come_with_their_line_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x, y"\r\n\r\n2,"two\nlines"\r\n3,z\r\n')
    assert list(_files.read_csv_rows(path)) == [
        (2, {"a": "1", "b": "x, y"}), (5, {"a": "2", "b": "two\nlines"}), (6, {"a": "3", "b": "z"}),
    ]  # fmt: skip
    (tmp_path / "t.tsv").write_text("a\tb\n1\t2,3\n")
    assert list(_files.read_csv_rows(tmp_path / "t.tsv")) == [(2, {"a": "1", "b": "2,3"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a header line"),
        (b"a,b\n1\n", r"line 2 has 1 fields; expected 2 \(a, b\)"),
        (b"a,b\n1,2,3\n", "line 2 has 3 fields"),
        (b"a,a\n1,2\n", "names the column 'a' twice"),
        (b"a\n\xff\n", "byte 2 is not UTF-8"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        list(_files.read_csv_rows(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\nnot\n', "line 2 is not JSON"),
        ("[1]\n", "line 1 is a JSON list; expected an object"),
    ],
)
def test_a_wrong_line_of_json_is_named(tmp_path, content, message):
    (tmp_path / "f.jsonl").write_text(content)
    with pytest.raises(FileFormatError, match=message):
        list(_files.read_json_lines(tmp_path / "f.jsonl"))


def test_json_holds_null_where_a_number_is_undefined(tmp_path):
    content = {
        "b": math.nan,
        "a": [np.float64("inf"), np.int64(3), 0.5],
        "p": Path("x/y"),
        "s": {"b", "a"},
    }
    _files.write_json(tmp_path / "f.json", content)
    assert _files.read_json(tmp_path / "f.json") == {
        "b": None, "a": [None, 3, 0.5], "p": "x/y", "s": ["a", "b"],
    }  # fmt: skip
    with pytest.raises(TypeError, match="cannot write object"):
        _files.to_json(object())


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-9, 9)
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_plain_content_survives_json(content):
    assert json.loads(_files.to_json(content)) == content


def test_nothing_is_written_into_what_is_read(tmp_path):
    read = tmp_path / "read"
    read.mkdir()
    link = tmp_path / "link"
    link.symlink_to(read)
    for target in (read / "new", read / "deep" / "er", link / "new"):
        with (
            pytest.raises(OutputError, match="is inside the directory that is read"),
            _files.new_directory(target, outside=[read]),
        ):
            pass
    with _files.new_directory(tmp_path / "read-analysis", outside=[read]):
        pass
    assert list(read.iterdir()) == []


def test_a_name_that_the_system_refuses_is_one_line(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        _files.check_output(tmp_path / ("x" * 300))
