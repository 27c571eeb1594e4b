"""The ground floor: how errors are told and how files are written. Imports nothing of Umbel's."""
