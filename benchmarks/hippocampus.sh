#!/usr/bin/env bash
# The hippocampus on a CPU: plans of size S, fold 0 of the dataset's grouped splits, a bounded training, validation,
# then the contracts, nnU-Net's own tools and seams on the trained model.
#
#   nnUNet_raw=.../shared/data/nnUNet_raw nnUNet_preprocessed=... nnUNet_results=... benchmarks/hippocampus.sh [MINUTES]
set -euo pipefail
minutes=${1:-45}
cd "$(dirname "$0")/.."
nndiffseg_plan_and_preprocess -d 4 -pl DiffSegPlannerS -c 3d_fullres
nndiffseg_train 4 3d_fullres 0 -p nnDiffSegPlansS --minutes "$minutes" --disable_progress_bar
python -m benchmarks.fold_summary -d 4 -c 3d_fullres -p nnDiffSegPlansS -f 0 --name hippocampus_fold0
model=$nnUNet_results/Dataset004_Hippocampus/nnDiffSegTrainer__nnDiffSegPlansS__3d_fullres
python -m benchmarks.stock_nnunet -d 4 -c 3d_fullres -p nnDiffSegPlansS -f 0
python -m benchmarks.contracts -m "$model" -i "$nnUNet_raw/Dataset004_Hippocampus/imagesTr"
python -m benchmarks.seams -m "$model" -i "$nnUNet_raw/Dataset004_Hippocampus/imagesTr/hippocampus_049_0000.nii.gz"
