"""What the commands share that run a task: its items, a model's answers, and the samples to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dragoman.corpora.itemfiles import read_items
from dragoman.corpora.items import REFERENCE, Item, TaskItems, task_items
from dragoman.corpora.languages import language
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import is_built_in, load_pages, open_corpus
from dragoman.corpora.quizzes import GROUP, QUIZZES
from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.base import Metric
from dragoman.evaluation.instructions import require_checks
from dragoman.evaluation.tasks import TASKS, ByLikelihood, ByMetric, Task, TaskAccuracy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec
    from dragoman.routing.trace import RoutingTrace

# Shape letters: N items.

OF_CORPUS = (*QUIZZES, "translation", "text")
"""Tasks that are made of n-way text; `text` has nothing to answer and is there to train on."""
PLAIN = "plain"
"""What the general corpus of translation is called in its trace."""
MAX_NEW = 256
"""Most tokens of a generated answer."""


def open_task(
    name: str,
    languages: Sequence[str],
    *,
    corpus: str | NText,
    split: str | None,
    number: int | None = None,
    into: str = "",
    shots: int = 0,
    chat: bool = False,
) -> TaskItems:
    """The items of a built-in task (split None: train) or of a folder, in English and the languages, at most so many;
    of `next` and `heading` whole groups.

    corpus: its name or path, or open already; shots: examples before every prompt, none of them an item; chat: for the
    model's chat template.
    Raises ConfigError for settings that have no effect, DataError where there are no such items.
    """
    spoken = tuple(dict.fromkeys([REFERENCE, *languages]))
    if into and name != "translation":
        raise ConfigError(f"into has no effect on the task {name}, only on translation; leave it out")
    if name in OF_CORPUS:
        made = _of_corpus(name, _text_of(name, corpus), spoken, split or "train", into)
    elif Path(name).exists():
        made = read_items(Path(name))
        idle = {"corpus": corpus if corpus != "help" else None, "split": split}
        if given := [f"{flag} {value}" for flag, value in idle.items() if value]:
            raise ConfigError(f"{' and '.join(given)} would have no effect on the items in {name}; leave it out")
    else:
        raise ConfigError(f"there is no task {name!r}; tasks are {', '.join(OF_CORPUS)}, or a folder of JSON lines")
    made.require(spoken)
    require_checks([told for g in spoken for item in made.items[g] for told in item.instructions])
    chosen = replace(made, items={g: made.items[g] for g in spoken})
    if (shots or chat) and name in ("translation", "text"):
        raise ConfigError(f"shots and chat have no effect on the task {name}, which has a form of its own")
    if shots:
        chosen = _with_examples(chosen, name, corpus, shots)
    if name in QUIZZES and number is not None:
        if number < GROUP:
            raise ConfigError(f"{name} has groups of {GROUP} items that share their options; ask for {GROUP} or more")
        number -= number % GROUP
    chosen = chosen.part(slice(number)) if name in OF_CORPUS else chosen.spread(number)
    return chosen.in_chat() if chat else chosen


def _text_of(task: str, corpus: str | NText) -> NText:
    if isinstance(corpus, NText):
        return corpus
    return load_pages() if _of_pages(task, corpus) else open_corpus(corpus)


def _of_pages(task: str, corpus: str) -> bool:
    """`heading` of the built-in corpus is made of its pages, which know what stands under what."""
    return task == "heading" and is_built_in(corpus)


def _with_examples(made: TaskItems, name: str, corpus: str | NText, shots: int) -> TaskItems:
    """Examples of split train, or of the folder `examples` in a task's folder, or the first items, then left out.

    Of a quiz one from each group, as items of a group share their options; groups of examples are no items.
    """
    languages, step = tuple(made.items), 1
    if name in QUIZZES:
        step, source = GROUP, QUIZZES[name](_text_of(name, corpus), languages, "train")
        own = made.about["split"] == "train"
    else:
        beside = Path(name) / "examples"
        own = not beside.is_dir()
        source = made if own else read_items(beside)
        source.require(languages)
        if not own:
            _require_examples(made, source, beside)
    rest = made.part(slice(shots * step, None)) if own else made
    examples = source.part(slice(0, shots * step, step))
    if len(examples) < shots or not len(rest):
        raise DataError(
            f"the task {name} has {len(source) // step} examples for {shots} shots, and {len(rest)} items are left; "
            "take fewer shots"
        )
    return rest.after(examples)


def _require_examples(made: TaskItems, examples: TaskItems, folder: Path) -> None:
    """DataError where they are of another kind, or are items that are answered."""
    if examples.judged != made.judged:
        raise DataError(f"{folder} has items that are judged by {examples.judged}, and those of the task {made.judged}")
    asked = {item.prompt for item in made.items[REFERENCE]}
    if same := [item.key for item in examples.items[REFERENCE] if item.prompt in asked]:
        raise DataError(f"{len(same)} examples in {folder} are items of the task, as {same[0]}; an example is no item")


def _of_corpus(name: str, corpus: NText, languages: Sequence[str], split: str, into: str) -> TaskItems:
    corpus.require([*languages, *([into] if into else [])])
    if name in QUIZZES:
        return QUIZZES[name](corpus, languages, split)
    if name == "translation" and (not into or into in languages):
        raise ConfigError(
            f"the task translation compares translating from English and from {', '.join(languages[1:])} into one "
            f"language that the model serves well; name another one as into, not {into or 'none'}"
        )
    table = corpus.select([*languages, *([into] if into else [])], split, complete=True)
    if not len(table):
        spoken = ", ".join(table.languages)
        raise DataError(f"no row of split {split} has text in all of {spoken}; name fewer languages")
    answers = table.columns[into] if into else None
    items = {g: [_segment(table, g, i, answers) for i in range(len(table))] for g in languages}
    return task_items(
        name, name, items, into=into, about={"corpus_sha256": corpus.checksum(), "split": split}
    )


def _segment(table: NText, tag: str, row: int, answers: Sequence[str | None] | None) -> Item:
    text = table.columns[tag][row] or ""
    prompt, answer = ("", text) if answers is None else (text, answers[row] or "")
    return Item(table.keys[row], table.documents[row], prompt, answer, expected=answer)


def task_of(items: TaskItems, normalise: str = "", metric: str = "chrf", threshold: float | None = None) -> Task:
    """How the items are judged. normalise: of options, the task's own where empty; threshold: for translation, which
    has no right and wrong of its own.
    """
    if normalise and items.judged != "options":
        raise ConfigError(f"normalise {normalise} has no effect on the task {items.name}, which has no options")
    if items.judged == "text":
        raise ConfigError("the task text has no answers to judge; it is there to train on (dragoman align)")
    if items.judged == "translation":
        return ByMetric(_of_segments(metric, items.into), float("nan") if threshold is None else threshold)
    if threshold is not None or metric != "chrf":
        raise ConfigError("threshold and metric have no effect on a task of right and wrong answers; leave them out")
    return ByLikelihood(normalise or items.normalise) if items.judged == "options" else TASKS[items.judged]()


def _of_segments(name: str, into: str) -> Metric:
    """A metric that holds one translation against its reference; ConfigError for any other."""
    from dragoman.commands import measures

    others = (*measures.OF_WEIGHTS, *measures.OF_LIKELIHOODS, *measures.OF_ALIGNERS)
    usable = [n for n, kind in measures.METRICS.items() if n not in others and _judges(kind)]
    if name not in usable:
        raise ConfigError(f"{name} does not judge a translation by its reference; take one of {', '.join(usable)}")
    return measures.metrics_for(into, (name,))[0][name]


def _judges(kind: Any) -> bool:
    kind = getattr(kind, "func", kind)  # a class, or one with settings
    return kind.needs == ("references",) and kind.higher_is_better is not None


# Answers


def require_room(model: PreTrainedModel, codec: TextCodec, items: TaskItems) -> None:
    """DataError that counts the items whose prompt, or with an option, is longer than the model's context."""
    from dragoman.modeling import context_length

    context, faults = context_length(model), []
    for g, chosen in items.items.items():
        if full := [x.key for x, n in zip(chosen, lengths(codec, items, g), strict=True) if n > context]:
            faults.append(f"{len(full)} of {len(chosen)} in {g}, as {full[0]}")
    if faults:
        raise DataError(
            f"items of the task {items.name} do not fit into the model's context of {context} tokens "
            f"({'; '.join(faults)}); leave them out, or take fewer --shots where there are some"
        )


def lengths(codec: TextCodec, items: TaskItems, tag: str) -> list[int]:
    """Tokens of each prompt with the longest of its options, or with one token of an answer."""
    prompts = [len(ids) for ids, _ in samples_of(codec, items, tag, answered=False)]
    longest = [max(map(len, codec.encode(item.options)), default=1) for item in items.items[tag]]
    return [p + o for p, o in zip(prompts, longest, strict=True)]


def answers_of(
    model: PreTrainedModel, codec: TextCodec, items: TaskItems, task: Task, tag: str, quiet: bool = True
) -> list[Any]:
    """A model's answers to the items in one language: texts, or [(bits, what they are held against) of each option]."""
    chosen = items.items[tag]
    if not task.generates:
        assert isinstance(task, ByLikelihood)
        return _option_costs(model, codec, chosen, items.chat, task.normalise)
    from dragoman.modeling import context_length
    from dragoman.translation.engines import Stops, stops_of, translate_greedy

    stops = stops_of(model, codec)
    line = items.judged in ("translation", "exact")
    prompts = [ids for ids, _ in samples_of(codec, items, tag, answered=False)]
    with tqdm(total=len(prompts), desc=f"answers in {tag}", unit=" items", disable=quiet, delay=2) as bar:
        new = translate_greedy(
            model,
            prompts,
            stops=stops if line else Stops(stops.ends),
            pad_id=codec.pad_id,
            max_new=lambda n: 2 * n + 20 if line else MAX_NEW,
            context=context_length(model),
            progress=bar.update,
        )
    texts = [codec.decode(ids) for ids in new]
    if line:
        return [" ".join(text.split("\n")[0].split()) for text in texts]
    return [text.split("\nQuestion:")[0] if items.judged == "number" else text for text in texts]


def _option_costs(
    model: PreTrainedModel, codec: TextCodec, items: Sequence[Item], chat: bool, normalise: str
) -> list[list[tuple[float, float]]]:
    from dragoman.evaluation.options import Options, option_bits
    from dragoman.modeling import context_length

    starts = prompts_of(codec, items, chat)
    rows = [Options(ids[1:], codec.encode(item.options)) for ids, item in zip(starts, items, strict=True)]
    settings: dict[str, Any] = {"start_id": starts[0][0], "context": context_length(model), "batch_tokens": 4096}
    bits = option_bits(model, rows, **settings)
    against: list[Any] = [[len(option.encode()) for option in item.options] for item in items]
    if normalise == "pmi":
        bare = [(tuple(row.prompt[-1:]), item.options) for row, item in zip(rows, items, strict=True)]
        once = {key: Options(key[0], row.options) for key, row in zip(bare, rows, strict=True)}
        found = dict(zip(once, option_bits(model, list(once.values()), **settings), strict=True))
        against = [found[key] for key in bare]
    return [
        [(float(b), float(a)) for b, a in zip(bits_O, against_O, strict=True)]
        for bits_O, against_O in zip(bits, against, strict=True)
    ]


def points_of(task: Task, answers: Sequence[Any], items: Sequence[Item]) -> np.ndarray:
    """Points of each answer, [N], 0 to 1."""
    return np.array([task.points(answer, item) for answer, item in zip(answers, items, strict=True)])


# In an evaluation


def open_items(config: Any, corpus: NText) -> TaskItems | None:
    """The items of `evaluate --task`, of the corpus that the config names or of a folder, in English and the config's
    languages (default: all); None without a task."""
    if not config.task:
        return None
    if config.task in OF_CORPUS and config.task not in QUIZZES:
        raise ConfigError(f"{config.task} is no task to evaluate on; for translations give --directions")
    if config.test_set:
        raise ConfigError("--task is made of a corpus or read from a folder; leave --test-set out")
    chosen = config.languages
    if not chosen:
        chosen = tuple(read_items(Path(config.task)).items) if Path(config.task).exists() else corpus.languages
    split = config.split if config.task in OF_CORPUS or config.split != "devtest" else None
    form: dict[str, Any] = {"shots": config.shots, "chat": config.chat}
    text = corpus if config.task in OF_CORPUS and not _of_pages(config.task, config.corpus) else config.corpus
    return open_task(config.task, chosen, corpus=text, split=split, number=config.segments, **form)


def add_task(
    sums: dict[str, Any],
    model: PreTrainedModel,
    codec: TextCodec,
    items: TaskItems | None,
    normalise: str = "",
    quiet: bool = True,
) -> None:
    """Points of a model's answers, by language, as sums of the metric `task_accuracy`, with the items' keys.

    Answers that the model generates are kept as its outputs in a language.
    """
    from dragoman.commands import scoring

    if items is None:
        return
    task = task_of(items, normalise)
    metric = TaskAccuracy(task)
    sums["signatures"]["task_accuracy"] = metric.signature()
    for g, chosen in items.items.items():
        answers = answers_of(model, codec, items, task, g, quiet)
        points = points_of(task, answers, chosen)
        scoring.add_sums(sums, "task_accuracy", g, metric.all_sums(points.tolist()), [item.document for item in chosen])
        sums.setdefault("keys", {}).setdefault("task_accuracy", {})[g] = [item.key for item in chosen]
        if task.generates:
            sums["outputs"][g] = answers


# Samples


def samples_of(codec: TextCodec, items: TaskItems, tag: str, answered: bool = True) -> list[tuple[list[int], int]]:
    """Tokens of each item, start token first, and how many are prompt; where `answered` the answer follows and what
    ends it, in a chat the template's end of turn.

    Raises DataError where an item has no answer to train on.
    """
    chosen = items.items[tag]
    if answered and (empty := [item.key for item in chosen if not item.answer]):
        raise DataError(
            f"{len(empty)} of {len(chosen)} items of the task {items.name} in {tag} have no answer to train on, as "
            f"{empty[0]}; the file has to give one (`response`, or a solution)"
        )
    prompts = [item.prompt for item in chosen]
    if items.into:
        names = {g: language(g).name or g for g in (tag, items.into)}
        if answered:
            return codec.pairs(prompts, [item.answer for item in chosen], tag, items.into, names)
        return [(ids, len(ids)) for ids in codec.prompts(prompts, tag, items.into, names)]
    rows = prompts_of(codec, chosen, items.chat)
    answers = codec.encode([item.answer for item in chosen]) if answered else [[] for _ in rows]
    end = [] if not answered else codec.turn_end() if items.chat else [codec.end_id]
    return [(row + answer + end, len(row)) for row, answer in zip(rows, answers, strict=True)]


def prompts_of(codec: TextCodec, items: Sequence[Item], chat: bool) -> list[list[int]]:
    """What stands before each answer: the start token and the prompt, or the chat template up to the answer."""
    texts = [item.prompt for item in items]
    return codec.asked(texts) if chat else [[codec.start_id, *ids] for ids in codec.encode(texts)]


def english_routing(
    model: PreTrainedModel, codec: TextCodec, items: TaskItems, about: dict[str, Any]
) -> RoutingTrace | None:
    """Routing of the English items, prompt and answer, as a trace whose one language is the task's name.

    The general corpus to contrast it with is English text, for translation that of `plain_routing`; special tokens are
    read and not counted. None for a model without MoE layers.
    """
    answered = all(item.answer for item in items.items[REFERENCE])
    rows = [ids for ids, _ in samples_of(codec, items, REFERENCE, answered)]
    return _routing(model, codec, items.name, rows, about)


def plain_routing(
    model: PreTrainedModel, codec: TextCodec, items: TaskItems, about: dict[str, Any]
) -> RoutingTrace | None:
    """For `translation`, the English sources and the references as plain text, one language `plain`; else None.

    What differs between the two is the format alone, as both languages are in both.
    """
    if not items.into:
        return None
    texts = [text for item in items.items[REFERENCE] for text in (item.prompt, item.answer)]
    return _routing(model, codec, PLAIN, [[codec.start_id, *ids] for ids in codec.encode(texts)], about)


def _routing(
    model: PreTrainedModel, codec: TextCodec, name: str, rows: list[list[int]], about: dict[str, Any]
) -> RoutingTrace | None:
    """Of rows whose first token, in a chat the template's, is read and not counted."""
    from dragoman.modeling import find_routers
    from dragoman.routing.capture import capture

    if not find_routers(model):
        return None
    read: dict[str, Any] = {"codec": codec, "start_id": rows[0][0], "count_special": False}
    return capture(model, {name: [ids[1:] for ids in rows]}, about=about, **read)
