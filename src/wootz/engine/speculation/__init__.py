"""Speculative decoding: guess some tokens cheaply, have the model check all of them in one pass.

A pass over five tokens takes hardly longer than over one, as long as reading the weights is what takes the time. So
something cheap drafts (`Speculator`, one file per method), the model computes the draft behind the last known token,
and `verify.py` keeps what the model itself would have written. `Speculation` decides who is drafted for and how far.
"""
