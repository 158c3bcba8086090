"""Speed, measured: each file prints one table and one JSON line."""
