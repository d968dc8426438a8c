"""Gatekeeper beside what people would pick instead: `make bench`. Not part of the wheel."""
