"""Trunk cache: what enters the lowest trained layer is computed once, written to disk and read in every later pass.

    logits = upper(trunk(x)),  trunk frozen: trunk(x) is a constant of the text

A folder holds `activations.bin`, rows of [S, D] numbers without a header, and `trunk.json`: what they were made of, and
the checksum of each block that is written. A run that was killed while writing goes on after the last whole block, and
of runs that share a folder one writes and the others wait. Rows are found by their contents, so text that comes again,
in whatever order, is computed once.

Shape letters: N different rows, B rows of a batch, S positions, D model width.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods.rows import without_needless_mask
from dragoman.modeling import decoder_layers, lowest_trained, state_checksum, trunk_output, why_no_trunk, without_trunk
from dragoman.record import read_json, sha256, write_json

FORMAT = "dragoman-trunk/1"
STORED = {"bf16": (torch.bfloat16, np.int16), "fp32": (torch.float32, np.float32)}
"""Choice of the user -> what activations are rounded to, and the numpy type of the same width on disk."""
LARGEST_DIFFERENCE = {"bf16": 0.05, "fp32": 1e-3}
"""Mean difference of the cached logits from the full ones that is accepted, in standard deviations of the full ones."""
NO_INPUTS = ("labels", "row")


class Rows(Protocol):
    """Rows as the training loop reads them: each a dict of tensors, without the axis of the batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where the trunk's activations are kept, and how."""

    folder: Path
    """Folder of the cache; one that is there is used if it fits, and completed if it was not finished."""
    dtype: str = "bf16"
    """bf16, or fp32 for twice the disk and no rounding."""

    def __post_init__(self) -> None:
        if self.dtype not in STORED:
            raise ConfigError(f"a trunk cache is kept in {' or '.join(STORED)}, not in {self.dtype!r}")


@contextmanager
def cached_trunk(
    model: PreTrainedModel,
    rows: Rows,
    config: Config,
    *,
    batch: int = 8,
    bf16: bool = False,
    announce: Callable[[str], None] = print,
) -> Iterator[float]:
    """Within the block, training passes of `model` on any of `rows` run only the layers from the lowest trained one up.

    Yields the difference of cached from full logits on the first batch (mean, in standard deviations). `bf16` computes
    the trunk under autocast. Raises ModelError for a model that needs more than the trunk's output or trains below the
    cut, ConfigError where the disk is too small or the folder holds something else, DataError where a file is damaged.
    """
    trunk = _Trunk(model, rows, batch, bf16)
    trunk.refuse_what_cannot_be_cached()
    store = _Store(config, trunk)
    store.fill(announce)
    difference = trunk.difference(store.read)
    if difference > LARGEST_DIFFERENCE[config.dtype]:
        raise ModelError(
            f"with the cache in {config.folder} logits differ by {difference:.2g} of their standard deviation from "
            f"those of the whole model, at most {LARGEST_DIFFERENCE[config.dtype]} is accepted; "
            + ("keep it in fp32" if config.dtype == "bf16" else "remove the folder, or train without a trunk cache")
        )
    with trunk.served(store.read):
        yield difference


def _digests(inputs: Mapping[str, Any]) -> list[bytes]:
    """One per row of a batch, over every tensor that the model is given."""
    size = len(inputs["input_ids"])
    parts = {n: t.cpu() for n, t in sorted(inputs.items()) if isinstance(t, torch.Tensor) and len(t) == size}
    digests = [hashlib.blake2b(digest_size=16) for _ in range(size)]
    for name, tensor in parts.items():
        for digest, row in zip(digests, tensor, strict=True):
            digest.update(name.encode() + row.contiguous().numpy().tobytes())
    return [d.digest() for d in digests]


class _Trunk:
    """The frozen part of a model, and its inputs."""

    def __init__(self, model: PreTrainedModel, rows: Rows, batch: int, bf16: bool):
        self.model, self.rows, self.batch, self.bf16 = model, rows, batch, bf16
        self.cut = lowest_trained(model)
        self.place: dict[bytes, int] = {}
        """Digest of a row -> which of the different rows it is."""
        self.firsts: list[int] = []
        """Where each of the different rows stands first in `rows`."""
        for i in range(len(rows)):
            (digest,) = _digests(self._inputs([i]))
            if digest not in self.place:
                self.place[digest] = len(self.firsts)
                self.firsts.append(i)

    def _inputs(self, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        """As the training loop gives them to the model, or the rows would not be found again."""
        found = [without_needless_mask(self.rows[i]) for i in chosen]
        return {n: torch.stack([row[n] for row in found]) for n in found[0] if n not in NO_INPUTS}

    def inputs(self, block: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch of the different rows, on the model's device."""
        return {n: t.to(self.model.device) for n, t in self._inputs([self.firsts[i] for i in block]).items()}

    @contextmanager
    def _computing(self, gradients: bool = False) -> Iterator[None]:
        was = self.model.training
        self.model.eval()
        autocast = torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16)
        try:
            with torch.set_grad_enabled(gradients), autocast:
                yield
        finally:
            self.model.train(was)

    def run(self, block: Sequence[int]) -> torch.Tensor:
        """Activations that leave the trunk for these of the different rows, [B, S, D]."""
        with self._computing():
            return trunk_output(self.model, self.cut, self.inputs(block))

    def first_batch(self) -> range:
        return range(min(self.batch, len(self.firsts)))

    def logits(self) -> torch.Tensor:
        with self._computing():
            return self.model(**self.inputs(self.first_batch()), use_cache=False).logits.float()

    def refuse_what_cannot_be_cached(self) -> None:
        """ModelError where settings or the first batch show that the upper layers need more than a frozen trunk."""
        reason = why_no_trunk(self.model)
        if self.cut == 0:
            reason = "its first layer trains, so there is no frozen trunk"
        if reason is None and (below := self._trained_below()):
            reason = f"{', '.join(below)} below layer {self.cut} trains, so the trunk changes"
        if reason is None:
            exact = self.run(self.first_batch())
            try:
                off = self.difference(lambda _: exact)
            except Exception as e:  # whatever a layer missed
                reason = f"its layers from {self.cut} up do not run without those below ({type(e).__name__}: {e})"
            else:
                if off > 1e-4:
                    reason = f"its layers from {self.cut} up need more than the output of those below"
        if reason:
            name = type(self.model).__name__
            raise ModelError(f"{name} can have no trunk cache: {reason}; train without one")

    def _trained_below(self) -> list[str]:
        own = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        with self._computing(gradients=True):
            out = trunk_output(self.model, self.cut, self.inputs([0]))
            if not out.requires_grad:
                return []
            gradients = torch.autograd.grad(out.sum(), list(own.values()), allow_unused=True)
        return [n for n, g in zip(own, gradients, strict=True) if g is not None]

    def difference(self, read: Callable[[list[int]], torch.Tensor]) -> float:
        """Mean difference of the first batch's logits without the trunk from those with it, in their deviations."""
        full = self.logits()
        with self.served(read):
            return float((self.logits() - full).abs().mean() / full.std())

    @contextmanager
    def served(self, read: Callable[[list[int]], torch.Tensor]) -> Iterator[None]:
        """Training passes take the trunk's output from `read`, which is given places among the different rows.

        Other passes, as of an evaluation on other text, run the whole model.
        """
        current: list[torch.Tensor] = []

        def find(_model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            current.clear()
            if kwargs.get("use_cache") is False and "input_ids" in kwargs:  # as the training loop calls it
                places = [self.place.get(d) for d in _digests({n: kwargs[n] for n in kwargs if n not in NO_INPUTS})]
                if found := [p for p in places if p is not None]:
                    current.extend([read(found)] if len(found) == len(places) else [])

        handle = self.model.register_forward_pre_hook(find, with_kwargs=True)
        try:
            with without_trunk(self.model, self.cut, lambda: current[0] if current else None):
                yield
        finally:
            handle.remove()

    def checksum(self) -> str:
        """Of what the activations depend on but the rows; layer by layer, which needs no second copy of the weights."""
        parts = [self.model.get_input_embeddings(), *decoder_layers(self.model)[: self.cut]]
        settings = self.model.config.to_json_string()
        return sha256(*map(state_checksum, parts), settings, "bf16" if self.bf16 else "as stored")


class _Store:
    """The folder of a cache."""

    def __init__(self, config: Config, trunk: _Trunk):
        self.config, self.trunk = config, trunk
        self.dtype, self.on_disk = STORED[config.dtype]
        self.path, self.about_path = config.folder / "activations.bin", config.folder / "trunk.json"
        example = trunk.run([0])
        self.computed, self.device = example.dtype, example.device
        self.shape = (len(trunk.firsts), *example.shape[1:])
        self.row_bytes = int(np.prod(self.shape[1:])) * np.dtype(self.on_disk).itemsize
        self.about: dict[str, Any] = {
            "format": FORMAT,
            "trunk": trunk.checksum(),
            "rows": sha256(*trunk.place),
            "cut": trunk.cut,
            "dtype": config.dtype,
            "shape": list(self.shape),
            "block": trunk.batch,
        }
        self.blocks = self._written()

    def _written(self) -> list[str]:
        """Checksums of the blocks that are there and whole."""
        if not (self.about_path.exists() and self.path.exists()):
            return []
        known = read_json(self.about_path)
        blocks = known.pop("blocks")
        if differing := [n for n in self.about if known.get(n) != self.about[n]]:
            raise ConfigError(
                f"the trunk cache in {self.config.folder} is of another run, it differs in {', '.join(differing)}; "
                "give another folder, or remove this one"
            )
        for i, checksum in enumerate(blocks):
            if self._checksum(i) != checksum:
                raise DataError(f"block {i} of {self.path} is not what was written; remove {self.config.folder}")
        return blocks

    def _rows_of(self, block: int) -> range:
        return range(block * self.trunk.batch, min((block + 1) * self.trunk.batch, self.shape[0]))

    def _checksum(self, block: int) -> str:
        rows = self._rows_of(block)
        with self.path.open("rb") as f:
            f.seek(rows.start * self.row_bytes)
            return sha256(f.read(len(rows) * self.row_bytes))

    def fill(self, announce: Callable[[str], None]) -> None:
        """Write what is missing, block by block; says first how much that is."""
        if self._missing():
            with self._alone(announce):
                self.blocks = self._written()  # another run may have gone on meanwhile
                if missing := self._missing():
                    self._require_room(missing, announce)
                    self._write()
        self.data = np.memmap(self.path, self.on_disk, "r", shape=self.shape)

    def _missing(self) -> int:
        """Rows that are not written yet."""
        return self.shape[0] - min(len(self.blocks) * self.trunk.batch, self.shape[0])

    @contextmanager
    def _alone(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Within the block no other run writes this cache; waits for one that does."""
        try:
            self.config.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.config.folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                announce(f"trunk cache: another run is writing {self.config.folder}; waiting for it")
                lock.acquire()
        except OSError as e:
            raise ConfigError(
                f"cannot write in {self.config.folder}: {e.strerror or e}; give another --trunk-cache"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _require_room(self, missing: int, announce: Callable[[str], None]) -> None:
        needed = missing * self.row_bytes
        free = shutil.disk_usage(self.config.folder).free
        announce(
            f"trunk cache: {needed / 2**20:,.1f} MiB to write to {self.config.folder} "
            f"({missing} of {self.shape[0]} rows), {free / 2**20:,.0f} MiB are free"
        )
        if needed > free:
            raise ConfigError(
                f"the trunk cache needs {needed / 2**20:,.1f} MiB in {self.config.folder}, where "
                f"{free / 2**20:,.1f} are free; make room, give another folder, or train without it"
            )

    def _write(self) -> None:
        total = -(-self.shape[0] // self.trunk.batch)
        try:
            with self.path.open("ab") as f:
                f.truncate((self.shape[0] - self._missing()) * self.row_bytes)  # what a killed run had begun
                for block in range(len(self.blocks), total):
                    rounded = self.trunk.run(self._rows_of(block)).to(self.dtype).cpu().contiguous()
                    raw = rounded.view(torch.uint8).numpy().tobytes()
                    f.write(raw)
                    f.flush()
                    self.blocks.append(sha256(raw))
                    write_json(self.about_path, self.about | {"blocks": self.blocks})
        except OSError as e:
            raise ConfigError(
                f"cannot write {self.path}: {e.strerror or e}; make room and run again, it goes on where it stopped"
            ) from None

    def read(self, rows: Sequence[int]) -> torch.Tensor:
        """Activations [B, S, D] of these of the different rows."""
        raw = torch.from_numpy(self.data[list(rows)])
        return raw.view(self.dtype).to(device=self.device, dtype=self.computed)
