"""The command line: parse, call one public function, hand the result to `report`."""

from onebyone.cli.app import app, main

__all__ = ["app", "main"]
