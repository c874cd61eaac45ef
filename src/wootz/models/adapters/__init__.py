"""What a small file adds to a large model: LoRA's low-rank matrices, and prefixes of keys and values, in PEFT's format.

adapters = Adapters(model)
adapters.add("sql", load_adapter("adapters/sql", model))
with adapters.active("sql"):
    logits_TV = model.logits(token_ids)
"""
