"""What programs put into texts and no translation may change: printf, Python and brace formats, tags, entities."""

from __future__ import annotations

import re

PRINTF = (
    r"%(?:\d+\$)?[-+#0]*(?:\d+|\*(?:\d+\$)?)?(?:\.(?:\d+|\*(?:\d+\$)?)?)?"
    r"(?:hh|h|ll|l|L|z|j|t|q)?[diouxXeEfFgGcsSpn@]"
)
"""Letters may follow, as in `%ds`, but for per cent of a number: `100%discount`, `100 %ige`."""
PLACEHOLDER = re.compile(
    r"%%"
    rf"|(?<!\d)(?<!\d\s){PRINTF}|{PRINTF}(?![A-Za-z])"
    r"|%\(\w+\)[#0+ -]*\d*(?:\.\d+)?[a-zA-Z]|%<\w+>[a-zA-Z]"  # Python, Ruby
    r"|%[A-Z][A-Z_]+%?"  # %PRODUCTNAME
    r"|\$\{[^{}\s]+\}|\{\{[^{}]+\}\}|\{[\w.:!,-]*\}"  # ${name}, {{name}}, {0}, {}
    r"|\{\w[\w.\[\]]*(?:![rsa])?(?::[^{}\s]*)?\}|\{\s+[A-Za-z_]\w+(?:\.\w+)*\s+\}"  # {items[0]}, {0!r:>5}, { name }
    r"|</?[A-Za-z][^<>\s]*(?:\s+[\w:-]+=(?:\"[^\"]*\"|'[^']*'))*\s*/?>"  # tags
    r"|&(?:[A-Za-z]+|#\d+|#x[0-9A-Fa-f]+);"  # entities
    r"|\\[nrt]"
)
