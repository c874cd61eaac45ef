"""Routes: a name over several models, with a policy, retries, circuit breakers and fallback."""

from wootz.gateway.routing.deployment import Deployment
from wootz.gateway.routing.opening import open_routes
from wootz.gateway.routing.route import Route, Target

__all__ = ["Deployment", "Route", "Target", "open_routes"]
