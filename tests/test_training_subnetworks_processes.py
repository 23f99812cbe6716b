"""Two processes train subnetworks as one does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import influence_processes
import subnetwork_processes as processes


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path):
    expected = processes.train_all(tmp_path / "one")
    start = processes.weights(processes.encoder())
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
         str(influence_processes.free_port()), "-m", "subnetwork_processes", str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        with np.load(tmp_path / f"found-{rank}.npz") as found:
            assert set(found) == {"static", "dynamic", "meta", "pcgrad"}
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
                assert np.array_equal(found[name] == start, values == start), name
