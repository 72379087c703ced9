"""One family of comparisons: what is trained alike is predicted, calibrated and evaluated alike.

In the order of a comparison:

- :mod:`~benchmarks.compare.data`: the cases of one fold, their images and annotations.
- :mod:`~benchmarks.compare.training`: trains nnU-Net's own trainer or one of nndiffseg's for a given number of iterations.
- :mod:`~benchmarks.compare.library`: the one module that knows nndiffseg's and nnU-Net's predictors.
- :mod:`~benchmarks.compare.predictions`: the one prediction cache, beside the trained models.
- :mod:`~benchmarks.compare.fits`: the one cross-fit; the same fits for every side.
- :mod:`~benchmarks.compare.metrics`, :mod:`~benchmarks.compare.evaluation`: the one metric path, case by case.
- :mod:`~benchmarks.compare.pooling`, :mod:`~benchmarks.compare.table`: means over cases, paired intervals, the table.
"""
