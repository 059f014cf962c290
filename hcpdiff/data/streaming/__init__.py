"""Data of unknown length, read from the start on."""
