"""The command line: parse, call, print."""

from hcpdiff.cli.app import app
from hcpdiff.cli.running import main

__all__ = ["app", "main"]
