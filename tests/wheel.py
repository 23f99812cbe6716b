"""Build the wheel, install it where no checkout is near, and run the demo as a user would.

Run by `make test-wheel`; not collected by pytest. Prints a closing line that counts its checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "subnet": ROOT / "toolkit/subnet",
    "subnet_probes": ROOT / "probes/subnet_probes",
    "subnet_cli": ROOT / "cli/subnet_cli",
}


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def main() -> None:
    passed = 0
    with tempfile.TemporaryDirectory(prefix="subnet-wheel-") as name:
        elsewhere = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", elsewhere, ROOT, cwd=elsewhere)
        (wheel,) = elsewhere.glob("*.whl")
        packed = set(zipfile.ZipFile(wheel).namelist())
        for package, source in PACKAGES.items():
            files = [path for path in source.rglob("*") if path.is_file()]
            wanted = {
                f"{package}/{path.relative_to(source).as_posix()}"
                for path in files
                if "__pycache__" not in path.parts
            }
            assert wanted <= packed, f"missing from the wheel: {sorted(wanted - packed)}"
            assert f"{package}/py.typed" in packed
            passed += 1

        venv.create(elsewhere / "env", with_pip=True)
        python = elsewhere / "env" / "bin" / "python"
        constraints = ROOT / "constraints.txt"
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        run(*pip, "--constraint", constraints, wheel, cwd=elsewhere)
        where = run(python, "-c", "import subnet; print(subnet.__file__)", cwd=elsewhere)
        assert str(ROOT) not in where, f"imported from the checkout: {where}"
        passed += 1

        subnet = elsewhere / "env" / "bin" / "subnet"
        print(run(subnet, "demo", "demo", cwd=elsewhere))
        report = elsewhere / "demo-analysis" / "report.html"
        assert report.stat().st_size > 10_000
        summary = json.loads((report.parent / "summary.json").read_text(encoding="utf-8"))
        assert summary["headline"]["state"] in ("associated", "not associated")
        passed += 1
    print(f"{passed} passed, 0 failed")


if __name__ == "__main__":
    main()
