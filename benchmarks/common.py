"""What the benchmarks share: the machine in words, commands with their peak memory, a table and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(*parts: str) -> Path:
    """A folder of the real data beside the repository; ends the program with one sentence where it is absent."""
    folder = SHARED.joinpath(*parts)
    if not folder.exists():
        sys.exit(f"error: this benchmark needs the real data in ../shared/data/{'/'.join(parts)}, which is absent.")
    return folder


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, accelerator and versions."""
    import torch

    import nndiffseg

    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nndiffseg": nndiffseg.__version__,
    }


@dataclass
class Finished:
    """A finished command: exit code, output, seconds, and the largest sum of resident memory over its process tree."""

    code: int
    output: str
    seconds: float
    peak_gb: float


def command(
    arguments: Sequence[str | Path],
    *,
    environment: dict[str, str] | None = None,
    kill_when: Path | None = None,
    check: bool = True,
) -> Finished:
    """Runs a command; ``kill_when`` sends SIGKILL as soon as that file exists."""
    started = time.monotonic()
    process = subprocess.Popen(
        [str(a) for a in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    peak = [0.0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], tree_memory(process.pid))
            if kill_when is not None and kill_when.exists():
                process.kill()
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = process.communicate()[0]
    watcher.join()
    if check and process.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))} failed with code {process.returncode}:\n{output[-4000:]}")
    return Finished(process.returncode, output, time.monotonic() - started, peak[0] / 2**30)


def tree_memory(root: int) -> float:
    """Bytes: proportional set size (shared pages counted once) of a process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    members, grown = {root}, True
    while grown:
        more = {p for p, parent in parents.items() if parent in members} - members
        members, grown = members | more, bool(more)
    total = 0.0
    for pid in members:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def write_untrained(base: str, dataset: str, plans_name: str, configuration: str, trainer: str = "nnDiffSegTrainer") -> None:
    """A model folder with random weights in ``base/results``, as training would leave it, for timing and memory."""
    import torch

    from nndiffseg.cli.train import find_trainer
    from nndiffseg.data.folders import configure_folders

    folders = configure_folders(*(f"{base}/{kind}" for kind in ("raw", "preprocessed", "results")))
    source = folders.preprocessed / dataset
    plans, dataset_json = (json.loads((source / name).read_text()) for name in (f"{plans_name}.json", "dataset.json"))
    made = find_trainer(trainer)({**plans, "continue_training": False}, configuration, 0, dataset_json, torch.device("cpu"))
    made.initialize()
    made.inference_allowed_mirroring_axes = tuple(range(len(made.configuration_manager.patch_size)))
    made.save_checkpoint(f"{made.output_folder}/checkpoint_final.pth")
    for name, content in (
        ("plans.json", made.plans_manager.plans),  # with the method's own patch and batch
        ("dataset.json", dataset_json),
    ):
        (Path(made.output_folder_base) / name).write_text(json.dumps(content))


def print_table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> list[str]:
    """Prints a table with aligned columns; returns its lines."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    print("\n".join(lines))
    return lines


def report(name: str, rows: Sequence[Sequence[Any]], header: Sequence[str], result: dict[str, Any]) -> None:
    """Prints one table and writes it with a summary to ``benchmarks/results/NAME.json``.

    These files are under version control: summaries only. What belongs to single cases goes where the user says, see
    :func:`write_per_case`.
    """
    lines = print_table(rows, header)
    RESULTS.mkdir(exist_ok=True)
    content = {"command": command_line(), "hardware": hardware(), **result, "table": lines}
    (RESULTS / f"{name}.json").write_text(compact(content) + "\n")


def command_line() -> str:
    """The running command, without folders of the machine, which say nothing to a reader."""
    words = ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
    for flag in ("--raw", "--preprocessed", "--results", "--per_case"):
        hidden = "FILE" if flag == "--per_case" else f"${flag.replace('--', 'nnUNet_')}"
        words = [hidden if before == flag else word for before, word in zip(["", *words], words, strict=False)]
        words = [f"{flag}={hidden}" if word.startswith(f"{flag}=") else word for word in words]
    line = " ".join(words)
    for kind in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        line = line.replace(os.environ.get(kind) or f"${kind}", f"${kind}")
    return " ".join(Path(word).name if word.startswith("/") else word for word in line.split(" "))


def write_per_case(file: Path | None, content: dict[str, Any]) -> None:
    """Writes metrics of single cases where the user wants them."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(compact(content) + "\n")
        print(f"metrics of every case: {file}", flush=True)


def compact(value: Any, indent: int = 0, width: int = 480) -> str:
    """JSON in which everything that fits into a line stands on one, and short items share lines."""
    flat = json.dumps(value)
    if len(flat) + indent <= width or not isinstance(value, (dict, list)) or not value:
        return flat
    if isinstance(value, dict):
        parts = [f"{json.dumps(str(k))}: {compact(v, indent + 1, width - len(str(k)) - 4)}" for k, v in value.items()]
    else:
        parts = [compact(v, indent + 1, width) for v in value]
    left, right = "{}" if isinstance(value, dict) else "[]"
    lines = [""]
    for part in parts:
        shared = lines[-1] and max(len(lines[-1]), len(part)) < width // 3 and "\n" not in lines[-1] + part
        lines[-1:] = [f"{lines[-1]}, {part}"] if shared else [*lines[-1:], part]
    space = " " * (indent + 1)
    return f"{left}\n{space}" + f",\n{space}".join(lines[1:]) + f"\n{' ' * indent}{right}"
