"""Tables of tensors that are only ever added to, in memory or on disk, filled by one process or by many."""

from hcpdiff.data.cache.durable import write_durably
from hcpdiff.data.cache.filling import fill
from hcpdiff.data.cache.keys import FORMAT, KEY_BYTES, Key, content_key
from hcpdiff.data.cache.table import Row, Table
from hcpdiff.data.cache.team import ALONE, Team

__all__ = ["ALONE", "FORMAT", "KEY_BYTES", "Key", "Row", "Table", "Team", "content_key", "fill", "write_durably"]
