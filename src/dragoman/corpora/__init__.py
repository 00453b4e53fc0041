"""N-way text: languages, tables, cleaning, and corpora from packages."""
