"""What tests of several rooms start from."""

import sys

import pytest
from hypothesis import HealthCheck, settings

import subnet_cli

# The same examples in every run, however slow the machine: seconds fail no test.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _the_same_random_numbers():
    """What a test draws without a seed does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def subnet(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["subnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            subnet_cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run
