"""Attention in every form the field has tried, one idea per file; a layer's context uses `dense.attend`."""
