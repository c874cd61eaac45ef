"""What an architecture costs, before anyone builds it: parameters, memory, arithmetic, money."""
