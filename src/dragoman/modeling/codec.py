"""The text formats that models read: a tokenizer, start and end, language tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dragoman.errors import ModelError


@dataclass(frozen=True)
class TextCodec:
    """A tokenizer with the formats that dragoman feeds to models.

    Plain text is `start text`. A translation is `start <src> source <tgt> target end` where the vocabulary has
    language tags, else the template of `PLAIN_PROMPT`.
    """

    tokenizer: Any

    @property
    def start_id(self) -> int:
        """Token before every text: bos, or eos where a model has no bos."""
        found = self.tokenizer.bos_token_id
        return found if found is not None else self.end_id

    @property
    def end_id(self) -> int:
        """Token after every translation."""
        if self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-text token; set eos_token in its tokenizer_config.json")
        return self.tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        """Filler of batches; never attended to."""
        found = self.tokenizer.pad_token_id
        return found if found is not None else self.end_id

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without special tokens; text that looks like a tag stays text."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [list(i) for i in ids]

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens, language tags included."""
        return frozenset(self.tokenizer.all_special_ids)

    def chat(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[bool]]]:
        """Each text, stripped, as what a user says in the model's chat template, thinking off; token by token whether
        it is of the text. No start token is added: the template has its own.

        A token that is of text and template both counts as text. Raises ModelError without a template.
        """
        if not self.tokenizer.chat_template or not self.tokenizer.is_fast:
            raise ModelError(
                "the chat form needs a chat template and a fast tokenizer; leave chat out, or open a tokenizer that "
                "has both"
            )
        texts = [text.strip() for text in texts]
        start = self._in_chat(CHAT_MARK).index(CHAT_MARK)
        lines = [self._in_chat(text) for text in texts]
        if changed := [t for t, line in zip(texts, lines, strict=True) if not line.startswith(t, start)]:
            raise ModelError(f"the chat template changes {len(changed)} of {len(texts)} texts, as {changed[0][:60]!r}")
        read = self.tokenizer(lines, add_special_tokens=False, return_offsets_mapping=True)
        found = zip(read["offset_mapping"], texts, strict=True)
        flags = [[a < start + len(t) and b > start for a, b in spans] for spans, t in found]
        return [list(i) for i in read["input_ids"]], flags

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
        """A conversation in the model's chat template, and token by token whether the assistant says it.

        What ends an answer is part of it. Raises ModelError without a template, or with one that changes earlier turns.
        """
        if not self.tokenizer.chat_template or not self.tokenizer.is_fast:
            raise ModelError(
                "conversations need a chat template and a fast tokenizer; train on plain text, or take a model that "
                "has both"
            )
        whole = self._rendered(messages)
        spans = []
        for k, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = self._rendered(messages[:k], answer=True), self._rendered(messages[: k + 1])
                if not whole.startswith(before) or not whole.startswith(after):
                    raise ModelError(
                        f"the chat template writes turn {k + 1} otherwise when more follow; cut the conversation there"
                    )
                spans.append((len(before), len(after)))
        read = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        said = [any(a < end and b > begin for begin, end in spans) for a, b in read["offset_mapping"]]
        return list(read["input_ids"]), said

    def asked(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text as what a user says in the model's chat template, thinking off, up to where the answer begins.

        Raises ModelError without a template.
        """
        if not self.tokenizer.chat_template:
            raise ModelError("the model has no chat template; ask in plain text, or take an instruction-tuned model")
        said = [[{"role": "user", "content": text}] for text in texts]
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        lines = [self.tokenizer.apply_chat_template(turns, **options) for turns in said]
        return [list(i) for i in self.tokenizer(lines, add_special_tokens=False)["input_ids"]]

    def turn_end(self) -> list[int]:
        """What the chat template writes behind an answer, spaces aside; the end token where that is nothing."""
        said = [{"role": role, "content": CHAT_MARK} for role in ("user", "assistant")]
        behind = self._rendered(said).rpartition(CHAT_MARK)[2].strip()
        return list(self.tokenizer(behind, add_special_tokens=False)["input_ids"]) if behind else [self.end_id]

    def _rendered(self, messages: Sequence[Mapping[str, str]], answer: bool = False) -> str:
        turns = [dict(message) for message in messages]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)

    def _in_chat(self, text: str) -> str:
        said = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(said, tokenize=False, enable_thinking=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def tag_id(self, language: str) -> int | None:
        """Id of the language's tag, or of the nearest wider one (de for de-AT); None where the vocabulary has none."""
        return next((i for tag in widened(language) if (i := self.own_tag_id(tag)) is not None), None)

    def own_tag_id(self, language: str) -> int | None:
        """Id of the language's very tag, a special token; None where the vocabulary has none.

        An entry that is not special is something else: Gemma's <tr> and <th> are HTML, not Turkish and Thai.
        """
        found = self.tokenizer.convert_tokens_to_ids(f"<{language}>")
        if found is None or found == self.tokenizer.unk_token_id:
            return None
        return found if not self.tokenizer.decode([found], skip_special_tokens=True) else None

    def prompts(self, sources: Sequence[str], source: str, target: str, names: dict[str, str]) -> list[list[int]]:
        """What stands before each translation. `names` gives the languages' names for models without tags."""
        tags, start = (self.tag_id(source), self.tag_id(target)), self.start_id
        if None not in tags:
            return [[start, tags[0], *ids, tags[1]] for ids in self.encode(sources)]  # type: ignore[list-item]
        lines = [PLAIN_PROMPT.format(names[source], text, names[target]) for text in sources]
        return [[start, *ids] for ids in self.encode(lines)]

    def pairs(
        self, sources: Sequence[str], targets: Sequence[str], source: str, target: str, names: dict[str, str]
    ) -> list[tuple[list[int], int]]:
        """Whole training samples, and how many of their tokens are prompt."""
        prompts = self.prompts(sources, source, target, names)
        tagged = None not in (self.tag_id(source), self.tag_id(target))
        spaced = targets if tagged else [f" {text}" for text in targets]
        answers, end = self.encode(spaced), self.end_id
        return [([*p, *a, end], len(p)) for p, a in zip(prompts, answers, strict=True)]


def widened(tag: str) -> list[str]:
    """The tag and the wider ones that may stand for it, nearest first (RFC 4647, lookup): ca-ES-valencia, ca-ES, ca.

    No script is cut away, and of Chinese only what says that it is the simplified one.
    """
    found, (language, *rest) = [tag], tag.split("-")
    while rest:
        last = rest.pop()
        kept = last not in ("CN", "SG", "Hans") if language == "zh" else len(last) == 4 and last.isalpha()
        if kept:
            break
        if not rest or len(rest[-1]) > 1:  # a singleton only announces what was cut
            found.append("-".join([language, *rest]))
    return found


PLAIN_PROMPT = "{}: {}\n{}:"
"""Source language's name, source text, target language's name; the translation follows on the same line."""

CHAT_MARK = "text-goes-here"
"""Stands for the text where the length of what a chat template puts before it is measured."""
