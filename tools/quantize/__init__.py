"""`qwen-server quantize`: an Int4 or Int8 checkpoint from an unquantised one."""
