"""Frozen configs and records, errors, seeding, files, units: everything that the other rooms share. No torch."""
