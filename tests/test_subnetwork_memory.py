"""A model larger than memory allows is streamed: never more of it at hand than one shard."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

#: Eight shards of six matrices as wide as those of a 7-billion-parameter model, in bfloat16: bits
#: and signs of all weights take as much as one shard, so that little is left for reading.
SHARDS, MATRICES, SHAPE = 8, 6, (11008, 4096)
MARGIN = 300 * 2**20

EXTRACT = """
import sys
from subnet.checkpoint import open_checkpoint
from subnet.subnetwork import extract
(found,) = extract(open_checkpoint(sys.argv[1]), density=0.05)
print(found.size, found.count)
"""


def write_model(folder, rng):
    """Shards with an index; zeros throughout (holes in the files), or random numbers."""
    folder.mkdir(parents=True)
    size = 2 * math.prod(SHAPE)
    weight_map = {}
    block = None
    if rng is not None:
        # Random bits of the mantissa and sign below 1, so that every value is finite.
        block = rng.integers(0, 2**16, size // 2, dtype=np.uint16) & np.uint16(0xBFFF)
    for shard in range(SHARDS):
        names = [f"model.layers.{shard}.mlp.part_{i}.weight" for i in range(MATRICES)]
        header = {
            name: {"dtype": "BF16", "shape": SHAPE, "data_offsets": [i * size, (i + 1) * size]}
            for i, name in enumerate(names)
        }
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        path = folder / f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        with path.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            if block is not None:
                for i in range(MATRICES):
                    np.roll(block, 977 * (shard * MATRICES + i)).tofile(file)
            file.truncate(8 + len(raw) + MATRICES * size)
        weight_map |= dict.fromkeys(names, path.name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def anonymous(pid):
    """Anonymous memory of a process in bytes; mapped files do not count."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return 1024 * int(line.split()[1])
    return 0


def peak_of(arguments):
    """(greatest anonymous memory in bytes, standard output) of a process of its own."""
    # One thread: on a busy machine those of many small operations wait for each other.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=env) as process:
        peak = 0
        while process.poll() is None:
            try:
                peak = max(peak, anonymous(process.pid))
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.02)
        out = process.communicate()[0]
    assert process.returncode == 0
    return peak, out


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_extraction_of_a_sharded_model_needs_less_than_its_largest_shard(tmp_path):
    shard = MATRICES * 2 * math.prod(SHAPE)
    if shutil.disk_usage(tmp_path).free < (SHARDS + 4) * shard:
        pytest.skip("needs 6 GB of disk")
    try:
        write_model(tmp_path / "ck" / "base", None)
        write_model(tmp_path / "ck" / "weights" / "de", np.random.default_rng(0))
        peak, out = peak_of([sys.executable, "-c", EXTRACT, str(tmp_path / "ck")])
    finally:
        shutil.rmtree(tmp_path / "ck")
    size = SHARDS * MATRICES * math.prod(SHAPE)
    assert out.split() == [str(size), str(round(0.05 * size))]
    assert peak < shard + MARGIN, f"{peak / 2**20:.0f} MiB"


def test_the_measurement_notices_what_is_held(tmp_path):
    hold = "import numpy, time; x = numpy.ones(25_000_000); time.sleep(0.3)"
    peak, _ = peak_of([sys.executable, "-c", hold])
    assert 200e6 < peak < 300e6
