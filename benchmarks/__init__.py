"""Scripts behind every figure this project states."""
