"""What a run will see of a dataset, before it runs: in numbers, as a page, and as a contact sheet."""

from hcpdiff.data.seeing.page import page
from hcpdiff.data.seeing.report import Report, look_at
from hcpdiff.data.seeing.summary import Summary, summarize, summary_lines

__all__ = ["Report", "Summary", "look_at", "page", "summarize", "summary_lines"]
