"""Numbers that are fitted after a training: the value, the tables it is fitted to, and the fits."""

from nndiffseg.calibration.calibration import Calibration
from nndiffseg.calibration.fit import cross_fit, cross_fitted, fit
from nndiffseg.calibration.tables import CaseTable, read_tables, write_table

__all__ = ["Calibration", "CaseTable", "cross_fit", "cross_fitted", "fit", "read_tables", "write_table"]
