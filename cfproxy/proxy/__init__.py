"""What is done with a proxied request."""
