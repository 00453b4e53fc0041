"""Opening models and finding their Mixture-of-Experts parts: the only module that names Hugging Face attributes.

Nothing here knows an architecture by name. transformers records router outputs through `_can_record_outputs`, whose
`router_logits` entry names the router class; stacked expert weights follow one interface. Both are probed, and what
cannot be found is refused with a sentence that says what was looked for.

Shape letters: B sequences, S positions, T tokens, L MoE layers, E experts, K chosen per token, D model width.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dragoman.errors import ModelError
from dragoman.record import atomic_write, sha256

BUILT_IN = {"mini-moe": "mini-moe"}
"""Models that ship with the package: name -> folder in assets."""


# Opening and saving


def model_path(name: str) -> str:
    """The folder of a built-in model, or the name itself: a folder, or an id on the Hub."""
    if name in BUILT_IN and not Path(name).exists():
        return str(resources.files("dragoman") / "assets" / BUILT_IN[name])
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
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype if dtype == "auto" else getattr(torch, dtype), use_safetensors=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as e:
        raise ModelError(f"cannot load the model {name!r}: {_first_line(e)}") from None
    model.to(device or default_device())  # type: ignore[arg-type]
    return model.eval()


def open_tokenizer(name: str) -> TextCodec:
    """Load the tokenizer that belongs to a model, wrapped as a TextCodec."""
    path = _existing(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as e:
        raise ModelError(f"cannot load the tokenizer of {name!r}: {_first_line(e)}") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"the tokenizer of {name!r} has no vocabulary; is its tokenizer.json missing?")
    return TextCodec(tokenizer)


def open_both(name: str) -> tuple[PreTrainedModel, TextCodec]:
    """A model and its tokenizer. ModelError where they do not belong together."""
    codec, model = open_tokenizer(name), open_model(name)
    rows = len(model.get_input_embeddings().weight)
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
    path = model_path(name)
    if near := difflib.get_close_matches(name, [b for b in BUILT_IN if b != name], n=1, cutoff=0.7):
        raise ModelError(f"there is no built-in model {name!r}; did you mean {near[0]}? (a folder: ./{name})")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).exists()
    if looks_local and not (Path(path) / "config.json").is_file():
        raise ModelError(
            f"{name!r} is not a model folder: no config.json in it; give a folder written by save_pretrained, "
            f"a Hub id such as allenai/OLMoE-1B-7B-0924, or a built-in model: {', '.join(BUILT_IN)}"
        )
    return path


def _first_line(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return lines[0] if lines else type(e).__name__


def default_device() -> str:
    """cuda where there is one, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def model_checksum(name: str) -> str | None:
    """SHA-256 over a local model's config and weight files; None for a model that is not on this disk."""
    folder = Path(model_path(name))
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    return sha256(*files) if files else None


def state_checksum(model: nn.Module) -> str:
    """SHA-256 over the names and the bits of all weights."""
    parts: list[bytes | str | Path] = []
    for name, tensor in sorted(model.state_dict().items()):
        parts += [name, tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()]
    return sha256(*parts)


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


# Mixture-of-Experts parts


@dataclass(frozen=True)
class MoELayer:
    """One router and the experts it feeds."""

    layer_id: int
    """Index of the model layer it stands in."""
    name: str
    """Path of the block that holds router and experts, as in `named_modules`."""
    router: nn.Module
    experts: nn.Module
    num_experts: int
    top_k: int


def moe_layers(model: PreTrainedModel) -> tuple[MoELayer, ...]:
    """Every MoE layer of a model, in order of depth. ModelError for a dense model or a layout that cannot be probed."""
    routers = [(n, m) for n, m in model.named_modules() if _is_router(model, n, m)]
    if not routers:
        raise ModelError(
            f"{type(model).__name__} has no Mixture-of-Experts layers: no module of a class that transformers records "
            "as `router_logits` was found; diagnose and expert tuning need an MoE model, for a dense one use "
            "`dragoman adapt` with the method full"
        )
    return tuple(_probe(model, name, router) for name, router in routers)


def _recorders(model: PreTrainedModel) -> list[Any]:
    found: list[Any] = []
    for module in model.modules():
        recorded = getattr(module, "_can_record_outputs", None)
        if isinstance(recorded, dict) and "router_logits" in recorded:
            entry = recorded["router_logits"]
            found += entry if isinstance(entry, (list, tuple)) else [entry]
    return found


def _is_router(model: PreTrainedModel, name: str, module: nn.Module) -> bool:
    for recorder in _recorders(model):
        target = getattr(recorder, "target_class", recorder)
        layer_name = getattr(recorder, "layer_name", None)
        if isinstance(target, type) and isinstance(module, target) and (not layer_name or layer_name in name):
            return True
    return False


def _probe(model: PreTrainedModel, name: str, router: nn.Module) -> MoELayer:
    block_name = name.rpartition(".")[0]
    block = model.get_submodule(block_name)
    experts = next((m for m in block.modules() if _stacked(m)), None)
    numbers = re.findall(r"\.(\d+)\.", f"{name}.")
    top_k = _first_number(router, block, model.config, names=TOP_K_NAMES)
    if experts is None or not numbers or top_k is None:
        missing = [
            what
            for what, found in [
                ("stacked expert weights [E, ...] beside it", experts),
                ("a layer number in its path", numbers),
                (f"the number chosen per token ({', '.join(TOP_K_NAMES)})", top_k),
            ]
            if not found
        ]
        raise ModelError(
            f"the router {name} of {type(model).__name__} has a layout that cannot be probed: not found: "
            f"{'; '.join(missing)}; please report the model's class"
        )
    return MoELayer(int(numbers[0]), block_name, router, experts, len(_stacked(experts)[0]), top_k)


TOP_K_NAMES = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")


def _first_number(*holders: Any, names: Sequence[str]) -> int | None:
    values = (getattr(h, n, None) for h in holders for n in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)


def _stacked(module: nn.Module) -> list[torch.Tensor]:
    """Expert weights [E, ...] that the module itself owns, parametrized or not."""
    parametrized = getattr(module, "parametrizations", {})
    found = [p.original if hasattr(p, "original") else p.original0 for p in parametrized.values()]
    found += [p for p in module.parameters(recurse=False) if p.ndim == 3]
    return found if hasattr(module, "num_experts") or len(found) > 1 else []


def expert_weights(experts: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of an experts module that have one row per expert."""
    rows = len(_stacked(experts)[0])
    return tuple(n for n, p in experts.named_parameters(recurse=False) if p.ndim >= 2 and len(p) == rows)


@dataclass
class Routed:
    """What one router did in one forward pass."""

    logits_TE: torch.Tensor
    indices_TK: torch.Tensor
    weights_TK: torch.Tensor


@contextlib.contextmanager
def tap_routers(model: PreTrainedModel, layers: Sequence[MoELayer]) -> Iterator[list[Routed]]:
    """Within the block, every forward pass appends one Routed per MoE layer to the list, in order of depth.

    The indices are the router's own selection, not a top-k re-applied to logits: sigmoid routers choose with a
    correction bias that the recorded logits do not hold. Clear the list between passes.
    """
    seen: list[Routed] = []

    def hook(layer: MoELayer) -> Any:
        return lambda _module, _inputs, output: seen.append(_routed(layer, output))

    handles = [layer.router.register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _routed(layer: MoELayer, output: Any) -> Routed:
    tensors = [t for t in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(t, torch.Tensor)]
    flat = [t.reshape(-1, t.shape[-1]) for t in tensors]
    indices = [t for t in flat if not t.is_floating_point()]
    logits = [t for t in flat if t.is_floating_point() and t.shape[-1] == layer.num_experts]
    if not indices or not logits:
        shapes = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors)
        raise ModelError(
            f"the router of layer {layer.layer_id} returned {shapes or type(output).__name__}; looked for integer "
            f"indices of the chosen experts and a row of {layer.num_experts} scores per token"
        )
    weights = [t for t in flat if t.is_floating_point() and t.shape == indices[0].shape and t is not logits[0]]
    chosen = weights[0] if weights else logits[-1].gather(-1, indices[0])
    return Routed(logits[0], indices[0], chosen)


def router_probabilities(logits_TE: torch.Tensor) -> torch.Tensor:
    """Softmax over experts in float32. Rows that are probabilities already stay as they are.

    Some versions of transformers record logits and some probabilities; the rows themselves tell.
    """
    rows = logits_TE.float()
    sums = rows.sum(-1)
    already = bool((rows >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
    return rows if already else rows.softmax(-1)


def hidden_states(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Forward pass without the language-model head, [B, S, D]."""
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def context_length(model: PreTrainedModel, default: int = 1024, largest: int = 4096) -> int:
    """Positions that a model was made for, capped at `largest`."""
    return min(getattr(model.config, "max_position_embeddings", None) or default, largest)


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


def parameter_counts(model: PreTrainedModel) -> dict[str, int]:
    """Parameters by group: router, routed experts, embeddings, attention and the rest. Tied weights count once."""
    groups = dict.fromkeys(("routed experts", "router", "embeddings", "other"), 0)
    layers = moe_layers(model)
    expert_ids = {id(p) for layer in layers for p in layer.experts.parameters()}
    router_ids = {id(p) for layer in layers for p in layer.router.parameters()}
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    embedding_ids = {id(p) for e in embeddings if e is not None for p in e.parameters()}
    for p in model.parameters():
        kinds = [("routed experts", expert_ids), ("router", router_ids), ("embeddings", embedding_ids)]
        groups[next((k for k, ids in kinds if id(p) in ids), "other")] += p.numel()
    return groups


def new_model(architecture: str, settings: dict[str, Any], seed: int) -> PreTrainedModel:
    """A model with random weights: `architecture` is a transformers model type such as olmoe."""
    torch.manual_seed(seed)
    try:
        config = AutoConfig.for_model(architecture, **settings)
    except (ValueError, TypeError, KeyError) as e:
        raise ModelError(f"cannot make a model of type {architecture!r}: {_first_line(e)}") from None
    return AutoModelForCausalLM.from_config(config)
