"""RoutingTrace: what was captured of a model's routing, per language, MoE layer and expert.

Shape letters: G languages, L MoE layers, E experts (the largest number over layers), N segments of one language.

Everything that comes after capture works on this type and needs no torch. One row of `layer_ids` is one router: the
map from MoE layer to model layer is data, because models have leading dense layers or several routers a layer.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dragoman.errors import DataError
from dragoman.record import atomic_write
from dragoman.routing.selections import count_selections

FORMAT = "dragoman-trace/1"
ARRAYS = ("chosen_GLE", "gate_mass_GLE", "router_mass_GLE", "tokens_G")
"""What every trace has; `pairs_GLEE` and counts per segment only where asked for."""
OF_ONE_TEXT = ("parallel", "documents", "overlap")
"""What is said of a text and holds for no sum of two."""


@dataclass(frozen=True)
class RoutingTrace:
    """Counts and masses of routing. Sums over tokens, so traces of parts of a corpus add up."""

    languages: tuple[str, ...]
    """BCP-47 tags, length G."""
    layer_ids: tuple[int, ...]
    """Index of the model layer that each MoE layer is, length L."""
    num_experts: tuple[int, ...]
    """Experts of each MoE layer, length L; columns from there to E are padding and stay zero."""
    top_k: tuple[int, ...]
    """Experts chosen per token in each MoE layer, length L."""
    chosen_GLE: np.ndarray
    """int64: how often the router itself chose the expert."""
    gate_mass_GLE: np.ndarray
    """float64: sum over tokens of the weight with which a chosen expert entered the output."""
    router_mass_GLE: np.ndarray
    """float64: sum over tokens of the router's full distribution over experts, before the choice: its softmax, or the
    scores of a sigmoid router over their sum."""
    tokens_G: np.ndarray
    """int64: tokens seen of each language, padding and special tokens excluded."""
    segment_chosen_NLE: dict[str, np.ndarray] = field(default_factory=dict)
    """int32 by language: choices of each segment alone, in corpus order; empty where it was not asked for."""
    about: dict[str, Any] = field(default_factory=dict)
    """Checksums of model and text, dragoman's version, what was excluded."""
    pairs_GLEE: np.ndarray | None = None
    """int64: tokens that chose both experts; on the diagonal, tokens that chose the one. None where not asked for."""

    def __add__(self, other: RoutingTrace) -> RoutingTrace:
        """The trace of both texts together; languages are joined, the model must be the same.

        Whether rows of the two are translations of each other, what documents they are in and how far vocabularies
        overlap is not known of the sum.
        """
        self.require_same_model(other)
        languages = tuple(dict.fromkeys(self.languages + other.languages))
        has_pairs = self.pairs_GLEE is not None and other.pairs_GLEE is not None
        names = (*ARRAYS, "pairs_GLEE") if has_pairs else ARRAYS
        sums: dict[str, Any] = {"pairs_GLEE": None}
        sums |= {name: _sum_by_language(name, languages, self, other) for name in names}
        texts = [t.about["text_sha256"] for t in (self, other) if "text_sha256" in t.about]
        about = {k: v for k, v in self.about.items() if k not in OF_ONE_TEXT}
        about |= {"text_sha256": "+".join(texts)} if texts else {}
        return replace(self, languages=languages, segment_chosen_NLE=_joined_segments(self, other), about=about, **sums)

    def require_same_model(self, other: RoutingTrace) -> None:
        """DataError where the other trace is of another model, naming what differs."""
        names = ("layer_ids", "num_experts", "top_k")
        pairs = {n: (getattr(self, n), getattr(other, n)) for n in names}
        wrong = [f"{n} {mine} and {theirs}" for n, (mine, theirs) in pairs.items() if mine != theirs]
        mine, theirs = self.about.get("model_sha256"), other.about.get("model_sha256")
        if mine != theirs:
            wrong.append(f"model checksums {mine} and {theirs}")
        routers = {t.about.get("routers_sha256") for t in (self, other)} - {None}  # not known of selections
        if len(routers) > 1:
            wrong.append("the weights of their routers")
        if wrong:
            raise DataError(f"traces of one model are needed, these differ in {'; '.join(wrong)}")

    @classmethod
    def from_selections(
        cls,
        selections: Mapping[str, np.ndarray | Sequence[np.ndarray]],
        num_experts: int | Sequence[int],
        *,
        layer_ids: Sequence[int] | None = None,
        per_segment: bool = True,
        coactivation: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> RoutingTrace:
        """The trace of expert ids [tokens, layers, top_k] that an inference server returned for each request.

        selections: by language, one array, or one for each request, which is then a segment. So vLLM returns them
            (`enable_return_routed_experts`, `outputs[0].routed_experts`), and SGLang (`return_routed_experts`).
        num_experts: of every layer, or by layer.
        layer_ids: the rows of axis 1 that are MoE layers; default: all. Servers fill rows of dense layers with zeros.
        Weights are not returned, so both masses are NaN. Raises DataError for arrays of other shapes or types, for ids
        out of range and for a token that chooses an expert twice, naming every language and how many.
        """
        counted = count_selections(selections, num_experts, layer_ids, pairs=coactivation)
        unknown_GLE = np.full(counted.chosen_GLE.shape, np.nan)
        return cls(
            languages=tuple(selections),
            layer_ids=counted.layer_ids,
            num_experts=counted.num_experts,
            top_k=(counted.top_k,) * len(counted.layer_ids),
            chosen_GLE=counted.chosen_GLE,
            gate_mass_GLE=unknown_GLE,
            router_mass_GLE=unknown_GLE.copy(),
            tokens_G=counted.tokens_G,
            segment_chosen_NLE=counted.segment_chosen_NLE if per_segment else {},
            pairs_GLEE=counted.pairs_GLEE,
            about={"source": "selections of an inference server", "text_sha256": counted.checksum, **(about or {})},
        )

    def index(self, language: str) -> int:
        """Row of a language."""
        if language not in self.languages:
            raise DataError(
                f"the trace holds no language {language!r}, only {', '.join(self.languages)}; capture text of it first"
            )
        return self.languages.index(language)

    def select(self, languages: tuple[str, ...] | list[str]) -> RoutingTrace:
        """The trace of these languages alone, in this order."""
        rows = [self.index(g) for g in languages]
        arrays: dict[str, Any] = {name: array[rows] for name, array in self._arrays().items()}
        segments = {g: n for g, n in self.segment_chosen_NLE.items() if g in languages}
        return replace(self, languages=tuple(languages), segment_chosen_NLE=segments, **arrays)

    def _arrays(self) -> dict[str, np.ndarray]:
        pairs = {} if self.pairs_GLEE is None else {"pairs_GLEE": self.pairs_GLEE}
        return {name: getattr(self, name) for name in ARRAYS} | pairs

    def save(self, path: Path | str) -> None:
        """Write one .npz file, whole or not at all."""
        meta = {n: getattr(self, n) for n in ("languages", "layer_ids", "num_experts", "top_k", "about")}
        arrays: dict[str, Any] = self._arrays() | {f"segments/{g}": n for g, n in self.segment_chosen_NLE.items()}
        with atomic_write(Path(path)) as partial, open(partial, "wb") as f:
            np.savez_compressed(f, meta=json.dumps({"format": FORMAT, **meta}), **arrays)

    @classmethod
    def load(cls, path: Path | str) -> RoutingTrace:
        """Read what `save` wrote; DataError for anything else."""
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise DataError(f"{path} is not a routing trace (no .npz file); make one with `dragoman diagnose`")
        try:
            with np.load(path) as z:
                meta = json.loads(str(z["meta"]))
                arrays = {name: z[name] for name in ARRAYS}
                arrays |= {"pairs_GLEE": z["pairs_GLEE"]} if "pairs_GLEE" in z else {}
                segments = {k.removeprefix("segments/"): z[k] for k in z.files if k.startswith("segments/")}
        except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise DataError(f"{path} is not a routing trace ({e}); make one with `dragoman diagnose`") from None
        if meta.pop("format", None) != FORMAT:
            raise DataError(f"{path} is not in the format {FORMAT}; make the trace again with `dragoman diagnose`")
        about = meta.pop("about")
        fields: dict[str, Any] = {k: tuple(v) for k, v in meta.items()} | arrays
        return cls(**fields, segment_chosen_NLE=segments, about=about)


def _sum_by_language(name: str, languages: tuple[str, ...], *traces: RoutingTrace) -> np.ndarray:
    first = getattr(traces[0], name)
    total = np.zeros((len(languages), *first.shape[1:]), dtype=first.dtype)
    for trace in traces:
        total[[languages.index(g) for g in trace.languages]] += getattr(trace, name)
    return total


def _joined_segments(a: RoutingTrace, b: RoutingTrace) -> dict[str, np.ndarray]:
    # A language whose segments one trace did not keep has counts of more text than segments: drop them.
    keys = [g for g in {**a.segment_chosen_NLE, **b.segment_chosen_NLE} if all(_has_all(t, g) for t in (a, b))]
    parts = {g: [t.segment_chosen_NLE[g] for t in (a, b) if g in t.segment_chosen_NLE] for g in keys}
    return {g: np.concatenate(p) for g, p in parts.items()}


def _has_all(trace: RoutingTrace, language: str) -> bool:
    return language in trace.segment_chosen_NLE or language not in trace.languages
