"""Want of memory is one sentence, whoever tells it; other errors stay what they are."""

from __future__ import annotations

import errno

import pytest
import torch

from nndiffseg.data.memory import LittleMemoryError, little_memory_told


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("Unable to allocate 3 GiB"), "There is too little memory for case_1; close what else runs, or buy some."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "There is too little memory for case_1"),
        (RuntimeError("std::bad_alloc"), "There is too little memory for case_1"),
        (RuntimeError("could not create a primitive"), "There is too little memory for case_1"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "There is too little memory for case_1"),
        (torch.OutOfMemoryError("CUDA out of memory"), "The GPU has too little memory for case_1; .* use -device cpu"),
    ],
    ids=["numpy", "torch", "C++", "oneDNN", "the system", "the GPU"],
)
def test_want_of_memory_is_one_sentence(error: Exception, sentence: str) -> None:
    with pytest.raises(LittleMemoryError, match=sentence), little_memory_told("case_1", "buy some"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        RuntimeError("could not create a primitive descriptor for a convolution"),
        OSError(errno.ENOSPC, "full"),
        ValueError("memory alloc"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error.args[-1])), little_memory_told("case_1", "buy some"):
        raise error
