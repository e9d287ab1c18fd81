"""Records to MLflow. A tracking failure never fails a trial."""

from harness.tracking.background import BackgroundTracker
from harness.tracking.registry import Registration, check_registration, register_bundle
from harness.tracking.tracker import MlflowTracker, initialise_store, log_profile

__all__ = [
    "BackgroundTracker",
    "MlflowTracker",
    "Registration",
    "check_registration",
    "initialise_store",
    "log_profile",
    "register_bundle",
]
