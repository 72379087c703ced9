"""Predicts a folder together with other runs of the same command, on this computer or on others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nndiffseg.data.cases import Case
from nndiffseg.data.listing import with_side_files
from nndiffseg.data.records import hash_of
from nndiffseg.export.writer import ExportJob
from nndiffseg.inference.claims import PAUSE, Claims, taking_part
from nndiffseg.inference.resume import FREE, left_to_predict

#: the last piece of work, which no case can be called
REPORT = "report.html"


def predict_shared(
    job: ExportJob,
    cases: Sequence[Case],
    numbers: tuple[int, int],
    batch: int,
    predict: Callable[[Sequence[Case]], dict[str, str]],
    report: Callable[[], None],
) -> tuple[list[str], dict[str, str]]:
    """Predicts what no other run has predicted or is predicting, until all cases are done, also those of runs that died.

    Every run waits for the others at its end, because a case of one that dies is left to it. The report is written once.

    Args:
        job: of this run.
        cases: all of the folder.
        numbers: of samples and folds.
        batch: of so many cases that are claimed at a time.
        predict: writes the files of some cases; case -> sentence where it is bad.
        report: writes the report of all cases that are there.

    Returns:
        Ids of the cases that this run predicted or found bad; case -> sentence of the bad ones.
    """
    keys = {case.id: _key(job, case) for case in cases}
    left, tried, bad = list(cases), [], dict[str, str]()
    with taking_part(job.output) as claims:
        waiting = False
        while left:
            mine = _claim(claims, left, keys, batch)
            todo = left_to_predict(job, mine, *numbers)
            wrong = predict(todo) if todo else {}
            bad |= wrong
            tried += [case.id for case in todo]
            for case in mine:
                claims.give_back(case.id, "" if case.id in wrong else keys[case.id])
            finished = {case.id for case in mine}
            left = [case for case in left if case.id not in finished and claims.done(case.id) != keys[case.id]]
            if left and not mine:
                if not waiting:
                    print(f"Waiting for {len(left)} cases that other runs predict.", flush=True)
                waiting = True
                time.sleep(PAUSE)
        _report_once(claims, hash_of(sorted(keys.values())), report)
    return tried, bad


def _claim(claims: Claims, cases: Sequence[Case], keys: dict[str, str], number: int) -> list[Case]:
    """Up to so many cases that no run holds or has done."""
    mine: list[Case] = []
    for case in cases:
        if len(mine) == number:
            break
        if claims.done(case.id) != keys[case.id] and claims.take(case.id):
            mine.append(case)
    return mine


def _report_once(claims: Claims, key: str, report: Callable[[], None]) -> None:
    while claims.done(REPORT) != key:
        if claims.take(REPORT):
            report()
            claims.give_back(REPORT, key)
            return
        time.sleep(PAUSE)


def _key(job: ExportJob, case: Case) -> str:
    """What the files of a case follow from: settings, and images as they lie there now."""
    settings = {name: value for name, value in job.settings.items() if name not in FREE}
    stamps = [_stamp(file) for file in (*with_side_files(list(case.files), label=False), *case.previous)]
    return hash_of([settings, job.save_samples, sorted(job.probabilities), stamps])


def _stamp(file: Path) -> list[int]:
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns]
