"""Judges behind one interface: they grade one answer from 1 to 10, or compare two."""

from selfcontrast.evaluation.judges.judgment import STATUSES, Case, Judge, JudgeContext, Judging, Judgment, Status

__all__ = ["STATUSES", "Case", "Judge", "JudgeContext", "Judging", "Judgment", "Status"]
