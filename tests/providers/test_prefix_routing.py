"""Where prompts go, as a policy by itself."""

from __future__ import annotations

import random
from collections import Counter

from wootz.providers.prefix_routing import PrefixRouting

REPLICAS = ["a", "b", "c"]
SYSTEM = "You are a helpful assistant. " * 20


def send(routing: PrefixRouting, prompt, replicas=REPLICAS):
    replica = routing.choose(prompt, replicas)
    routing.sent(prompt, replica)
    return replica


def test_a_conversation_stays_where_it_began():
    routing = PrefixRouting()
    homes = {}
    texts = {user: f"user {user}: " + "x" * 100 for user in range(9)}
    for _ in range(5):
        for user in texts:
            replica = send(routing, texts[user])
            assert homes.setdefault(user, replica) == replica
            routing.done(replica)
            texts[user] += f" and then {user}" * 20
    assert Counter(homes.values()) == {"a": 3, "b": 3, "c": 3}


def test_the_longest_beginning_wins():
    routing = PrefixRouting(block=4)
    routing.sent("aaaabbbbcccc", "a")
    routing.sent("aaaabbbbdddd", "b")
    assert routing.choose("aaaabbbbccccx", REPLICAS) == "a"
    assert routing.choose("aaaabbbbddddx", REPLICAS) == "b"
    assert routing.holder("aaaabbbbcccc", ["b", "c"]) == "b"  # which has the first two blocks
    assert routing.holder("zzzz", REPLICAS) is None
    assert routing.holder([1, 2, 3, 4], REPLICAS) is None
    routing.sent([1, 2, 3, 4, 5], "c")
    assert routing.choose([1, 2, 3, 4, 6], REPLICAS) == "c"


def test_a_popular_prefix_does_not_drown_one_replica():
    routing = PrefixRouting(most_extra=4)
    for number in range(300):
        send(routing, SYSTEM + str(number))
        assert max(routing.under_way.values()) - min(routing.under_way[r] for r in REPLICAS) <= 5
    for replica in REPLICAS:
        for _ in range(100):
            routing.done(replica)
    assert len({send(routing, SYSTEM + str(number)) for number in range(4)}) == 1  # while there is no need


def test_a_replica_that_is_gone_is_not_chosen_and_memory_is_bounded():
    routing = PrefixRouting(block=8, most_prefixes=100)
    home = send(routing, SYSTEM)
    others = [replica for replica in REPLICAS if replica != home]
    assert routing.choose(SYSTEM, others) in others
    random.seed(0)
    for _ in range(200):
        send(routing, "".join(random.choices("abc", k=64)))
    assert len(routing._given) == 100
    routing.done("never seen")
    assert routing.under_way["never seen"] == 0
