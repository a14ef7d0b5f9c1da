"""`qwen-server export`: one file that llama.cpp loads."""
