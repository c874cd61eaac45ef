"""From raw text to batches: corpora, filters, deduplication, mixtures, token stores, packing."""
