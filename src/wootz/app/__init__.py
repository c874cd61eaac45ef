"""Puts the house together: the HTTP application out of every room's routes, and the supervisor of its processes."""
