"""Opening and saving models, and the text formats that they read.

Shape letters: B sequences, S positions, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils import logging as transformers_logging

from dragoman.errors import ModelError
from dragoman.modeling.packaged import FETCHED, PACKAGED, packaged_folder
from dragoman.record import atomic_write, sha256

BUILT_IN = {"mini-moe": "mini-moe"}
"""Models that ship with the package: name -> folder in assets."""


# Opening and saving


def model_path(name: str) -> str:
    """The folder of a built-in or a packaged model, or the name itself: a folder, or an id on the Hub."""
    if name in BUILT_IN and not Path(name).exists():
        return str(resources.files("dragoman") / "assets" / BUILT_IN[name])
    if name in PACKAGED and not Path(name).exists():
        return str(packaged_folder(name))
    return name


def open_model(name: str, *, dtype: str = "float32", device: str | None = None) -> PreTrainedModel:
    """Load a causal language model for evaluation from a folder, a Hub id or a built-in name.

    Weights are read from safetensors only, and no code from the model's folder is run. `dtype` is a torch dtype's
    name or "auto". Raises ModelError where there is no such model or it cannot be loaded.
    """
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    path = _existing(name)
    try:
        _know_class(path)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype if dtype == "auto" else getattr(torch, dtype), use_safetensors=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as e:
        raise ModelError(f"cannot load the model {name!r}: {_why(e, path)}") from None
    model.to(device or default_device())  # type: ignore[arg-type]
    return model.eval()


def outline(name: str) -> PreTrainedModel:
    """The module tree of a model on the meta device, from its config alone: no weights are loaded or fetched."""
    path = _existing(name)
    try:
        _know_class(path)
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()  # older versions do so only where weights are initialised
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ModelError(f"cannot outline the model {name!r}: {_why(e, path)}") from None
    return model.eval()


def stored_bytes(name: str) -> int | None:
    """Size of a model's weights as stored, from the safetensors index or the files; None where neither is at hand."""
    path = _existing(name)
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **quiet)
    if index is not None:
        return json.loads(Path(index).read_text(encoding="utf-8"))["metadata"]["total_size"]
    files = list(Path(path).glob("*.safetensors"))
    return sum(f.stat().st_size for f in files) if files else None


def stored_names(name: str) -> frozenset[str]:
    """Names of a model's tensors as they are stored, which may be other ones than in memory."""
    path = _existing(name)
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        return frozenset(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"])
    with safe_open(cached_file(path, SAFE_WEIGHTS_NAME), "pt") as weights:
        return frozenset(weights.keys())


def store_as_new(model: PreTrainedModel) -> None:
    """Let a model be stored under the names of a new one of its family, whatever those that it was loaded from."""
    vars(model).pop("_weight_conversions", None)


def open_tokenizer(name: str) -> TextCodec:
    """Load the tokenizer that belongs to a model, wrapped as a TextCodec."""
    path = _existing(name)
    try:
        _know_class(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as e:
        raise ModelError(f"cannot load the tokenizer of {name!r}: {_why(e, path)}") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"the tokenizer of {name!r} has no vocabulary; is its tokenizer.json missing?")
    return TextCodec(tokenizer)


def open_both(
    name: str, *, dtype: str = "float32", device: str | None = None
) -> tuple[PreTrainedModel, TextCodec]:
    """A model and its tokenizer. ModelError where they do not belong together."""
    codec, model = open_tokenizer(name), open_model(name, dtype=dtype, device=device)
    weight_VD: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    rows = len(weight_VD)
    if len(codec.tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {name!r} has {len(codec.tokenizer)} entries, the model embeds {rows}; they do not "
            "belong together"
        )
    return model, codec


def save_model(model: PreTrainedModel, codec: TextCodec, folder: Path, *, dtype: str | None = None) -> None:
    """Write a plain Hugging Face folder (config, safetensors, tokenizer), whole or not at all."""
    state = model.state_dict() if dtype is None else _cast(model.state_dict(), dtype)
    with atomic_write(folder) as partial:
        try:
            model.save_pretrained(partial, state_dict=state)
        except SafetensorError as e:  # how a full disk shows there
            raise OSError(_first_line(e)) from e
        codec.tokenizer.save_pretrained(partial)


def _cast(state: dict[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    """Tied weights stay tied: each tensor is cast once, so that it is stored once."""
    unique = {t.data_ptr(): t for t in state.values()}
    cast = {p: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for p, t in unique.items()}
    return {name: cast[t.data_ptr()] for name, t in state.items()}


def _existing(name: str) -> str:
    path, known = model_path(name), {*BUILT_IN, *PACKAGED}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7) if name not in known and "/" not in name else []
    if near:
        raise ModelError(f"there is no built-in model {name!r}; did you mean {near[0]}? (a folder: ./{name})")
    if name in PACKAGED and path != name and not (Path(path) / FETCHED).is_file():
        raise ModelError(f"the model {name} is not on this machine yet; run `dragoman models fetch {name}`")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).exists()
    if looks_local and not (Path(path) / "config.json").is_file():
        raise ModelError(
            f"{name!r} is not a model folder: no config.json in it; give a folder written by save_pretrained, "
            f"a Hub id such as allenai/OLMoE-1B-7B-0924, or a built-in model: {', '.join(BUILT_IN)}"
        )
    return path


def _know_class(path: str) -> None:
    """Register the model's class where it is one of ours: Mix-MoE models are of a type that transformers lacks."""
    model_type = PreTrainedConfig.get_config_dict(path)[0].get("model_type", "")
    if model_type.startswith("mix_moe_"):
        from dragoman.modeling.mix_moe import PREFIX, register

        register(model_type.removeprefix(PREFIX))


def _first_line(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0] if lines else type(e).__name__


def _why(e: Exception, path: str) -> str:
    """The first line of what transformers says; where no folder was given, what else the name could be."""
    here = "" if Path(path).exists() else f" (no folder {path} is here; built-in: {', '.join(BUILT_IN)})"
    return _first_line(e) + here


def default_device() -> str:
    """cuda where there is one, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def model_checksum(name: str) -> str | None:
    """SHA-256 over a local model's or delta's config and weight files; None for one that is not on this disk."""
    folder = Path(model_path(name))
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json"), *folder.glob("delta.json")])
    return sha256(*files) if files else None


def device_memory_mb(model: nn.Module) -> float | None:
    """Most memory that tensors have taken on the model's GPU so far; None on a CPU."""
    device = next(model.parameters()).device
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None


def state_checksum(model: nn.Module) -> str:
    """SHA-256 over the names and the bits of all weights."""
    parts: list[bytes | str | Path] = []
    for name, tensor in sorted(model.state_dict().items()):
        parts += [name, tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()]
    return sha256(*parts)


def quantisation(model: nn.Module) -> str | None:
    """How a model's weights are quantised; None where they are plain numbers."""
    told = getattr(getattr(model, "config", None), "quantization_config", None)
    if told is not None:
        return str(getattr(told, "quant_method", None) or dict(told).get("quant_method", "quantised"))
    packed = {type(m).__name__ for m in model.modules() if ".quantized." in type(m).__module__}
    whole = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if not p.is_floating_point()}
    return ", ".join(sorted(packed | whole)) or None


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks. Training on CPU otherwise spends half its time on page faults."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to tune
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-4, 0)  # M_MMAP_MAX: no block of its own mapping
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not give back the top of the heap


# Text in and out


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
        """Id of the language's tag, None where the vocabulary has none."""
        found = self.tokenizer.convert_tokens_to_ids(f"<{language}>")
        return None if found is None or found == self.tokenizer.unk_token_id else found

    def prompts(self, sources: Sequence[str], source: str, target: str, names: dict[str, str]) -> list[list[int]]:
        """What stands before each translation. `names` gives the languages' names for models without tags."""
        tags = self.tag_id(source), self.tag_id(target)
        if None not in tags:
            return [[self.start_id, tags[0], *ids, tags[1]] for ids in self.encode(sources)]  # type: ignore[list-item]
        lines = [PLAIN_PROMPT.format(names[source], text, names[target]) for text in sources]
        return [[self.start_id, *ids] for ids in self.encode(lines)]

    def pairs(
        self, sources: Sequence[str], targets: Sequence[str], source: str, target: str, names: dict[str, str]
    ) -> list[tuple[list[int], int]]:
        """Whole training samples, and how many of their tokens are prompt."""
        prompts = self.prompts(sources, source, target, names)
        spaced = targets if self.tag_id(target) is not None else [f" {text}" for text in targets]
        answers = self.encode(spaced)
        return [(p + a + [self.end_id], len(p)) for p, a in zip(prompts, answers, strict=True)]


PLAIN_PROMPT = "{}: {}\n{}:"
"""Source language's name, source text, target language's name; the translation follows on the same line."""

CHAT_MARK = "text-goes-here"
"""Stands for the text where the length of what a chat template puts before it is measured."""


# The rest


def hidden_states(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Forward pass without the language-model head, [B, S, D]."""
    inner = (m for m in model.children() if isinstance(m, PreTrainedModel))
    body = model.base_model if model.base_model is not model else next(inner)  # some name no base model
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def context_length(model: PreTrainedModel, default: int = 1024, largest: int = 4096) -> int:
    """Positions that a model was made for, capped at `largest`."""
    text = model.config.get_text_config()
    return min(getattr(text, "max_position_embeddings", None) or default, largest)


def copy_tag(model: PreTrainedModel, codec: TextCodec, parent: str, target: str) -> bool:
    """Let the target's tag start as a copy of its parent's, in place; False where the vocabulary has no such tags."""
    ids = codec.tag_id(parent), codec.tag_id(target)
    if None in ids:
        return False
    with torch.no_grad():
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            if embedding is not None:
                weight_VD: torch.Tensor = embedding.weight  # type: ignore[assignment]
                weight_VD[ids[1]] = weight_VD[ids[0]]
    return True


def embedding_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of the embeddings' and the language-model head's weights, tied ones under each of their names."""
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    held = {p for e in both if e is not None for p in e.parameters()}
    return tuple(n for n, p in model.named_parameters(remove_duplicate=False) if p in held)


def new_model(architecture: str, settings: dict[str, Any], seed: int) -> PreTrainedModel:
    """A model with random weights: `architecture` is a transformers model type such as olmoe."""
    torch.manual_seed(seed)
    try:
        config = AutoConfig.for_model(architecture, **settings)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as e:
        raise ModelError(f"cannot make a model of type {architecture!r}: {_first_line(e)}") from None
    return AutoModelForCausalLM.from_config(config)
