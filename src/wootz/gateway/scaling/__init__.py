"""How many replicas a model needs and when: a policy as a pure function, and a simulation that tries it on a load."""

from __future__ import annotations

from wootz.gateway.scaling.policy import Decision, Policy, State, decide
from wootz.gateway.scaling.queueing import Queue, fewest_servers
from wootz.gateway.scaling.simulation import Machine, Result, simulate
from wootz.gateway.scaling.traces import Trace

__all__ = ["Decision", "Machine", "Policy", "Queue", "Result", "State", "Trace", "decide", "fewest_servers", "simulate"]
