"""Records and traces to one self-contained HTML page, and to the short table that the command line prints.

page.py       sections 1 to 5 with their tables and figures; report_html, write_report
making.py     section 6: model, corpus, machine, times, the command
blocks.py     what sections are made of
sentences.py  what the numbers say, one function a statement
summary.py    summary_text, for a terminal
"""

from dragoman.reporting.page import report_html, write_report
from dragoman.reporting.summary import summary_text

__all__ = ["report_html", "summary_text", "write_report"]
