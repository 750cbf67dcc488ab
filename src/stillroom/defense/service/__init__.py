"""The guard in front of a real endpoint: web application, account store, middleware."""
