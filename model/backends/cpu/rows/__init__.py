"""What a layer does between its products, row by row, and the rotary angles of a step."""
