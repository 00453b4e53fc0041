"""The engine on a model that transformers opens: greedy, in batches by length, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from dragoman.translation.request import Answer, Request, is_instruction, render

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec
    from dragoman.translation.engines import Stops


class LocalEngine:
    """Models with language tags get the form that they were trained in; others the rendered prompt.

    What a request has beside its text is, for the former, more of the same form: pairs as translations before it,
    drafts and auxiliary versions behind their tags. Where all do not fit, the pairs most unlike the text are left out.
    """

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
        prompts = [self._fitting(request, template, context) for request in requests]
        fits = [i for i, p in enumerate(prompts) if len(p) + self._needed(requests[i]) <= context]
        yield from ((i, Answer(None, too_long=True)) for i in sorted({*range(len(prompts))} - {*fits}))
        new = translate_greedy(
            self.model,
            [prompts[i] for i in fits],
            stops=self._stops,
            pad_id=self.codec.pad_id,
            max_new=[self._most(requests[i], prompts[i]) for i in fits],
            context=context,
            batch=self.batch,
        )
        for i, ids in zip(fits, new, strict=True):
            yield i, self._answer(ids, full=len(prompts[i]) + len(ids) >= context)

    def _answer(self, ids: Sequence[int], full: bool) -> Answer:
        """full: the context has no room for another token, so an answer without a line end is cut."""
        if full and ids[-1] not in self._stops.lines:
            return Answer(None, too_long=True)
        text = " ".join(self.codec.decode(ids).strip().split("\n")[0].split())
        return Answer(text) if text else Answer(None, "no text")

    def confidences(
        self, requests: Sequence[Request], template: str, texts: Sequence[str]
    ) -> list[tuple[float, ...]]:
        """Of each word, the mean probability of its pieces; the texts are read once more, behind their prompts."""
        from dragoman.modeling import context_length
        from dragoman.translation.confidence import word_confidences

        context = context_length(self.model)
        prompts = [self._fitting(request, template, context) for request in requests]
        return word_confidences(self.model, self.codec, prompts, texts, self.batch)

    def _fitting(self, request: Request, template: str, context: int) -> list[int]:
        """The prompt, with as many neighbours as the context has room for."""
        needed = self._needed(request)
        prompt = self.prompt(request, template)
        while request.neighbours and len(prompt) + needed > context:
            request = replace(request, neighbours=request.neighbours[1:])
            prompt = self.prompt(request, template)
        return prompt

    def prompt(self, request: Request, template: str) -> list[int]:
        """Token ids."""
        if self._has_tags(request):
            return self._tagged(request)
        text = render(request, template)
        if is_instruction(template) and self.codec.tokenizer.chat_template:
            said = [{"role": "user", "content": text}]
            return list(
                self.codec.tokenizer.apply_chat_template(
                    said, add_generation_prompt=True, enable_thinking=False, return_dict=False
                )
            )
        return [self.codec.start_id, *self.codec.encode([text])[0]]

    def _has_tags(self, request: Request) -> bool:
        versions = (*request.auxiliary, *request.drafts)
        tags = (request.source_lang, request.target_lang, *(version.language for version in versions))
        return all(self.codec.tag_id(tag) is not None for tag in tags)

    def _tagged(self, request: Request) -> list[int]:
        """`start <en> pair <de> Paar end` for each pair and term, then `start <en> text <nl> tekst <de>`."""
        source, target = request.source_lang, request.target_lang
        prompt: list[int] = []
        for pair in (*request.neighbours, *request.terms):
            drafts = [(d.language, d.text) for d in getattr(pair, "drafts", ())]
            prompt += [*self._behind_tags([(source, pair.source), *drafts, (target, pair.target)]), self.codec.end_id]
        versions = [(v.language, v.text) for v in (*request.auxiliary, *request.drafts)]
        return [*prompt, *self._behind_tags([(source, request.source), *versions]), self._tag(target)]

    def _behind_tags(self, texts: Sequence[tuple[str, str]]) -> list[int]:
        ids = self.codec.encode([text for _, text in texts])
        tagged = [i for (tag, _), some in zip(texts, ids, strict=True) for i in (self._tag(tag), *some)]
        return [self.codec.start_id, *tagged]

    def _tag(self, language: str) -> int:
        found = self.codec.tag_id(language)
        assert found is not None
        return found

    def _most(self, request: Request, prompt: Sequence[int]) -> int:
        """Most tokens of a translation: by its text, not by what stands around it.

        By its bytes where these are more than its tokens, for a tokenizer may know the target worse than the source:
        in Greek it may need a token a letter.
        """
        plain = not (request.neighbours or request.terms or request.drafts or request.auxiliary)
        tokens = len(prompt) if plain else len(self.codec.encode([request.source])[0])
        return 2 * max(tokens, len(request.source.encode())) + 20

    def _needed(self, request: Request) -> int:
        """Room for a translation that is half as long again as its source."""
        return 3 * len(self.codec.encode([request.source])[0]) // 2 + 8
