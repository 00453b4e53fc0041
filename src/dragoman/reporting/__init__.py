"""Records and traces to self-contained HTML pages, and to the short table that the command line prints.

page.py       the tour: report_html, write_report
diagnosis.py  diagnose and compare: write_diagnosis, diagnosis_html, write_drift
charts.py     figures of routing with captions and numbers
making.py     the last section: model, corpus, machine, times, the command
blocks.py     what pages are made of
sentences.py  what the numbers of the tour say, one function a statement
findings.py   what those of a diagnosis say
summary.py    summary_text, for a terminal
"""

from dragoman.reporting.diagnosis import diagnosis_html, write_diagnosis, write_drift
from dragoman.reporting.page import report_html, write_report
from dragoman.reporting.summary import summary_text

__all__ = ["diagnosis_html", "report_html", "summary_text", "write_diagnosis", "write_drift", "write_report"]
