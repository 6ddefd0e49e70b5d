"""Live graphs: converting them, deploying them, saving them."""
