"""GGUF, llama.cpp's format, as far as names, numbers and shapes go: no tensor is read here."""
