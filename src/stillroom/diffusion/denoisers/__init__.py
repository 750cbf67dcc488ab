"""Denoisers: closed forms, preconditioned networks, guidance, and models of other libraries."""
