"""The engine on a model that transformers opens: greedy, in batches by length, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from dragoman.corpora.languages import language
from dragoman.translation.request import Answer, Request, render

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec
    from dragoman.translation.engines import Stops


class LocalEngine:
    """Models with language tags get the form that they were trained in; others the rendered prompt."""

    def __init__(self, model: PreTrainedModel, codec: TextCodec, batch: int) -> None:
        self.model, self.codec, self.batch = model, codec, batch

    @cached_property
    def _stops(self) -> Stops:
        from dragoman.translation.engines import stops_of

        return stops_of(self.model, self.codec)

    def answers(self, requests: Sequence[Request], template: str) -> Iterator[tuple[int, Answer]]:
        from dragoman.modeling import context_length
        from dragoman.translation.engines import translate_greedy

        context = context_length(self.model)
        prompts = [self.prompt(request, template) for request in requests]
        fits = [i for i, p in enumerate(prompts) if len(p) + self._needed(requests[i]) <= context]
        yield from ((i, Answer(None, too_long=True)) for i in sorted({*range(len(prompts))} - {*fits}))
        new = translate_greedy(
            self.model, [prompts[i] for i in fits], stops=self._stops, pad_id=self.codec.pad_id, context=context
        )
        for i, ids in zip(fits, new, strict=True):
            text = " ".join(self.codec.decode(ids).strip().split("\n")[0].split())
            yield i, Answer(text, "") if text else Answer(None, "no text")

    def prompt(self, request: Request, template: str) -> list[int]:
        """Token ids."""
        tags = (request.source_lang, request.target_lang)
        if all(self.codec.tag_id(tag) is not None for tag in tags):
            names = {tag: language(tag).name for tag in tags}
            return self.codec.prompts([request.source], *tags, names)[0]
        text = render(request, template)
        if template == "instruct" and self.codec.tokenizer.chat_template:
            said = [{"role": "user", "content": text}]
            return list(
                self.codec.tokenizer.apply_chat_template(
                    said, add_generation_prompt=True, enable_thinking=False, return_dict=False
                )
            )
        return [self.codec.start_id, *self.codec.encode([text])[0]]

    def _needed(self, request: Request) -> int:
        """Room for a translation that is half as long again as its source."""
        return 3 * len(self.codec.encode([request.source])[0]) // 2 + 8
