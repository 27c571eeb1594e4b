"""Rows made while training: documents at hand, lanes, and the processes that read them."""
