"""Steps laid out on the device from one copy of numbers, and replayed from CUDA graphs where that is faster."""
