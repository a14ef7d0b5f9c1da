"""`qwen-server perplexity`: how well a checkpoint reads text beyond its trained length, with NTK, LogN and windows."""
