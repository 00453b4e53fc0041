"""Tables of an evaluation record: for the terminal, in Markdown, LaTeX, HTML and CSV.

One table of values for each metric (a row for a language or direction, a column for a system, means last, beside what
they are means of) and one of the comparisons. CSV has all of it in one long table, a line for each value and each
comparison, for spreadsheets and data frames.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dragoman.record import atomic_write

Record = dict[str, Any]
DIGITS = {"bits_per_byte": 3, "length_ratio": 3, "comet": 3, "embedding": 3}
"""Decimals; of all others 1."""
ARROWS = {True: ", higher is better", False: ", lower is better", None: ""}


@dataclass(frozen=True)
class Table:
    """One table, all cells as text."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables_of(record: Record) -> list[Table]:
    """All tables of a record, values before comparisons."""
    found = []
    for name, about in record["metrics"].items():
        found += [_values(record, name, about), *comparisons_of(record, name, about)]
    return found


def number(value: float, name: str, sign: bool = False) -> str:
    """A value of a metric with its decimals."""
    return f"{value:{'+' if sign else ''}.{DIGITS.get(name, 1)}f}"


def _range(limits: Sequence[float], name: str, sign: bool = False) -> str:
    low, high = limits
    return f"[{number(low, name, sign)}, {number(high, name, sign)}]"


def _values(record: Record, name: str, about: Record) -> Table:
    values, intervals, mean = record[name], record[f"{name}_interval"], record["means"].get(name)
    systems = list(values)
    judged = record.get(f"{name}_judged", {})
    labels = list(dict.fromkeys(label for by in (*judged.values(), *values.values()) for label in by))

    def cell(system: str, label: str) -> str:
        count = f" (n {judged[system][label]})" if label in judged.get(system, {}) else ""
        if label not in values[system]:
            return f"–{count}"
        return f"{number(values[system][label], name)} {_range(intervals[system][label], name)}{count}"

    rows = [[label, *(cell(s, label) for s in systems)] for label in labels]
    if mean:
        rows.append([f"mean of {len(mean['over'])}", *(number(mean["of"][s], name) for s in systems)])
    note = f"95 % intervals; {'n: segments judged; ' if judged else ''}{record['signatures'][name]}"
    note += "".join(f"; {s}: {_signature(record, name, s)}" for s in unlike(record, name))
    return Table(f"{about['title']}{ARROWS[about['higher_is_better']]}", ["", *systems], rows, note)


def _signature(record: Record, name: str, system: str) -> str:
    return record.get("signatures_of", {}).get(system, {}).get(name) or record["signatures"][name]


def unlike(record: Record, name: str) -> list[str]:
    """Systems that were scored with other settings of a metric than the first one that has it."""
    return [s for s in record[name] if _signature(record, name, s) != record["signatures"][name]]


def comparisons_of(record: Record, name: str, about: Record) -> list[Table]:
    """The table of a metric's comparisons, where there are any."""
    rows = [
        [
            c["language"],
            f"{c['a']} - {c['b']}",
            f"{number(c['difference'], name, True)} {_range([c['low'], c['high']], name, True)}",
            f"{c['p_value']:.4f}",
            f"{c['p_holm']:.4f}",
            c["verdict"],
            number(c["detectable"], name) if c["detectable"] else "–",
            f"{c['units']} {c['unit']}s",
        ]
        for c in record["comparisons"]
        if c["metric"] == name
    ]
    head = ["", "systems", "difference", "p", "p (Holm)", "verdict", "would show", "units"]
    return [Table(f"{about['title']}: differences", head, rows)] if rows else []


# Forms


def text(record: Record) -> str:
    """Plain tables in columns."""
    return "\n\n".join([*map(in_columns, tables_of(record)), "\n".join(_remarks(record))]) + "\n"


def in_columns(table: Table) -> str:
    """One table as plain text."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    body = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([table.title, *body, *([f"({table.note})"] if table.note else [])])


EXPLAINED = (
    "Differences: paired bootstrap with 95 % intervals; Holm over the comparisons of one table; `would show` is the "
    "difference that this text shows in 4 of 5 cases (5 % two-sided, before Holm)."
)


def _remarks(record: Record) -> list[str]:
    told = [EXPLAINED] if record["comparisons"] else []
    told += [f"Mind: {warning}." for warning in record.get("warnings", [])]
    return told + [f"Left out: {name}: {reason}." for name, reason in record.get("left_out", {}).items()]


def markdown(record: Record) -> str:
    """GitHub's tables."""
    parts = []
    for table in tables_of(record):
        lines = [table.head, ["---"] * len(table.head), *table.rows]
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        parts.append("\n".join([f"### {table.title}", "", *body, *(["", f"`{table.note}`"] if table.note else [])]))
    return "\n\n".join([*parts, *_remarks(record)]) + "\n"


_TEX = {"\\": r"\textbackslash{}", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}


def _caption(table: Table) -> str:
    return f"{table.title} ({table.note})" if table.note else table.title


def latex(record: Record) -> str:
    r"""`table` environments with \toprule and so on, for the package booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(_TEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables_of(record):
        parts.append(
            "\n".join(
                [
                    r"\begin{table}\centering\small",
                    rf"\caption{{{''.join(_TEX.get(c, c) for c in _caption(table))}}}",
                    rf"\begin{{tabular}}{{{'l' * len(table.head)}}}",
                    r"\toprule",
                    line(table.head),
                    r"\midrule",
                    *map(line, table.rows),
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join([*parts, *(f"% {remark}" for remark in _remarks(record))]) + "\n"


STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em;color:#222;background:#fff}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;font-weight:600;padding:.4em 0}small{color:#666}div{overflow-x:auto;margin-bottom:2em}"
)


def page(record: Record) -> str:
    """One HTML page without scripts or links."""
    parts = []
    for table in tables_of(record):
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.head)
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>\n" for row in table.rows)
        parts.append(
            f"<div><table><caption>{html.escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>{rows}</tbody></table><small>{html.escape(table.note)}</small></div>"
        )
    parts += [f"<p>{html.escape(remark)}</p>" for remark in _remarks(record)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        f"<style>{STYLE}</style></head><body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


COLUMNS = (
    "metric", "label", "system", "against", "value", "low", "high", "p_value", "p_holm", "verdict", "detectable",
    "units", "unit", "judged", "signature",
)  # fmt: skip


def long_csv(record: Record) -> str:
    """A line for each value (`against` is empty; so is the value of a rate of nothing) and each difference, in full."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name in record["metrics"]:
        for system, by in record[name].items():
            for label, value in by.items():
                low, high = record[f"{name}_interval"][system][label]
                row = {"metric": name, "label": label, "system": system, "value": value, "low": low, "high": high}
                row["judged"] = record.get(f"{name}_judged", {}).get(system, {}).get(label, "")
                writer.writerow(row | {"signature": _signature(record, name, system)})
        for system, counts in record.get(f"{name}_judged", {}).items():
            row = {"metric": name, "system": system, "signature": _signature(record, name, system)}
            writer.writerows(row | {"label": label, "judged": 0} for label, n in counts.items() if not n)
    for c in record["comparisons"]:
        row = c | {"label": c["language"], "system": c["a"], "against": c["b"], "value": c["difference"]}
        signed = dict.fromkeys(_signature(record, c["metric"], system) for system in (c["a"], c["b"]))
        writer.writerow(row | {"signature": " against ".join(signed)})
    return file.getvalue()


FORMS: dict[str, Callable[[Record], str]] = {
    "txt": text,
    "md": markdown,
    "tex": latex,
    "html": page,
    "csv": long_csv,
}
"""Suffix of a file -> what its content is."""


def render(record: Record, form: str) -> str:
    """The tables of an evaluation's record in one of FORMS."""
    return FORMS[form](record)


def write_table(record: Record, path: Path) -> None:
    """Write the tables in the form that the suffix names, one of FORMS."""
    content = render(record, path.suffix.removeprefix("."))
    with atomic_write(path) as partial:
        partial.write_text(content, encoding="utf-8")
