"""Prompts, letter by letter, in the shapes that were published."""

from dataclasses import replace

import pytest

from dragoman.translation.request import TEMPLATES, Draft, Neighbour, Pair, Request, Version, render, sample

CLOSE = Neighbour("Close the file", "Die Datei schließen", 0.7)
OPEN = Neighbour("Open a file", "Eine Datei öffnen", 0.9)
PLAIN = Request("Open the file", "en", "de")
PAIRS = replace(PLAIN, neighbours=(CLOSE, OPEN))
TERMS = (Pair("file", "Datei"), Pair("open", "öffnen"))
DRAFT = Draft("Das Datei öffnen", "de", (0.91, 0.5, 0.777))
TRIPLETS = (
    replace(CLOSE, drafts=(Draft("Das Datei zu", "de", (0.9, 0.404, 0.8)),)),
    replace(OPEN, drafts=(Draft("Öffnen Datei", "de", (0.2, 0.6)),)),
)
SCALE = "You translate from English into German. Draft answers of another model are given"
WARNING = "; they may help and may be wrong. Answer with the last translation alone, in one line."

TOLD = {"context": "menu.open", "notes": ("be brief",)}
TOLD_LINES = ("Where it stands: menu.open", "Note: be brief")

GOLDEN = {
    "zero shot": ("zero_shot", PLAIN, ["English: Open the file", "German:"]),
    "zero shot with marks": (
        "zero_shot",
        Request("Sail {1}north{2}", "en", "ca"),
        ["English: Sail {1}north{2}", "Catalan:"],
    ),
    "a region and a script": (
        "zero_shot",
        Request("Abrir", "pt-PT", "sr-Latn"),
        ["Portuguese (Portugal): Abrir", "Serbian (Latin):"],
    ),
    "few shot": (
        "zero_shot",
        PAIRS,
        [
            "English: Close the file",
            "German: Die Datei schließen",
            "English: Open a file",
            "German: Eine Datei öffnen",
            "English: Open the file",
            "German:",
        ],
    ),
    "adaptive": (
        "adaptive",
        replace(PAIRS, terms=TERMS),
        [
            "English: Close the file",
            "German: Die Datei schließen",
            "English: Open a file",
            "German: Eine Datei öffnen",
            "Terms: file = Datei - open = öffnen",
            "English: Open the file",
            "German:",
        ],
    ),
    "adaptive with drafts": (
        "adaptive",
        replace(PLAIN, neighbours=TRIPLETS[1:], drafts=(DRAFT,)),
        [
            "English: Open a file",
            "MT: Öffnen Datei",
            "German: Eine Datei öffnen",
            "English: Open the file",
            "MT: Das Datei öffnen",
            "German:",
        ],
    ),
    "scale, refinement": (
        "scale",
        replace(PLAIN, neighbours=TRIPLETS, drafts=(DRAFT,)),
        [
            SCALE + WARNING,
            "The number in brackets behind a word of a draft is that model's confidence in it; do not repeat it.",
            "",
            "English: Close the file",
            "Draft: Das(0.90) Datei(0.40) zu(0.80)",
            "German: Die Datei schließen",
            "",
            "English: Open a file",
            "Draft: Öffnen(0.20) Datei(0.60)",
            "German: Eine Datei öffnen",
            "",
            "English: Open the file",
            "Draft: Das(0.91) Datei(0.50) öffnen(0.78)",
            "German:",
        ],
    ),
    "scale, no probabilities": (
        "scale",
        replace(PLAIN, drafts=(replace(DRAFT, confidence=()),)),
        [SCALE + WARNING, "", "English: Open the file", "Draft: Das Datei öffnen", "German:"],
    ),
    "scale, pivot": (
        "scale",
        replace(PLAIN, drafts=(Draft("Obre el fitxer", "ca"),), quality=0.5, **TOLD),
        [
            SCALE + " in Catalan" + WARNING,
            *TOLD_LINES,
            "Estimated quality of the draft: 0.50",
            "",
            "English: Open the file",
            "Draft: Obre el fitxer",
            "German:",
        ],
    ),
    "scale, several drafts": (
        "scale",
        replace(PLAIN, drafts=(Draft("Datei auf", "de"), Draft("Datei öffnen", "de"))),
        [SCALE + WARNING, "", "English: Open the file", "Draft 1: Datei auf", "Draft 2: Datei öffnen", "German:"],
    ),
    "pmp": (
        "pmp",
        replace(PLAIN, auxiliary=(Version("Open het bestand", "nl"),), **TOLD),
        [
            "Translate the following text from English into Dutch and German. Answer with the German line alone.",
            *TOLD_LINES,
            "English: Open the file",
            "Dutch: Open het bestand",
            "German:",
        ],
    ),
    "post-edit of terms": (
        "post_edit_terms",
        replace(PLAIN, source="Open {1}the file{2}", terms=TERMS[:1], drafts=(DRAFT,), **TOLD),
        [
            "Edit the German translation of the English text so that it uses the terms below. Change nothing else. "
            "Answer with the translation alone, in one line.",
            "Keep each mark such as {1} exactly once.",
            'Use "Datei" for "file".',
            *TOLD_LINES,
            "English: Open {1}the file{2}",
            "Translation: Das Datei öffnen",
            "German:",
        ],
    ),
    "instruction with marks and neighbours": (
        "instruct",
        Request("Sail {1}north{2}", "en", "ca", neighbours=(Neighbour("Go.", "Vés."),)),
        [
            "Translate the following text from English into Catalan. Answer with the translation alone, in one line.",
            "Keep each mark such as {1} exactly once, where it belongs in Catalan.",
            "English: Go.",
            "Catalan: Vés.",
            "English: Sail {1}north{2}",
            "Catalan:",
        ],
    ),
    "instruction, a later sentence's marks": (
        "instruct",
        Request("Sail {3}north{4}", "en", "ca"),
        [
            "Translate the following text from English into Catalan. Answer with the translation alone, in one line.",
            "Keep each mark such as {1} exactly once, where it belongs in Catalan.",
            "English: Sail {3}north{4}",
            "Catalan:",
        ],
    ),
    "instruction": (
        "instruct",
        replace(PLAIN, terms=TERMS[:1], **TOLD),
        [
            "Translate the following text from English into German. Answer with the translation alone, in one line.",
            'Translate "file" as "Datei".',
            *TOLD_LINES,
            "English: Open the file",
            "German:",
        ],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    template, request, lines = GOLDEN[name]
    assert render(request, template) == "\n".join(lines)


def test_every_template_has_a_golden_prompt():
    assert {template for template, _, _ in GOLDEN.values()} == {*TEMPLATES}


def test_a_training_sample_is_the_prompt_and_what_follows():
    expected = ("English: Open the file\nGerman:", " Die Datei öffnen")
    assert sample(PLAIN, "zero_shot", "Die Datei öffnen") == expected


@pytest.mark.parametrize("template", ["zero_shot", "instruct"])
def test_text_with_braces_is_no_template(template):
    text = "{{ source_name }} {{ 7*7 }} {% if %}"
    assert f"English: {text}\n" in render(replace(PLAIN, source=text), template)
