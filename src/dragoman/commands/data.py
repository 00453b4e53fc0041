"""`dragoman data`: n-way text from installed packages."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from dragoman.commands import Switch, Tags

app = App(name="data")


@app.command
def fetch(
    source: str,
    /,
    *,
    out: Path = Path("data"),
    languages: Tags = (),
    cache: Path | None = None,
    quiet: Switch = False,
) -> None:
    """Fetch a source and write it as an n-way table, with its provenance, licence and checksum beside it.

    Parameters
    ----------
    source
        help (LibreOffice help), descriptions (Debian package descriptions), wesnoth (campaign dialogue, never for
        training) or udhr (the declaration of human rights in hundreds of languages).
    out
        Folder for SOURCE.tsv.gz and SOURCE.about.json.
    languages
        BCP-47 tags; default: every language of the source.
    cache
        Folder in which downloaded packages are kept; default: ~/.cache/dragoman.
    quiet
        No progress bars.
    """
    from dragoman.corpora.ntext import load
    from dragoman.corpora.packages import fetch as fetch_source

    path = fetch_source(source, out, languages or None, cache, quiet)
    table = load(path)
    print(f"{path}: {len(table)} rows in {', '.join(table.languages)} ({table.about.get('licence')})")
