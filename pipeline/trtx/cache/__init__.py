"""Content-addressed engine cache: entries appear whole, stay read-only, and are checked when read."""
