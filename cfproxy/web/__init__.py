"""What listens: the proxy, the admin endpoints, and how errors are answered."""
