"""Segments: text of one language on its way into a model, in batches of like length.

Shape letters: B sequences of a batch, S positions, C counted tokens, N segments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dragoman.errors import ConfigError, DataError
from dragoman.modeling import TextCodec


@dataclass(frozen=True)
class Batch:
    """Sequences with padding, and which of their tokens are counted for which segment."""

    ids_BS: torch.Tensor
    mask_BS: torch.Tensor
    places_C: torch.Tensor
    """Places of the counted tokens among all B * S."""
    rows_C: torch.Tensor
    """For each of them, which of `segments` it belongs to."""
    segments: np.ndarray
    """Numbers of the segments in the batch, each once."""
    tokens: int
    """Without the start tokens and padding."""


@dataclass(frozen=True)
class Segments:
    """Token ids of one language's segments."""

    ids: Sequence[Sequence[int]]
    start: tuple[int, ...] = ()
    """Put before every sequence, never counted."""
    counted: Sequence[Sequence[bool]] | None = None
    """Which tokens of each segment are counted; None: all."""
    left_out: frozenset[int] = field(default_factory=frozenset)
    """Ids that are read and not counted."""

    def checksum(self) -> str:
        """SHA-256 over the ids of all segments and their limits."""
        digest = hashlib.sha256()
        for segment in self.ids:
            digest.update(np.array([len(segment), *segment], dtype=np.int64).tobytes())
        return digest.hexdigest()

    def batches(self, longest: int, batch_tokens: int) -> Iterator[Batch]:
        """Sequences of like length together, at most `batch_tokens` with padding; longer segments are cut."""
        step = longest - len(self.start)
        pieces = [(n, i, min(i + step, len(s))) for n, s in enumerate(self.ids) for i in range(0, len(s), step)]
        pieces.sort(key=lambda p: p[1] - p[2])
        at = 0
        while at < len(pieces):
            _, first, last = pieces[at]
            size = max(1, batch_tokens // (last - first + len(self.start)))
            yield self._batch(pieces[at : at + size])
            at += size

    def _batch(self, pieces: Sequence[tuple[int, int, int]]) -> Batch:
        offset = len(self.start)
        shape = (len(pieces), offset + max(b - a for _, a, b in pieces))
        ids_BS, mask_BS, counted_BS = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
        ids_BS[:, :offset] = self.start
        for i, (n, a, b) in enumerate(pieces):
            place = slice(offset, offset + b - a)
            ids_BS[i, place] = self.ids[n][a:b]
            mask_BS[i, : place.stop] = 1
            counted_BS[i, place] = True if self.counted is None else self.counted[n][a:b]
        if self.left_out:
            counted_BS &= ~np.isin(ids_BS, list(self.left_out))
        segments, row_B = np.unique([n for n, _, _ in pieces], return_inverse=True)
        places_C = np.flatnonzero(counted_BS)
        rows_C = row_B[places_C // shape[1]]
        ids, mask, places, rows = (torch.from_numpy(x) for x in (ids_BS, mask_BS, places_C, rows_C))
        return Batch(ids, mask, places, rows, segments, int(mask_BS[:, offset:].sum()))


def read_segments(
    sequences: Mapping[str, Sequence[str] | Sequence[Sequence[int]]],
    *,
    codec: TextCodec | None = None,
    start_id: int | None = None,
    chat: bool = False,
    count_special: bool = True,
) -> dict[str, Segments]:
    """Segments by language, of strings or of token ids.

    Raises ConfigError for settings that lack the codec they need, DataError for a language without text or with an
    empty segment, naming all.
    """
    if single := [g for g, s in sequences.items() if isinstance(s, str)]:
        raise ConfigError(f"a list of segments is expected for every language, {', '.join(single)} has one string")
    strings = [g for g, s in sequences.items() if any(isinstance(x, str) for x in s)]
    _require_text(sequences)
    if strings and codec is None:
        raise ConfigError(f"strings were given for {', '.join(strings)}: pass codec=open_tokenizer(...), or token ids")
    if codec is None and (chat or not count_special or start_id is None):
        raise ConfigError("token ids alone need start_id; chat and count_special need codec=open_tokenizer(...)")
    if chat and (set(strings) != set(sequences) or start_id is not None):
        raise ConfigError("chat puts strings into the chat template, which has its own start; no ids and no start_id")
    if codec is None:
        return {g: Segments(s, (start_id,)) for g, s in sequences.items()}  # type: ignore[arg-type]
    left_out = frozenset() if count_special else codec.special_ids
    start = (codec.start_id if start_id is None else start_id,)
    if chat:
        read = {g: codec.chat(s) for g, s in sequences.items()}  # type: ignore[arg-type]
        found = {g: Segments(ids, (), counted, codec.special_ids) for g, (ids, counted) in read.items()}
    else:
        ids = {g: codec.encode(s) if g in strings else s for g, s in sequences.items()}  # type: ignore[arg-type]
        found = {g: Segments(s, start, None, left_out) for g, s in ids.items()}  # type: ignore[arg-type]
    _require_text({g: s.ids for g, s in found.items()})
    return found


def _require_text(sequences: Mapping[str, Sequence[Sequence[int]] | Sequence[str]]) -> None:
    empty = [g for g, s in sequences.items() if not len(s)]
    holes = [f"{g} segment {i}" for g, s in sequences.items() for i, ids in enumerate(s) if not len(ids)]
    if not sequences or empty or holes:
        what = ", ".join([*empty, *holes[:5]]) or "no language at all"
        raise DataError(f"nothing to capture for {what}; give at least one non-empty segment for every language")
