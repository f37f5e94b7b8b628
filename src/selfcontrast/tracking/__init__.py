"""Where the metrics, tables and artifacts of a job go: nowhere, CSV files, or a run of Weights & Biases."""

from selfcontrast.tracking.csv import CsvTracking
from selfcontrast.tracking.tracker import NoTracking, Tracker, Tracking, Untracked
from selfcontrast.tracking.wandb import WandbTracking

__all__ = ["CsvTracking", "NoTracking", "Tracker", "Tracking", "Untracked", "WandbTracking"]
