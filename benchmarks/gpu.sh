#!/usr/bin/env bash
# What only a GPU can say, in one call of at most nine minutes: tests marked gpu; seconds and memory of a training step and of
# a prediction beside nnU-Net for the planners S, M and L in 2D and 3D; the first 200 iterations of every trainer; attaching.
#
#   benchmarks/gpu.sh OUTPUT_FOLDER            PYTHON=... chooses the interpreter, GPU_SH_SMALL=1 tries it on the CPU
#
# Every step runs under `timeout`, a failing step does not stop the others, and no step begins after the time is over.
# OUTPUT_FOLDER/gpu.json holds all results and gpu.log all output; intermediate files are in a temporary folder.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: benchmarks/gpu.sh OUTPUT_FOLDER" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.."
python=${PYTHON:-python} log=$out/gpu.log
work=$(mktemp -d) && mkdir "$work/speed" || exit 2
trap 'rm -rf "$work"' EXIT
: > "$log"
: > "$work/steps.tsv"

if [ "${GPU_SH_SMALL:-0}" = 1 ]; then
    device=cpu total=3600 scale=12 sizes=(32 16) samples=2 cases=8 iterations=2 planners=(S)
    trainers=(nnUNetTrainer nnDiffSegTrainer)
else
    device=cuda total=530 scale=1 sizes=(512 128) samples=16 cases=32 iterations=200 planners=(S M L)
    trainers=(nnUNetTrainer nnDiffSegTrainer nnDiffSegTrainerLDSeg nnDiffSegTrainerCDAL nnDiffSegTrainerMedSegDiffV2)
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} nnUNet_compile=f
export nnUNet_raw=$work/raw nnUNet_preprocessed=$work/preprocessed nnUNet_results=$work/results

# step NAME SECONDS COMMAND...: runs the command, for at most so long and never beyond the end; keeps its exit code.
step() {
    local name=$1 limit=$(($2 * scale)) left=$((total - SECONDS)) began=$SECONDS code
    shift 2
    [ "$left" -lt "$limit" ] && limit=$left
    if [ "$limit" -lt 5 ]; then
        code=skipped
    else
        echo "=== $name: $*" >> "$log"
        timeout -k 5 "$limit" "$@" >> "$log" 2>&1
        code=$?
    fi
    printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - began)) >> "$work/steps.tsv"
    echo "$name: exit code $code, $((SECONDS - began)) s"
}

# The data are made by the processor meanwhile.
export phantom="from nndiffseg.data.phantom import write_phantom_dataset as w; w('$nnUNet_raw', cases=$cases, test_cases=0)"
timeout -k 5 $((300 * scale)) bash -c '"$0" -c "$phantom" &&
    "$0" -m nndiffseg.cli.plan_and_preprocess -d 999 -pl DiffSegPlannerS -c 3d_fullres --no_pbar -np 1 -npfp 1' "$python" \
    > "$work/prepare.log" 2>&1 &
preparing=$!
mapfile -t marked < <(grep -rl --include='test_*.py' '^@pytest.mark.gpu' tests)
step "tests marked gpu" 60 "$python" -m pytest -n 0 -q -m gpu -p no:cacheprovider "${marked[@]}"
for planner in "${planners[@]}"; do
    for axes in 2 3; do
        step "speed $planner ${axes}D" 40 "$python" -m benchmarks.gpu_speed --planner "$planner" --axes "$axes" \
            --size "${sizes[axes - 2]}" --samples "$samples" --device "$device" --output "$work/speed/${planner}_${axes}d.json"
    done
done
step "data" 60 tail --pid "$preparing" -f /dev/null
cat "$work/prepare.log" >> "$log"
for trainer in "${trainers[@]}"; do
    step "$iterations iterations of $trainer" 50 "$python" -m benchmarks.compare.training -d 999 -c 3d_fullres --planner S \
        --trainer "$trainer" --iterations "$iterations" --device "$device"
done
step "attach" 60 "$python" -m nndiffseg.cli.attach \
    "$nnUNet_results/Dataset999_Phantom/nnUNetTrainer__nnDiffSegPlansS__3d_fullres" \
    --folds 0 --epochs 1 --iterations_per_epoch "$iterations" -device "$device" --disable_progress_bar

"$python" - "$work" "$out" "$SECONDS" << 'END'
import json
import sys
from pathlib import Path

work, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
steps = [line.split("\t") for line in (work / "steps.tsv").read_text().splitlines()]
found = {
    "command": "benchmarks/gpu.sh OUTPUT_FOLDER",
    "seconds": seconds,
    "steps": {name: {"code": int(code) if code.isdigit() else code, "seconds": int(took)} for name, code, took in steps},
    "speed": {f.stem: json.loads(f.read_text()) for f in sorted((work / "speed").glob("*.json"))},
    "training": {f.parts[-3].split("__")[0]: json.loads(f.read_text()) for f in sorted(work.rglob("benchmark_training.json"))},
}
found["hardware"] = next((of.pop("hardware") for of in found["speed"].values()), None)
for of in found["speed"].values():
    of.pop("hardware", None)
text = json.dumps(found, indent=1).replace(str(work), "FOLDER")
(out / "gpu.json").write_text(text + "\n")
print(f"\n{'':22}{'train s':>9}{'GB':>7}{'predict s':>11}{'GB':>7}")
for name, of in found["speed"].items():
    for side in ("nnunet", "nndiffseg"):
        cells = [of[f"{task} {side}"].get(k, float("nan")) for task in ("training", "prediction") for k in ("seconds", "peak_gb")]
        print(f"{name + ' ' + side:22}{cells[0]:9.4f}{cells[1]:7.2f}{cells[2]:11.4f}{cells[3]:7.2f}")
for name, of in found["training"].items():
    step = of["seconds_per_iteration"]
    print(f"{name}: {of['iterations']} iterations, {of['seconds']:.0f} s" + (f", {step:.4f} s a step" if step else ", not finished"))
failed = [name for name, step in found["steps"].items() if step["code"] != 0]
print(f"{seconds} s; failed or skipped: {', '.join(failed) or 'nothing'}")
END
exit $?
