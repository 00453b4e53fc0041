"""How near a dry run of `dragoman adapt` comes to what then happens, in time and memory.

    python benchmarks/dry_run.py [--quick] [--json FILE]

Rehearsal and run are processes of their own with the same arguments; one untimed dry run comes first, because the first
process after a pause reads its files from a cold disk. Memory is the peak of the process, interpreter and imports
included, in both. On an idle machine both ratios should lie between 0.8 and 1.2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CODE = """
import json, sys, dragoman
from pathlib import Path
from dragoman.commands.forgetting import Evaluation
from dragoman.commands.training_text import Text
from dragoman.modeling import moe_layers, open_model
from dragoman.routing.plan import ExpertPlan, PlannedExpert

out, dry, segments, method = Path(sys.argv[1]), sys.argv[2] == "dry", int(sys.argv[3]), sys.argv[4]
layers = moe_layers(open_model("mini-moe"))
planned = {x.layer_id: tuple(PlannedExpert(e, "language") for e in range(4)) for x in layers[-2:]}
plan = ExpertPlan("by hand", planned, {x.layer_id: x.num_experts for x in layers}, target="ca")
plan.save(out.with_suffix(".json"))
record = dragoman.adapt(
    "mini-moe", target="ca", method=method, plan=out.with_suffix(".json") if method == "expert_tuning" else None,
    text=Text(segments=segments), evaluation=Evaluation(segments=30, known=("en", "es")), guard="1000%",
    out=out, dry_run=dry, quiet=True,
)
seconds = record["seconds"] if dry else record["log"]["seconds"]
print(json.dumps({"seconds": seconds, "memory_mb": record["peak_memory_mb"]}))
"""


def run(folder: Path, kind: str, segments: int, method: str) -> dict[str, float]:
    """One process: {"seconds", "memory_mb"} as expected (dry) or as they were (wet)."""
    arguments = [str(folder / f"{kind}-{method}"), kind, str(segments), method]
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Compare both for expert tuning and full fine-tuning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="150 segments instead of 600")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    segments = 150 if options.quick else 600
    figures = {}
    for method in ("expert_tuning", "full"):
        with tempfile.TemporaryDirectory() as name:
            expected = [run(Path(name), "dry", segments, method) for _ in range(2)][-1]
            happened = run(Path(name), "wet", segments, method)
        ratios = {k: round(expected[k] / happened[k], 3) for k in expected}
        figures[method] = {"expected": expected, "happened": happened, "expected_over_happened": ratios}
        print(f"{method}: {figures[method]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({method: f["expected_over_happened"] for method, f in figures.items()}))


if __name__ == "__main__":
    main()
