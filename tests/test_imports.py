"""What is imported when, in processes of their own."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "scipy", "pandas", "peft", "matplotlib", "sklearn")


def loaded_after(code: str, *arguments: str) -> set[str]:
    """Those heavy packages that a new process has loaded after running the code."""
    report = f"\nimport json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}{report}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module", ["subnet", "subnet.errors", "subnet.language", "subnet.checkpoint"]
)
def test_importing_loads_nothing_heavy(module):
    assert loaded_after(f"import {module}") == set()


def test_the_check_itself_notices_a_heavy_import():
    assert loaded_after("import pandas") >= {"pandas"}


def test_opening_a_checkpoint_loads_no_tensor_library(tmp_path):
    from checkpoint_makers import write_items, write_lora_directory, write_scores, write_stages

    write_lora_directory(tmp_path, ("de", "fr"))
    write_stages(tmp_path, ("de", "fr"))
    write_scores(tmp_path / "scores.csv", ("de", "fr"))
    write_items(tmp_path / "items.csv", ("de", "fr"))
    code = (
        "import subnet.checkpoint as c\n"
        "found = c.open_checkpoint(sys.argv[1])\n"
        "assert len(found.entries) == 7, found.entries\n"
        "found.to_dict(), found.read_files(), found.families"
    )
    assert loaded_after(code, str(tmp_path)) == set()
