"""What `dragoman mix train` reads: its settings and the rows of a stage.

Shape letters: N rows, S tokens per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dragoman.commands import Dtype, Switch, Tags, require_sample, scoring
from dragoman.corpora import mix as mixing
from dragoman.corpora.languages import language
from dragoman.corpora.ntext import NText
from dragoman.errors import ConfigError, DataError
from dragoman.methods import training

if TYPE_CHECKING:
    from dragoman.modeling import TextCodec

METHODS = ("mix_moe", "moe_lpr", "full", "lora")
STAGED = METHODS[:2]
SHARED = 4
"""Segments that router shares are measured on, at least."""
BALANCE = 0.01
"""Weight of the load balance, where there is one."""
LPR = 0.1
"""Weight of MoE-LPR's loss, the paper's."""
ENCODED = 256
"""Pairs that are encoded at once; few of a large corpus are needed."""
Sample = tuple[list[int], int]
Directions = Mapping[str, tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Training(training.Config):
    """How to train, routers balanced: a default of the field alone would be lost where any other setting is given."""

    seed: int = 0
    """Of dropout; the order of the text and the weights of LoRA go by `--seed`."""
    balance: float = BALANCE
    """Weight of the load-balance loss, per MoE layer; full, lora and stage 2 of moe_lpr have none."""


@dataclass(frozen=True)
class Train:
    """Train one stage."""

    model: str
    """Model folder: a converted one for stage 1, what stage 1 wrote for stage 2."""
    _: KW_ONLY
    out: Path
    """New folder for the model, record.json and the figure of router shares."""
    method: str = "mix_moe"
    """mix_moe; moe_lpr, of a model that `dragoman models upcycle` made; or, for comparison, full or lora."""
    stage: int | None = None
    """1 or 2 of mix_moe and moe_lpr; the others have none."""
    corpus: str = "help"
    """N-way text: the built-in corpus, or a .tsv, .jsonl (also .gz) or Moses prefix."""
    languages: Tags = ()
    """Languages of monolingual text, in equal shares of tokens; beside directions, those that `all` stands for and that
    are scored, and with replay read."""
    directions: Tags = ()
    """Directions of parallel text, such as en-de or en-all; the loss is on the translation alone."""
    score: Tags = ()
    """Directions that are scored; default those of the text."""
    only_after: Switch = False
    """Leave out the scores before training, which the record of the stage before has."""
    replay: float = 0.0
    """Share of monolingual tokens beside parallel text."""
    old: Tags = ()
    """Languages that go back to expert 0, in stage 2 of moe_lpr."""
    lpr: float = LPR
    """Weight of that loss."""
    lpr_mode: str = "logits"
    """logits, or released: as the released code of moe_lpr has it."""
    rank: int | None = None
    """Of lora, on attention and feed-forwards; default 8. Updates are scaled by two."""
    parameters: int | None = None
    """Parameters that lora may train, in place of rank: the rank comes as close as it can."""
    block: int = 256
    """Tokens per row."""
    training: Training = field(default_factory=Training)
    """Optimizer, schedule, and the weight of the load balance per layer."""
    device: str | None = None
    """cuda or cpu; default: cuda where there is one."""
    dtype: Dtype = "float32"
    """Of the weights; auto: as the model was saved."""
    split: str = "devtest"
    """Split that is scored."""
    segments: int = 200
    """At most so many segments per language and direction are scored."""
    seed: int = 0
    """Of the order of the text and of the bootstrap."""
    resume: Switch = False
    """Go on from the last whole checkpoint in `out` (training.checkpoint_steps, training.checkpoint_minutes)."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        require_sample(self.segments, self.seed)
        if not self.balances and self.training.balance == BALANCE:
            object.__setattr__(self, "training", replace(self.training, balance=0.0))
        if self.method not in METHODS:
            raise ConfigError(f"there is no method {self.method!r} here; there are {', '.join(METHODS)}")
        if self.method == "mix_moe" and self.stage == 1 and self.directions:
            raise ConfigError(
                f"stage 1 trains language-model experts on monolingual text, and was given the directions "
                f"{', '.join(self.directions)}; give --languages, and parallel text to stage 2"
            )
        if self.method == "mix_moe" and self.stage == 2 and not self.directions:
            raise ConfigError("stage 2 trains translation experts on parallel text; give --directions, such as en-de")
        faults = self._faults()
        if faults:
            raise ConfigError(f"this cannot be trained: {'; '.join(faults)}")

    @property
    def balances(self) -> bool:
        """Whether routers have a load balance."""
        return self.method in STAGED and not self.reviews

    @property
    def reviews(self) -> bool:
        """Whether old languages go back to their expert: stage 2 of MoE-LPR."""
        return self.method == "moe_lpr" and self.stage == 2

    def _faults(self) -> list[str]:
        lpr = self.reviews
        both = bool(self.languages and self.directions)
        staged = self.method in STAGED
        ranks = [x for x in (self.rank, self.parameters) if x is not None]
        checks = {
            "with the learning rate 0 nothing trains; it is a number above 0": self.training.learning_rate == 0,
            "there is no text: give languages, directions or both": not (self.languages or self.directions),
            f"replay is {self.replay}, a share from 0 up to but not 1": not 0 <= self.replay < 1,
            "replay has no effect without languages and directions": bool(self.replay) and not both,
            "old, lpr and lpr_mode have an effect in stage 2 of moe_lpr alone": not lpr
            and (bool(self.old) or self.lpr != LPR or self.lpr_mode != "logits"),
            "stage 2 of moe_lpr reads monolingual text alone, and needs old languages among it": lpr
            and (bool(self.directions) or not set(self.old) & set(self.languages)),
            f"old languages {', '.join(self.old)} are not all in the text": lpr
            and not set(self.old) <= set(self.languages),
            f"block is {self.block}, at least 8": self.block < 8,
            f"{self.method} trains without a load balance{' in stage 2' * lpr}: leave training.balance out": not (
                self.balances
            )
            and bool(self.training.balance),
            f"{self.method} trains without a z-loss of routers here: set training.z_loss to 0": not staged
            and bool(self.training.z_loss),
            f"segments is {self.segments}, at least {SHARED}: the placebo compares halves": self.segments < SHARED
            and self.method == "mix_moe",
            f"{self.method} has no stages: leave stage out": not staged and self.stage is not None,
            f"{self.method} has the stages 1 and 2, not {self.stage}": staged and self.stage not in (1, 2),
            "rank and parameters have an effect on lora alone": self.method != "lora" and bool(ranks),
            "rank and parameters say the same: give one": len(ranks) > 1,
        }
        return [fault for fault, holds in checks.items() if holds]


def require_scorable(config: Train, corpus: NText, spoken: Sequence[str], directions: Directions) -> None:
    """DataError where text is missing that is scored after training, or that router shares are measured on."""
    faults: list[str] = []
    found: dict[str, NText] = {}
    for label in (*spoken, *directions):
        try:
            if label in directions:
                found[label] = scoring.parallel(corpus, *directions[label], config.split, config.segments)
            else:
                found |= scoring.held_out(corpus, [label], config.split, config.segments)
        except DataError as e:
            faults.append(str(e))
    least, what = (SHARED, "router shares are") if config.method == "mix_moe" else (2, "intervals are")
    few = [f"{label} ({len(table)})" for label, table in found.items() if len(table) < least]
    if few:
        faults.append(
            f"{what} of {least} segments or more of split {config.split}, and there are fewer of {', '.join(few)}; "
            "give more rows or another --split"
        )
    if faults:
        raise DataError("; ".join(dict.fromkeys(faults)))


def require_room(config: Train, model: Any, codec: TextCodec, corpus: NText, directions: Directions) -> None:
    """DataError where prompts that are to be translated fill the context: that too would end a run after training.

    ConfigError for rows that are longer than it.
    """
    from dragoman.modeling import context_length

    context, full = context_length(model), {}
    if config.block > (made_for := context_length(model, default=config.block, largest=config.block)):
        raise ConfigError(f"block is {config.block}, and the model's context {made_for} tokens; give a smaller --block")
    for label, (source, target) in directions.items():
        texts = scoring.cells(scoring.parallel(corpus, source, target, config.split, config.segments), source)
        prompts = codec.prompts(texts, source, target, {g: language(g).name for g in (source, target)})
        full[label] = sum(len(ids) >= context for ids in prompts)
    if found := [f"{n} of {label}" for label, n in full.items() if n]:
        raise DataError(
            f"prompts of split {config.split} fill the context of {context} tokens ({', '.join(found)}), so nothing "
            "was trained; leave out these segments, split them, or score other directions"
        )


@dataclass(frozen=True)
class StageRows:
    """Training text of a stage."""

    tokens_NS: np.ndarray
    labels_NS: np.ndarray | None
    old_N: list[bool]
    too_long: int
    """Pairs left out because they do not fit into a row, among those looked at, each counted once."""

    @property
    def filler_share(self) -> float:
        """Share of all tokens that only fill rows: what stands behind the last label of its row."""
        if self.labels_NS is None:
            return 0.0
        labels_to_come_NS = (self.labels_NS != -100)[:, ::-1].cumsum(axis=1)[:, ::-1]
        return float((labels_to_come_NS == 0).mean())


def stage_rows(config: Train, codec: TextCodec, corpus: NText, directions: Directions) -> StageRows:
    """Rows enough for all steps, a pure function of config and corpus; only the split train is read."""
    needed = config.training.steps * config.training.batch
    if config.reviews:
        return _by_language(config, codec, corpus, needed)
    if not directions:
        tokens_NS = mixing.pack(_monolingual(config, codec, corpus, config.languages), needed, config.block)
        return StageRows(tokens_NS, None, [], 0)
    return _parallel(config, codec, corpus, directions, needed)


def _monolingual(
    config: Train, codec: TextCodec, corpus: NText, languages: Sequence[str]
) -> Iterator[list[int]]:
    mix = mixing.Mix(languages=dict.fromkeys(languages, 1.0))

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [[codec.start_id, *ids, codec.end_id] for ids in codec.encode(texts)]

    return mixing.stream([corpus], mix, encode, lambda *_: [], seed=config.seed)


def _by_language(config: Train, codec: TextCodec, corpus: NText, needed: int) -> StageRows:
    """Rows of one language each, in turns, so that a row is of an old language or not."""
    each = -(-needed // len(config.languages))
    packed = [mixing.pack(_monolingual(config, codec, corpus, (g,)), each, config.block) for g in config.languages]
    tokens_NS = np.stack(packed, axis=1).reshape(-1, config.block)[:needed]
    old = [g in config.old for g in config.languages]
    return StageRows(tokens_NS, None, [old[n % len(old)] for n in range(needed)], 0)


def _parallel(config: Train, codec: TextCodec, corpus: NText, directions: Directions, needed: int) -> StageRows:
    """Pairs of all directions in an order by lot, again from the start as often as needed, and replay between them."""
    pairs = Pairs(config, codec, _found(corpus, directions))
    mono = _pieces(_monolingual(config, codec, corpus, config.languages), config.block) if config.replay else None
    stream = _with_replay(config, iter(pairs), mono)
    taken: list[Sample] = []
    tokens = 0
    while tokens < needed * config.block:  # rows have filler, so these are enough
        taken.append(next(stream))
        tokens += len(taken[-1][0])
    tokens_NS, labels_NS = mixing.pad(taken, config.block, codec.pad_id)
    return StageRows(tokens_NS[:needed], labels_NS[:needed], [], pairs.too_long)


def _with_replay(config: Train, pairs: Iterator[Sample], mono: Iterator[list[int]] | None) -> Iterator[Sample]:
    given = [0, 0]
    for pair in pairs:
        while mono is not None and given[1] < config.replay * (given[0] + given[1]):
            ids = next(mono)
            given[1] += len(ids)
            yield ids, 0
        given[0] += len(pair[0])
        yield pair


def _pieces(documents: Iterator[list[int]], block: int) -> Iterator[list[int]]:
    """The documents whole, in pieces that fit into a row."""
    for ids in documents:
        yield from (ids[at : at + block] for at in range(0, len(ids), block))


@dataclass
class Pairs:
    """Pairs in an order by lot that fit into a row, encoded as they are asked for, again from the start without end."""

    config: Train
    codec: TextCodec
    found: list[tuple[tuple[str, str], str, str]]
    """(languages, source, target) of each."""
    too_long: int = 0

    def __iter__(self) -> Iterator[Sample]:
        rng, block = np.random.default_rng(self.config.seed), self.config.block
        known: dict[int, Sample] = {}
        order = rng.permutation(len(self.found)).tolist()
        for at in range(0, len(order), ENCODED):
            which = order[at : at + ENCODED]
            samples = self._encoded([self.found[i] for i in which])
            fits = {i: sample for i, sample in zip(which, samples, strict=True) if len(sample[0]) <= block}
            self.too_long += len(which) - len(fits)
            known |= fits
            yield from fits.values()
        if not known:
            raise DataError(f"no pair fits into {block} tokens; give a larger block or other directions")
        fitting = sorted(known)
        while True:
            for i in rng.permutation(fitting).tolist():
                yield known[i]

    def _encoded(self, some: Sequence[tuple[tuple[str, str], str, str]]) -> list[Sample]:
        """Samples in the order of the pairs, encoded direction by direction."""
        samples: dict[int, Sample] = {}
        for direction in dict.fromkeys(languages for languages, _, _ in some):
            which = [n for n, (languages, _, _) in enumerate(some) if languages == direction]
            names = {g: language(g).name for g in direction}
            sources, targets = [some[n][1] for n in which], [some[n][2] for n in which]
            samples |= zip(which, self.codec.pairs(sources, targets, *direction, names), strict=True)
        return [samples[n] for n in range(len(some))]


def _found(corpus: NText, directions: Directions) -> list[tuple[tuple[str, str], str, str]]:
    """The train pairs of each direction. DataError for directions that have none."""
    found = {pair: corpus.pairs(*pair, "train") for pair in directions.values()}
    if empty := [f"{source} -> {target}" for (source, target), texts in found.items() if not texts]:
        raise DataError(f"the corpus has no train text {', '.join(empty)}; give other directions")
    return [(pair, source, target) for pair, texts in found.items() for source, target in texts]


def sample_of(codec: TextCodec, corpus: NText, tag: str, segments: int, context: int) -> list[list[int]]:
    """Token ids of the first train segments of a language, cut to the model's context. ConfigError for none."""
    if segments < 1:
        raise ConfigError(f"segments is {segments}, but it has to be 1 or more: so many are read of each language")
    corpus.require([tag])
    texts = list(islice(corpus.texts(tag, "train"), segments))
    return [[codec.start_id, *ids][:context] for ids in codec.encode(texts)]
