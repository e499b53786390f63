"""Wrong input of every kind, in tables: what is given, and what must be said of it."""
