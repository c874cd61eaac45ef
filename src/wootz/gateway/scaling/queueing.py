"""The M/M/c queue in closed form: Poisson arrivals, exponential service, c servers, one line (Erlang C).

    a = λ/μ   ρ = a/c < 1   C = (a^c/c!)/(1-ρ) / (Σ_{k<c} a^k/k! + (a^c/c!)/(1-ρ))
    mean wait = C / (cμ - λ)      P(wait > t) = C exp(-(cμ - λ) t)

Summed by Erlang B's recurrence, which neither overflows nor loses digits for thousands of servers. Source: Erlang 1917;
Gross, Shortle, Thompson, Harris, "Fundamentals of Queueing Theory", section 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wootz.core import BadRequestError


@dataclass(frozen=True)
class Queue:
    """Arrivals a second, seconds of service, servers. A server is one place of a replica."""

    rate: float
    service: float
    servers: int

    @property
    def offered(self) -> float:
        """Erlangs: the servers that would be busy if there were endlessly many."""
        return self.rate * self.service

    @property
    def utilisation(self) -> float:
        return self.offered / self.servers

    @property
    def waiting_probability(self) -> float:
        """Erlang C; 1 where the queue grows for ever."""
        if self.utilisation >= 1:
            return 1.0
        blocking = 1.0
        for servers in range(1, self.servers + 1):
            blocking = self.offered * blocking / (servers + self.offered * blocking)
        return blocking / (1 - self.utilisation * (1 - blocking))

    @property
    def mean_wait(self) -> float:
        spare = self.servers / self.service - self.rate
        return self.waiting_probability / spare if spare > 0 else math.inf

    def wait_quantile(self, share: float) -> float:
        """What this share of requests waits at most."""
        spare = self.servers / self.service - self.rate
        if spare <= 0:
            return math.inf
        return max(0.0, math.log(self.waiting_probability / (1 - share)) / spare) if self.waiting_probability else 0.0


def fewest_servers(rate: float, service: float, *, wait: float, share: float, utilisation: float, step: int = 1) -> int:
    """The fewest servers, in steps of a replica's places, of which none is busier than ``utilisation`` and at which
    ``share`` of the requests wait at most ``wait`` seconds."""
    if rate <= 0 or service <= 0:
        raise BadRequestError("arrivals and seconds of service must be positive")
    servers = step * max(1, math.ceil(rate * service / utilisation / step - 1e-9))
    while Queue(rate, service, servers).wait_quantile(share) > wait:
        servers += step
    return servers
