"""Datasets: one loader per original form, one engine, one packed form."""
