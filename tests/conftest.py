"""What tests of several rooms start from."""

import sys

import pytest

import subnet_cli


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
