# SPDX-License-Identifier: Apache-2.0
"""Draw the folder of a bench: per row every pair's figure, the median with its interval, the target, the null test.

``PYTHONPATH=bench python -m harness.plot DIR`` draws it again from the raw samples. Needs matplotlib, which is
imported only here.
"""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.build import ROOT
from harness.stats import Target

PROJECT_PYTHON = ROOT / ".venv" / "bin" / "python"
FILE = "plot.png"
LABELS = ("size_bytes", "session", "mode", "cpus", "burst")


def _load(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _title(result: dict[str, Any]) -> str:
    parts = [f"{key} {result[key]}" for key in LABELS if key in result]
    against = f" / {result['baseline']}" if result["baseline"] else ""
    return f"{result['metric']}{against}\n{', '.join(parts)}"


def draw(folder: Path) -> Path:
    """Draw ``folder`` and return the picture's path; raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [result for result in _load(folder / "results.jsonl") if result["value"] is not None]
    environment = json.loads((folder / "environment.json").read_text())
    columns = 4
    lines = max(1, -(-len(results) // columns))
    figure, axes = pyplot.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines + 0.6), squeeze=False)
    colours = {True: "tab:green", False: "tab:red", None: "tab:gray"}
    words = {True: "kept", False: "missed", None: "undecided"}
    for axis in axes.flat[len(results) :]:
        axis.axis("off")
    for axis, result in zip(axes.flat, results, strict=False):
        values = result.get("values", [])
        axis.plot(values, [i / max(1, len(values)) for i in range(len(values))], "o", ms=3, color="tab:blue")
        low, high = result["spread"]
        axis.axvspan(low, high, color=colours[result["ok"]], alpha=0.25)
        axis.axvline(result["value"], color=colours[result["ok"]])
        if result.get("target"):
            axis.axvline(Target.parse(result["target"]).limit, color="black", ls="--", lw=1)
        judged = f"target {result['target']}: {words[result['ok']]}" if result.get("target") else "no target"
        axis.set_title(_title(result), fontsize=8)
        axis.set_xlabel(f"{result['value']:g} {result['unit']}, {judged}", fontsize=8)
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
    figure.suptitle(
        f"{environment['bench']}: each dot a pair (top: last), band: 90 % interval of the median, dashed: target\n"
        f"{environment['cpu_model']}, Linux {environment['kernel']}",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(folder / FILE, dpi=120)
    pyplot.close(figure)
    return folder / FILE


def draw_or_say_why_not(folder: Path, module: str = "harness.plot") -> None:
    """Let ``module`` draw ``folder`` with this Python or else the checkout's; without matplotlib in either, say so."""
    if importlib.util.find_spec("matplotlib"):
        importlib.import_module(module).draw(folder)
        return
    if PROJECT_PYTHON.exists():
        command = [str(PROJECT_PYTHON), "-m", module, str(folder.resolve())]
        if subprocess.run(command, cwd=ROOT / "bench", check=False, capture_output=True).returncode == 0:
            return
    print("no plot: matplotlib is not installed (make setup, or pip install matplotlib)", file=sys.stderr)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
