"""What writes checkpoints: GPTQ and its calibration, GGUF files, whole folders. A server runs none of it."""
