"""Many actors, one learner: who may be ahead of whom, how random each actor is, and where weights are handed over."""

from relive.share.ladder import epsilon_ladder
from relive.share.rate_limit import Gate, GateStats, RateLimiter
from relive.share.weights import Weights, WeightsHandle
from relive.shared import Handle

__all__ = ["Gate", "GateStats", "Handle", "RateLimiter", "Weights", "WeightsHandle", "epsilon_ladder"]
