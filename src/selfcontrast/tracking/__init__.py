"""Trackers for a job's metrics, tables and artifacts: none, CSV files, or a run of Weights & Biases."""

from selfcontrast.tracking.csv import CsvTracking
from selfcontrast.tracking.tracker import NoTracking, NullTracker, Tracker, Tracking
from selfcontrast.tracking.wandb import WandbTracking

__all__ = ["CsvTracking", "NoTracking", "NullTracker", "Tracker", "Tracking", "WandbTracking"]
