"""HTTP/1.1 itself: heads, framing, byte streams."""
