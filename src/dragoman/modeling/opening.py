"""Opening and saving models.

Shape letters: B sequences, S positions, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import difflib
import hashlib
import json
import re
import sys
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

from dragoman.errors import ConfigError, ModelError
from dragoman.modeling.codec import TextCodec
from dragoman.modeling.packaged import FETCHED, PACKAGED, packaged_folder
from dragoman.record import atomic_write, read_json, sha256, write_json

WAYS_OUT = {
    "gated repo": "Ask for access at https://huggingface.co/{0}, then `hf auth login`, or set HF_TOKEN",
    "couldn't connect": "With a network fetch it first, `hf download {0}`; HF_HOME says where it lies then",
    "custom code": "Code that comes with a model is never run: only classes of transformers can be opened",
}
"""A part of what transformers says -> what to do."""
BUILT_IN = {"mini-moe": "mini-moe", "mini-dense": "mini-dense"}
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
    name or "auto". Raises ModelError where there is no such model or it cannot be loaded, ConfigError for a device that
    is not there.
    """
    keep_freed_memory()
    transformers_logging.disable_progress_bar()
    place, path = device_of(device or default_device()), _existing(name)
    try:
        _know_class(path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as e:
        raise ModelError(f"cannot load the model {name!r}: {_why(e, path)}") from None
    model, told = loaded
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"the checkpoint {name!r} has no weights for {len(missing)} tensors of {type(model).__name__}, as "
            f"{missing[0]}: they would be random; its config is not of these weights, or a file is missing"
        )
    model.to(place)
    return model.eval()


def outline(name: str) -> PreTrainedModel:
    """The module tree of a model on the meta device, from its config alone: no weights are loaded or fetched."""
    path = _existing(name)
    try:
        _know_class(path)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()  # older versions do so only where weights are initialised
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as e:
        raise ModelError(f"cannot outline the model {name!r}: {_why(e, path)}") from None
    return model.eval()


def stored_bytes(name: str) -> int | None:
    """Size of a model's weights as stored, from the safetensors index or the files; None where neither is at hand."""
    path = _existing(name)
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **quiet)
    if index is not None:
        return json.loads(Path(index).read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
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
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
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
    state = model.state_dict() if dtype is None else _cast(model, getattr(torch, dtype))
    with atomic_write(folder) as partial:
        try:
            model.save_pretrained(partial, state_dict=state)
        except SafetensorError as e:  # how a full disk shows there
            raise OSError(_first_line(e)) from e
        codec.tokenizer.save_pretrained(partial)
        if dtype is not None:  # save_pretrained writes there how the model is in memory
            write_json(partial / "config.json", read_json(partial / "config.json") | {"dtype": dtype})


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tied weights stay tied: each tensor is cast once, so that it is stored once."""
    state, dtypes = model.state_dict(), stored_dtypes(model, dtype)
    unique = {t.data_ptr(): (name, t) for name, t in state.items()}
    cast = {place: t.to(dtypes.get(name, t.dtype)) for place, (name, t) in unique.items()}
    return {name: cast[t.data_ptr()] for name, t in state.items()}


def cast_stored(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make a model in memory, in place, the one that transformers opens in `dtype`.

    Buffers that are computed anew, as angles of positions, keep their precision.
    """
    dtypes = stored_dtypes(model, dtype)
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))


def stored_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Name -> what transformers holds each tensor of real numbers in where it opens the model in `dtype`.

    Some stay in float32, as biases by which experts are chosen: those that the class makes so, and those that it lists.
    """
    config = copy.deepcopy(model.config)  # the dtype is written into it
    with torch.device("meta"):
        empty: Any = type(model)._from_config(config, dtype=dtype)
    made = {name: t.dtype for name, t in empty.state_dict().items()}
    listed = getattr(empty, "_get_dtype_plan", lambda _: empty._keep_in_fp32_modules_strict or ())  # 5.0.0 lacks it
    kept = [pattern.replace("*", ".*") for pattern in listed(dtype)]
    return {
        name: torch.float32 if any(re.search(pattern, name) for pattern in kept) else made.get(name, dtype)
        for name, t in model.state_dict().items()
        if t.is_floating_point()
    }


def _existing(name: str) -> str:
    path, known = model_path(name), {*BUILT_IN, *PACKAGED}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7) if name not in known and "/" not in name else []
    if near:
        raise ModelError(f"there is no built-in model {name!r}; did you mean {near[0]}? (a folder: ./{name})")
    if name in PACKAGED and path != name and not (Path(path) / FETCHED).is_file():
        raise ModelError(f"the model {name} is not on this machine yet; run `dragoman models fetch {name}`")
    if (Path(path) / "model" / "config.json").is_file() and not list(Path(path).glob("*.safetensors")):
        raise ModelError(f"{name!r} is the folder of a run; its model is {path}/model")
    if Path(path).name == "model" and Path(path).parent.is_dir() and not Path(path).exists():
        raise ModelError(f"there is no {path}: the run of {Path(path).parent} has made no model, or has not ended")
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
    """The first line of what transformers says, and a way out; where no folder was given, what else it could be."""
    here = "" if Path(path).exists() else f" (no folder {path} is here; built-in: {', '.join(BUILT_IN)})"
    way_out = "".join(f" {way_out.format(path)}" for sign, way_out in WAYS_OUT.items() if sign in str(e))
    return _first_line(e) + way_out + here


def device_of(name: str) -> torch.device:
    """The device of that name; ConfigError where it cannot be used."""
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ConfigError(
            f"the device {name!r} cannot be used ({_first_line(e)}); give cpu, or cuda where a GPU is"
        ) from None
    return found


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
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):  # one tensor at a time in memory
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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


def most_positions(model: PreTrainedModel) -> int | None:
    """Positions that a model has a table of; None where it has none, as with most rotary ones."""
    made_for = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    words = model.get_input_embeddings()
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not words]
    tables += [buffer for name, buffer in model.named_buffers() if name.endswith("embed_positions")]  # GPT-J
    return made_for if any(0 <= len(table) - made_for <= 2 for table in tables) else None  # OPT has two more


def copy_tag(model: PreTrainedModel, codec: TextCodec, parent: str, target: str) -> bool:
    """Let the target's tag start as a copy of its parent's, in place; False where the vocabulary has no such tags.

    What stands in for a tag that is not there (`<es>` for es-MX) belongs to another language and stays.
    """
    ids = codec.tag_id(parent), codec.own_tag_id(target)
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
        usual = AutoConfig.for_model(architecture)
        if unknown := [_told(key, usual) for key in settings if key not in ALWAYS and not hasattr(usual, key)]:
            raise ModelError(f"a config of type {architecture!r} has no {', no '.join(unknown)}")
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))
    except (ValueError, TypeError, KeyError, ZeroDivisionError, RuntimeError, StrictDataclassError) as e:
        raise ModelError(f"cannot make a model of type {architecture!r}: {_first_line(e)}") from None


TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
ALWAYS = (*TOKENS, "rope_theta", "rope_scaling", "partial_rotary_factor", "head_dim")
"""Settings that transformers takes of any type, or keeps under another name."""


def _told(key: str, usual: Any) -> str:
    near = difflib.get_close_matches(key, vars(usual), n=1)
    return f"{key} (did you mean {near[0]}?)" if near else key
