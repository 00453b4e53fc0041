"""Adaptation methods: one module each, all with the same parts (see `base.Method`)."""

from dragoman.methods import expert_tuning, full, lora, ra_moe, router_alignment, sara, sft
from dragoman.methods.base import Method, named

METHODS: dict[str, Method] = {
    "full": named(full),
    "lora": named(lora),
    "expert_tuning": named(expert_tuning),
    "sft": named(sft),
    "ra_moe": named(ra_moe),
    "sara": named(sara),
    "router_alignment": named(router_alignment),
}
"""Name -> method. To add one: a module like `full.py`, a line here, a row in docs/methods.md, a test of its own."""
