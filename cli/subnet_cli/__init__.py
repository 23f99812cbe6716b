"""The `subnet` command: one file per subcommand, the library does the work."""

from subnet_cli.app import main

__all__ = ["main"]
