"""One language model through other libraries' compression and through ours: time, memory, size, perplexity, codes."""
