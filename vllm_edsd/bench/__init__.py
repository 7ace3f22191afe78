"""Arms side by side on real servers: what speculation brings, and what it costs."""
