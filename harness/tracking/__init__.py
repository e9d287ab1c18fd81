"""Records to MLflow. A tracking failure never fails a trial."""

from harness.tracking.background import BackgroundTracker
from harness.tracking.tracker import MlflowTracker, initialise_store, log_profile

__all__ = ["BackgroundTracker", "MlflowTracker", "initialise_store", "log_profile"]
