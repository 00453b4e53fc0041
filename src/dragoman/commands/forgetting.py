"""What a model gains in a new language and loses in known ones, measured on dev text while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dragoman.commands import Tags
from dragoman.commands.scoring import BATCH_TOKENS, cells, first_rows
from dragoman.corpora.ntext import NText
from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.metrics import BitsPerByte
from dragoman.record import sha256
from dragoman.routing.drift import drift
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.trace import RoutingTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.methods.guard import Measured
    from dragoman.modeling import TextCodec


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Bits per byte and routing drift on dev text, before, after and while the model trains."""

    every: int = 0
    """Updates between evaluations; default: a tenth of the run for a guard or a patience, else only at the end."""
    patience: int = 0
    """Stop after so many evaluations without a better target, with the weights of the best one; 0: never."""
    known: Tags = ()
    """Languages that must not be lost; default: those the plan was made with, or every other one of the corpus."""
    segments: int = 100
    """Dev segments per language; 0: no evaluation."""

    def __post_init__(self) -> None:
        if min(self.every, self.patience, self.segments) < 0:
            raise ConfigError(
                f"evaluation counts are 0 or more, not every={self.every}, patience={self.patience}, "
                f"segments={self.segments}"
            )
        if not self.segments and (self.every or self.patience or self.known):
            raise ConfigError("evaluation.segments is 0, so nothing else of evaluation has an effect; leave it out")


def share_of(limit: str) -> float:
    """`1%` or `0.01` -> 0.01; from 1 on only with the sign, as 5 is hardly meant as 500 %."""
    number, percent = limit.strip().removesuffix("%"), limit.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        raise ConfigError(f"--guard is a share such as 1% or 0.01, not {limit!r}") from None
    if not 0 <= share < float("inf"):
        raise ConfigError(f"--guard is a share such as 1% or 0.01, from 0 on, not {limit!r}")
    if share >= 1 and not percent:
        raise ConfigError(f"--guard {limit} would be {100 * share:g} %; {number.strip()}% is {share / 100:g}")
    return share


def dev_texts(
    corpus: NText, target: str, evaluation: Evaluation, plan: ExpertPlan | None, asked: bool
) -> dict[str, list[str]]:
    """Language -> dev texts, the target first; empty where there is nothing to evaluate on and nobody asked.

    Raises DataError where a language that was asked for has fewer than two segments.
    """
    if not evaluation.segments:
        return {}
    planned = [g for g in (plan.settings.get("known") or () if plan else ()) if g in corpus.languages]
    given = [g for g in evaluation.known if g != target]
    if evaluation.known and not given:
        raise ConfigError(f"evaluation.known names {target} alone, which is the target; name others, or leave it out")
    corpus.require(given)
    rows = {g: first_rows(corpus, g, "dev", evaluation.segments) for g in corpus.languages}
    known = given or planned or [g for g in corpus.languages if len(rows[g]) > 1]
    languages = dict.fromkeys([target, *known])
    if short := [g for g in languages if len(rows.get(g, ())) < 2]:
        if asked or given:
            raise DataError(
                f"fewer than two dev segments of {', '.join(short)}; give a corpus with more, or other known languages"
            )
        return {g: cells(rows[g], g) for g in languages if g not in short} if target not in short else {}
    return {g: cells(rows[g], g) for g in languages}


class Evaluator:
    """Measures a model on the same dev text again and again; the first time it is the base."""

    def __init__(self, texts: dict[str, list[str]], bf16: bool):
        self.texts, self.bf16 = texts, bf16
        self.base: RoutingTrace | None = None
        self.checksums = {g: sha256(*t) for g, t in texts.items()}

    def __call__(self, model: PreTrainedModel, codec: TextCodec) -> Measured:
        """Bits per byte of each language and, where the layers are still those of the base, its routing drift.

        In the precision that the model trains in, so that base and adapted differ by what was learnt alone.
        """
        import torch

        from dragoman.methods.guard import Measured

        ids = {g: codec.encode(texts) for g, texts in self.texts.items()}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self.bf16):
            bits = {g: self._bits(model, codec, g, ids[g]) for g in ids}
            trace = self._trace(model, codec, ids)
        self.base = self.base or trace
        return Measured(bits, self._drift(trace))

    def _bits(self, model: PreTrainedModel, codec: TextCodec, g: str, ids: list[list[int]]) -> float:
        from dragoman.evaluation.likelihood import text_bits
        from dragoman.modeling import context_length

        context = context_length(model)
        metric = BitsPerByte(context)
        bits_N = text_bits(model, ids, start_id=codec.start_id, context=context, batch_tokens=BATCH_TOKENS)
        sums = [metric.segment_sums(b, text) for b, text in zip(bits_N, self.texts[g], strict=True)]
        return float(metric.from_sums([sum(column) for column in zip(*sums, strict=True)]))

    def _trace(self, model: PreTrainedModel, codec: TextCodec, ids: dict[str, Any]) -> RoutingTrace | None:
        from dragoman.modeling import find_routers
        from dragoman.routing.capture import capture

        if not find_routers(model):
            return None
        return capture(model, ids, start_id=codec.start_id, per_segment=False)

    def _drift(self, trace: RoutingTrace | None) -> dict[str, float]:
        same = trace and self.base and all(
            getattr(trace, a) == getattr(self.base, a) for a in ("layer_ids", "num_experts", "top_k")
        )
        if not same or trace is None or self.base is None:
            return {}
        return {g: float(moved_L.mean()) for g, moved_L in drift(self.base, trace).divergence.items()}


def outcome(log: dict[str, Any], target: str, share: float) -> dict[str, Any] | None:
    """Gain, worst loss and trained share of the weights that were saved; None where nothing was evaluated."""
    found = log["evaluations"]
    if not found:
        return None
    step = (log["stopped"] or {}).get("weights_of", found[-1]["step"])
    base, final = found[0], next(e for e in reversed(found) if e["step"] == step)
    return {
        "target": target,
        "bits_before": base["bits"][target],
        "bits_after": final["bits"][target],
        "gain": 1 - final["bits"][target] / base["bits"][target],
        "worst": final["worst"],
        "loss": final["loss"],
        "largest_drift": max(final["drift"].items(), key=lambda item: item[1], default=None),
        "trained_share": share,
        "step": step,
    }


def line(found: dict[str, Any]) -> str:
    """The outcome on one line: what the target gained, the worst known language lost, what trained."""
    lost = f"worst known {found['worst']} {100 * found['loss']:+.2f} %" if found["worst"] else "no known language"
    return (
        f"{found['target']} {found['bits_before']:.4f} -> {found['bits_after']:.4f} bits per byte "
        f"(gain {100 * found['gain']:.2f} %) | {lost} | trained {100 * found['trained_share']:.2f} % of parameters"
    )
