"""The short plain table that the command line prints."""

from __future__ import annotations

import textwrap

from dragoman.reporting import sentences as say
from dragoman.reporting.blocks import MISSING, measured, systems
from dragoman.reporting.sentences import Record, name, number, percent, system_name


def summary_text(record: Record) -> str:
    """The systems as a plain table, then the headline, for a terminal of 100 columns."""
    head = ["system", "trained", "bits/byte", "95% interval", "chrF", "95% interval", "known (mean)"]
    rows = [head]
    for system in systems(record):
        share, change = record.get("trained_share", {}).get(system), say.mean_change(record, system)
        bits, chrf = (measured(record, metric, system) for metric in say.METRICS)
        values = (
            bits.text,
            bits.small,
            chrf.text,
            chrf.small,
            MISSING if change is None else number(change, sign=True),
        )
        rows.append([system_name(system), MISSING if share is None else percent(share), *values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    title = f"{name(record, record['target'])} ({record['target']})" if record.get("target") else ""
    return "\n\n".join(
        filter(None, ("\n".join(filter(None, (title, *lines))), textwrap.fill(say.headline(record), 100)))
    )
