"""Weights of other programs: one engine (`rules`), one rule table per source. Strict both ways."""
