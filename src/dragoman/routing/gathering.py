"""Gathering: where counts per segment are kept, and how ranks add up what each of them counted.

Shape letters: L MoE layers, E experts, N segments, R segments of a batch.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from dragoman.errors import ConfigError
from dragoman.record import atomic_write, claim_folder

T = TypeVar("T")
CHUNK_BYTES = 1 << 24
"""Counts of so many segments are added up between ranks at a time."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share one capture; alone by default."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def all(cls) -> Ranks:
        """All of torch.distributed, over gloo, whatever the model's own back end. Every rank must call."""
        if not distributed.is_available() or not distributed.is_initialized():
            raise ConfigError(
                "distributed=True, but torch.distributed is not initialised; start the script with torchrun and call "
                "torch.distributed.init_process_group('gloo') first"
            )
        return cls(distributed.get_rank(), distributed.get_world_size(), distributed.new_group(backend="gloo"))

    def share(self, items: Iterable[T], shift: int) -> Iterator[T]:
        """Every n-th item; `shift` moves who begins, so that short lists do not all fall to rank 0."""
        return islice(items, (self.rank - shift) % self.size, None, self.size)

    def add_up(self, array: np.ndarray) -> None:
        """Replace an array by its sum over the ranks, in place."""
        if self.size > 1:
            distributed.all_reduce(torch.from_numpy(array), group=self.group)


class SegmentCounts:
    """int32 [N, L, E] by language: in memory, or in one .npy file each, mapped only while rows are added."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int, int]], folder: Path | None = None, final: Path | None = None
    ):
        """folder: where the files are now; final: where they will be, None where they are to go."""
        self.languages, self.folder, self.final = tuple(shapes), folder, final
        self.arrays: dict[str, np.ndarray] = {}
        for g, shape in shapes.items():
            if folder is None:
                self.arrays[g] = np.zeros(shape, np.int32)
            else:
                _write_zeros(folder / f"{g}.npy", shape)

    def add(self, language: str, segments: np.ndarray, count_RLE: np.ndarray) -> None:
        """Add counts of segments, each named once."""
        self._open(language)[segments] += count_RLE

    def add_up(self, language: str, ranks: Ranks) -> None:
        """Sum one language over the ranks, in pieces."""
        count_NLE = self._open(language)
        rows = max(1, CHUNK_BYTES // count_NLE[0].nbytes)
        for first in range(0, len(count_NLE) if ranks.size > 1 else 0, rows):
            some_NLE = np.array(count_NLE[first : first + rows])
            ranks.add_up(some_NLE)
            count_NLE[first : first + rows] = some_NLE

    def kept(self) -> dict[str, np.ndarray]:
        """The counts when all is done; files are mapped, read-only."""
        if self.folder is None:
            return self.arrays
        return {g: np.load(self.final / f"{g}.npy", mmap_mode="r") for g in self.languages} if self.final else {}

    def _open(self, language: str) -> np.ndarray:
        if self.folder is None:
            return self.arrays[language]
        return np.load(self.folder / f"{language}.npy", mmap_mode="r+")  # unmapped with the last reference to it


def _write_zeros(path: Path, shape: tuple[int, ...]) -> None:
    """In full, so that a disk without room is found out here and not by a signal when a page is written."""
    with open(path, "wb") as f:
        np.lib.format.write_array_header_1_0(f, {"descr": "<i4", "fortran_order": False, "shape": shape})
        row = bytes(4 * int(np.prod(shape[1:])))
        for _ in range(shape[0]):
            f.write(row)


@contextlib.contextmanager
def segment_counts(
    where: bool | Path | str, shapes: Mapping[str, tuple[int, int, int]], ranks: Ranks
) -> Iterator[SegmentCounts | None]:
    """Counts of zero: None, in memory or in a new folder, which is there whole after the block or not at all.

    ConfigError for a folder that holds something. Ranks other than the first write elsewhere, and keep nothing.
    """
    if isinstance(where, bool):
        yield SegmentCounts(shapes) if where else None
    elif ranks.rank:
        with tempfile.TemporaryDirectory() as own:
            yield SegmentCounts(shapes, Path(own))
    else:
        final = claim_folder(Path(where))
        with atomic_write(final) as partial:
            partial.mkdir()
            yield SegmentCounts(shapes, partial, final)
