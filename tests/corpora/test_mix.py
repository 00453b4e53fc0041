"""Training streams: shares, determinism, leaks, packing."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from dragoman.corpora.mix import Mix, check_no_leak, pack, pad, require_named, stream
from dragoman.errors import ConfigError, DataError
from tests.texts import corpus

# A toy code: one token per word, its number says the language; pairs carry both.
NUMBER = {"en": 1, "es": 2, "de": 3, "ca": 4, "ru": 5}


def encode(texts):
    return [[_language_of(t)] * len(t.split()) for t in texts]


def pair(sources, targets, source, target):
    return [
        [10 + NUMBER[source]] * len(s.split()) + [10 + NUMBER[target]] * len(t.split())
        for s, t in zip(sources, targets, strict=True)
    ]


def _language_of(text):
    return next(NUMBER[g] for g in NUMBER if text in corpus().columns[g])


def tokens_of(mix, n=6000, seed=0, tables=None):
    return np.concatenate(list(islice(stream(tables or [corpus()], mix, encode, pair, seed=seed), n)))


def test_shares_of_languages_and_parallel_are_kept_by_tokens():
    mix = Mix(languages={"en": 3.0, "es": 1.0}, parallel=0.25)
    tokens = tokens_of(mix)
    share = {t: (tokens == t).mean() for t in np.unique(tokens)}
    assert share[1] == pytest.approx(0.75 * 0.75, abs=0.01)
    assert share[2] == pytest.approx(0.75 * 0.25, abs=0.01)
    assert (tokens > 10).mean() == pytest.approx(0.25, abs=0.01)
    assert set(share) == {1, 2, 11, 12}


def test_a_book_as_one_document_does_not_fill_a_run(monkeypatch):
    """Shares are kept between runs of it, and nothing of it is lost or read twice before the rest."""
    text = corpus()
    books = replace(text, documents=("book",) * len(text), splits=("train",) * len(text))
    mix = Mix(languages={"en": 1.0, "es": 1.0})
    monkeypatch.setattr("dragoman.corpora.mix.RUN", 50)
    samples = list(islice(stream([books], mix, encode, pair, seed=0), 40))
    first = np.concatenate(samples)[:600]
    assert max(map(len, samples)) == 50 and (first == 1).mean() == pytest.approx(0.5, abs=0.05)
    english = [sample for sample in samples if sample[0] == 1]
    whole = sum(len(t.split()) for t in books.texts("en"))
    pieces = -(-whole // 50)
    assert len(english) > pieces and sum(map(len, english[:pieces])) == whole


def test_pivot_share_has_english_on_one_side():
    samples = islice(
        stream([corpus()], Mix(languages=dict.fromkeys(NUMBER, 1.0), parallel=1.0, pivot=0.8), encode, pair, seed=0),
        2000,
    )
    with_english = np.mean([11 in s for s in samples])
    assert with_english == pytest.approx(0.8 + 0.2 * 2 / 5, abs=0.03)


def test_the_stream_is_a_function_of_its_seed():
    mix = Mix(languages={"en": 1.0, "de": 1.0}, parallel=0.5)
    np.testing.assert_array_equal(tokens_of(mix, 300), tokens_of(mix, 300))
    assert not np.array_equal(tokens_of(mix, 300)[:500], tokens_of(mix, 300, seed=1)[:500])


def test_every_document_is_read_before_any_repeats():
    table = corpus()
    texts = table.texts("en", "train")
    seen = []
    samples = stream([table], Mix(languages={"en": 1.0}), lambda t: [seen.append(x) or [1] for x in t], pair, seed=0)
    documents = len({d for d, s in zip(table.documents, table.splits, strict=True) if s == "train"})
    list(islice(samples, documents))
    assert sorted(seen) == sorted(texts)


def test_only_train_text_is_read():
    seen = []
    list(
        islice(
            stream([corpus()], Mix(languages={"en": 1.0}), lambda t: [seen.append(x) or [1] for x in t], pair, seed=0),
            40,
        )
    )
    assert set(seen) == set(corpus().texts("en", "train"))


def test_weights_of_tables_hold_for_pairs_too():
    one, two = corpus(), replace(corpus(), about={"name": "other"})
    seen = []
    mix = Mix(languages={"en": 1.0, "es": 1.0}, parallel=1.0, tables={"toy": 0.0})
    samples = stream([one, replace(two, columns={g: [t and f"2 {t}" for t in c] for g, c in two.columns.items()})],
        mix, lambda t: [[1] for _ in t], lambda s, t, *_: seen.extend(s) or [[1]], seed=0)  # fmt: skip
    list(islice(samples, 60))
    assert seen and all(text.startswith("2 ") for text in seen)


def test_faults_of_weights_of_tables():
    with pytest.raises(ConfigError, match=r"weights of tables are numbers from 0, not toy=-1, other=nan"):
        Mix(tables={"toy": -1, "fine": 0.5, "other": float("nan")})
    with pytest.raises(ConfigError, match=r"mix.tables names tou; the tables are toy"):
        require_named([corpus()], Mix(tables={"tou": 0.5, "toy": 1}))


class TestLeaks:
    def test_a_clean_mix_passes(self):
        assert check_no_leak([corpus()], ["en"], ["ca"], corpus()) is None

    def test_a_table_without_english_is_compared_in_its_first_language(self):
        table = corpus().select(["es", "ca"])
        assert check_no_leak([table], ["es"], [], table) is None
        i, j = table.splits.index("devtest"), table.splits.index("train")
        columns = {g: list(c) for g, c in table.columns.items()}
        columns["es"][j] = columns["es"][i]
        for held_out in (table, corpus()):
            with pytest.raises(DataError, match="1 held-out segments in toy"):
                check_no_leak([replace(table, columns=columns)], ["es"], [], held_out)

    def test_a_row_that_has_lost_its_english_is_compared_in_the_next_language(self):
        table = corpus()
        i, j = table.splits.index("devtest"), table.splits.index("train")
        columns = {g: list(c) for g, c in table.columns.items()}
        columns["en"][j], columns["es"][j] = None, columns["es"][i]
        with pytest.raises(DataError, match="1 held-out segments in toy"):
            check_no_leak([replace(table, columns=columns)], ["es"], [], table)
        columns["en"][j] = "something else"  # two sentences may have one translation
        assert check_no_leak([replace(table, columns=columns)], ["es"], [], table) is None

    def test_a_planted_language_document_and_segment_are_named(self):
        table = corpus()
        i, j = table.splits.index("devtest"), table.splits.index("train")
        columns = {g: list(c) for g, c in table.columns.items()}
        columns["en"][j] = columns["en"][i]
        documents = list(table.documents)
        documents[j] = table.documents[i]
        leaky = replace(table, columns=columns, documents=tuple(documents))
        with pytest.raises(DataError) as e:
            check_no_leak([leaky], ["en", "ca"], ["ca"], table)
        for part in (
            "held-out languages in the mix: ca",
            f"1 held-out documents in toy: {table.documents[i]}",
            "1 held-out segments",
        ):
            assert part in str(e.value)


def test_bad_shares_and_missing_text_are_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        Mix(languages={"en": -1.0})
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Mix(parallel=1.5)
    with pytest.raises(DataError, match="no table has train text in 'fr'"):
        tokens_of(Mix(languages={"fr": 1.0}), 1)


def test_pack_lays_samples_end_to_end():
    blocks = pack(iter([[1, 2, 3], [4], [5, 6, 7, 8, 9]]), 2, 4)
    assert blocks.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_pad_keeps_samples_whole_and_silences_prompts():
    tokens, labels = pad([([1, 2, 3], 1), ([4, 5], 0), ([6, 7, 8, 9, 10, 11], 2)], 5, pad_id=0)
    assert tokens.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert labels.tolist() == [[-100, 2, 3, 4, 5], [-100, -100, 8, 9, 10]]
    tokens, labels = pad([([1, 2, 3], 0), ([4, 5, 6], 0)], 5, pad_id=0)
    assert tokens.tolist() == [[1, 2, 3, 0, 0], [4, 5, 6, 0, 0]]
    assert labels.tolist() == [[1, 2, 3, -100, -100], [4, 5, 6, -100, -100]]
