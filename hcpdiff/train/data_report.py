"""`hcpdiff data`: what a run will see, without a model's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from hcpdiff.config import build, load, require
from hcpdiff.config.building import build as build_node
from hcpdiff.data.preview import contact_sheet, summarize

log = logging.getLogger("hcpdiff.data")
